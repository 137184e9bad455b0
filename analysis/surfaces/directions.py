"""Directions to walk from a checkpoint: random ones scaled filter by filter, eigenvectors, lines between checkpoints.

A random direction d takes the scale of the weights, filter by filter: d_ij <- d_ij ||w_ij|| / ||d_ij|| for filter j
of layer i (Li et al. 2018, section 4), so that alpha = 1 moves every filter by its own norm. An eigenvector is walked
as it is: rescaled filter by filter it would be no eigenvector any more, and its line would not curve by lambda.

Unlike Li et al.'s code, where biases and BatchNorm are not ignored they get a random direction of their norm (there: a
copy of the weight itself), an unnormalized draw has unit length, and a filter of norm zero stays at rest.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from math import nan

import numpy as np
import torch
from torch import Tensor, nn

from checkpoints.records import Curvature
from landscape.errors import InputError
from landscape.parameters import flatten, theta, trainable

# What alpha counts, for every normalization.
UNITS = {"filter": "filter norms", "layer": "layer norms", "none": "parameter units"}
IGNORED = ("biasbn", "none")
_UNIT_TOLERANCE = 1e-3  # an eigenvector in float32 is of unit length to about 1e-6


@dataclass(frozen=True, eq=False)
class Direction:
    """A direction in parameter space, with what a surface has to say about it.

    In parameter units the vector has unit length, so that alpha is the distance walked.
    """

    vector: Tensor = field(repr=False)  # (d,)
    name: str                           # e.g. "random filter", "tail lambda_min"
    curvature: float = nan              # the eigenvalue of an eigenvector, in nats / parameter^2; else NaN
    units: str = "parameter units"      # a value of UNITS

    def __post_init__(self):
        if self.units not in UNITS.values():
            raise InputError(f"units={self.units!r} is unknown: expected one of {', '.join(UNITS.values())}")
        if self.vector.ndim != 1 or not self.vector.numel() or not self.vector.isfinite().all():
            raise InputError(f"direction {self.name!r} of shape {tuple(self.vector.shape)} cannot be walked: expected "
                             "one finite number a trainable parameter")
        length = _norm(self.vector)
        if self.units == UNITS["none"] and not abs(length - 1) < _UNIT_TOLERANCE:
            raise InputError(f"direction {self.name!r} has length {length:.6g}: expected 1 in parameter units")


def random_direction(model: nn.Module, generator: torch.Generator, normalization: str = "filter", *,
                     ignore: str = "biasbn") -> Direction:
    """Draw a Gaussian direction (d,) and give it the scale of the model's weights.

    normalization: "filter" (each slice along dimension 0: an output channel or neuron), "layer" (each tensor) or "none"
    (unit length over all parameters). ignore="biasbn" keeps parameters of one dimension at rest: biases and the affine
    parameters of normalization layers; "none" moves each of them as one filter. Drawn on the CPU in float64, so that
    devices and precisions agree; `generator` must live there.
    """
    _choose("normalization", normalization, UNITS)
    _choose("ignore", ignore, IGNORED)
    if generator.device.type != "cpu":
        raise InputError(f"generator.device={generator.device} is out of range: expected cpu, so that devices agree")
    vector = flatten(_draw(p.detach(), generator, normalization, ignore) for p in trainable(model).values())
    if not vector.any():
        raise InputError(f"the random direction is zero: with normalization={normalization!r} and ignore={ignore!r} "
                         "no parameter of this model moves")
    if normalization == "none":
        vector = vector / _norm(vector)
    name = "random" if normalization == "none" else f"random {normalization}"
    return Direction(vector.to(theta(model)), name, units=UNITS[normalization])


def _draw(weight: Tensor, generator: torch.Generator, normalization: str, ignore: str) -> Tensor:
    # Drawn even where it is ignored: the other entries do not depend on the option.
    draw = torch.randn(weight.shape, generator=generator, dtype=torch.float64, device="cpu")
    if weight.ndim <= 1 and ignore == "biasbn":
        return torch.zeros_like(draw)
    if normalization == "none":
        return draw
    rows = len(weight) if normalization == "filter" and weight.ndim > 1 else 1
    draw, weight_rows = draw.reshape(rows, -1), weight.double().cpu().reshape(rows, -1)
    target, own = (torch.linalg.vector_norm(t, dim=1, keepdim=True) for t in (weight_rows, draw))
    return (draw * (target / own)).reshape(weight.shape)  # a filter of norm zero gets zero


def eigenvector_direction(curvature: Curvature, end: str = "lower", rank: int = 0) -> Direction:
    """Return an extreme eigenvector of a group's Hessian as it is, of unit length, with its eigenvalue.

    end="lower" counts from the most negative eigenvalue up, "upper" from the largest down; rank 0 is the extreme one.
    """
    _choose("end", end, ("lower", "upper"))
    values, vectors = curvature.eigenpairs.values, curvature.eigenpairs.vectors
    place = f"the record of group {curvature.group!r} at epoch {curvature.epoch}"
    if not len(vectors):
        raise InputError(f"{place} holds no eigenvectors: compute the spectrum again and keep them")
    half = (len(values) + 1) // 2  # as many pairs were asked for at either end
    if not 0 <= rank < half:
        raise InputError(f"rank={rank} is out of range: expected 0 <= rank < {half}, the pairs at each end of {place}")
    index = rank if end == "lower" else len(values) - 1 - rank
    vector = torch.from_numpy(np.array(vectors[index]))  # a copy: the record's array may be read-only
    suffix = {"lower": "lambda_min", "upper": "lambda_max"}[end] + (f" {rank}" if rank else "")
    unit = (vector.double() / _norm(vector)).to(vector.dtype)
    return Direction(unit, f"{curvature.group} {suffix}", float(values[index]))


def between(theta_a: Tensor, theta_b: Tensor, name: str = "between checkpoints") -> Direction:
    """Return the unit vector from theta_a to theta_b (d,); walked from a, b lies at alpha = ||theta_b - theta_a||."""
    if theta_a.shape != theta_b.shape:
        raise InputError(f"theta_a and theta_b have shapes {tuple(theta_a.shape)} and {tuple(theta_b.shape)}: "
                         "expected two states of one model")
    step = theta_b.double() - theta_a.double()
    if not step.any():
        raise InputError("theta_a and theta_b are equal: there is no direction between them")
    return Direction((step / _norm(step)).to(theta_a.dtype), name)


def orthogonalized(direction: Direction, others: Sequence[Direction]) -> Direction:
    """Return the unit vector along the part of `direction` that is orthogonal to all `others`.

    It is no eigenvector in general and not filter-normalized any more: its curvature is NaN, its units parameter units.
    """
    rest = direction.vector.double() / _norm(direction.vector)
    if others:
        basis = torch.linalg.qr(torch.stack([o.vector.to(rest) / _norm(o.vector) for o in others], dim=1)).Q  # (d, k)
        for _ in range(2):  # once leaves the rounding of what it took off
            rest = rest - basis @ (basis.T @ rest)
    if _norm(rest) <= torch.finfo(direction.vector.dtype).eps ** 0.5:  # what is left is mostly rounding
        spanning = ", ".join(repr(other.name) for other in others)
        raise InputError(f"direction {direction.name!r} lies in the span of {spanning}: choose another one")
    return Direction((rest / _norm(rest)).to(direction.vector.dtype), f"{direction.name}, orthogonalized")


def directions_hash(vectors: Sequence[Tensor]) -> str:
    """Return the SHA-256 of vectors, their order, lengths and types: the same on every device."""
    digest = hashlib.sha256()
    for vector in vectors:
        values = vector.detach().cpu().contiguous().numpy()
        digest.update(f"{values.dtype.newbyteorder('<').str}{values.shape}".encode())
        digest.update(values.astype(values.dtype.newbyteorder("<")).tobytes())
    return digest.hexdigest()


def _norm(vector: Tensor) -> float:
    return float(torch.linalg.vector_norm(vector.double()))


def _choose(name: str, value: str, known: Sequence[str]) -> None:
    if value not in known:
        raise InputError(f"{name}={value!r} is unknown: expected one of {', '.join(known)}")
