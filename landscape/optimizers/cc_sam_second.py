"""CC-SAM's second stage: the classifier alone, trained on balanced classes and on features moved against it.

    z_adv = z + s_y grad_z l / ||grad_z l||                  z the classifier's input, one norm a sample
    L     = (1 / |B|) sum over i of w_{y_i} ((1 - a) l(z_i) + a l(z_adv_i)),       w_c = N / (C n_c)

a grows as t / T over the stage's epochs t = 1 ... T, up to a cap; s_c is lambda for every class, as the paper has it
(`adversarial_length` equal), or lambda log(n_max / n_c + 0.01) / 2, as released (rarity), which is next to nothing for the
largest class. The release draws batches with equal classes; here batches stay as they are, and the
weights w, which give the same gradient on average, take the place of the drawing. It takes the norm over a class's features
together, the paper over z (third-party summary), and weighs the moved losses by log(n_max / n_c + 0.01) / 2 again, which is
left out. The backbone has no gradient, and running statistics rest.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from landscape.optimizers.ascent import Gradient, WeightedMean, add, times
from landscape.optimizers.closures import Closure, labels_of, read_answer

LENGTHS = ("rarity", "equal")


def class_weights(images: Tensor) -> Tensor:
    """Return for class sizes (C,) the weights N / (C n_c) of balanced classes (C,)."""
    return images.sum() / (len(images) * images)


def adversarial_lengths(images: Tensor, length: str) -> Tensor:
    """Return s_c / lambda (C,) for class sizes (C,): 1, or log(n_max / n_c + 0.01) / 2."""
    return torch.ones_like(images) if length == "equal" else (images.max() / images + 0.01).log() / 2


def adversarial_share(epochs_done: int, switch: int, total_epochs: int, cap: float) -> float:
    """Return a = min(t / T, cap) in epoch `epochs_done` of `total_epochs`, of which the stage has those from `switch` on."""
    return min((epochs_done - switch + 1) / max(total_epochs - switch, 1), cap)


def first_epoch(second_stage: float, total_epochs: int) -> int:
    """Return the epoch from which the second stage runs, a fraction `second_stage` of all epochs before the end."""
    return math.ceil((1 - second_stage) * total_epochs - 1e-9)


@torch.no_grad()
def second_stage_gradient(layer: nn.Linear, closures: Sequence[Closure], weights: Tensor, strengths: Tensor, share: float,
                          scaler) -> tuple[Tensor, Gradient]:
    """Return the mean loss of the batch and the gradient of L in the classifier's parameters.

    Two forwards a closure, and two backwards that reach the classifier alone.
    """
    parameters, plain, moved, losses = [p for p in layer.parameters() if p.requires_grad], WeightedMean(), WeightedMean(), []

    def gradients(own: Tensor, labels: Tensor, sources: list[Tensor]) -> tuple[Tensor, ...]:
        with torch.enable_grad():
            term = (own * weights.to(own)[labels]).sum() / len(own)
            term = term if scaler is None else scaler.scale(term)
        return torch.autograd.grad(term, sources)

    for closure in closures:
        own, labels, seen = _answer(layer, closure, lambda z: z.detach().requires_grad_())
        *found, slope = gradients(own, labels, [*parameters, seen])
        plain.include(dict(zip(parameters, found)), len(own))
        length = slope.flatten(1).norm(dim=1, keepdim=True)     # of the weighed loss: the direction is the sample's own
        step = strengths.to(slope)[labels, None] * torch.where(length > 0, slope / length, 0.0)
        there, _, _ = _answer(layer, closure, lambda z, place=seen.detach() + step: place)
        moved.include(dict(zip(parameters, gradients(there, labels, parameters))), len(own))
        losses.append(own.detach())
    return torch.cat(losses).mean(), add(times(plain.gradient, 1 - share), times(moved.gradient, share))


def _answer(layer: nn.Linear, closure: Closure, feed: Callable[[Tensor], Tensor]) -> tuple[Tensor, Tensor, Tensor]:
    """Return the losses and labels of a closure whose classifier is given feed(z) in place of z, and feed(z)."""
    with torch.enable_grad(), _fed(layer, feed) as seen:
        losses, masks = read_answer(closure())
    return losses, labels_of(masks, losses), seen[-1]


@contextmanager
def _fed(layer: nn.Linear, feed: Callable[[Tensor], Tensor]) -> Iterator[list[Tensor]]:
    seen: list[Tensor] = []

    def hook(module: nn.Module, given: tuple[Tensor]) -> tuple[Tensor]:
        seen.append(feed(given[0]))
        return (seen[-1],)
    handle = layer.register_forward_pre_hook(hook)
    try:
        yield seen
    finally:
        handle.remove()
