"""One network evaluated at many points: loss and accuracy of every class group from one pass over the data at each.

A sweep moves the network's parameters, sets BatchNorm's statistics as they are wanted, and sums losses by class; a group is a
union of classes. Rows of points are shared among processes, a row at a time each.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from analysis.operators.kernels import Rewritten
from analysis.surfaces.forward import LEAST, Forward, build_forward, difference
from analysis.surfaces.statistics import recalibrate
from landscape.distributed import Processes
from landscape.errors import InputError
from landscape.groups import ClassGroups
from landscape.parameters import split_like, trainable

Loss = Callable[[Tensor, Tensor], Tensor]
ROUNDING = {torch.float64: 1e-9, torch.float32: 1e-3}   # of a form's logits, relative to the largest; beyond it is not used


@dataclass(frozen=True, eq=False)
class Samples:
    """The data of a sweep, on the model's device, and which classes form each group."""

    batches: list[tuple[Tensor, Tensor]]
    labels: np.ndarray              # (N,)
    members: tuple[np.ndarray, ...]  # of each group: its classes
    names: tuple[str, ...]          # of the G groups
    num_classes: int

    @classmethod
    def of(cls, batches: Sequence[tuple[Tensor, Tensor]], groups: ClassGroups, device: torch.device) -> "Samples":
        """Move batches to a device; InputError where they are no list, a label is no class, or a group has no sample."""
        if not isinstance(batches, Sequence) or not batches:
            found = "empty" if isinstance(batches, Sequence) else f"a {type(batches).__name__}"
            raise InputError(f"batches is {found}: expected a list of (images, labels), since every point reads it again")
        classes, moved = len(groups.counts), [(images.to(device), labels.to(device)) for images, labels in batches]
        for _, labels in moved:
            if labels.ndim != 1 or labels.is_floating_point() or (labels < 0).any() or (labels >= classes).any():
                raise InputError(f"labels are out of range: expected integers 0 <= label < {classes}, of shape (B,)")
        members = tuple(np.array(groups.classes[name], dtype=np.int64) for name in groups.names)
        samples = cls(moved, torch.cat([labels for _, labels in moved]).cpu().numpy(), members, groups.names, classes)
        for name, size in zip(groups.names, samples.sizes):
            if not size:
                raise InputError(f"group {name!r} has no sample in the batches: take more samples or leave the group out")
        return samples

    @property
    def sizes(self) -> np.ndarray:
        """Samples of each group, (G,)."""
        return self.over_groups(np.bincount(self.labels, minlength=self.num_classes))

    def over_groups(self, of_classes: np.ndarray) -> np.ndarray:
        """Return the sums over each group's classes of (..., C), as (..., G). NaN in one class does not reach other groups."""
        return np.stack([of_classes[..., classes].sum(-1) for classes in self.members], axis=-1)

    def means(self, of_samples: Iterable[np.ndarray]) -> np.ndarray:
        """Return the mean of each measure (N,) over each group, (measures, G)."""
        sums = [np.bincount(self.labels, weights=values, minlength=self.num_classes) for values in of_samples]
        return self.over_groups(np.stack(sums)) / self.sizes


class Sweep:
    """Loss and accuracy of every group at any point. The model is in evaluation mode, and its parameters are free to be moved."""

    def __init__(self, model: nn.Module, loss: Loss, samples: Samples, forward: Forward, policy: str = "fixed"):
        self.model, self.loss, self.samples, self.policy = model, loss, samples, policy
        self.use(forward)

    def use(self, forward: Forward) -> None:
        """Make the passes in this form."""
        self.forward, self._pieces = forward, []
        for images, labels in self.samples.batches:
            cut = forward.pieces(images)
            self._pieces += zip(cut, labels.split([len(piece) for piece in cut]))

    def move_to(self, point: Tensor) -> None:
        """Give the model the parameters (d,), and the statistics that belong there."""
        with torch.no_grad():
            parameters = list(trainable(self.model).values())
            for parameter, piece in zip(parameters, split_like(point, parameters)):
                parameter.copy_(piece)
        if self.policy == "recalibrated":
            recalibrate(self.model, [images for images, _ in self.samples.batches])
        self.forward.refresh()

    def at(self, point: Tensor) -> np.ndarray:
        """Return mean loss and accuracy (2, G) of every group at the parameters `point`."""
        self.move_to(point)
        judged = [_judge(self.forward(images), self.loss, labels) for images, labels in self._pieces]
        return self.samples.means(torch.cat(judged, dim=1).cpu().numpy())


def _judge(logits: Tensor, loss: Loss, labels: Tensor) -> Tensor:
    """Return the losses of samples, and whether each is labelled rightly, (2, B) in float64."""
    with Rewritten():
        losses = loss(logits, labels)
    if losses.shape != labels.shape:
        raise InputError(f"the loss has shape {tuple(losses.shape)}: expected one number a sample, "
                         f"{tuple(labels.shape)}; pass a loss with reduction='none'")
    # argmax calls NaN the largest, which would make a broken sample right now and then.
    correct = (logits.argmax(1) == labels) & ~logits.isnan().any(1)
    return torch.stack([losses.double(), correct.double()])


def build_sweep(model: nn.Module, loss: Loss, samples: Samples, points: Sequence[Tensor], *, policy: str = "fixed",
                precision: str | None = None, form: str = "auto") -> tuple[Sweep, dict[str, Any]]:
    """Return a sweep in the fastest form, and how far its numbers are from those of plain passes at some of its points.

    Of a form of the same precision, logits of the first and last images are compared; of a lower precision, losses and accuracies
    of all groups over all images.
    """
    whole = policy == "batch"
    ends = [samples.batches[0][0], samples.batches[-1][0]]
    few = ends if whole else [ends[0][:LEAST], ends[1][-LEAST:]]
    sweep = Sweep(model, loss, samples, build_forward(model, form, images=few, whole=whole), policy)
    about = _compared(sweep, few, points, form)
    if precision is not None:
        exact = [sweep.at(point) for point in points]
        sweep.use(build_forward(model, sweep.forward.name, images=few, precision=precision, whole=whole))
        about |= _apart(exact, [sweep.at(point) for point in points], samples)
    return sweep, about


def _compared(sweep: Sweep, few: list[Tensor], points: Sequence[Tensor], form: str) -> dict[str, Any]:
    """Measure the rounding of a form against the network itself, and give the form up where it is too large."""
    if sweep.forward.name == "plain":
        return {"form": "plain"}
    plain, largest = Forward(sweep.model), 0.0
    for point in points:
        sweep.move_to(point)
        largest = max(largest, *(difference(plain, sweep.forward, images) for images in few))
    if form == "auto" and not largest <= ROUNDING[points[0].dtype]:
        sweep.use(plain)
        return {"form": "plain"}
    return {"form": sweep.forward.name, "form_rounding": largest}


def _apart(exact: list[np.ndarray], found: list[np.ndarray], samples: Samples) -> dict[str, Any]:
    """Return how far losses and accuracies of a lower precision are from those in float32, at worst over points and groups."""
    apart = np.abs(np.stack(found) - np.stack(exact))                   # (points, 2, G)
    worst = {measure: dict(zip(samples.names, apart[:, i].max(0).tolist())) for i, measure in enumerate(("loss", "accuracy"))}
    return {"precision_error": {"against": "float32", "points": len(exact), **worst}}


def shared_rows(compute: Callable[[int], np.ndarray], shape: tuple[int, ...], rows: Sequence[int],
                on_row: Callable[[int, np.ndarray], None] | None, count: Callable[[int], None],
                processes: Processes) -> dict[int, np.ndarray]:
    """Compute rows of one shape, each by one process, and return all of them on every process.

    on_row is told of every finished row on every process. `count` hears how many rows the other processes finished.
    """
    finished = {}
    for first in range(0, len(rows), processes.count):
        wave = rows[first:first + processes.count]
        own = wave[processes.rank] if processes.rank < len(wave) else None
        values = processes.together(lambda: np.zeros(shape) if own is None else compute(own))
        for row, found in zip(wave, _gathered(values, len(wave), processes)):
            finished[row] = found
            if on_row is not None:
                on_row(row, found)
        count(len(wave) - (own is not None))
    return finished


def _gathered(values: np.ndarray, count: int, processes: Processes) -> np.ndarray:
    """Return the rows of the first `count` processes, (count, *shape)."""
    together = np.zeros((processes.count, *values.shape))
    together[processes.rank] = values
    return processes.sum_together([torch.from_numpy(together)])[0].numpy()[:count]
