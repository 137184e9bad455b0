"""Agreement of gradients: the cosine of a class's or group's gradient with those of mini-batches, and of head with tail.

    cos(u, v) = <u, v> / (||u|| ||v||),   u = grad L_S over all images of a class or group S,   v = grad L_B of a mini-batch B

averaged over several mini-batches (GKP-GSA, Chen et al. 2026, Figure 6). It is of order sqrt(1/d) for unrelated directions;
the images of S in B make it larger, so that a large class agrees more because it is more of B.

Evaluation mode by default, for both: BatchNorm's running statistics, no dropout, so that L_S is a function of theta whatever
it is split into. `statistics="batch"` normalizes with each batch's own statistics, as a training step does; that is meant for
mini-batches, since the statistics of one class's images are those of no training step. Gradients are in the model's type,
their sums over batches and their products in float64. A gradient of zero has no direction: NaN.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from itertools import islice

import numpy as np
import torch
from torch import Tensor, nn

from analysis.measures.perturbations import drawn, null_alignment
from analysis.measures.table import LEVEL, Table, table
from analysis.operators.kernels import Rewritten, reproducible_kernels
from analysis.operators.objective import gradient_of
from analysis.spectra.intervals import t_interval
from checkpoints.records import Estimate
from landscape.batchnorm import batch_statistics, evaluation_mode
from landscape.configuration import TrainConfig
from landscape.errors import InputError
from landscape.losses import build_loss, loss_options, needs_views
from landscape.parameters import trainable

STATISTICS = ("running", "batch")
Losses = Callable[[Tensor, Tensor], Tensor]


def similarity(case) -> Table:
    """Return the mean cosine of group and class gradients with those of mini-batches of a `Case`; one row a group or class.

    The loss is the run's training loss, without deferred re-weighting; of one that contrasts views, its part on the logits,
    LA. Classes are the two largest and the two smallest.
    with_head and with_tail are the cosines with the whole gradients of these, where they are among the groups.
    """
    subject, settings = case.subject, case.settings
    model, config = subject.cast(settings.dtype), _of_logits(subject.config)
    loss = build_loss(config.loss, subject.data.counts, **config.loss_options)
    gradients = {}
    for name in _names(case):
        gradients[name] = mean_gradient(model, loss, case.images(name)[0])
        case.progress(case.num_images(name)[0])
    minibatches = drawn(config, subject.data.to(subject.device), next(model.parameters()).dtype, settings.seed)
    cosines = batch_cosines(gradients, _slopes(case, model, loss, islice(minibatches, settings.batches)))
    subject.cast("float32")
    rows = [{"group": name, "half": _half(case, name), **_interval(cosines[name]), "images": case.num_images(name)[0]}
            | {f"with_{half}": cosine(gradient, gradients[half]) if half in gradients else np.nan for half in ("head", "tail")}
            for name, gradient in gradients.items()]
    size = len(next(iter(gradients.values())))
    about = {"batches": settings.batches, "batch_size": config.batch_size, "augmented": config.augment, "mode": "evaluation",
             "loss": config.loss, "level": LEVEL, "interval": f"{settings.batches} mini-batches", "d": size,
             "null": null_alignment(size)}
    return table(rows, {}, about)


def _of_logits(config: TrainConfig) -> TrainConfig:
    if not needs_views(config.loss):
        return config
    tau = config.loss_options.get("tau", loss_options(config.loss)["tau"])
    return replace(config, loss="LA", loss_options={"tau": tau})


def work(case) -> int:
    """Return how many image gradients `similarity` takes."""
    return sum(case.num_images(name)[0] for name in _names(case)) + case.settings.batches * case.subject.config.batch_size


def _names(case) -> list[str]:
    classes = sum(extreme_classes(case.subject.groups.counts), ())
    return list(dict.fromkeys([*case.settings.groups, *(f"class:{c}" for c in classes)]))


def _slopes(case, model: nn.Module, loss: Losses, minibatches: Iterable[tuple[Tensor, Tensor]]) -> Iterator[Tensor]:
    for images, labels in minibatches:
        yield mean_gradient(model, loss, [(images, labels)])
        case.progress(len(labels))


def _half(case, name: str) -> str:
    """Return whether all classes of a group are head or tail."""
    classes, groups = set(case.subject.groups.select(name)), case.subject.groups.classes
    return next((half for half in ("head", "tail") if classes <= set(groups[half])), "both")


def _interval(cosines: np.ndarray) -> dict[str, float]:
    found = mean_cosine(cosines)
    return {"value": found.value, "low": found.low, "high": found.high}


def mean_gradient(model: nn.Module, loss: Losses, batches: Iterable[tuple[Tensor, Tensor]], *,
                  statistics: str = "running") -> Tensor:
    """Return the gradient (d,) of the mean loss over all samples of some batches, in float64; loss(logits, labels) -> (B,)."""
    parameters, total, count = list(trainable(model).values()), 0.0, 0
    with evaluation_mode(model), _normalized(model, statistics), reproducible_kernels(), Rewritten(), torch.enable_grad():
        for images, labels in batches:
            total = total + gradient_of(loss(model(images), labels).sum(), parameters).double()
            count += len(labels)
    if not count:
        raise InputError("batches hold no sample: a mean over none has no gradient")
    return total / count


def _normalized(model: nn.Module, statistics: str) -> AbstractContextManager:
    if statistics not in STATISTICS:
        raise InputError(f"statistics={statistics!r} is unknown: expected one of {', '.join(STATISTICS)}")
    return batch_statistics(model) if statistics == "batch" else nullcontext()


def cosine(u: Tensor, v: Tensor) -> float:
    """Return <u, v> / (||u|| ||v||), accumulated in float64; NaN where one of them is zero."""
    u, v = u.double(), v.double()
    # Divided first: the product of two tiny norms may be zero where neither is.
    return float((u / torch.linalg.vector_norm(u)) @ (v / torch.linalg.vector_norm(v)))


def batch_cosines(gradients: Mapping[str, Tensor], minibatches: Iterable[Tensor]) -> dict[str, np.ndarray]:
    """Return the cosines (B,) of each gradient (d,) with those of B mini-batches."""
    rows = [[cosine(gradient, other) for gradient in gradients.values()] for other in minibatches]
    return {name: np.array([row[i] for row in rows]) for i, name in enumerate(gradients)}


def mean_cosine(cosines: Sequence[float], level: float = LEVEL) -> Estimate:
    """Return the mean over mini-batches with Student's t interval; NaN limits for one batch.

    Batches of one epoch share no image, which makes the interval too wide rather than too narrow as they come to be all of it.
    """
    return t_interval(cosines, level, "mini-batches")


def extreme_classes(counts: Sequence[int], number: int = 2) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Return the `number` largest and the `number` smallest classes, of equal ones the first; fewer where they would meet."""
    order = [int(c) for c in np.argsort(-np.asarray(counts), kind="stable")]
    number = min(number, len(order) // 2)
    return tuple(order[:number]), tuple(order[len(order) - number:])
