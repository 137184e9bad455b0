"""Agreement of gradients: the cosine of a class's or group's gradient with those of mini-batches, and of head with tail.

    cos(u, v) = <u, v> / (||u|| ||v||),   u = grad L_S over all images of a class or group S,   v = grad L_B of a mini-batch B

averaged over several mini-batches (GKP-GSA, Chen et al. 2026, Figure 6). It is of order sqrt(1/d) for unrelated directions;
the images of S in B make it larger, so that a large class agrees more because it is more of B.

Evaluation mode by default, for both: BatchNorm's running statistics, no dropout, so that L_S is a function of theta whatever
it is split into. `statistics="batch"` normalizes with each batch's own statistics, as a training step does; that is meant for
mini-batches, since the statistics of one class's images are those of no training step. Gradients are in the model's type,
their sums over batches and their products in float64. A gradient of zero has no direction: NaN.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext

import numpy as np
import torch
from torch import Tensor, nn

from analysis.intervals import t_interval
from analysis.kernels import reproducible_kernels
from analysis.objective import gradient_of
from checkpoints.records import Estimate
from landscape.batchnorm import batch_statistics, evaluation_mode
from landscape.errors import InputError
from landscape.parameters import trainable

STATISTICS = ("running", "batch")


def mean_gradient(model: nn.Module, loss: Callable[[Tensor, Tensor], Tensor], batches: Iterable[tuple[Tensor, Tensor]], *,
                  statistics: str = "running") -> Tensor:
    """Return the gradient (d,) of the mean loss over all samples of some batches, in float64; loss(logits, labels) -> (B,)."""
    parameters, total, count = list(trainable(model).values()), 0.0, 0
    with evaluation_mode(model), _normalized(model, statistics), reproducible_kernels(), torch.enable_grad():
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


def mean_cosine(cosines: Sequence[float], level: float = 0.95) -> Estimate:
    """Return the mean over mini-batches with Student's t interval; NaN limits for one batch.

    Batches of one epoch share no image, which makes the interval too wide rather than too narrow as they come to be all of it.
    """
    return t_interval(cosines, level, "mini-batches")


def extreme_classes(counts: Sequence[int], number: int = 2) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Return the `number` largest and the `number` smallest classes, of equal ones the first; fewer where they would meet."""
    order = [int(c) for c in np.argsort(-np.asarray(counts), kind="stable")]
    number = min(number, len(order) // 2)
    return tuple(order[:number]), tuple(order[len(order) - number:])
