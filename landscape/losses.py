"""Per-sample losses for long-tailed classification: one table, and those that adjust logits: CE, LDAM, LA, VS, BS; DRW.

LDAM-DRW is LDAM with `--drw_epoch`. Every loss of this file is a cross-entropy of adjusted logits,
l_i = -log softmax(a * z + b - m_y e_y)_y with constants a class:

    CE     a = 1,                     b = 0,          m = 0
    LDAM   a = s (paper) or 1,        b = 0,          m_c = s max_m (n_min / n_c)^(1/4)
    LA     a = 1,                     b = tau log pi, m = 0
    VS     a_c = (n_c / n_max)^gamma, b = tau log pi, m = 0
    BS     a = 1,                     b = log n,      m = 0

where n_c counts the training images of class c and pi_c = n_c / sum(n). Sources: LDAM and DRW, Cao et al. 2019; LA,
Menon et al. 2021, equation 10; VS, Kini et al. 2021; BS, Ren et al. 2020. DRW and the defaults of VS follow the code of
Rangwani et al. 2022, LDAM's release form that of Lyu et al. 2025.
"""

import inspect
from collections.abc import Callable, Sequence
from math import inf, isfinite

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from landscape.callables import find_named
from landscape.errors import InputError


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
    counts = _positive(class_counts, "LDAM")
    scale = torch.full_like(counts, s) if form == "paper" else None
    return AdjustedCrossEntropy(scale=scale, margin=s * max_m * (counts.min() / counts) ** 0.25)


def logit_adjustment(class_counts: Sequence[int], *, tau: float = 1.0) -> AdjustedCrossEntropy:
    """Return LA: CE(z + tau log pi); tau = 0 is CE. Lyu et al. 2025 use tau = 0.75."""
    return AdjustedCrossEntropy(shift=_prior_shift(_positive(class_counts, "LA"), tau))


def balanced_softmax(class_counts: Sequence[int]) -> AdjustedCrossEntropy:
    """Return balanced softmax, CE(z + log n) (Ren et al. 2020): LA with tau = 1, to a shift that all classes share."""
    return AdjustedCrossEntropy(shift=_positive(class_counts, "BS").log())


def vector_scaling(class_counts: Sequence[int], *, gamma: float = 0.3, tau: float = 1.0) -> AdjustedCrossEntropy:
    """Return VS: CE(z / Delta + tau log pi) with Delta_c = (n_max / n_c)^gamma; gamma = tau = 0 is CE.

    This gamma has nothing to do with SSE-SAM's. Defaults of Rangwani et al. 2022; Lyu et al. 2025 use 0.05 and 0.75.
    """
    check_number("gamma", gamma, low=0.0)
    counts = _positive(class_counts, "VS")
    return AdjustedCrossEntropy(scale=(counts / counts.max()) ** gamma, shift=_prior_shift(counts, tau))


def _prior_shift(counts: Tensor, tau: float) -> Tensor:
    check_number("tau", tau)
    return tau * (counts / counts.sum()).log()


# name -> builder(class_counts, *, options with defaults): a new loss is one row.
LOSSES: dict[str, str | Callable[..., nn.Module]] = {
    "CE": cross_entropy,
    "LDAM": ldam,
    "LA": logit_adjustment,
    "VS": vector_scaling,
    "BS": balanced_softmax,
    "CB": "landscape.weighted_losses:class_balanced",
    "Focal": "landscape.weighted_losses:focal",
    "BCL": "landscape.contrastive:balanced_contrastive_learning",
}
ALIASES = {"VA": "LA"}  # the SSE-SAM README's spelling


def register_loss(name: str, builder: Callable[..., nn.Module]) -> None:
    """Add builder(class_counts, *, option=default, ...) -> loss(logits (B, C), targets (B,)) -> (B,) to LOSSES."""
    if name in LOSSES or name in ALIASES:
        raise InputError(f"loss={name!r} is taken: choose another name")
    LOSSES[name] = builder


def loss_name(name: str) -> str:
    """Return the name under which LOSSES knows a loss; an unknown one is an error naming the choices."""
    name = ALIASES.get(name, name)
    if name not in LOSSES and ":" not in str(name):
        raise InputError(f"loss={name!r} is unknown: expected one of {', '.join(LOSSES)}, or module:callable")
    return name


def builder_of(name: str) -> Callable[..., nn.Module]:
    """Return what builds a loss: its row of LOSSES, or what "module:callable" names."""
    found = LOSSES.get(name := loss_name(name), name)
    return find_named(found) if isinstance(found, str) else found


def loss_options(name: str) -> dict[str, object]:
    """Return the options of a loss with their defaults."""
    parameters = inspect.signature(builder_of(name)).parameters.values()
    return {p.name: p.default for p in parameters if p.kind is p.KEYWORD_ONLY}


def needs_cosine_head(name: str, **options) -> bool:
    """Tell whether a loss expects the cosines of a cosine head: only LDAM in the paper's form."""
    return name == "LDAM" and options.get("form", "paper") == "paper"


def needs_views(name: str) -> bool:
    """Tell whether a loss contrasts views of an image, and so needs views, and a network with projection heads: only BCL."""
    return name == "BCL"


def build_loss(name: str, class_counts: Sequence[int], **options) -> nn.Module:
    """Build a per-sample loss, loss(logits (B, C), targets (B,)) -> (B,), by its name in LOSSES.

    `class_counts` (C,) are training images a class; all that go by them refuse a class without one.
    """
    name = loss_name(name)
    known = loss_options(name)
    for option in options:
        if option not in known:
            raise InputError(f"option {option!r} is unknown to loss {name}: expected {', '.join(known) or 'none'}")
    loss = builder_of(name)(class_counts, **options)
    return loss if isinstance(loss, nn.Module) else FunctionLoss(loss)


class FunctionLoss(nn.Module):
    """A function of logits (B, C) and targets (B,) as a loss, with nothing that a device must hold."""

    def __init__(self, function: Callable[[Tensor, Tensor], Tensor]):
        super().__init__()
        self.function = function

    def forward(self, logits: Tensor, targets: Tensor) -> Tensor:
        return self.function(logits, targets)


def drw_weights(class_counts: Sequence[int], beta: float) -> Tensor:
    """Return the class weights (C,) of deferred re-weighting: (1 - beta) / (1 - beta^n_c) scaled to the sum C, float64.

    beta = 0 weights all classes alike, beta -> 1 by 1 / n_c. Cui et al. 2019 (effective number of samples); Cao et al.
    2019 switch it on late in training.
    """
    if not 0 <= beta < 1:
        raise InputError(f"beta={beta} is out of range: expected 0 <= beta < 1; 0 switches re-weighting off")
    counts = _positive(class_counts, "DRW")
    # 1 - beta^n loses all digits for beta near 1; expm1 does not.
    weights = 1 / -torch.expm1(counts * torch.tensor(beta, dtype=torch.float64).log())
    return weights * (len(counts) / weights.sum())


def _positive(class_counts: Sequence[int], user: str) -> Tensor:
    counts = torch.as_tensor(class_counts, dtype=torch.float64, device="cpu")
    if counts.ndim != 1 or not counts.numel():
        raise InputError(f"class_counts has shape {tuple(counts.shape)}: expected one number a class")
    bad = ~((counts > 0) & counts.isfinite())
    if bad.any():
        c = int(bad.nonzero()[0])
        raise InputError(f"class_counts[{c}]={counts[c]:g} is out of range: {user} divides by class sizes and expects "
                         "each >= 1; leave the empty class out or use CE")
    return counts


def check_number(name: str, value: float, low: float = -inf, strict: bool = False) -> None:
    """Raise InputError where an option is no finite number of its range."""
    number = isinstance(value, (int, float)) and isfinite(value)
    if not number or value < low or (strict and value == low):
        bound = f" {'>' if strict else '>='} {low:g}" if low > -inf else ""
        raise InputError(f"{name}={value!r} is out of range: expected a finite number{bound}")
