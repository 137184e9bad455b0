"""Value, slope and curvature of every sample's loss along a line: phi_i(a) = loss_i(theta + a v), so that phi_i''(0) = v'H_i v.

Forward mode over forward mode has them at the price of about four forward passes. torch nests forward mode wrongly for some
operations (LayerNorm, custom functions), and without a word: who uses this compares sums with those of another way.
"""

from collections.abc import Callable

import torch
from torch import Tensor

Along = Callable[[Tensor], Tensor]      # a -> phi (B,)


def each_sample(phi: Along, device: torch.device) -> Tensor:
    """Return phi_i, phi_i' and phi_i'' at 0, (3, B) in float64."""
    zero, one = number(0.0, device), number(1.0, device)
    (value, slope), (_, curvature) = torch.func.jvp(lambda a: torch.func.jvp(phi, (a,), (one,)), (zero,), (one,))
    return torch.stack([value, slope, curvature]).double()


def number(value: float, device: torch.device) -> Tensor:
    """Return a coordinate: as a number without dimensions it leaves the type of what it multiplies alone."""
    return torch.tensor(value, dtype=torch.float64, device=device)
