"""Losses that adjust logits: CE, LDAM, LA, VS, BS.

Every loss of this file is a cross-entropy of adjusted logits, l_i = -log softmax(a * z + b - m_y e_y)_y with constants a class:

    CE     a = 1,                     b = 0,          m = 0
    LDAM   a = s (paper) or 1,        b = 0,          m_c = s max_m (n_min / n_c)^(1/4)
    LA     a = 1,                     b = tau log pi, m = 0
    VS     a_c = (n_c / n_max)^gamma, b = tau log pi, m = 0
    BS     a = 1,                     b = log n,      m = 0

where n_c counts the training images of class c and pi_c = n_c / sum(n). Sources: LDAM, Cao et al. 2019; LA, Menon et al.
2021, equation 10; VS, Kini et al. 2021; BS, Ren et al. 2020. The defaults of VS follow the code of Rangwani et al. 2022,
LDAM's release form that of Lyu et al. 2025.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from landscape.errors import InputError
from landscape.losses.class_sizes import check_number, positive_counts


class AdjustedCrossEntropy(nn.Module):
    """Cross-entropy of adjusted logits: loss(logits (B, C), targets (B,)) -> (B,), in nats.

    The constants are float64 buffers that follow device and dtype of the logits in every call; `.to(device)` once saves
    the copy. They never change, so the loss is a pure function under torch.func.
    """

    def __init__(self, *, scale: Tensor | None = None, shift: Tensor | None = None, margin: Tensor | None = None):
        super().__init__()
        self.register_buffer("scale", scale)    # (C,), or None for 1
        self.register_buffer("shift", shift)    # (C,), or None for 0
        self.register_buffer("margin", margin)  # (C,), or None for 0

    def forward(self, logits: Tensor, targets: Tensor) -> Tensor:
        if self.scale is not None:
            logits = logits * self.scale.to(logits)
        if self.shift is not None:
            logits = logits + self.shift.to(logits)
        if self.margin is not None:
            logits = logits - self.margin.to(logits) * _is_target(logits, targets)
        return F.cross_entropy(logits, targets, reduction="none")


def _is_target(logits: Tensor, targets: Tensor) -> Tensor:
    # Not one_hot: it reads its largest entry back from the device, which no tracer can follow.
    return targets[:, None] == torch.arange(logits.shape[1], device=logits.device)  # (B, C)


def cross_entropy(class_counts: Sequence[int]) -> AdjustedCrossEntropy:
    """Return the cross-entropy -log softmax(z)_y; class sizes do not enter."""
    return AdjustedCrossEntropy()


def ldam(class_counts: Sequence[int], *, form: str = "paper", max_m: float = 0.5,
         s: float = 30.0) -> AdjustedCrossEntropy:
    """Return LDAM: a margin m_c = max_m (n_min / n_c)^(1/4), largest for the rarest class, taken off the true logit.

    form="paper" expects the cosines of a cosine head and computes CE(s (cos - m_y e_y)); form="release" expects the raw
    logits of a linear head, as the SSE-SAM code does, and computes CE(z - s m_y e_y).
    """
    check_number("max_m", max_m, low=0.0)
    check_number("s", s, low=0.0, strict=True)
    if form not in ("paper", "release"):
        raise InputError(f"form={form!r} is unknown: expected 'paper' (cosine head) or 'release' (linear head)")
    counts = positive_counts(class_counts, "LDAM")
    scale = torch.full_like(counts, s) if form == "paper" else None
    return AdjustedCrossEntropy(scale=scale, margin=s * max_m * (counts.min() / counts) ** 0.25)


def logit_adjustment(class_counts: Sequence[int], *, tau: float = 1.0) -> AdjustedCrossEntropy:
    """Return LA: CE(z + tau log pi); tau = 0 is CE. Lyu et al. 2025 use tau = 0.75."""
    return AdjustedCrossEntropy(shift=_prior_shift(positive_counts(class_counts, "LA"), tau))


def balanced_softmax(class_counts: Sequence[int]) -> AdjustedCrossEntropy:
    """Return balanced softmax, CE(z + log n) (Ren et al. 2020): LA with tau = 1, to a shift that all classes share."""
    return AdjustedCrossEntropy(shift=positive_counts(class_counts, "BS").log())


def vector_scaling(class_counts: Sequence[int], *, gamma: float = 0.3, tau: float = 1.0) -> AdjustedCrossEntropy:
    """Return VS: CE(z / Delta + tau log pi) with Delta_c = (n_max / n_c)^gamma; gamma = tau = 0 is CE.

    This gamma has nothing to do with SSE-SAM's. Defaults of Rangwani et al. 2022; Lyu et al. 2025 use 0.05 and 0.75.
    """
    check_number("gamma", gamma, low=0.0)
    counts = positive_counts(class_counts, "VS")
    return AdjustedCrossEntropy(scale=(counts / counts.max()) ** gamma, shift=_prior_shift(counts, tau))


def _prior_shift(counts: Tensor, tau: float) -> Tensor:
    check_number("tau", tau)
    return tau * (counts / counts.sum()).log()
