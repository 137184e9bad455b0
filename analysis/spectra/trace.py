"""The trace of an operator to a stated error, from few products.

    hutchinson   tr H = E z'Hz for random z with E zz' = I (Hutchinson 1990). One product a probe
    deflated     with orthonormal X, tr H = tr XHX' + the same on the complement of X: exact on the eigenvectors already known
    xtrace       every probe is tested on the range of H times the others, and all such estimates are averaged (Epperly, Tropp
                 and Webber 2024, with their normalisation). Two products a probe, and far fewer probes where the spectrum decays

Probes are uniform on the sphere of radius sqrt(d): their law depends on the eigenvalues alone, and

    var z'Hz = 2 d / (d + 2) (tr H^2 - (tr H)^2 / d) = 2 E |Hz - (z'Hz / z'z) z|^2,     E |Hz|^2 = tr H^2,

so that the products which estimate the trace also tell its error, much better than the samples z'Hz do. Of a matrix near a
multiple of the identity the difference of both traces is rounding; the mean square on the right is not.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from scipy.stats import t as student_t
from torch import Tensor

from analysis.operators import LinearOperator
from analysis.operators.algebra import finite
from analysis.spectra.lanczos import dots, gram
from analysis.spectra.xtrace import XTrace
from checkpoints.records import EigenPairs, Estimate
from landscape.errors import InputError

METHODS = ("auto", "hutchinson", "deflated", "xtrace")
PILOT = 12          # probes from which the number of products is forecast
SAFETY = 1.2        # on a forecast: its own error should seldom ask for another stage
GROWTH = 1.5        # of XTrace's probes from one stage to the next: its error falls at a rate that is not known beforehand
BLOCK = 16          # probes multiplied at a time, and compared with one another

Counter = Callable[[int], None]


@dataclass(frozen=True)
class TraceEstimate:
    """A trace, and what it took."""

    estimate: Estimate
    standard_error: float   # of the estimate, in its units; NaN with one probe
    num_matvecs: int
    method: str             # hutchinson | deflated | xtrace
    reached: bool           # whether standard_error <= rel_error * |trace|; True for a fixed number of probes


def measure_trace(operator: LinearOperator, *, num_probes: int | None = None, rel_error: float = 0.05, max_matvecs: int = 500,
                  generator: torch.Generator, deflate: EigenPairs | None = None, method: str = "auto", level: float = 0.95,
                  progress: Counter | None = None) -> TraceEstimate:
    """Estimate tr H to a standard error of rel_error * |tr H|, or with `num_probes` probes exactly.

    num_probes   a fixed count in place of an error to reach
    rel_error    wanted standard error / |trace|, > 0. A trace near zero is never known to a relative error: see max_matvecs
    max_matvecs  products that may be spent; `reached` tells whether they were enough
    deflate      known eigenpairs, with their vectors; they cost nothing
    method       hutchinson, deflated (the same with `deflate`), xtrace, or auto: what a pilot of PILOT probes forecasts to be
                 cheaper. XTrace works on the complement of `deflate` too, and takes two products a probe
    """
    _refuse(num_probes, rel_error, max_matvecs, deflate, method)
    source = _Complement(operator, None if method == "hutchinson" else deflate, generator, progress)
    if num_probes is not None:
        estimator = XTrace(source) if method == "xtrace" else Hutchinson(source)
        estimator.grow(num_probes)
        return _report(estimator, source, level, True)
    estimator = _to_error(source, rel_error, max_matvecs, method)
    return _report(estimator, source, level, _excess(estimator, rel_error) <= 1)


def estimate_trace(operator: LinearOperator, *, generator: torch.Generator, num_probes: int | None = None, **options) -> Estimate:
    """Return the estimate of `measure_trace`, which takes the same arguments, alone."""
    return measure_trace(operator, generator=generator, num_probes=num_probes, **options).estimate


def _refuse(num_probes: int | None, rel_error: float, max_matvecs: int, deflate: EigenPairs | None, method: str) -> None:
    if method not in METHODS:
        raise InputError(f"method={method!r} is unknown: expected one of {', '.join(METHODS)}")
    if num_probes is not None and num_probes < 1:
        raise InputError(f"num_probes={num_probes} is out of range: expected at least 1")
    if not rel_error > 0:
        raise InputError(f"rel_error={rel_error} is out of range: expected a positive number")
    least = 4 if method == "xtrace" else 2      # two probes
    if max_matvecs < least:
        raise InputError(f"max_matvecs={max_matvecs} is out of range: expected at least {least} for method={method!r}")
    if method == "deflated" and (deflate is None or not len(deflate.vectors)):
        raise InputError("method='deflated' needs eigenvectors: pass deflate=extreme_eigenpairs(...), or method='auto'")


class _Estimator(Protocol):
    """What XTrace and Hutchinson have in common."""

    count: int                          # probes so far
    name: str

    def grow(self, count: int) -> None:
        """Take `count` more probes."""

    def solve(self) -> tuple[float, float, float]:
        """Return the trace, its standard error and the degrees of freedom which that error has."""

    def nuclear(self) -> float:
        """Return an upper estimate of sum |lambda|, the scale of rounding."""


def _to_error(source: "_Complement", rel_error: float, max_matvecs: int, method: str) -> _Estimator:
    """Choose after a pilot, then go on in few stages, each sized by a forecast of what is missing.

    A stage is sized by tr H^2 and never ended early, so that a lucky agreement of some samples stops nothing.
    """
    pilot = Hutchinson(source)
    pilot.grow(min(PILOT, max(2, max_matvecs // 2)))
    if _excess(pilot, rel_error) <= 1 and method != "xtrace":
        return pilot
    cheaper = pilot.forecast(rel_error) > pilot.xtrace_forecast() and 2 * pilot.count <= max_matvecs
    if method == "xtrace" or method == "auto" and cheaper:
        return _xtrace_to_error(XTrace(source, pilot.held), rel_error, max_matvecs)
    while _excess(pilot, rel_error) > 1 and pilot.count < max_matvecs:
        pilot.grow(min(pilot.forecast(rel_error), max_matvecs) - pilot.count)
    return pilot


def _xtrace_to_error(estimator: XTrace, rel_error: float, max_matvecs: int) -> XTrace:
    limit = min(max_matvecs // 2, estimator.source.size)
    while _excess(estimator, rel_error) > 1 and estimator.count < limit:
        estimator.grow(min(int(np.ceil(GROWTH * estimator.count)), limit) - estimator.count)
    return estimator


def _excess(estimator: _Estimator, rel_error: float) -> float:
    """Return the squared ratio of the standard error to the wanted one: how many times more probes Hutchinson needs."""
    trace, error, _ = estimator.solve()
    if error == 0:
        return 0.0
    return (error / (rel_error * abs(trace))) ** 2 if trace != 0 else np.inf


def _report(estimator: _Estimator, source: "_Complement", level: float, reached: bool) -> TraceEstimate:
    trace, error, freedom = estimator.solve()
    half = float(student_t.ppf(0.5 + level / 2, freedom)) * error if error > 0 else error
    half += 4 * torch.finfo(source.operator.dtype).eps * (estimator.nuclear() + abs(source.known))  # an exact sum has rounding
    return TraceEstimate(Estimate(trace, trace - half, trace + half, level, "probes"), error, source.num_matvecs, estimator.name,
                         bool(reached))


class _Complement:
    """An operator on the complement of orthonormal rows X, and probes there: uniform on the sphere of radius sqrt(size)."""

    def __init__(self, operator: LinearOperator, pairs: EigenPairs | None, generator: torch.Generator, progress: Counter | None):
        self.operator, self.generator, self.progress = operator, generator, progress
        known = pairs is not None and len(pairs.vectors) > 0
        self.X = torch.as_tensor(pairs.vectors, dtype=operator.dtype, device=operator.device) if known else None
        self.known = float(pairs.values.sum()) if known else 0.0        # tr XHX': the sum of Rayleigh quotients
        self.size = operator.size - (len(self.X) if known else 0)
        self.num_matvecs = 0

    def probes(self, count: int) -> Tensor:
        """Draw `count` probes on the CPU in float64, so that all devices see the same."""
        Z = torch.randn(count, self.operator.size, generator=self.generator, dtype=torch.float64)
        Z = self.project(Z.to(self.operator.device, self.operator.dtype))
        return Z * (self.size ** 0.5 / dots(Z, Z).sqrt())[:, None].to(Z.dtype) if self.size else Z * 0

    def project(self, V: Tensor) -> Tensor:
        return V if self.X is None else V - gram(V, self.X).to(V.dtype) @ self.X

    def products(self, V: Tensor) -> Tensor:
        """Return PHP applied to rows of the complement, BLOCK at a time."""
        self.num_matvecs += len(V)
        parts = []
        for part in V.split(BLOCK):
            parts.append(self.project(finite(self.operator.matmat(part))))
            if self.progress:
                self.progress(len(part))
        return torch.cat(parts)


class Hutchinson:
    """Running sums of z'Hz, z'H^2z, |Hz - (z'Hz / z'z) z|^2 and, between the probes of one block, (z_i'H^2z_j)^2.

    The mean of the last is tr H^4.
    """

    def __init__(self, source: _Complement):
        self.source, self.count, self.pairs = source, 0, 0
        self.first = self.second = self.scatter = self.fourth = 0.0
        self.name = "hutchinson" if source.X is None else "deflated"
        self.held: list[tuple[Tensor, Tensor]] = []     # of the first stage, which XTrace goes on from

    def grow(self, count: int) -> None:
        first_stage = self.count == 0 and count <= PILOT
        for start in range(0, count, BLOCK):
            Z = self.source.probes(min(BLOCK, count - start))
            HZ = self.source.products(Z)
            forms, scale = dots(Z, HZ), float(HZ.abs().max()) or 1.0
            rest = HZ - (forms / dots(Z, Z))[:, None].to(Z.dtype) * Z
            squares = gram(HZ / scale, HZ / scale) * scale * scale      # in float32 squares of small entries are 0
            self.first += float(forms.sum())
            self.scatter += float(dots(rest, rest).sum())
            self.second += float(squares.diagonal().sum())
            self.fourth += float((squares.triu(1) ** 2).sum())
            self.count, self.pairs = self.count + len(Z), self.pairs + len(Z) * (len(Z) - 1) // 2
            if first_stage:
                self.held.append((Z, HZ))

    def solve(self) -> tuple[float, float, float]:
        trace = self.source.known + self.first / self.count
        if self.count < 2:
            return trace, np.nan, np.nan
        variance = 2 * self.scatter / self.count if self.source.size > 0 else 0.0
        return trace, (variance / self.count) ** 0.5, self.count * self.rank()

    def forecast(self, rel_error: float) -> int:
        """Return how many probes in all would reach the error."""
        return int(min(np.ceil(SAFETY * self.count * _excess(self, rel_error)), 1e9))

    def xtrace_forecast(self) -> int:
        """Return about how many products XTrace would take to 5 %: 6 for each eigenvalue that matters, 2 for each of all at most.

        With it the choice fell on the cheaper method on six spectra of 100 eigenvalues, with and without known pairs.
        """
        return int(np.ceil(min(6 * self.rank(), 2 * self.source.size)))

    def rank(self) -> float:
        """Return (tr H^2)^2 / tr H^4, between 1 and d: how many eigenvalues carry the variance."""
        squared = (self.second / self.count) ** 2
        return float(np.clip(squared * self.pairs / self.fourth, 1.0, self.source.size)) if self.fourth > 0 else 1.0

    def nuclear(self) -> float:
        return (self.source.size * self.second / self.count) ** 0.5
