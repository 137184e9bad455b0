"""Losses that weigh samples: focal loss and class-balanced cross-entropy, with ce_i the cross-entropy and p_i = exp(-ce_i).

    Focal  l_i = w_y (1 - p_i)^gamma ce_i       Lin et al. 2017; weights of CB where beta > 0 (CB-Focal)
    CB     l_i = w_y ce_i                       w_c = (1 - beta) / (1 - beta^n_c), scaled to the sum C; Cui et al. 2019

The mean over a batch divides by its size, as Cui et al. do; torch's weighted mean, which divides by the sum of the weights,
is what `--drw_epoch 0` gives. p is of the plain cross-entropy also where classes are weighed. The focal exponent is
`focal_gamma`: 1 is what the code of Cao et al. 2019 passes in its comparisons, 2 what Lin et al. recommend for detection.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from landscape.losses.class_sizes import check_number, drw_weights


class WeightedCrossEntropy(nn.Module):
    """w_y (1 - p)^gamma ce: loss(logits (B, C), targets (B,)) -> (B,), in nats; a pure function under torch.func."""

    def __init__(self, weights: Tensor | None = None, gamma: float = 0.0):
        super().__init__()
        self.register_buffer("weights", weights)    # (C,), or None for 1
        self.gamma = gamma

    def forward(self, logits: Tensor, targets: Tensor) -> Tensor:
        losses = F.cross_entropy(logits, targets, reduction="none")
        if self.gamma:
            # The least normal number in place of 0, where (1 - p)^gamma has no finite derivative for gamma < 1.
            ce = losses.clamp(min=torch.finfo(losses.dtype).tiny)
            losses = (-torch.expm1(-ce)) ** self.gamma * ce
        return losses if self.weights is None else losses * self.weights.to(losses)[targets]


def focal(class_counts: Sequence[int], *, focal_gamma: float = 1.0, beta: float = 0.0) -> WeightedCrossEntropy:
    """Return the focal loss; focal_gamma = 0 is CB, and with beta = 0, which leaves class sizes out, CE."""
    check_number("focal_gamma", focal_gamma, low=0.0)
    return WeightedCrossEntropy(drw_weights(class_counts, beta) if beta else None, focal_gamma)


def class_balanced(class_counts: Sequence[int], *, beta: float = 0.9999) -> WeightedCrossEntropy:
    """Return CB: cross-entropy weighed by the effective number of a class's images; beta = 0 is CE."""
    return WeightedCrossEntropy(drw_weights(class_counts, beta))
