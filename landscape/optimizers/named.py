"""The named forms of GroupSAM, constructed as their releases document: SGD, SAM, ASAM, Friendly-SAM, ImbSAM, SSE-SAM."""

import math
from collections.abc import Mapping

from torch import nn
from torch.optim import Optimizer

from landscape.errors import InputError
from landscape.optimizers.group_sam import TAIL, GroupSAM, choice, radius
from landscape.optimizers.release_protocol import FourCallProtocol

GAMMA_RULES = ("ceil", "released")


class SGD(GroupSAM):
    """The base optimizer's own step: no ascent.

    One forward and one backward a step.
    """

    def __init__(self, optimizer: Optimizer, model: nn.Module, **options):
        super().__init__(optimizer, model, {"all": 0.0}, **options)


class SAM(GroupSAM):
    """SAM (Foret et al. 2021): one ascent along the whole batch's gradient.

    Two forwards and two backwards a step.
    """

    def __init__(self, optimizer: Optimizer, model: nn.Module, rho: float = 0.05, **options):
        super().__init__(optimizer, model, {"all": radius("rho", rho)}, **options)


class ASAM(SAM):
    """ASAM (Kwon et al. 2021): SAM with every parameter's ascent scaled by its own size; see AscentRule.

    Two forwards and two backwards a step.
    """

    def __init__(self, optimizer: Optimizer, model: nn.Module, rho: float = 0.05, *, scaling: str = "asam", **options):
        super().__init__(optimizer, model, rho, scaling=scaling, **options)


class FriendlySAM(SAM):
    """Friendly-SAM (Li et al. 2024): SAM along what the gradient has beyond its running average; see FriendlyDirection.

    Two forwards and two backwards a step.
    """

    def __init__(self, optimizer: Optimizer, model: nn.Module, rho: float = 0.05, *, friendly: float = 1.0, **options):
        super().__init__(optimizer, model, rho, friendly=friendly, **options)


class ImbSAM(GroupSAM):
    """ImbSAM (Zhou et al. 2023): the head's gradient in place, the tail's after an ascent.

    Two forwards and three backwards a step.
    """

    def __init__(self, optimizer: Optimizer, model: nn.Module, rho: float = 0.05, **options):
        super().__init__(optimizer, model, {"head": 0.0, TAIL: radius("rho", rho)}, **options)


class SSESAM(FourCallProtocol, GroupSAM):
    """SSE-SAM (Lyu et al. 2025): an ascent for head and tail each, and for the tail alone after the switch.

    The switch happens when ceil(gamma * total_epochs) epochs are done: gamma = 0 is the tail alone from the first step,
    gamma = 1 never switches. Call `end_epoch()` after each epoch. With gamma_rule="released" the product is compared as
    it rounds (0.55 * 200 switches after 111 epochs) and gamma = 0 never switches, which is what the released code says
    before it stops at its missing counter. Answers the release's four calls too: see FourCallProtocol.
    """

    def __init__(
        self,
        optimizer: Optimizer,
        model: nn.Module,
        head_rho: float = 0.05,
        tail_rho: float = 0.05,
        gamma: float = 0.0,
        total_epochs: int = 200,
        *,
        gamma_rule: str = "ceil",
        **options,
    ):
        self.switch_epoch = switch_epoch(gamma, total_epochs, gamma_rule)
        radii = {"head": radius("head_rho", head_rho), TAIL: radius("tail_rho", tail_rho)}
        super().__init__(optimizer, model, radii, **options)

    @property
    def stage(self) -> int:
        """1 before the switch, 2 after it."""
        return 1 if self.epochs_done < self.switch_epoch else 2

    def set_radii(self, radii: Mapping[str, float]) -> None:
        """Replace the radii from the next step on; after the switch the head's stays 0."""
        super().set_radii(radii if self.stage == 1 else {**radii, "head": 0.0})

    def end_epoch(self) -> None:
        """Count one training epoch as done, and switch when it was the last of stage I."""
        super().end_epoch()
        self.set_radii(self.radii)


def switch_epoch(gamma: float, total_epochs: int, rule: str = "ceil") -> float:
    """Return the number of epochs after which SSE-SAM drops the head's ascent; infinity for never."""
    choice("gamma_rule", rule, GAMMA_RULES)
    if not 0 <= gamma <= 1:
        raise InputError(
            f"gamma={gamma} is out of range: expected 0 <= gamma <= 1, the fraction of epochs before the switch"
        )
    if not total_epochs >= 1:
        raise InputError(f"total_epochs={total_epochs} is out of range: expected an integer >= 1")
    if gamma == 1 or (gamma == 0 and rule == "released"):
        return math.inf
    # 0.07 * 100 is 7.000000000000001 in floating point: without the guard it would switch after 8 epochs.
    return math.ceil(gamma * total_epochs - (1e-9 if rule == "ceil" else 0))
