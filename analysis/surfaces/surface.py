"""Loss surfaces: loss and accuracy of every class group on a line or plane through a checkpoint, from one sweep.

At the point (alpha, beta) the parameters are theta = theta0 + alpha d1 + beta d2, computed in float64 from theta0 for every
point and rounded once, so no rounding piles up along a row. Each point costs one forward pass over the data, whatever the
number of groups and classes; analysis.surfaces.forward makes that pass cheaper than a plain one. Values are stored as they
come: NaN and inf stay, and one group's NaN does not reach another.

The statistics of BatchNorm are theta0's ("fixed"), estimated anew at each point from the same batches and then used, as after
stochastic weight averaging ("recalibrated": a second pass; Izmailov et al. 2018, section 3.2), or each batch's own ("batch").

Several processes (torchrun) share the rows; all of them return the surface, and the first alone should write.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor, nn

from analysis.operators.kernels import reproducible_kernels
from analysis.surfaces.directions import Direction, directions_hash
from analysis.surfaces.forward import untouched
from analysis.surfaces.paths import project
from analysis.surfaces.quadratic import class_derivatives
from analysis.surfaces.statistics import effective_policy, normalizing
from analysis.surfaces.sweep import Loss, Samples, build_sweep, shared_rows
from checkpoints.records import Surface
from landscape.batchnorm import evaluation_mode
from landscape.distributed import Processes
from landscape.errors import InputError
from landscape.groups import ClassGroups
from landscape.parameters import theta

Row = np.ndarray  # (2, G, B), B = 1 for a line, float64: losses and accuracies of all groups at one alpha
Batches = Sequence[tuple[Tensor, Tensor]]


class Progress(Protocol):
    """Anything that counts: scripts.progress.Progress, a tqdm bar."""

    def update(self, n: int = 1) -> object: ...


def loss_surface(model: nn.Module, loss: Loss, batches: Batches, directions: Sequence[Direction],
                 coordinates: Sequence[Sequence[float]], groups: ClassGroups, *, name: str = "surface", epoch: int = 0,
                 provenance: Mapping[str, Any] | None = None, progress: Progress | None = None,
                 done: Mapping[int, Row] | None = None, on_row: Callable[[int, Row], None] | None = None,
                 batchnorm: str = "fixed", precision: str | None = None, form: str = "auto", derivatives: bool = False,
                 points: Mapping[str, Tensor] | None = None, about: Mapping[str, Any] | None = None) -> Surface:
    """Evaluate every group's mean loss and accuracy at theta0 + alpha d1 (+ beta d2) for all given coordinates.

    batches: (images, labels) pairs, kept on the model's device; loss(logits, labels) -> (B,). directions and
    coordinates: one of each for a line, two for a plane; coordinates ascend and may leave 0 out. A sample with NaN
    among its logits counts as wrong. progress.update() is called once a point. To resume a killed sweep, on_row(i, row)
    gets the finished values at alpha[i], and `done` hands them back: those rows are not computed again. The model is
    unchanged afterwards, bit for bit, also after an exception.

    batchnorm: fixed, recalibrated or batch, the last two on batches of one size (up to one sample). precision="bfloat16":
    passes are made in it where torch.autocast does, and its error against float32 is measured at the corners and the middle.
    form: a name of analysis.surfaces.forward.FORMS. derivatives: with fixed statistics, store the quadratic prediction along each
    direction. points: parameters (d,) of checkpoints whose places are stored, theta0 the first. about: facts to be stored.
    """
    start, processes = theta(model), Processes.present()
    walk = _walk(directions, coordinates, start)
    samples = Samples.of(batches, groups, start.device)
    policy = effective_policy(model, batchnorm, [len(labels) for _, labels in samples.batches])
    rows = _read_rows(done or {}, (2, len(groups.names), walk.width), len(walk.alpha))
    facts = dict(about or {})
    with torch.no_grad(), evaluation_mode(model), reproducible_kernels(), untouched(model):
        terms = _derivatives(model, loss, samples, walk, facts) if derivatives and policy == "fixed" else None
        with normalizing(model, policy):
            sweep, rounding = build_sweep(model, loss, samples, walk.corners(), policy=policy, precision=precision, form=form)

            def compute(i: int) -> Row:
                return np.stack([_counted(sweep.at(point), progress) for point in walk.points(i)], axis=-1)

            _count(progress, len(rows) * walk.width)
            rows |= shared_rows(compute, (2, len(groups.names), walk.width), [i for i in range(len(walk.alpha)) if i not in rows],
                                on_row, lambda others: _count(progress, others * walk.width), processes)
    values = np.stack([rows[i] for i in range(len(walk.alpha))], axis=2)  # (2, G, A, B)
    return _record(values, walk, samples, points or {}, terms, name=name, epoch=epoch, provenance=dict(provenance or {}),
                   batchnorm=batchnorm, precision=precision or str(start.dtype).removeprefix("torch."), about=facts | rounding)


@dataclass(frozen=True, eq=False)
class _Walk:
    directions: tuple[Direction, ...]
    start: Tensor                # (d,) theta0
    vectors: tuple[Tensor, ...]  # one or two (d,), in theta0's dtype and on its device
    alpha: np.ndarray            # (A,)
    beta: np.ndarray             # (B,); empty for a line

    @property
    def width(self) -> int:
        return max(len(self.beta), 1)

    def points(self, i: int) -> Iterator[Tensor]:
        """Yield the parameters (d,) at alpha[i] and every beta, in float64."""
        base = torch.add(self.start.double(), self.vectors[0], alpha=float(self.alpha[i]))
        if len(self.vectors) == 1:
            yield base
        for b in self.beta.tolist():
            yield torch.add(base, self.vectors[1], alpha=b)

    def corners(self) -> list[Tensor]:
        """Return theta0 and the corners of the grid, the parameters (d,) of each."""
        rows = (0, len(self.alpha) - 1)
        ends = [point for row in rows for place, point in enumerate(self.points(row)) if place in (0, self.width - 1)]
        return [self.start, *ends]


def _derivatives(model: nn.Module, loss: Loss, samples: Samples, walk: _Walk, facts: dict[str, Any]) -> np.ndarray | None:
    """Return mean loss, slope and curvature (3, G, k) of every group; where the network has none, why not is a fact."""
    try:
        sums = class_derivatives(model, loss, samples.batches, walk.directions, samples.num_classes)    # (3, C, k)
    except InputError as reason:
        facts["no_prediction"] = str(reason)
        return None
    return samples.over_groups(sums.movedim(1, 2).numpy()).transpose(0, 2, 1) / samples.sizes[:, None]


def _walk(directions: Sequence[Direction], coordinates: Sequence[Sequence[float]], start: Tensor) -> _Walk:
    if isinstance(directions, Direction) or len(directions) not in (1, 2) or len(directions) != len(coordinates):
        raise InputError("directions and coordinates are out of range: expected a list of one direction (a line) or "
                         "two (a plane), and as many arrays of coordinates")
    units = sorted({d.units for d in directions})
    if len(units) > 1:
        raise InputError(f"directions are in different units ({', '.join(units)}): expected one unit for both axes; random "
                         "ones are in parameter units with --normalization none")
    for d in directions:
        if len(d.vector) != len(start):
            raise InputError(f"direction {d.name!r} has {len(d.vector)} entries: expected {len(start)}, "
                             "one a trainable parameter")
    alpha, *beta = (_axis(values, axis) for values, axis in zip(coordinates, ("alpha", "beta")))
    vectors = tuple(d.vector.detach().to(start) for d in directions)
    return _Walk(tuple(directions), start, vectors, alpha, beta[0] if beta else np.empty(0))


def _axis(values: Sequence[float], axis: str) -> np.ndarray:
    values = np.array(values, dtype=np.float64)
    if values.ndim != 1 or not values.size or not np.isfinite(values).all() or (np.diff(values) <= 0).any():
        raise InputError(f"coordinates {axis} are out of range: expected one or more finite numbers in ascending order")
    return values


def _read_rows(done: Mapping[int, Row], shape: tuple[int, ...], num_rows: int) -> dict[int, Row]:
    for i, row in done.items():
        if i not in range(num_rows) or np.shape(row) != shape:
            raise InputError(f"finished row {i} of shape {np.shape(row)} is from another surface: expected "
                             f"shape {shape} and 0 <= row < {num_rows}")
    return {i: np.asarray(row, dtype=np.float64) for i, row in done.items()}


def _count(progress: Progress | None, points: int) -> None:
    if progress is not None and points:
        progress.update(points)


def _counted(values: np.ndarray, progress: Progress | None) -> np.ndarray:
    _count(progress, 1)
    return values


def _record(values: np.ndarray, walk: _Walk, samples: Samples, points: Mapping[str, Tensor], terms: np.ndarray | None,
            **fields: Any) -> Surface:
    loss, accuracy = values if len(walk.beta) else values[..., 0]
    if terms is not None:
        fields["derivatives"] = terms
    if points:
        places, distances = project(list(points.values()), walk.start, walk.directions)
        fields |= {"point_names": tuple(points), "point_coordinates": places, "point_distances": distances}
    return Surface(
        groups=samples.names, num_samples=samples.sizes.astype(np.int64), alpha=walk.alpha, beta=walk.beta,
        loss=loss, accuracy=accuracy,
        directions=np.stack([v.cpu().numpy() for v in walk.vectors]),
        direction_names=tuple(d.name for d in walk.directions),
        direction_curvatures=np.array([d.curvature for d in walk.directions]),
        coordinate_units=walk.directions[0].units, directions_hash=directions_hash(walk.vectors), **fields)
