"""Steps along a gradient, and the way back: the arithmetic that every sharpness-aware optimizer shares.

A gradient is a dict from parameter to tensor; a parameter that took no part in the loss is missing from it. The step is
rho * g / ||g|| with one norm over all parameters (Foret et al. 2021, equation 2 with p = 2), and

- nothing is added to the norm: it is summed in float64, so that a loss multiplied by 1e-30 still gives the same step;
- g = 0 gives no step, decided on the device, so that nothing waits for it;
- the way back copies saved parameters, which is exact.

The released codes differ in two places, which `AscentRule` names: they add 1e-12 (davda54/sam) or 1e-16 (SSE-SAM,
ImbSAM) to the norm, and SSE-SAM and ImbSAM subtract the step again, which drifts by rounding.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor

from landscape.errors import InputError

Gradient = dict[Tensor, Tensor]  # parameter -> gradient of the same shape
RESTORES = ("copy", "subtract")
SCALINGS = ("none", "asam")


@dataclass(frozen=True)
class AscentRule:
    """How a step is scaled and undone: rho * g / (||g|| + norm_epsilon), and back by `restore`."""

    restore: str = "copy"         # "copy" saved parameters, exact; "subtract" the step again, as released
    norm_epsilon: float = 0.0     # >= 0, in the units of ||g||
    scaling: str = "none"         # "asam": rho * w^2 g / (|| |w| g || + norm_epsilon) instead (Kwon et al. 2021)

    def __post_init__(self):
        if self.scaling not in SCALINGS:
            raise InputError(f"scaling={self.scaling!r} is unknown: expected one of {', '.join(SCALINGS)}")
        if self.restore not in RESTORES:
            raise InputError(f"restore={self.restore!r} is unknown: expected one of {', '.join(RESTORES)}")
        if not 0 <= self.norm_epsilon < float("inf"):
            raise InputError(f"norm_epsilon={self.norm_epsilon} is out of range: expected a finite number >= 0")


@dataclass(frozen=True, eq=False)
class Move:
    """A finished step, for `put_back`: the parameters, and their old values or, where it is subtracted, the step."""

    parameters: list[Tensor]
    kept: list[Tensor]
    restore: str


def norm(gradient: Gradient) -> Tensor:
    """Return the Euclidean norm over all tensors of a gradient, a float64 scalar on their device."""
    return torch.linalg.vector_norm(torch.stack(torch._foreach_norm(list(gradient.values()), 2, dtype=torch.float64)))


@torch.no_grad()
def displace(gradient: Gradient, rho: float | Tensor, rule: AscentRule = AscentRule()) -> Move | None:
    """Move the parameters by rho * g / (||g|| + norm_epsilon) in place; return what `put_back` needs to undo it."""
    if not gradient:
        return None
    parameters, slopes = list(gradient), list(gradient.values())
    sizes = torch._foreach_abs(parameters) if rule.scaling == "asam" else []
    if sizes:
        slopes = torch._foreach_mul(slopes, sizes)
    length = norm(dict(zip(parameters, slopes)))
    scale = torch.where(length > 0, rho / (length + rule.norm_epsilon), 0.0)
    step = torch._foreach_mul(slopes, scale.to(slopes[0].dtype))  # the fused kernels want one dtype
    return move(parameters, torch._foreach_mul(step, sizes) if sizes else step, rule)


@torch.no_grad()
def move(parameters: list[Tensor], step: Sequence[Tensor], rule: AscentRule = AscentRule()) -> Move:
    """Add a step to the parameters in place; return what `put_back` needs to undo it."""
    origin = [torch.clone(p) for p in parameters] if rule.restore == "copy" else []
    torch._foreach_add_(parameters, step)
    # An autocast region around the whole step would otherwise go on using the weights it cast before the move.
    torch.clear_autocast_cache()
    return Move(parameters, origin or list(step), rule.restore)


@torch.no_grad()
def put_back(move: Move | None) -> None:
    """Undo a step: bit by bit from the saved values, or up to rounding by subtracting it."""
    if move is None:
        return
    if move.restore == "copy":
        torch._foreach_copy_(move.parameters, move.kept)
    else:
        torch._foreach_sub_(move.parameters, move.kept)
    torch.clear_autocast_cache()


@contextmanager
def displaced(gradient: Gradient, rho: float | Tensor, rule: AscentRule = AscentRule()) -> Iterator[None]:
    """Hold the parameters at theta + rho * g / ||g|| for the length of a with block, also if it raises."""
    with undone(displace(gradient, rho, rule)):
        yield


@contextmanager
def undone(moved: Move | None) -> Iterator[None]:
    """Undo a step at the end of a with block, also if it raises."""
    try:
        yield
    finally:
        put_back(moved)


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
        weight = weight.double() if isinstance(weight, Tensor) else weight  # a quotient of integers would be float32
        first, self.weight = not self.gradient, self.weight + weight
        share = 1.0 if first else weight / self.weight
        if isinstance(share, Tensor):
            share = share.nan_to_num(0.0)  # 0/0: no sample of the group so far
        self.gradient = gradient if first else add(times(self.gradient, 1 - share), times(gradient, share))


def times(gradient: Gradient, factor: float | Tensor) -> Gradient:
    """Return a gradient multiplied by a number."""
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
        # Another layout than the parameter's is slow at best; an expanded scalar cannot be written to.
        if slope is not None and (slope.data_ptr() in taken or slope.stride() != p.stride()):
            slope = torch.empty_like(p).copy_(slope)
        p.grad = slope
        if slope is not None:
            taken.add(slope.data_ptr())
