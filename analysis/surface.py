"""Loss surfaces: loss and accuracy of every class group on a line or plane through a checkpoint, from one sweep.

At the point (alpha, beta) the parameters are theta = theta0 + alpha d1 + beta d2, computed in float64 from theta0 for
every point and rounded once, so no rounding piles up along a row. Evaluation mode: the BatchNorm statistics are
theta0's. Each point costs one forward pass over the data, whatever the number of groups. Values are stored as they
come: NaN and inf stay, and one group's NaN does not reach another.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor, nn

from analysis.directions import Direction, directions_hash
from analysis.kernels import reproducible_kernels
from checkpoints.records import Surface
from landscape.batchnorm import evaluation_mode
from landscape.errors import InputError
from landscape.groups import ClassGroups
from landscape.parameters import moved_to, theta

Row = np.ndarray  # (2, G, B), B = 1 for a line, float64: losses and accuracies of all groups at one alpha


class Progress(Protocol):
    """Anything that counts: scripts.progress.Progress, a tqdm bar."""

    def update(self, n: int = 1) -> object: ...


def loss_surface(model: nn.Module, loss: Callable[[Tensor, Tensor], Tensor], batches: Sequence[tuple[Tensor, Tensor]],
                 directions: Sequence[Direction], coordinates: Sequence[Sequence[float]], groups: ClassGroups, *,
                 name: str = "surface", epoch: int = 0, provenance: Mapping[str, Any] | None = None,
                 progress: Progress | None = None, done: Mapping[int, Row] | None = None,
                 on_row: Callable[[int, Row], None] | None = None) -> Surface:
    """Evaluate every group's mean loss and accuracy at theta0 + alpha d1 (+ beta d2) for all given coordinates.

    batches: (images, labels) pairs, kept on the model's device; loss(logits, labels) -> (B,). directions and
    coordinates: one of each for a line, two for a plane; coordinates ascend and may leave 0 out. A sample with NaN
    among its logits counts as wrong. progress.update() is called once a point. To resume a killed sweep, on_row(i, row)
    gets the finished values at alpha[i], and `done` hands them back: those rows are not computed again. The model is
    unchanged afterwards, bit for bit, also after an exception.
    """
    start = theta(model)
    walk = _walk(directions, coordinates, start)
    samples = _resident(batches, groups, start.device)
    rows = _read_rows(done or {}, (2, len(groups.names), walk.width), len(walk.alpha))
    with torch.no_grad(), evaluation_mode(model), reproducible_kernels():
        for i in range(len(walk.alpha)):
            if i in rows:
                _count(progress, walk.width)
                continue
            rows[i] = np.stack([_point(model, loss, samples, point, progress) for point in walk.points(i)], axis=-1)
            if on_row is not None:
                on_row(i, rows[i])
    values = np.stack([rows[i] for i in range(len(walk.alpha))], axis=2)  # (2, G, A, B)
    return _record(values, walk, samples, groups, name=name, epoch=epoch, provenance=dict(provenance or {}))


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


@dataclass(frozen=True, eq=False)
class _Samples:
    batches: list[tuple[Tensor, Tensor, Tensor]]  # images, labels (B,), membership (G, B) bool
    sizes: Tensor                                 # (G,) float64: samples of each group


def _point(model: nn.Module, loss: Callable, samples: _Samples, point: Tensor, progress: Progress | None) -> np.ndarray:
    """Return the mean losses and accuracies (2, G) at the parameters `point`."""
    with moved_to(model, point):
        sums = sum(_sums(model(images), loss, labels, members) for images, labels, members in samples.batches)
    _count(progress, 1)
    return (sums / samples.sizes).cpu().numpy()


def _sums(logits: Tensor, loss: Callable, labels: Tensor, members: Tensor) -> Tensor:
    """Return the summed losses and correct answers (2, G) of one batch, in float64."""
    losses = loss(logits, labels)
    if losses.shape != labels.shape:
        raise InputError(f"the loss has shape {tuple(losses.shape)}: expected one number a sample, "
                         f"{tuple(labels.shape)}; pass a loss with reduction='none'")
    # argmax calls NaN the largest, which would make a broken sample right now and then.
    correct = (logits.argmax(1) == labels) & ~logits.isnan().any(1)
    values = torch.stack([losses.double(), correct.double()])  # (2, B)
    # Not a product with a 0/1 table, in which one sample's NaN would reach every group.
    return torch.where(members, values[:, None], 0.0).sum(2)   # (2, G, B) -> (2, G)


def _walk(directions: Sequence[Direction], coordinates: Sequence[Sequence[float]], start: Tensor) -> _Walk:
    if isinstance(directions, Direction) or len(directions) not in (1, 2) or len(directions) != len(coordinates):
        raise InputError("directions and coordinates are out of range: expected a list of one direction (a line) or "
                         "two (a plane), and as many arrays of coordinates")
    units = sorted({d.units for d in directions})
    if len(units) > 1:
        raise InputError(f"directions are in different units ({', '.join(units)}): expected one unit for both axes")
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


def _resident(batches: Sequence[tuple[Tensor, Tensor]], groups: ClassGroups, device: torch.device) -> _Samples:
    if not isinstance(batches, Sequence) or not batches:
        found = "empty" if isinstance(batches, Sequence) else f"a {type(batches).__name__}"
        raise InputError(f"batches is {found}: expected a list of (images, labels), since every point reads it again")
    table = torch.stack([groups.membership(device)[name] for name in groups.names])  # (G, C)
    moved = [(images.to(device), labels.to(device)) for images, labels in batches]
    for _, labels in moved:
        if labels.ndim != 1 or labels.is_floating_point() or (labels < 0).any() or (labels >= table.shape[1]).any():
            raise InputError(f"labels are out of range: expected integers 0 <= label < {table.shape[1]}, of shape (B,)")
    held = [(images, labels, table[:, labels]) for images, labels in moved]
    sizes = sum(members.sum(1) for _, _, members in held).double()
    for name, size in zip(groups.names, sizes.tolist()):
        if not size:
            raise InputError(f"group {name!r} has no sample in the batches: take more samples or leave the group out")
    return _Samples(held, sizes)


def _read_rows(done: Mapping[int, Row], shape: tuple[int, ...], num_rows: int) -> dict[int, Row]:
    for i, row in done.items():
        if i not in range(num_rows) or np.shape(row) != shape:
            raise InputError(f"finished row {i} of shape {np.shape(row)} is from another surface: expected "
                             f"shape {shape} and 0 <= row < {num_rows}")
    return {i: np.asarray(row, dtype=np.float64) for i, row in done.items()}


def _count(progress: Progress | None, points: int) -> None:
    if progress is not None:
        progress.update(points)


def _record(values: np.ndarray, walk: _Walk, samples: _Samples, groups: ClassGroups, **fields: Any) -> Surface:
    loss, accuracy = values if len(walk.beta) else values[..., 0]
    return Surface(
        groups=groups.names, num_samples=samples.sizes.cpu().numpy().astype(np.int64), alpha=walk.alpha, beta=walk.beta,
        loss=loss, accuracy=accuracy,
        directions=np.stack([v.cpu().numpy() for v in walk.vectors]),
        direction_names=tuple(d.name for d in walk.directions),
        direction_curvatures=np.array([d.curvature for d in walk.directions]),
        coordinate_units=walk.directions[0].units, directions_hash=directions_hash(walk.vectors), **fields)
