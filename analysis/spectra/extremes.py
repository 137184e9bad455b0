"""Extreme eigenpairs at both ends, each with a recomputed residual and a second opinion in float64.

Rayleigh-Ritz over the joint space of all Lanczos probes, then expansion by the residuals of the pairs that are wanted and
not converged, with thick restarts (Wu and Simon 2000; with several probes, its block form). Several independent probes
find repeated eigenvalues; where more pairs are wanted than there are probes, fresh vectors orthogonal to what was found
are tried, and each followed until its pair settles inside the wanted ones, until one brings nothing beyond them.

A residual ||Hv - lambda v|| shows that some eigenvalue is that near, never that none was missed. The probability of that
is bounded by Kuczynski and Wozniakowski (1992): for m Lanczos steps from a uniform unit vector in d dimensions,

    P(lambda_min(T) - lambda_min > eps (lambda_max - lambda_min)) <= 1.648 sqrt(d) exp(-(2m - 1) sqrt(eps)).
"""

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
import torch
from scipy.stats import chi2
from torch import Tensor

from analysis.operators import Deflated, LinearOperator
from analysis.spectra.lanczos import BREAKDOWN, Krylov, Ritz, capacity, dots, finite, gram, krylov, random_unit
from checkpoints.records import EigenPairs, Estimate
from landscape.errors import InputError

ENDS = {"lower": (True, False), "upper": (False, True), "both": (True, True)}
LEVEL = 0.95        # of the bound on what was missed


def extreme_eigenpairs(source: LinearOperator | Krylov, k: int, *, which: str = "both", tol: float = 1e-5,
                       max_matvecs: int = 1000, generator: torch.Generator, verify: bool = True,
                       progress: Callable[[int], None] | None = None) -> EigenPairs:
    """Return the k smallest and the k largest eigenpairs (`which`: both, lower or upper), ascending.

    tol          a pair has converged when ||Hv - value v|| <= tol |value|; below the product's rounding, 1e-6 |lambda_max| for
                 float32, no pair can
    max_matvecs  products that may be spent beyond those of a given Krylov space; pairs are then returned as they are
    verify       multiply each pair once more in float64
    """
    if which not in ENDS:
        raise InputError(f"which={which!r} is unknown: expected one of {', '.join(ENDS)}")
    operator = source.operator if isinstance(source, Krylov) else source
    if not 1 <= k <= operator.size // sum(ENDS[which]):
        raise InputError(f"k={k} is out of range: expected 1 <= k <= {operator.size // sum(ENDS[which])} for which={which!r}")
    if not isinstance(source, Krylov):
        steps = min(operator.size, max(20, 2 * k))
        source = krylov(operator, num_matvecs=steps, num_probes=1, generator=generator, num_ritz=2 * k, progress=progress)
    space = _Space.of(source.ritz, operator, progress)
    wanted = _Wanted(k, *ENDS[which])
    while (missing := wanted.count - len(space)) > 0:     # the probes broke down early: few distinct eigenvalues
        space.expand(random_unit(missing, operator, generator))
    _converge(space, wanted, lambda values: tol * np.abs(values), max_matvecs)
    if k > min(len(source.alphas), source.num_ritz):        # not every wanted pair had a start vector of its own
        _confirm(space, wanted, tol, max_matvecs, generator)
    X, HX, values = space.exact(wanted)
    return _report(X, HX, values, operator, source, space.num_matvecs + source.num_matvecs, tol, verify)


@dataclass(frozen=True)
class _Wanted:
    """Which Ritz pairs of an ascending list are asked for."""

    k: int
    lower: bool
    upper: bool

    @property
    def count(self) -> int:
        return self.k * (self.lower + self.upper)

    def places(self, count: int) -> np.ndarray:
        low = np.arange(min(self.k, count)) if self.lower else np.arange(0)
        high = np.arange(max(count - self.k, 0), count) if self.upper else np.arange(0)
        return np.union1d(low, high)


class _Space:
    """An orthonormal basis V (p, d) with known products HV, T = V (HV)' (p, p), and its Rayleigh-Ritz pairs.

    Rows are appended in place and T grows with them; the basis is rotated only at a restart.
    """

    def __init__(self, V: Tensor, HV: Tensor, operator: LinearOperator, progress: Callable[[int], None] | None):
        self.operator, self.progress, self.num_matvecs = operator, progress, 0
        self._V, self._HV = V, HV       # with room for more rows at the end
        self.T = gram(V, HV)

    @classmethod
    def of(cls, ritz: Ritz, operator: LinearOperator, progress: Callable[[int], None] | None) -> "_Space":
        """Join the probes' spaces. Directions that they nearly share are kept once: their difference is mostly rounding."""
        V, HV = ritz.vectors, ritz.products
        for _ in range(2):
            C = _orthonormalizer(gram(V, V), 0.03).to(V.dtype)
            V, HV = C @ V, C @ HV
        return cls(V, HV, operator, progress)

    def __len__(self) -> int:
        return len(self.T)

    @property
    def V(self) -> Tensor:
        return self._V[:len(self)]

    @property
    def HV(self) -> Tensor:
        return self._HV[:len(self)]

    def solve(self) -> np.ndarray:
        """Find the Ritz pairs of the space as it is, and return their values, ascending."""
        values, S = torch.linalg.eigh((self.T + self.T.T) / 2)
        self.S = S.T.to(self.V.dtype)       # (p, p): the Ritz vectors are S V
        self.values = values.cpu().numpy()
        return self.values

    def vectors(self, places: np.ndarray) -> Tensor:
        """Return some Ritz vectors, (q, d)."""
        return self.S[torch.as_tensor(places)] @ self.V

    def residuals(self, places: np.ndarray) -> tuple[Tensor, np.ndarray]:
        """Return the residual vectors of some pairs and their norms."""
        rows = self.S[torch.as_tensor(places)]
        values = torch.as_tensor(self.values[places], dtype=rows.dtype, device=rows.device)
        R = torch.addmm(rows @ self.HV, values[:, None] * rows, self.V, alpha=-1)
        return R, dots(R, R).sqrt().cpu().numpy()

    def expand(self, W: Tensor) -> bool:
        """Add directions (q, d) to the space; return False where nothing of them is new."""
        W = W / W.norm(dim=1, keepdim=True)
        for _ in range(2):      # twice is enough; what is left of a direction that is not new is rounding
            W = torch.addmm(W, gram(W, self.V).to(W.dtype), self.V, alpha=-1)
            W = _orthonormalizer(gram(W, W), 0.1).to(W.dtype) @ W
        if not len(W):
            return False
        self._append(W, self._apply(W))
        return True

    def shrink(self, places: np.ndarray) -> None:
        """Thick restart: keep some Ritz vectors."""
        rows = self.S[torch.as_tensor(places)]
        V, HV = rows @ self.V, rows @ self.HV
        self._V[:len(V)], self._HV[:len(V)] = V, HV
        self.T = gram(V, HV)

    def exact(self, wanted: _Wanted) -> tuple[Tensor, Tensor, Tensor]:
        """Return the wanted Ritz vectors, their products computed anew, and their Rayleigh quotients, ascending."""
        X = self.vectors(wanted.places(len(self.solve())))
        X = X / dots(X, X).sqrt()[:, None].to(X.dtype)
        HX = self._apply(X)
        values = dots(X, HX)
        order = torch.argsort(values)
        return X[order], HX[order], values[order]

    def _append(self, W: Tensor, HW: Tensor) -> None:
        old, new = len(self), len(self) + len(W)
        if new > len(self._V):
            room = self._V.new_empty(new + 32 - old, self._V.shape[1])
            self._V, self._HV = torch.cat([self.V, room]), torch.cat([self.HV, room])
        self._V[old:new], self._HV[old:new] = W, HW
        T = self.T.new_zeros(new, new)
        T[:old, :old] = self.T
        T[old:] = gram(W, self._HV[:new])
        T[:old, old:] = T[old:, :old].T
        self.T = T

    def _apply(self, W: Tensor) -> Tensor:
        self.num_matvecs += len(W)
        if self.progress:
            self.progress(len(W))
        return finite(self.operator.matmat(W))


def _converge(space: _Space, wanted: _Wanted, limits: Callable[[np.ndarray], np.ndarray], max_matvecs: int) -> None:
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
        R = _outermost_open(space, wanted, allowed, settled)
        may_go_on = space.num_matvecs + len(places) < max_matvecs and len(space) < space.operator.size
        if R is None or not may_go_on:
            return
        if len(space) + len(R) > largest:
            space.shrink(_Wanted(max(2 * wanted.k + 6, largest // 4), True, True).places(len(values)))
        if not space.expand(R):
            return


def _outermost_open(space: _Space, wanted: _Wanted, allowed: np.ndarray, settled: list[int]) -> Tensor | None:
    """Return the residual vector of the outermost pair above its limit at each end; None once all were looked at and none is.

    `settled` counts, end by end, the pairs found within their limits: their residuals are not formed at every step.
    """
    fresh = settled == [0, 0]       # nothing rests on an earlier look
    ends = [end for end, asked in enumerate((wanted.lower, wanted.upper)) if asked]
    open_: dict[int, Tensor] = {}
    while looked := [end for end in ends if end not in open_ and settled[end] < min(wanted.k, len(allowed))]:
        places = np.array([(settled[end], len(allowed) - 1 - settled[end])[end] for end in looked])
        R, norms = space.residuals(places)
        for end, place, row, norm in zip(looked, places, R, norms):
            if norm > allowed[place]:
                open_[end] = row
            else:
                settled[end] += 1
    if open_ or fresh:
        return torch.stack([open_[end] for end in sorted(open_)]) if open_ else None
    settled[:] = [0, 0]
    return _outermost_open(space, wanted, allowed, settled)


def _confirm(space: _Space, wanted: _Wanted, tol: float, max_matvecs: int, generator: torch.Generator) -> None:
    """Look for pairs that the start vectors missed, in the complement of those found, until nothing new turns up."""
    one = replace(wanted, k=1)
    while space.num_matvecs < max_matvecs:
        values = space.solve()
        places = wanted.places(len(values))
        found, before = space.vectors(places), values[places]
        rest, left = Deflated(space.operator, found), max_matvecs - space.num_matvecs
        steps = min(max(10, wanted.k), space.operator.size - len(found), left)
        if steps < 1:
            return
        fresh = krylov(rest, num_matvecs=steps, num_probes=1, generator=generator, num_ritz=1, progress=space.progress)
        other = _Space.of(fresh.ritz, rest, space.progress)
        _converge(other, one, _inside(wanted, before, tol), left - steps)
        space.num_matvecs += steps + other.num_matvecs
        space.expand(other.vectors(one.places(len(other.solve()))))
        _converge(space, wanted, lambda values: tol * np.abs(values), max_matvecs)
        after = space.solve()
        after = after[wanted.places(len(after))]
        slack = max(tol, 1e2 * torch.finfo(space.V.dtype).eps) * np.abs(after).max()
        if len(after) == len(before) and np.abs(after - before).max() <= slack:
            return


def _inside(wanted: _Wanted, found: np.ndarray, tol: float) -> Callable[[np.ndarray], np.ndarray]:
    """Return limits for one pair of the complement at each end: small beside its distance from the last of those found.

    It then stands for an eigenvalue that is not beyond them. One that already is beyond has no limit.
    """
    def limits(values: np.ndarray) -> np.ndarray:
        below, above = values[0] - found[wanted.k - 1], found[-wanted.k] - values[-1]
        gaps = np.array([below] * wanted.lower + [above] * wanted.upper)
        room = np.where(gaps < 0, np.inf, np.maximum(0.1 * gaps, tol * np.abs(found).max()))
        return room if len(room) == len(values) else room.min(keepdims=True)    # a space of one vector has one pair for both
    return limits


def _report(X: Tensor, HX: Tensor, values: Tensor, operator: LinearOperator, source: Krylov, num_matvecs: int, tol: float,
            verify: bool) -> EigenPairs:
    R = HX - values[:, None].to(X.dtype) * X
    residuals = dots(R, R).sqrt().cpu().numpy()
    values64, rounding, verified = _second_opinion(X, HX, operator) if verify else _no_opinion(len(X))
    values = values.cpu().numpy()
    return EigenPairs(values, residuals, residuals <= tol * np.abs(values), values64, rounding, verified,
                      X.cpu().numpy(), tol, num_matvecs + (len(X) if verify else 0), missed_below(source, float(values[0])))


def _second_opinion(X: Tensor, HX: Tensor, operator: LinearOperator) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Multiply once more in float64: values, the rounding of the product, and whether the sign of each value is certain."""
    try:
        X64, wide = X.double(), operator.double()
    except InputError:      # a network that computes a part in float32 whatever it is given: nothing is verified
        return _no_opinion(len(X))
    norms = dots(X64, X64)
    difference = wide.matmat(X64) - HX.double()
    values = (dots(X64, HX.double()) + dots(X64, difference)) / norms
    rounding = 1e3 * torch.finfo(torch.float64).eps * values.abs().max()    # of the float64 product itself
    certain = values.abs() > torch.maximum(10 * dots(X64, difference).abs() / norms, rounding)
    return values.cpu().numpy(), difference.norm(dim=1).cpu().numpy(), certain.cpu().numpy()


def _no_opinion(count: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    return np.full(count, np.nan), np.full(count, np.nan), np.zeros(count, bool)


def missed_below(source: Krylov, smallest: float, level: float = LEVEL) -> Estimate:
    """Return how far below the smallest value found an eigenvalue may still lie, missed with probability 1 - level at most.

    The probes are independent, so that all miss with the product of their probabilities. The unknown spread lambda_max -
    lambda_min enters through the same bound at both ends: found spread / (1 - 2 eps), half the probability for each.
    -inf where the steps bound nothing. Rounding of the product is added.

    Where all probes have broken down, Q A = T Q + E with ||E|| below what counts as breakdown, so that an eigenvector u of
    an eigenvalue at distance delta from those of T has |u' q_1| delta <= ||E||; (u' q_1)^2 is chi-squared_1 / d.
    """
    probes, steps = source.alphas.shape
    quotients = dots(source.ritz.vectors, source.ritz.products) / dots(source.ritz.vectors, source.ritz.vectors)
    smallest = min(smallest, float(quotients.min()))
    scale = max(float(quotients.abs().max()), np.nanmax(np.abs(source.alphas)), np.nanmax(source.betas))
    rounding = BREAKDOWN * torch.finfo(source.operator.dtype).eps * scale
    each = ((1 - level) / 2) ** (1 / probes)
    eps = (np.log(1.648 * np.sqrt(source.operator.size) / each) / (2 * steps - 1)) ** 2
    if steps == source.operator.size:       # nothing is left to explore
        eps = 0.0
    elif (source.betas[:, -1] == 0).all():
        eps, rounding = 0.0, rounding * np.sqrt(source.operator.size / chi2.ppf((1 - level) ** (1 / probes), 1))
    drop = eps * (float(quotients.max()) - smallest) / (1 - 2 * eps) if eps < 0.5 else np.inf
    return Estimate(smallest, float(smallest - drop - rounding), smallest, level, "probes")


def _orthonormalizer(G: Tensor, cutoff: float) -> Tensor:
    """Return C with C G C' = I from the Gram matrix of rows of norm 1 or less; directions shorter than `cutoff` are left out."""
    values, S = torch.linalg.eigh(G)
    kept = values > cutoff ** 2
    return (S[:, kept] / values[kept].sqrt()).T
