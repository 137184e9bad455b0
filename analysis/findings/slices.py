"""What a stored line or plane says: its quadratic prediction, how far that holds, and barriers between checkpoints.

Prediction at alpha on a line along d, for one group: L(0) + alpha g'd + alpha^2 / 2 d'Hd, with gradient g and Hessian H of the
group's loss at the checkpoint, stored in `Surface.derivatives`.

Trust radius of a side (alpha > 0 or < 0): the largest |alpha| up to which |measured - predicted| is at most a share (10 %) of
the largest change |predicted - L(0)| predicted so far on the way. The largest so far, since the predicted change itself
passes through zero again where slope and curvature oppose each other. It is known between two neighbours of the grid.

Barrier between two checkpoints on the line through them: max L - max(L at the ends), over the grid points between them, 0 where
an end is the highest; Frankle et al. 2020 take the mean of the two ends in place of the larger ("above_mean").
NumPy only, for figures.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from checkpoints.errors import RecordError
from checkpoints.records import Surface

SHARE = 0.1
_EPSILON = {"float64": 2.0**-52, "float32": 2.0**-23}     # bfloat16 is too coarse to tell the two apart
_ROUNDING = 16      # units in the last place of a loss by which two passes may differ


@dataclass(frozen=True)
class TrustRadius:
    """How far the quadratic prediction holds on one side of a checkpoint, in the line's coordinates."""

    low: float      # the last grid point within; 0 where the first is outside
    high: float     # the first grid point outside; inf where the line ends before


def predicted(surface: Surface, group: str, axis: int = 0) -> np.ndarray | None:
    """Return the quadratic prediction along one axis of a surface, (A,) or (B,); None where its derivatives are not stored."""
    terms = _terms(surface, group, axis)
    return None if terms is None else _parabola(terms, _coordinates(surface, axis))


def trust_radius(surface: Surface, group: str, share: float = SHARE) -> dict[str, TrustRadius] | None:
    """Return how far the prediction on a line holds: {"minus": ..., "plus": ...}; None where the record cannot tell.

    It cannot on a plane, without derivatives, and in bfloat16.
    """
    terms = _terms(surface, group, 0)
    if terms is None or not np.isfinite(terms).all() or surface.beta.size or surface.precision not in _EPSILON:
        return None
    loss = surface.loss[_index(surface, group)].reshape(-1)
    sides = {"minus": surface.alpha < 0, "plus": surface.alpha > 0}
    return {side: _radius(surface.alpha[chosen], loss[chosen], terms, share, _floor(surface, terms[0]))
            for side, chosen in sides.items()}


def lengths(surface: Surface) -> np.ndarray:
    """Return the length of each direction in parameter units, (1 or 2,).

    A run exported without its directions does not hold them: those in parameter units are of length 1 as they are made, and of
    others the length is NaN.
    """
    if len(surface.directions):
        return np.array([np.linalg.norm(direction.astype(float)) for direction in surface.directions])
    return np.full(len(surface.direction_names), 1.0 if surface.coordinate_units == "parameter units" else np.nan)


def barrier(surface: Surface, group: str) -> dict[str, float]:
    """Return the barrier on the line between the first two of a surface's points: height, above_mean, and where it is highest.

    NaN on the way is no height: the barrier is then NaN. An infinite loss is an infinite barrier.
    """
    start, stop = _ends(surface)
    loss = surface.loss[_index(surface, group)].reshape(-1)
    inside = (surface.alpha >= start) & (surface.alpha <= stop)
    alpha, loss = surface.alpha[inside], loss[inside]
    ends, top = loss[[0, -1]], int(np.argmax(loss))         # argmax gives a NaN where there is one
    return {"height": float(loss[top] - ends.max()), "above_mean": float(loss[top] - ends.mean()), "alpha": float(alpha[top])}


def barriers(surface: Surface, groups: Sequence[str]) -> dict[str, dict[str, float]]:
    """Return the barrier of each group on a line that holds two checkpoints; nothing on any other surface."""
    try:
        _ends(surface)
    except RecordError:
        return {}
    return {group: barrier(surface, group) for group in groups if group in surface.groups}


def _ends(surface: Surface) -> tuple[float, float]:
    """Return the coordinates of the two checkpoints that a line was laid through."""
    if surface.beta.size or len(surface.point_names) < 2:
        raise RecordError(f"surface {surface.name!r} is no line between checkpoints: make one with "
                          "landscape surface RUN --epoch 60 --directions epoch:10")
    start, stop = sorted(surface.point_coordinates[:2, 0].tolist())
    near = np.abs(surface.alpha[:, None] - (start, stop)).min(0)
    if near.max() > 1e-6 * (stop - start):
        raise RecordError(f"surface {surface.name!r} does not hold both checkpoints: leave out --span, which then covers them")
    return tuple(float(surface.alpha[np.abs(surface.alpha - end).argmin()]) for end in (start, stop))


def _radius(alpha: np.ndarray, loss: np.ndarray, terms: np.ndarray, share: float, floor: float) -> TrustRadius:
    order = np.argsort(np.abs(alpha))
    away, loss, alpha = np.abs(alpha[order]), loss[order], alpha[order]
    apart = np.abs(loss - _parabola(terms, alpha))
    within = apart <= share * _largest_change(terms, alpha) + floor     # NaN is outside
    if within.all():
        return TrustRadius(float(away[-1]) if len(away) else 0.0, float("inf"))
    first = int(np.argmin(within))
    return TrustRadius(float(away[first - 1]) if first else 0.0, float(away[first]))


def _largest_change(terms: np.ndarray, alpha: np.ndarray) -> np.ndarray:
    """Return max over t between 0 and alpha of |slope t + curvature t^2 / 2|."""
    _, slope, curvature = terms
    vertex = -slope / curvature if curvature else np.inf
    passed = (np.sign(vertex) == np.sign(alpha)) & (np.abs(vertex) < np.abs(alpha))
    at_vertex = np.where(passed, np.abs(slope * slope / (2 * curvature)) if curvature else 0.0, 0.0)
    return np.maximum(np.abs(_parabola(terms, alpha) - terms[0]), at_vertex)


def _parabola(terms: np.ndarray, alpha: np.ndarray) -> np.ndarray:
    return terms[0] + alpha * terms[1] + alpha ** 2 / 2 * terms[2]


def _floor(surface: Surface, loss: float) -> float:
    """Return by how much two losses may differ by rounding alone."""
    return _ROUNDING * _EPSILON[surface.precision] * max(abs(loss), 1.0)


def _terms(surface: Surface, group: str, axis: int) -> np.ndarray | None:
    index = _index(surface, group)
    return surface.derivatives[:, index, axis] if surface.derivatives.size else None


def _coordinates(surface: Surface, axis: int) -> np.ndarray:
    return surface.beta if axis else surface.alpha


def _index(surface: Surface, group: str) -> int:
    if group not in surface.groups:
        raise RecordError(f"group {group} is not in surface {surface.name!r}: expected one of {', '.join(surface.groups)}")
    return surface.groups.index(group)
