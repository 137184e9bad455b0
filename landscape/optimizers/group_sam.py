"""GroupSAM: one rule for the whole family.

For every class group g with radius rho_g, from the same theta and one mini-batch B:

    G      = sum over g of grad L_g(theta + rho_g * grad L_g(theta) / ||grad L_g(theta)||)
    theta <- base optimizer's step with the gradient G

SGD is {all: 0}; SAM (Foret et al. 2021) is {all: rho}; ImbSAM (Zhou et al. 2023) is {head: 0, tail: rho}; SSE-SAM (Lyu
et al. 2025) is {head: head_rho, tail: tail_rho}, and {head: 0, tail: tail_rho} after its switch. Weight decay and
momentum live in the base optimizer alone. `landscape.optimizers` holds these forms; others change one part of the rule:
which groups there are (`_read`, `_loss`), where to and how far a group ascends (`_ascent`, AscentRule), what is handed to
the base optimizer (`_descent`).

Differences from the released code: unless `restore` and `norm_epsilon` ask for it, parameters are copied back instead of
having the step subtracted, and nothing is added to the norm; one clean forward serves all groups, so a step takes 2
forwards and 2 backwards (SAM), 2 and 3 (ImbSAM, SSE-SAM after the switch), 3 and 4 (SSE-SAM before it) where the SSE-SAM
release always takes 4 and 4; a group without a sample in the batch adds exactly zero.
"""

import math
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from landscape.batchnorm import running_statistics_held
from landscape.distributed import Processes
from landscape.errors import InputError
from landscape.optimizers.ascent import AscentRule, Gradient, WeightedMean, add, displaced, hand_over, is_finite
from landscape.optimizers.closures import Closure, Masks, mask_of, num_samples, read_answer
from landscape.optimizers.scaling import FriendlyDirection, without_averages
from landscape.parallel import refuse_different_parameters, sum_everywhere

TAIL = "tail"
WEIGHTINGS = ("batch", "double_tail", "group_mean")
BATCHNORM = ("every", "clean")


class GroupSAM(Optimizer):
    """Wrap a constructed base optimizer so that each class group's gradient is taken at its own perturbed parameters.

    `radii` maps group names to rho_g >= 0, in the units of the parameters; the group "all" needs no mask.
    `param_groups` and `state` are the base optimizer's own, so learning-rate schedulers may hold either object.
    Perturbed are the trainable parameters that the base optimizer holds, with one norm over all of them.

    `weighting` defines L_g, the three published ways:
        "batch"        sum of the group's losses / |B|: SSE-SAM, and ImbSAM as first released
        "double_tail"  the same, with the group "tail" counted twice: ImbSAM since September 2023
        "group_mean"   sum of the group's losses / the group's samples in B: the ImbSAM baseline of the SSE-SAM release
    `batchnorm` says which passes move BatchNorm's running statistics: "every" one, as released, or only the "clean"
    one. Every pass normalizes with its batch's statistics either way. `restore`, `norm_epsilon` and `scaling`: see
    AscentRule. `friendly` > 0 and `friendly_decay`: see FriendlyDirection. They hold for every group that has a radius.

    `compiles` tells whether the model's forward may be compiled.

    With `processes`, as `landscape.distributed.init_from_environment` gives them, each process's closure holds its own
    part of the batch (as many closures on each), and all take the step of one process that holds the whole batch.
    """

    compiles = True

    def __init__(self, optimizer: Optimizer, model: nn.Module, radii: Mapping[str, float], *,
                 weighting: str = "batch", batchnorm: str = "every", restore: str = "copy",
                 norm_epsilon: float = 0.0, scaling: str = "none", friendly: float = 0.0, friendly_decay: float = 0.9,
                 processes: Processes = Processes()):
        super().__init__(optimizer.param_groups, optimizer.defaults)
        self.base, self.model, self.processes = optimizer, model, processes
        self.weighting = choice("weighting", weighting, WEIGHTINGS)
        self.batchnorm = choice("batchnorm", batchnorm, BATCHNORM)
        self.rule, self.direction = AscentRule(restore, norm_epsilon, scaling), FriendlyDirection(friendly, friendly_decay)
        self.epochs_done = 0
        self._share_with_base()
        self.set_radii(radii)
        if not {id(p) for p in model.parameters()} & {id(p) for p in self.trained()}:
            raise InputError(
                "the optimizer holds no trainable parameter of the model: build it from model.parameters()"
            )
        refuse_different_parameters(processes, self.trained())

    @torch.no_grad()
    def step(self, *closures: Closure, scaler: "torch.amp.GradScaler | None" = None) -> Tensor:
        """Take one step; return the mean loss of the batch at the old parameters, on the device.

        A closure runs one forward of the whole batch and returns its per-sample losses (B,) and a bool mask (B,) a
        group; it calls no backward. Several closures are one batch in pieces. With `scaler`, a GradScaler, a step whose
        gradient overflows is skipped, and `scaler.update()` remains the caller's. Clip gradients in a step hook of the
        base.
        """
        moving = [group for group, rho in self.radii.items() if rho > 0]
        still = [group for group, rho in self.radii.items() if rho == 0]
        loss, clean = self._pass(closures, [[group] for group in moving] + self._together(still, closures), scaler)
        ascents, total = clean[:len(moving)], add(*clean[len(moving):])
        if scaler is not None and not is_finite(*clean):
            ascents, total = [], add(*clean)  # overflow before any ascent: hand it to the scaler, which skips the step
        for group, ascent in zip(moving, ascents):
            direction, rho = self._ascent(group, ascent, scaler)
            if not direction:       # no part of the loss: neither of the ascent, nor of the gradient after it
                continue
            with displaced(direction, rho, self.rule), self._perturbed_pass():
                total = add(total, *self._pass(closures, [[group]], scaler)[1])
        hand_over(self.trained(), self._descent(total, scaler))
        self.base.step() if scaler is None else scaler.step(self.base)
        return loss

    def _pass(self, closures: Sequence[Closure], bundles: list[list[str]], scaler) -> tuple[Tensor, list[Gradient]]:
        """Return the mean loss and each bundle's gradient: one forward a closure, one backward a bundle of groups."""
        parameters, means, loss, size = self.trained(), [WeightedMean() for _ in bundles], 0.0, 0
        for closure in closures:
            with self._place():
                with torch.enable_grad():
                    losses, masks = self._read(closure())
                    counts = num_samples(losses, masks, self._counted(), self.processes)
                    terms = [_plus([self._loss(losses, masks, counts, group) for group in bundle]) for bundle in bundles]
                    terms = terms if scaler is None else [scaler.scale(term) for term in terms]
                rows = [row for row in zip(means, bundles, terms) if self._takes_part(row[1])]
                for mean, bundle, term in rows:
                    slopes = torch.autograd.grad(term, parameters, retain_graph=term is not rows[-1][2], allow_unused=True)
                    gradient = {p: slope for p, slope in zip(parameters, slopes) if slope is not None}
                    mean.include(gradient, counts.get(bundle[0] if len(bundle) == 1 else "all", counts["all"]))
            loss, size = loss + losses.detach().sum(), size + counts["all"]
        return sum_everywhere(self.processes, loss / size, [mean.gradient for mean in means], parameters)

    def _read(self, answer) -> tuple[Tensor, Masks]:
        """Losses and masks of a closure's answer: a form with groups of its own adds their masks here."""
        return read_answer(answer)

    def _takes_part(self, bundle: list[str]) -> bool:
        """Whether the closure just read may hold a sample of these groups; False leaves their backward out."""
        return True

    def _place(self):
        """Where a pass over one closure is made: at theta, or what the with block makes of it."""
        return nullcontext()

    def _ascent(self, group: str, gradient: Gradient, scaler) -> tuple[Gradient, float | Tensor]:
        """Along what a group ascends, and how far."""
        return self.direction(group, gradient, self._scale_of(scaler)), self.radii[group]

    def _descent(self, total: Gradient, scaler) -> Gradient:
        """The gradient that the base optimizer is given."""
        return total

    def _scale_of(self, scaler) -> float | Tensor:
        """By what gradients are multiplied in this step; nothing waits for the device."""
        return 1.0 if scaler is None else scaler.scale(torch.ones((), dtype=torch.float64, device=self.trained()[0].device))

    def _loss(self, losses: Tensor, masks: Masks, counts: Mapping[str, int | Tensor], group: str) -> Tensor:
        """The part of L_g that one closure's samples on this process are."""
        if group == "all":
            return losses.sum() / counts["all"]
        # Select before summing: a group without a sample then adds exact zeros and never 0/0.
        chosen = torch.where(mask_of(masks, group, losses), losses, 0.0).sum()
        if self.weighting == "group_mean":
            return chosen / counts[group].clamp(min=1)
        return chosen / (counts["all"] / 2 if self.weighting == "double_tail" and group == TAIL else counts["all"])

    def _counted(self) -> list[str]:
        """The groups whose own samples count, in L_g and in its mean over closures."""
        return list(self.radii) if self.weighting == "group_mean" else []

    def _together(self, groups: list[str], closures: Sequence[Closure]) -> list[list[str]]:
        """Let groups without radius share one backward, unless each has its own count over several closures."""
        if not closures:
            raise InputError("step() needs a closure that returns per-sample losses and group masks: step(closure)")
        apart = self.weighting == "group_mean" and len(closures) > 1
        return [[group] for group in groups] if apart or not groups else [groups]

    def _perturbed_pass(self):
        return running_statistics_held(self.model) if self.batchnorm == "clean" else nullcontext()

    def trained(self) -> list[Tensor]:
        """Return the trainable parameters that the base optimizer holds now."""
        return [p for p in self._parameters() if p.requires_grad]

    def _parameters(self) -> list[Tensor]:
        return [p for group in self.param_groups for p in group["params"]]

    def set_radii(self, radii: Mapping[str, float]) -> None:
        """Replace the radii from the next step on."""
        if not radii:
            raise InputError("radii is empty: expected a radius for at least one group, such as {'all': 0.05}")
        self.radii = {group: radius(f"rho of group {group!r}", rho) for group, rho in radii.items()}

    def end_epoch(self) -> None:
        """Count one training epoch as done; a form with stages switches here. Processes that have parted are an error."""
        refuse_different_parameters(self.processes, self.trained())
        self.epochs_done += 1

    def observe(self, data: Any) -> None:
        """Look at the training data (LongTailData) before the first epoch and after each; a form that learns from them does."""

    def renew(self, data: Any) -> None:
        """Look at the training data as if all that is learned from them were due, so that a step costs what most steps cost."""
        self.observe(data)

    def report(self) -> dict[str, float]:
        """Return columns for an epoch's row of metrics, by name; asked after its last step, before `end_epoch`."""
        return {}

    def arrays(self) -> dict[str, Any]:
        """Return what `observe` and steps have found and `state_dict` does not hold, as arrays by name."""
        return {}

    def load_arrays(self, arrays: Mapping[str, Any]) -> None:
        """Go on from what `arrays` returned."""

    def state_dict(self) -> dict:
        """Return the base optimizer's state together with running averages, the radii and the number of epochs done."""
        held = self.base.state_dict()
        for index, averages in self.direction.by_parameter(self._parameters()).items():
            held["state"][index] = {**held["state"].get(index, {}), **averages}
        return held | {"radii": dict(self.radii), "epochs_done": self.epochs_done}

    def load_state_dict(self, state_dict: dict) -> None:
        """Continue from what `state_dict` returned, stage included."""
        if "radii" not in state_dict:
            raise InputError(
                "the state has no radii: it is a plain optimizer's; load it into the base optimizer instead"
            )
        held = {"state": without_averages(state_dict["state"]), "param_groups": state_dict["param_groups"]}
        self.base.load_state_dict(held)
        self._share_with_base()
        self.direction.restore(self._parameters(), state_dict["state"])
        self.epochs_done = state_dict["epochs_done"]
        self.set_radii(state_dict["radii"])

    def _share_with_base(self) -> None:
        self.param_groups, self.state, self.defaults = self.base.param_groups, self.base.state, self.base.defaults

    def __getstate__(self) -> dict:
        # torch copies three fields alone, and a copy would lack its base; schedulers hang their own `step` on this.
        return {name: value for name, value in self.__dict__.items() if name[0] != "_" and name != "step"}


def _plus(terms: list[Tensor]) -> Tensor:
    return sum(terms[1:], terms[0])


def radius(name: str, rho: float) -> float:
    """Return a radius that is finite and not negative; any other is an InputError."""
    if not (math.isfinite(rho) and rho >= 0):
        raise InputError(f"{name}={rho} is out of range: expected a finite number >= 0; 0 switches the ascent off")
    return float(rho)


def choice(name: str, value: str, choices: Sequence[str]) -> str:
    """Return a word that is one of `choices`; any other is an InputError."""
    if value not in choices:
        raise InputError(f"{name}={value!r} is unknown: expected one of {', '.join(choices)}")
    return value
