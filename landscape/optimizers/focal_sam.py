"""Focal-SAM (Li et al., ICML 2025): an ascent for a loss in which rare classes weigh more, and the rest in place.

With coefficients c_y = lambda (1 - pi_y)^gamma, pi_y the share of class y among the training images,

    L^gamma = (1 / |B|) sum over i of c_{y_i} l_i
    G       = grad L^gamma(theta + rho grad L^gamma / ||grad L^gamma||) + grad (L - L^gamma)(theta)

which is GroupSAM's rule for two groups that every sample belongs to in part: "focal" with the share c, of radius rho, and
"rest" with the share 1 - c, of radius 0. Where lambda > 1 the rest of a rare class has negative weight, as released.
lambda = 0 or rho = 0 is SGD; gamma = 0 with lambda = 1 is SAM; equal class sizes are SAM of the weight
lambda (1 - 1/C)^gamma.

The names gamma and lambda are `focal_gamma` and `focal_weight` here: `gamma` is SSE-SAM's switch. Defaults are the
paper's for CIFAR-100-LT; it gives 3.0 and 0.5 for CIFAR-10-LT, 0.8 and 0.8 for ImageNet-LT, 2 and 1.1 for iNaturalist.
"""

import math
from collections.abc import Mapping, Sequence

from torch import Tensor, nn
from torch.optim import Optimizer

from landscape.errors import InputError
from landscape.optimizers.closures import Masks, labels_of
from landscape.optimizers.group_sam import GroupSAM, radius
from landscape.optimizers.scaling import checked_counts

FOCAL, REST = "focal", "rest"


class FocalSAM(GroupSAM):
    """Focal-SAM. Its closure returns losses and {"labels": classes (B,)}; `class_counts` (C,) are training images a class.

    Two forwards and three backwards a step, whatever the number of classes. `weighting` does not enter.
    """

    def __init__(self, optimizer: Optimizer, model: nn.Module, class_counts: Sequence[int], rho: float = 0.05, *,
                 focal_gamma: float = 3.2, focal_weight: float = 0.8, **options):
        for name, value in (("focal_gamma", focal_gamma), ("focal_weight", focal_weight)):
            if not (math.isfinite(value) and value >= 0):
                raise InputError(f"{name}={value} is out of range: expected a finite number >= 0")
        super().__init__(optimizer, model, {FOCAL: radius("rho", rho), REST: 0.0}, **options)
        counts = checked_counts(class_counts, "Focal-SAM")
        shares = focal_weight * (1 - counts / counts.sum()) ** focal_gamma
        self.shares = shares.to(self.trained()[0])     # (C,) c_y

    def _loss(self, losses: Tensor, masks: Masks, counts: Mapping[str, int | Tensor], group: str) -> Tensor:
        share = self.shares[labels_of(masks, losses)]   # (B,)
        return (losses * (share if group == FOCAL else 1 - share)).sum() / counts["all"]

    def _counted(self) -> list[str]:
        return []

    def _together(self, groups, closures) -> list[list[str]]:
        return [groups] if super()._together(groups, closures) else []
