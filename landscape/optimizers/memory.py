"""What each class was best at: the parameters under which its features were of the best quality, kept through training.

With features a_i of class c on training images, in evaluation mode and without augmentation, their mean mu_c and n_c images,

    Dis_c = min over c' != c of ||mu_c - mu_c'||,   Var_c = mean over i of ||a_i - mu_c||^2
    paper       Q_c = Dis_c - beta log Var_c     (Chen et al. 2026, GKP-GSA, equations 17 to 19; beta = 0.5)
    released    Q_c = -1 / Dis_c - beta log Var_c     (their code, beta = 1, which measures it on the test images)

and after an epoch class c keeps the present parameters where Q_c is above that of those it has (equation 1). Test images are
never looked at, in neither form. Q is no invariant: features that are all larger are of another quality, so an epoch in
which training overshoots may be the best of a class.

Classes whose best epoch is the same share one copy, so that the memory holds at most one copy an epoch, whatever the number
of classes.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from landscape.batchnorm import evaluation_mode
from landscape.data import LongTailData
from landscape.errors import InputError
from landscape.models.features import features_and_logits

QUALITIES = ("paper", "released")
ROUNDING = 1e-12    # of ||mu||^2, below which a variance found as a difference is none


@torch.no_grad()
def class_statistics(model: nn.Module, data: LongTailData, batch_size: int = 250) -> tuple[Tensor, Tensor]:
    """Return mean (C, F) and mean squared distance from it (C,) of each class's features on the training images, float64."""
    like, split = next(model.parameters()), data.train
    pieces = torch.arange(len(split), device=split.labels.device).split(batch_size)
    count, total, square = None, None, None
    with evaluation_mode(model):
        for images, labels in split.batches(pieces):
            if not len(labels):
                continue
            labels = labels.to(like.device)
            features = features_and_logits(model, data.inputs(images.to(like.device), like.dtype))[0].double()
            if total is None:
                count, square = (torch.zeros(data.num_classes, dtype=torch.float64, device=like.device) for _ in range(2))
                total = torch.zeros(data.num_classes, features.shape[1], dtype=torch.float64, device=like.device)
            count.index_add_(0, labels, torch.ones_like(labels, dtype=torch.float64))
            total.index_add_(0, labels, features)
            square.index_add_(0, labels, features.square().sum(1))
    if total is None:
        raise InputError(f"no training image can be read: {len(split.skipped)} are broken")
    mean = total / count[:, None]                                   # NaN for a class of which no image could be read
    return mean, (square / count - mean.square().sum(1)).clamp(min=0)


def feature_quality(mean: Tensor, variance: Tensor, beta: float = 0.5, form: str = "paper") -> np.ndarray:
    """Return Q (C,) from class means (C, F) and variances (C,).

    NaN for a class without an image, and for one whose images all have the same features, as with a network that has died:
    the formula's infinity would keep it for good.
    """
    if form not in QUALITIES:
        raise InputError(f"quality={form!r} is unknown: expected one of {', '.join(QUALITIES)}")
    between = torch.cdist(mean, mean, compute_mode="donot_use_mm_for_euclid_dist")
    between.fill_diagonal_(torch.inf)
    distance = between.nan_to_num(torch.inf).amin(1)
    near = distance if form == "paper" else -1 / distance
    spread = torch.where(variance > ROUNDING * mean.square().sum(1), variance, torch.nan)
    return (near - beta * spread.log()).cpu().numpy()


@dataclass(eq=False)
class ClassMemory:
    """The parameters of each of C classes' best epoch, as flat vectors (d,) on the CPU, shared where the epoch is."""

    quality: np.ndarray                                         # (C,) float64, of the epoch kept; -inf where there is none
    epoch: np.ndarray                                           # (C,) int64, epochs done when it was kept; -1 for none
    snapshots: dict[int, Tensor] = field(default_factory=dict)  # epoch -> (d,)

    @classmethod
    def empty(cls, num_classes: int) -> "ClassMemory":
        return cls(np.full(num_classes, -np.inf), np.full(num_classes, -1, np.int64))

    def update(self, epoch: int, quality: np.ndarray, vector: Tensor) -> int:
        """Keep `vector` (d,) for the classes whose quality (C,) rose, or that have nothing yet; return how many these are."""
        quality = np.where(np.isnan(quality), -np.inf, quality)     # what is undefined never rises
        risen = (quality > self.quality) | (self.epoch < 0)
        if risen.any():
            self.quality, self.epoch = np.where(risen, quality, self.quality), np.where(risen, epoch, self.epoch)
            self.snapshots[epoch] = vector.detach().cpu().clone()
            self.snapshots = {kept: self.snapshots[kept] for kept in sorted(set(self.epoch.tolist()) - {-1})}
        return int(risen.sum())

    @property
    def rows(self) -> tuple[list[Tensor], np.ndarray]:
        """The distinct vectors, U of shape (d,), by epoch, and which of them each class has (C,)."""
        epochs = sorted(self.snapshots)
        return [self.snapshots[e] for e in epochs], np.searchsorted(epochs, self.epoch)

    def anchor(self, classes: np.ndarray) -> Tensor:
        """Return the mean (d,) of some classes' parameters (equation 3)."""
        epochs, times = np.unique(self.epoch[classes], return_counts=True)
        return sum(self.snapshots[int(e)].double() * (n / len(classes)) for e, n in zip(epochs, times))

    def arrays(self) -> dict[str, Any]:
        """Return everything as arrays, for `of_arrays`."""
        kept = {f"snapshot/{epoch}": vector.numpy() for epoch, vector in self.snapshots.items()}
        return {"quality": self.quality, "epoch": self.epoch, **kept}

    @classmethod
    def of_arrays(cls, arrays: Mapping[str, Any]) -> "ClassMemory":
        """Return the memory that `arrays` was taken of."""
        kept = {int(name.partition("/")[2]): torch.tensor(value) for name, value in arrays.items() if "/" in name}
        return cls(np.array(arrays["quality"]), np.array(arrays["epoch"], np.int64), dict(sorted(kept.items())))
