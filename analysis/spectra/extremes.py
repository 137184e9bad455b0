"""Extreme eigenpairs at both ends, each with a residual formed from products and a second opinion in float64.

Rayleigh-Ritz over the joint space of all Lanczos probes, then expansion by the residuals of the pairs that are wanted and
not converged, with thick restarts (Wu and Simon 2000; with several probes, its block form). Several independent probes
find repeated eigenvalues; where more pairs are wanted than there are probes, fresh vectors orthogonal to the whole space are
tried, and each followed until its pair settles inside the wanted ones, until one brings nothing beyond them.

A residual ||Hv - lambda v|| shows that some eigenvalue is that near, never that none was missed: `analysis.spectra.missed`. Hv is
formed from the products of the basis, not estimated by a recurrence; the product in float64 says how far that is from H64 v.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from analysis.operators import Deflated, LinearOperator
from analysis.spectra.lanczos import Krylov, capacity, dots, krylov, random_unit
from analysis.spectra.missed import missed_below
from analysis.spectra.subspace import Subspace
from checkpoints.records import EigenPairs
from landscape.errors import InputError

GAP = 0.5           # share of a fresh pair's distance from those found that its residual may be, to stand for none beyond them
ENDS = {"lower": (True, False), "upper": (False, True), "both": (True, True)}


def extreme_eigenpairs(source: LinearOperator | Krylov, k: int, *, which: str = "both", tol: float = 1e-5,
                       max_matvecs: int = 1000, generator: torch.Generator, verify: bool = True,
                       progress: Callable[[int], None] | None = None) -> EigenPairs:
    """Return the k smallest and the k largest eigenpairs (`which`: both, lower or upper), ascending.

    tol          a pair has converged when ||Hv - value v|| <= tol |value|; below the product's rounding, 1e-6 |lambda_max| for
                 float32, no pair can
    max_matvecs  products that may be spent beyond those of a given Krylov space; pairs are then returned as they are. Each is
                 multiplied once more in any case
    verify       multiply each pair once more in float64; else in the operator's own dtype
    """
    if which not in ENDS:
        raise InputError(f"which={which!r} is unknown: expected one of {', '.join(ENDS)}")
    operator = source.operator if isinstance(source, Krylov) else source
    if not 1 <= k <= operator.size // sum(ENDS[which]):
        raise InputError(f"k={k} is out of range: expected 1 <= k <= {operator.size // sum(ENDS[which])} for which={which!r}")
    wanted = _Wanted(k, *ENDS[which])
    if not isinstance(source, Krylov):
        if max_matvecs <= 2 * wanted.count:
            raise InputError(f"max_matvecs={max_matvecs} is out of range: expected at least {2 * wanted.count + 1}, to find "
                             f"{wanted.count} pairs and to multiply each once more")
        steps = min(operator.size, max(20, 2 * k), max_matvecs - wanted.count)
        source = krylov(operator, num_matvecs=steps, num_probes=1, generator=generator, num_ritz=2 * k, progress=progress)
        max_matvecs -= source.num_matvecs
    space = Subspace.of(source.ritz, operator, progress)
    while (missing := wanted.count - len(space)) > 0:     # the probes broke down early: few distinct eigenvalues
        space.expand(random_unit(missing, operator, generator))
    _converge(space, wanted, lambda values: tol * np.abs(values), max_matvecs)
    if not source.random or k > min(len(source.alphas), source.num_ritz):   # not every pair had a start vector of its own
        _confirm(space, wanted, tol, max_matvecs, generator)
    return _report(space, wanted, source, tol, verify)


@dataclass(frozen=True)
class _Wanted:
    """Which Ritz pairs of an ascending list are asked for."""

    k: int
    lower: bool
    upper: bool

    @property
    def count(self) -> int:
        return self.k * (self.lower + self.upper)

    @property
    def which(self) -> str:
        return next(name for name, ends in ENDS.items() if ends == (self.lower, self.upper))

    def places(self, count: int) -> np.ndarray:
        low = np.arange(min(self.k, count)) if self.lower else np.arange(0)
        high = np.arange(max(count - self.k, 0), count) if self.upper else np.arange(0)
        return np.union1d(low, high)


def _converge(space: Subspace, wanted: _Wanted, limits: Callable[[np.ndarray], np.ndarray], max_matvecs: int) -> None:
    """Expand by residuals of wanted pairs until all are within their limits, stand at rounding, or the budget is spent.

    `limits` maps the wanted values, ascending, to the residuals that they may have. One direction serves all pairs of a
    Krylov space: of each end the outermost open pair is followed, and those outside it are looked at again at the end.
    """
    eps, largest = torch.finfo(space.V.dtype).eps, max(capacity(space.operator), 6 * wanted.k + 40)
    settled = [0, 0]        # pairs of the lower and of the upper end, from outside, that were within their limits
    while True:
        values = space.solve()
        places = wanted.places(len(values))
        allowed = np.full(len(values), np.inf)
        allowed[places] = np.maximum(limits(values[places]), 8 * eps * np.abs(values).max())
        R, left = _outermost_open(space, wanted, allowed, settled), max_matvecs - space.num_matvecs - len(places)
        if R is None or left < 1 or len(space) >= space.operator.size:
            return
        R = R[:left]
        if len(space) + len(R) > largest:
            space.shrink(_Wanted(max(2 * wanted.k + 6, largest // 4), True, True).places(len(values)))
        if not space.expand(R):
            return


def _outermost_open(space: Subspace, wanted: _Wanted, allowed: np.ndarray, settled: list[int]) -> Tensor | None:
    """Return the residual vector of the outermost pair above its limit at each end; None once all were looked at and none is.

    `settled` counts, end by end, the pairs found within their limits: their residuals are not formed at every step.
    """
    for _ in range(2):
        if open_ := _look_inwards(space, wanted, allowed, settled):
            return torch.stack(open_)
        settled[:] = [0, 0]     # they may have moved since: all are looked at once more
    return None


def _look_inwards(space: Subspace, wanted: _Wanted, allowed: np.ndarray, settled: list[int]) -> list[Tensor]:
    """Go from the settled pairs of both ends inwards until one is open, or none is left."""
    ends = [end for end, asked in enumerate((wanted.lower, wanted.upper)) if asked]
    open_: dict[int, Tensor] = {}
    while looked := [end for end in ends if end not in open_ and settled[end] < min(wanted.k, len(allowed))]:
        places = np.array([(settled[end], len(allowed) - 1 - settled[end])[end] for end in looked])
        for end, place, row, norm in zip(looked, places, *space.residuals(places)):     # both ends from one pass over the basis
            if norm > allowed[place]:
                open_[end] = row
            else:
                settled[end] += 1
    return list(open_.values())


def _confirm(space: Subspace, wanted: _Wanted, tol: float, max_matvecs: int, generator: torch.Generator) -> None:
    """Look for pairs that the start vectors missed, from fresh ones in the complement of the space, until nothing new turns up.

    An eigenvector that no start vector had a part in is orthogonal to the whole space. There the ends that the space has found
    are missing, so that what is left is narrow, and few products tell where it ends.
    """
    one = replace(wanted, k=1)
    while True:
        values = space.solve()
        places = wanted.places(len(values))
        before, left = values[places], max_matvecs - space.num_matvecs - wanted.count - 2   # the last ones multiply what is found
        steps = min(max(10, wanted.k), space.operator.size - len(space), left)
        if steps < 1:
            return
        rest = Deflated(space.operator, space.V)
        fresh = krylov(rest, num_matvecs=steps, num_probes=1, generator=generator, num_ritz=1, progress=space.progress,
                       start=rest.project(random_unit(1, rest, generator)))
        other = Subspace.of(fresh.ritz, rest, space.progress)
        _converge(other, one, _inside(wanted, before, tol), left - steps)
        space.num_matvecs += steps + other.num_matvecs
        space.expand(other.vectors(one.places(len(other.solve()))))
        _converge(space, wanted, lambda values: tol * np.abs(values), max_matvecs)
        after = space.solve()
        after = after[wanted.places(len(after))]
        if len(after) == len(before) and (np.abs(after - before) <= _slack(wanted, after, tol, space.V.dtype)).all():
            return


def _slack(wanted: _Wanted, found: np.ndarray, tol: float, dtype: torch.dtype) -> np.ndarray:
    """Return how far each value may move and be the same: by tol of the largest at its own end, or by rounding of them all."""
    ends = np.array_split(np.abs(found), wanted.lower + wanted.upper)
    return np.maximum(np.concatenate([np.full(len(end), tol * end.max()) for end in ends]),
                      1e2 * torch.finfo(dtype).eps * np.abs(found).max())


def _inside(wanted: _Wanted, found: np.ndarray, tol: float) -> Callable[[np.ndarray], np.ndarray]:
    """Return limits for one pair of the complement at each end: small beside its distance from the last of those found.

    It then stands for an eigenvalue that is not beyond them. One that already is beyond has no limit.
    """
    lower, upper = found[:wanted.k], found[-wanted.k:]

    def limits(values: np.ndarray) -> np.ndarray:
        gaps = [values[0] - lower[-1]] * wanted.lower + [upper[0] - values[-1]] * wanted.upper
        least = [tol * np.abs(lower).max()] * wanted.lower + [tol * np.abs(upper).max()] * wanted.upper
        room = np.where(np.array(gaps) < 0, np.inf, np.maximum(GAP * np.array(gaps), least))
        return room if len(room) == len(values) else room.min(keepdims=True)    # a space of one vector has one pair for both
    return limits


def _report(space: Subspace, wanted: _Wanted, source: Krylov, tol: float, verify: bool) -> EigenPairs:
    """Report the wanted pairs, multiplied once more: in float64 where that is asked for and possible, else as before.

    The residual is that of the operator's own matrix H: from the products of the basis, in their dtype, where others were made in
    float64, else from those just made. How far float64 is from these is told apart, `rounding` = ||(H64 - H) v||, and does not
    enter `converged`: ||H64 v - value v|| is at most the sum of both, and where rounding > tol |value| a pair that has converged
    has done so for H alone.
    """
    X, HX, values = space.pairs(wanted.places(len(space.solve())))
    wide = _widely(X, space) if verify else None
    opinion = _second_opinion(X, HX, wide)
    R = (space.apply(X) if wide is None else HX) - values[:, None].to(X.dtype) * X
    residuals, values = dots(R, R).sqrt().cpu().numpy(), values.cpu().numpy()
    return EigenPairs(values, residuals, residuals <= tol * np.abs(values), *opinion, X.cpu().numpy(), tol,
                      space.num_matvecs + source.num_matvecs, missed_below(source, float(values[0])), wanted.which)


def _widely(X: Tensor, space: Subspace) -> Tensor | None:
    """Return the products in float64; None for a network that computes a part in float32 whatever it is given."""
    try:
        wide = space.operator.double()
    except InputError:
        return None
    space.num_matvecs += len(X)
    return wide.matmat(X.double())


def _second_opinion(X: Tensor, HX: Tensor, wide: Tensor | None) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return values in float64, the distance of the products so far from those, and whether the sign of each value is certain."""
    if wide is None:
        return np.full(len(X), np.nan), np.full(len(X), np.nan), np.zeros(len(X), bool)
    X64, difference = X.double(), wide - HX.double()
    norms = dots(X64, X64)
    values = dots(X64, wide) / norms
    rounding = 1e3 * torch.finfo(torch.float64).eps * values.abs().max()    # of the float64 product itself
    certain = values.abs() > torch.maximum(10 * dots(X64, difference).abs() / norms, rounding)
    return values.cpu().numpy(), difference.norm(dim=1).cpu().numpy(), certain.cpu().numpy()
