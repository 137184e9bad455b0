"""Steps along a gradient, and the way back: the arithmetic that every sharpness-aware optimizer shares.

A gradient is a dict from parameter to tensor; a parameter that took no part in the loss is missing from it. The step is
rho * g / ||g|| with one norm over all parameters (Foret et al. 2021, equation 2 with p = 2), and

- nothing is added to the norm: it is summed in float64, so that a loss multiplied by 1e-30 still gives the same step;
- g = 0 gives no step, decided on the device, so that nothing waits for it;
- the way back copies saved parameters, which is exact; subtracting the step again would drift by rounding.
"""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

Gradient = dict[Tensor, Tensor]  # parameter -> gradient of the same shape


def norm(gradient: Gradient) -> Tensor:
    """Return the Euclidean norm over all tensors of a gradient, a float64 scalar on their device."""
    return torch.linalg.vector_norm(torch.stack(torch._foreach_norm(list(gradient.values()), 2, dtype=torch.float64)))


@torch.no_grad()
def displace(gradient: Gradient, rho: float) -> Gradient:
    """Move the parameters by rho * g / ||g|| in place; return their old values, for `put_back`."""
    if not gradient:
        return {}
    parameters, slopes = list(gradient), list(gradient.values())
    origin = [torch.clone(p) for p in parameters]
    length = norm(gradient)
    scale = torch.where(length > 0, rho / length, 0.0).to(slopes[0].dtype)  # the fused kernels want one dtype
    torch._foreach_add_(parameters, torch._foreach_mul(slopes, scale))
    # An autocast region around the whole step would otherwise go on using the weights it cast before the move.
    torch.clear_autocast_cache()
    return dict(zip(parameters, origin))


@torch.no_grad()
def put_back(origin: Gradient) -> None:
    """Give the parameters the values that `displace` returned, bit by bit."""
    if origin:
        torch._foreach_copy_(list(origin), list(origin.values()))
        torch.clear_autocast_cache()


@contextmanager
def displaced(gradient: Gradient, rho: float) -> Iterator[None]:
    """Hold the parameters at theta + rho * g / ||g|| for the length of a with block, also if it raises."""
    origin = displace(gradient, rho)
    try:
        yield
    finally:
        put_back(origin)


def add(*gradients: Gradient) -> Gradient:
    """Return the sum of gradients. Never in place: autograd may hand one tensor to two parameters."""
    total: Gradient = {}
    for gradient in gradients:
        shared = [p for p in gradient if p in total]
        sums = torch._foreach_add([total[p] for p in shared], [gradient[p] for p in shared]) if shared else ()
        total = total | gradient | dict(zip(shared, sums))
    return total


def is_finite(*gradients: Gradient) -> bool:
    """Tell whether all entries are finite. Waits for the device."""
    return all(bool(norm(gradient).isfinite()) for gradient in gradients if gradient)


class WeightedMean:
    """The mean of gradients that arrive one by one with weights: numbers, or scalars that stay on the device."""

    def __init__(self):
        self.gradient: Gradient = {}
        self.weight = 0

    @torch.no_grad()
    def include(self, gradient: Gradient, weight: int | Tensor) -> None:
        """Take in one more gradient. The first is kept as it is; weight 0 leaves the mean alone."""
        first, self.weight = not self.gradient, self.weight + weight
        share = 1.0 if first else weight / self.weight
        if isinstance(share, Tensor):
            share = share.nan_to_num(0.0)  # 0/0: no sample of the group so far
        self.gradient = gradient if first else add(_times(self.gradient, 1 - share), _times(gradient, share))


def _times(gradient: Gradient, factor: float | Tensor) -> Gradient:
    if not gradient:
        return {}
    slopes = list(gradient.values())
    factor = factor.to(slopes[0].dtype) if isinstance(factor, Tensor) else factor
    return dict(zip(gradient, torch._foreach_mul(slopes, factor)))


def hand_over(parameters: list[Tensor], gradient: Gradient) -> None:
    """Set `.grad` of each parameter, None where it took no part; each owns its memory, so it can be scaled in place."""
    taken = set()
    for p in parameters:
        slope = gradient.get(p)
        if slope is not None and (slope.data_ptr() in taken or not slope.is_contiguous()):
            slope = slope.clone()
        p.grad = slope
        if slope is not None:
            taken.add(slope.data_ptr())
