"""What turns a group's gradient into the direction and the length of its ascent, beyond rho * g / ||g||.

    asam      eps = rho w^2 g / || |w| g ||              a step in the metric of the weights' own sizes (Kwon et al. 2021)
    friendly  d = g - sigma m, then eps = rho d / ||d||   without what the group's gradients have in common over time
              (Li et al. 2024), with m <- decay m + (1 - decay) g after it
    class     ||eps|| = d^(1/4) (||w|| / (2 ||g||))^(1/2) (n - 1)^(-1/4)      for n training images and d parameters
              (CC-SAM, Zhou et al. 2023; GKP-GSA, Chen et al. 2026, equations 13 and 14, where ||eps|| = sqrt(d) rho*)

asam scales every parameter, as methods of this family do; Kwon's code leaves biases and normalizers alone and adds 0.01 to
|w|. friendly follows the released order: the average is that of the steps before, and a group's first step goes along
its gradient alone; whether the paper means the average with or without the present gradient is not recorded here. The
average is each group's own where there are groups, which is our choice: Friendly-SAM knows one.
"""

import math
from collections.abc import Mapping

import torch
from torch import Tensor

from landscape.errors import InputError
from landscape.optimizers.ascent import Gradient, norm, times


class FriendlyDirection:
    """Subtract from a group's gradient its running average over the steps before, which it keeps."""

    def __init__(self, sigma: float = 0.0, decay: float = 0.9):
        if not (math.isfinite(sigma) and sigma >= 0):
            raise InputError(f"friendly={sigma} is out of range: expected a finite number >= 0; 0 subtracts nothing")
        if not 0 <= decay < 1:
            raise InputError(f"friendly_decay={decay} is out of range: expected 0 <= friendly_decay < 1")
        self.sigma, self.decay = sigma, decay
        self.averages: dict[str, Gradient] = {}     # group -> average of its gradients, unscaled

    @torch.no_grad()
    def __call__(self, group: str, gradient: Gradient, scale: float | Tensor = 1.0) -> Gradient:
        """Return g - sigma m, and take g into the group's average; `scale` is what a GradScaler multiplied g by.

        A group that the batch lacks has g = 0: its average stays. Nothing waits for the device.
        """
        if not self.sigma or not gradient:
            return gradient
        slopes = list(times(gradient, 1 / scale).values()) if isinstance(scale, Tensor) else list(gradient.values())
        known = self.averages.get(group, {})
        average = [known[p] if p in known else torch.zeros_like(p) for p in gradient]
        # All of the first gradient, none of an absent group's, else 1 - decay.
        share = torch.where(_length(average) > 0, _length(slopes).sign() * (1 - self.decay), _length(slopes).sign())
        step = torch._foreach_mul(torch._foreach_sub(slopes, average), share.to(slopes[0].dtype))
        self.averages[group] = known | dict(zip(gradient, torch._foreach_add(average, step)))
        return dict(zip(gradient, torch._foreach_sub(slopes, average, alpha=self.sigma)))

    def by_parameter(self, parameters: list[Tensor]) -> dict[int, dict[str, Tensor]]:
        """Return the averages as an optimizer's state: parameter's index -> name -> tensor."""
        held = {i: {f"{NAME}{group}": average[p] for group, average in self.averages.items() if p in average}
                for i, p in enumerate(parameters)}
        return {i: entries for i, entries in held.items() if entries}

    def restore(self, parameters: list[Tensor], state: Mapping[int, Mapping[str, Tensor]]) -> None:
        """Take back what `by_parameter` returned."""
        self.averages = {}
        for index, entries in state.items():
            for name, value in entries.items():
                if name.startswith(NAME):
                    p = parameters[index]
                    self.averages.setdefault(name.removeprefix(NAME), {})[p] = value.detach().clone().to(p)


NAME = "average of "


def _length(tensors: list[Tensor]) -> Tensor:
    return norm(dict(enumerate(tensors)))


def without_averages(state: Mapping[int, Mapping[str, Tensor]]) -> dict[int, dict[str, Tensor]]:
    """Return an optimizer's state less what `by_parameter` had added to it."""
    rest = {i: {name: value for name, value in entries.items() if not name.startswith(NAME)} for i, entries in state.items()}
    return {i: entries for i, entries in rest.items() if entries}


def class_radius(weight_norm: Tensor, gradient_norm: Tensor, size: int, num_images: int | Tensor) -> Tensor:
    """Return the length of the ascent that the bound of CC-SAM asks of a class, in parameter units; 0 where g = 0.

    `size` is the number of parameters perturbed, `weight_norm` their norm, `num_images` > 1 the class's training images.
    """
    length = size ** 0.25 * (weight_norm / (2 * gradient_norm)) ** 0.5 / (num_images - 1) ** 0.25
    return torch.where(gradient_norm > 0, length, 0.0)


def checked_counts(class_counts, user: str, least: int = 1) -> Tensor:
    """Return class sizes (C,) as float64; InputError where there are none, or one is below `least`."""
    if class_counts is None:
        raise InputError(f"{user} needs class_counts, the training images of each class: pass them to the optimizer")
    counts = torch.as_tensor(class_counts, dtype=torch.float64, device="cpu")
    if counts.ndim != 1 or not len(counts):
        raise InputError(f"class_counts has shape {tuple(counts.shape)}: expected one number a class")
    if (counts < least).any():
        c = int((counts < least).nonzero()[0])
        raise InputError(f"class_counts[{c}]={counts[c]:g} is out of range: {user} expects each class to have at least {least} "
                         "training images; lower imb_factor, or choose another optimizer")
    return counts
