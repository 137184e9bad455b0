"""What following a group's extreme curvature gains: its loss along +-v_min and +-v_max against the quadratic prediction.

    predicted(alpha) = L + alpha g'v + alpha^2 / 2 v'Hv,   alpha the distance walked, in parameter units, v of unit length

with slope and curvature of v itself (`analysis.surfaces.quadratic`): a v that is no exact eigenvector is judged by its own
line. The walk is geometric from 0.001 on, both ways, farther as long as its end is its lowest point (up to ||theta||), and
finer about the lowest one. The drop there is what a line search along v would gain, not what an optimizer does; the other
groups' losses are those at the same weights. Evaluation mode, the images and the loss of each group's stored spectrum.

Forwards are in `dtype`; the loss at the checkpoint and at the lowest point are evaluated in float64 besides, which gives the
drop, and the rounding of the others. The trust radius is that of `analysis.findings.slices`: where the two changes part by 10 %.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from torch import Tensor, nn

from analysis.findings.slices import TrustRadius, predicted, trust_radius
from analysis.measures.table import Table, table
from analysis.operators.kernels import reproducible_kernels
from analysis.surfaces.directions import Direction, eigenvector_direction
from analysis.surfaces.quadratic import class_derivatives
from analysis.surfaces.surface import loss_surface
from checkpoints.records import Surface
from landscape.batchnorm import evaluation_mode
from landscape.errors import InputError
from landscape.groups import ClassGroups
from landscape.parameters import theta

ENDS = ("lower", "upper")
FIRST, REACH, PER_DECADE = 1e-3, 1.0, 6     # parameter units; points on a side
FINER = 7                                   # points between the neighbors of the lowest one
POINTS = 2 * (3 * PER_DECADE + 1) + 1 + FINER   # of a walk that is not carried on

Losses = Callable[[Tensor, Tensor], Tensor]
Batches = Sequence[tuple[Tensor, Tensor]]


@dataclass(frozen=True, eq=False)
class Sample:
    """A group's images and loss."""

    classes: tuple[int, ...]
    batches: Batches
    loss: Losses


@dataclass(frozen=True)
class Escape:
    """The lowest point of a walk, in nats and parameter units."""

    alpha: float                # 0 where no point is lower than the checkpoint
    drop: float                 # L(0) - L(alpha), >= 0 but for rounding
    predicted_drop: float       # by the quadratic, at the same point
    bounded: bool               # whether the walk went beyond its lowest point
    changes: dict[str, float]   # of every group's loss there
    rounding: float             # of the losses of the walk, measured at two points


def escape(case) -> Table:
    """Walk along both extreme eigenvectors of every group of a `Case`; one row a point."""
    settings, subject = case.settings, case.subject
    samples = {group: _sample(case, group) for group in settings.groups}
    rows, found = [], []
    try:
        for group in settings.groups:
            for end in ENDS:
                direction = eigenvector_direction(case.spectrum(group), end)
                line = walk(subject.cast(settings.dtype), samples, group, direction, case.progress)
                lowest = lowest_point(subject.cast("float64"), samples, group, direction, line)
                rows += _rows(line, group, end)
                found.append({"group": group, "end": end} | _facts(line, group, lowest, direction.curvature))
    finally:
        subject.cast("float32")     # exactly what the checkpoint holds
    units = {"alpha": "parameter units"} | {name: "nats / sample" for name in rows[0] if "loss" in name or name == "predicted"}
    about = {"escapes": found, "images": {group: sum(len(y) for _, y in sample.batches) for group, sample in samples.items()},
             "mode": "evaluation", "dtype": settings.dtype, "parted_by": 0.1}
    return table(rows, units, about)


def work(case) -> int:
    """Return about how many image gradients the walks take: a forward is a third of one, a prediction counts as two."""
    images = {group: case.num_spectrum_images(group) for group in case.settings.groups}
    walks = len(ENDS) * len(images)
    return walks * (POINTS + 2) * sum(images.values()) // 3 + 2 * len(ENDS) * sum(images.values())


def walk(model: nn.Module, samples: Mapping[str, Sample], group: str, direction: Direction,
         progress: Callable[[int], None] = lambda count: None) -> Surface:
    """Return every group's loss on a line along a direction, with the derivatives of `group`'s own (NaN for the others')."""
    def at(alphas: np.ndarray) -> Surface:
        progress(len(alphas) * sum(len(y) for sample in samples.values() for _, y in sample.batches) // 3)
        return losses_at(model, samples, direction, alphas)

    side = FIRST * 10 ** (np.arange(3 * PER_DECADE + 1) / PER_DECADE)
    line, limit = at(np.r_[-side[::-1], 0.0, side]), float(theta(model).double().norm())
    if not np.isfinite(line.loss[line.groups.index(group), line.alpha == 0]).all():
        raise InputError(f"the loss of {group} is not finite at the checkpoint itself: there is nothing to walk down from")
    while (more := _farther(line, group, limit)).size:
        line = joined(line, at(more))
    line = joined(line, at(finer)) if (finer := _finer(line, group)).size else line
    return replace(line, derivatives=_derivatives(model, samples, group, direction))


def losses_at(model: nn.Module, samples: Mapping[str, Sample], direction: Direction, alphas: Sequence[float]) -> Surface:
    """Return the loss of each group over its own images at some distances along a direction, as one line."""
    lines = [loss_surface(model, sample.loss, sample.batches, [direction], [alphas],
                          ClassGroups(np.zeros(max(sample.classes) + 1), {group: sample.classes}))
             for group, sample in samples.items()]
    return replace(lines[0], groups=tuple(samples), num_samples=np.concatenate([line.num_samples for line in lines]),
                   loss=np.concatenate([line.loss for line in lines]), accuracy=np.concatenate([line.accuracy for line in lines]),
                   precision=str(theta(model).dtype).removeprefix("torch."))


def joined(line: Surface, other: Surface) -> Surface:
    """Return the points of two lines along one direction as one, ascending, each once."""
    alpha, places = np.unique(np.r_[line.alpha, other.alpha], return_index=True)
    return replace(line, alpha=alpha, loss=np.c_[line.loss, other.loss][:, places],
                   accuracy=np.c_[line.accuracy, other.accuracy][:, places])


def lowest_point(model: nn.Module, samples: Mapping[str, Sample], group: str, direction: Direction, line: Surface) -> Escape:
    """Return what the lowest point of a line gains, the model in float64."""
    own = line.groups.index(group)
    place, origin = int(np.nanargmin(line.loss[own])), int(np.flatnonzero(line.alpha == 0)[0])
    alpha = float(line.alpha[place])
    wide = {name: replace(sample, batches=[(x.double(), y) for x, y in sample.batches]) for name, sample in samples.items()}
    exact = losses_at(model, wide, direction, sorted({0.0, alpha}))
    at, start = exact.loss[:, exact.alpha == alpha][:, 0], exact.loss[:, exact.alpha == 0][:, 0]
    rounding = max(np.abs(line.loss[own, place] - at[own]), np.abs(line.loss[own, origin] - start[own]))
    return Escape(alpha, float(start[own] - at[own]), float((predicted(line, group)[origin] - predicted(line, group)[place])),
                  0 < place < len(line.alpha) - 1, dict(zip(line.groups, (at - start).tolist())), float(rounding))


def _farther(line: Surface, group: str, limit: float) -> np.ndarray:
    """Return the next third of a decade beyond an end that is the lowest point, as long as it is within the limit."""
    losses = line.loss[line.groups.index(group)]
    place = int(np.nanargmin(losses))
    end = float(line.alpha[place])
    if 0 < place < len(losses) - 1 or abs(end) >= limit:
        return np.empty(0)
    return np.sort(end * 10 ** (np.arange(1, 1 + PER_DECADE // 3) / PER_DECADE))


def _finer(line: Surface, group: str) -> np.ndarray:
    """Return points between the neighbors of the lowest one, where it is neither an end nor the checkpoint."""
    losses = line.loss[line.groups.index(group)]
    place = int(np.nanargmin(losses))
    if place in (0, len(losses) - 1) or line.alpha[place] == 0:
        return np.empty(0)
    return np.linspace(line.alpha[place - 1], line.alpha[place + 1], FINER + 2)[1:-1]


def _derivatives(model: nn.Module, samples: Mapping[str, Sample], group: str, direction: Direction) -> np.ndarray:
    """Return value, slope and curvature (3, G, 1) of a group's mean loss along a direction."""
    found, sample = np.full((3, len(samples), 1), np.nan), samples[group]
    with evaluation_mode(model), reproducible_kernels():
        sums = class_derivatives(model, sample.loss, sample.batches, [direction], max(sample.classes) + 1)      # (3, C, 1)
    found[:, list(samples).index(group)] = sums.sum(1).numpy() / sum(len(labels) for _, labels in sample.batches)
    return found


def _sample(case, group: str) -> Sample:
    batches, _ = case.spectrum_images(group, case.settings.dtype)
    return Sample(case.subject.groups.select(group), batches, case.subject.loss(case.spectrum_settings(group).loss))


def _rows(line: Surface, group: str, end: str) -> list[dict[str, Any]]:
    own = line.groups.index(group)
    return [{"group": group, "end": end, "alpha": alpha, "loss": line.loss[own, i], "predicted": expected}
            | {f"loss_{name}": line.loss[g, i] for g, name in enumerate(line.groups)}
            for i, (alpha, expected) in enumerate(zip(line.alpha.tolist(), predicted(line, group).tolist()))]


def _facts(line: Surface, group: str, found: Escape, eigenvalue: float) -> dict[str, Any]:
    loss, slope, curvature = line.derivatives[:, line.groups.index(group), 0].tolist()
    return {"eigenvalue": eigenvalue, "loss": loss, "slope": slope, "curvature": curvature, **vars(found),
            "trust_radius": {side: _between(radius) for side, radius in (trust_radius(line, group) or {}).items()}}


def _between(radius: TrustRadius) -> list[float | None]:
    """Return the two points that a radius lies between, None for infinity, which JSON does not have."""
    return [radius.low, radius.high if np.isfinite(radius.high) else None]
