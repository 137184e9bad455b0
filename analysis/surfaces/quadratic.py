"""The quadratic prediction along a direction: value, slope and curvature of the loss of every class, from one pass.

With phi_i(a) = loss_i(theta + a d), the sum of phi_i'(0) over samples is n g'd and that of phi_i''(0) is n d'Hd, g and H being
gradient and Hessian of their mean loss: sums over classes give those of every group. Forward mode over forward mode has them
for every sample at the price of about four forward passes. Derivatives are those of autograd: relu'(0) = 0, and a relu has no
curvature.

torch nests forward mode wrongly for some operations (LayerNorm, custom functions), and without a word. On the first batch its
sums are therefore compared with those of reverse mode over reverse mode, which then takes the pass, class by class, where they
differ; and its slopes with differences of the loss in float64, so that a network that detaches something is told.
"""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from analysis.operators.along import Along, each_sample, number
from analysis.operators.kernels import differentiable_kernels
from analysis.surfaces.directions import Direction
from landscape.errors import InputError, first_line
from landscape.parameters import called_with, trainable, unflatten

Losses = Callable[[Tensor, Tensor], Tensor]
_TOLERANCE = 1e-3       # between two ways, relative to the sum of the samples' magnitudes: float32 loses some digits
_PIECE = 32             # samples at once: a second derivative in reverse mode keeps two graphs
_STEP = 1e-4
_DIFFERENCE = 2e-2      # by which a difference over kinks may miss a slope


def class_derivatives(model: nn.Module, loss: Losses, batches: Sequence[tuple[Tensor, Tensor]],
                      directions: Sequence[Direction], num_classes: int) -> Tensor:
    """Return the sums of phi_i, phi_i' and phi_i'' at 0 over each class and direction, (3, C, k) in float64 on the CPU.

    The model is in evaluation mode, so that no sample depends on another. InputError where it has no second derivative, or what
    autograd differentiates is not its loss.
    """
    with torch.enable_grad(), differentiable_kernels(model):
        return torch.stack([_summed(model, loss, batches, d, num_classes) for d in directions], dim=2)


def _summed(model: nn.Module, loss: Losses, batches: Sequence[tuple[Tensor, Tensor]], direction: Direction,
            num_classes: int) -> Tensor:
    pieces = [piece for images, labels in batches for piece in zip(images.split(_PIECE), labels.split(_PIECE))]
    way = _choose_way(model, loss, pieces[0], direction)
    total = torch.zeros(3, num_classes, dtype=torch.float64)
    for images, labels in pieces:
        total += way(_phi(model, loss, images, labels, direction), labels, num_classes).cpu()
    return total


def _phi(model: nn.Module, loss: Losses, images: Tensor, labels: Tensor, direction: Direction,
         dtype: torch.dtype | None = None) -> Along:
    """Return the samples' losses as a function of the distance walked, in the model's precision or another."""
    parameters = {name: p.detach().to(dtype or p.dtype) for name, p in trainable(model).items()}
    step = unflatten(direction.vector.to(next(iter(parameters.values()))), model)
    buffers = {name: b.to(dtype if dtype and b.is_floating_point() else b.dtype, copy=True) for name, b in model.named_buffers()}
    frozen = {name: p.detach().to(dtype or p.dtype) for name, p in model.named_parameters() if name not in parameters}
    images = images.to(dtype or images.dtype) if images.is_floating_point() else images

    def phi(a: Tensor) -> Tensor:
        moved = {name: p + a * step[name] for name, p in parameters.items()}
        return loss(called_with(model, moved | frozen | buffers, images), labels)
    return phi


def _choose_way(model: nn.Module, loss: Losses, batch: tuple[Tensor, Tensor], direction: Direction) -> Callable:
    labels = batch[1]
    phi = _phi(model, loss, *batch, direction)
    slopes = _differences(_phi(model, loss, *batch, direction, torch.float64), labels.device)
    reverse = _tried(lambda: _reverse_over_reverse(phi, torch.zeros_like(labels), 1))
    forward = _tried(lambda: each_sample(phi, labels.device))
    if isinstance(reverse, str) and isinstance(forward, str):
        raise InputError(f"this network has no second derivative along a line: {reverse}")
    if not isinstance(reverse, str):
        _check_slopes(reverse[1], slopes.sum()[None], slopes)
    if isinstance(forward, str) or not (isinstance(reverse, str) or _agree(forward, reverse[:, 0])):
        return _reverse_over_reverse
    _check_slopes(forward[1], slopes, slopes)
    return _forward_over_forward


def _tried(way: Callable[[], Tensor]) -> Tensor | str:
    try:
        return way().detach()
    except (RuntimeError, NotImplementedError) as error:    # what torch raises where an operation lacks a derivative
        return first_line(error)


def _forward_over_forward(phi: Along, labels: Tensor, num_classes: int) -> Tensor:
    terms = each_sample(phi, labels.device)
    return torch.zeros(3, num_classes, dtype=torch.float64, device=labels.device).index_add_(1, labels, terms)


def _reverse_over_reverse(phi: Along, labels: Tensor, num_classes: int) -> Tensor:
    total = torch.zeros(3, num_classes, dtype=torch.float64, device=labels.device)
    a = number(0.0, labels.device).requires_grad_()
    losses = phi(a)
    for label in labels.unique().tolist():
        value = losses[labels == label].sum()
        slope, = torch.autograd.grad(value, a, create_graph=True)
        total[:, label] = torch.stack([value, slope, _derivative(slope, a)]).detach().double()
    return total


def _derivative(slope: Tensor, a: Tensor) -> Tensor:
    """Return d slope / da. Not by autograd.grad, which skips the nodes that say that they cannot be differentiated again."""
    if not slope.requires_grad:
        return torch.zeros_like(slope)
    a.grad = None
    slope.backward(retain_graph=True)
    return torch.zeros_like(slope) if a.grad is None else a.grad


def _differences(phi: Along, device: torch.device) -> Tensor:
    """Return central differences of the samples' losses, (B,)."""
    with torch.no_grad():
        ahead, behind = (phi(number(step, device)).double() for step in (_STEP, -_STEP))
    return (ahead - behind) / (2 * _STEP)


def _agree(each: Tensor, sums: Tensor) -> bool:
    scale = each.abs().sum(1) + torch.finfo(torch.float32).tiny
    return bool(((each.sum(1) - sums).abs() <= _TOLERANCE * scale).all())


def _check_slopes(slopes: Tensor, wanted: Tensor, differences: Tensor) -> None:
    """Refuse slopes that are not those of the loss; where the loss is not finite nothing is known of it."""
    apart = float((slopes - wanted).abs().sum())
    if apart > _DIFFERENCE * float(differences.abs().sum()) + 1e-9 * len(differences):
        raise InputError("what autograd differentiates is not the loss of this network: it detaches, branches or draws somewhere")
