"""What losses take from class sizes: counts that can be divided by, and weights of deferred re-weighting."""

from collections.abc import Sequence
from math import inf, isfinite

import torch
from torch import Tensor

from landscape.errors import InputError


def drw_weights(class_counts: Sequence[int], beta: float) -> Tensor:
    """Return the class weights (C,) of deferred re-weighting: (1 - beta) / (1 - beta^n_c) scaled to the sum C, float64.

    beta = 0 weights all classes alike, beta -> 1 by 1 / n_c. Cui et al. 2019 (effective number of samples); Cao et al.
    2019 switch it on late in training.
    """
    if not 0 <= beta < 1:
        raise InputError(f"beta={beta} is out of range: expected 0 <= beta < 1; 0 switches re-weighting off")
    counts = positive_counts(class_counts, "DRW")
    # 1 - beta^n loses all digits for beta near 1; expm1 does not.
    weights = 1 / -torch.expm1(counts * torch.tensor(beta, dtype=torch.float64).log())
    return weights * (len(counts) / weights.sum())


def positive_counts(class_counts: Sequence[int], user: str) -> Tensor:
    """Return class sizes (C,) in float64; `user`, which divides by them, refuses a class without images."""
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
