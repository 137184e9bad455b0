"""CC-SAM (Zhou et al., CVPR 2023): an ascent for each class, longer for rarer ones; then, where asked, a second stage.

    G = (1 - r) grad L(theta) + r sum over classes c of grad L_c(theta + eps_c),      L = sum over c of L_c
    eps_c = Z d^(1/4) (||w|| / (2 ||grad l_c||))^(1/2) (n_c - 1)^(-1/4)  grad l_c / ||grad l_c||

with w the d parameters perturbed, l_c the mean loss of the batch's samples of class c, n_c its training images, and L_c the
sum of class c's losses / |B|. Two ways, `perturb`:

    "classifier"  as released: w is the last linear layer. The class gradients of a linear layer are sums of outer products
                  of its inputs h_i and of the slopes at its outputs, so all lengths and all perturbed outputs come from the
                  (B, B) products h_i . h_j, and one forward serves every class: 2 forwards and 2 backwards, of which the
                  first reaches the outputs alone.
    "network"     as the paper states it: w is all of theta. One forward and one backward more for each class in the
                  batch, 1 + C and 2 C in all, and one read-back a step, of which classes there are.

Z = 0.01 is our choice, GKP-GSA's best for the same radius: Z = 1, the formula as it stands, gives steps longer than the
weights; the release has 1e-6, which moves nothing. r is `flat_ratio`: 1 in the paper, 0.3 (CIFAR-10) or 0.5 (CIFAR-100) in
the release, which pairs it with mixup. The release takes norms of each tensor apart and ||w|| of the same; here both are of
all of w, as in the formula. `second_stage` is the fraction of epochs, at the end, that `cc_sam_second` takes over after either
way: 30 of 230 in the release, 0 here unless asked for. With r < 1 the classifier's way needs the gradient in place too, a third
backward; the network's has it already. The paper's method whole is perturb=network, a second stage and adversarial_length=equal.
Formulas are third-party summaries of the paper, and agree with the code in all but what is said above.
"""

import math
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from landscape.batchnorm import running_statistics_held
from landscape.distributed import Processes
from landscape.errors import InputError
from landscape.optimizers.ascent import Gradient, WeightedMean, add, hand_over, norm, times
from landscape.optimizers.cc_sam_second import (LENGTHS, adversarial_lengths, adversarial_share, class_weights,
                                                first_epoch, second_stage_gradient)
from landscape.optimizers.closures import Closure, Masks, labels_of, read_answer
from landscape.optimizers.group_sam import GroupSAM, choice
from landscape.optimizers.scaling import checked_counts, class_radius

PERTURB = ("classifier", "network")


def CCSAM(optimizer: Optimizer, model: nn.Module, class_counts: Sequence[int], *, perturb: str = "classifier",
          radius_scale: float = 0.01, flat_ratio: float = 1.0, second_stage: float = 0.0, adversarial: float = 1.0,
          adversarial_cap: float = 1.0, adversarial_length: str = "rarity", total_epochs: int = 200,
          weighting: str = "batch", **options) -> "ClassConditionalSAM":
    """Build CC-SAM. Its closure returns losses and {"labels": classes (B,)}; `class_counts` (C,) are training images a class.

    `radius_scale` is Z >= 0, `flat_ratio` r in [0, 1]. r = 0 or Z = 0 is SGD. `weighting` does not enter. A class of a
    single image is an InputError, for its n_c - 1 is a divisor. `second_stage` in [0, 1] is the fraction of `total_epochs` that
    the second stage has, `adversarial` >= 0 its lambda, `adversarial_cap` in [0, 1] the largest share of moved features,
    `adversarial_length` whether lambda is scaled by the class's "rarity", as released, or "equal" for all, as in the paper.
    """
    for name, value in (("second_stage", second_stage), ("adversarial_cap", adversarial_cap), ("flat_ratio", flat_ratio)):
        if not 0 <= value <= 1:
            raise InputError(f"{name}={value} is out of range: expected 0 <= {name} <= 1")
    for name, value in (("adversarial", adversarial), ("radius_scale", radius_scale)):
        if not (math.isfinite(value) and value >= 0):
            raise InputError(f"{name}={value} is out of range: expected a finite number >= 0")
    stage = SecondStage(first_epoch(second_stage, total_epochs), total_epochs, adversarial, adversarial_cap,
                        choice("adversarial_length", adversarial_length, LENGTHS))
    if stage.runs and options.get("processes", Processes()).count > 1:
        raise InputError("CC-SAM's second stage knows one process: leave second_stage out, or start one process")
    form = {"classifier": ClassifierCCSAM, "network": NetworkCCSAM}[choice("perturb", perturb, PERTURB)]
    return form(optimizer, model, class_counts, radius_scale, flat_ratio, stage, **options)


@dataclass(frozen=True)
class SecondStage:
    """When the second stage runs, and how."""

    switch: int             # the first epoch of it; total_epochs where there is none
    total_epochs: int
    adversarial: float      # lambda
    cap: float              # of the share of moved features
    length: str             # of LENGTHS

    @property
    def runs(self) -> bool:
        """Whether there is one."""
        return self.switch < self.total_epochs


class ClassConditionalSAM(GroupSAM):
    """What both ways share: the classes' sizes, the radius, the mixture with the gradient in place, and the second stage."""

    def __init__(self, optimizer: Optimizer, model: nn.Module, class_counts: Sequence[int], radius_scale: float,
                 flat_ratio: float, second: SecondStage, radii: dict[str, float], **options):
        counts = checked_counts(class_counts, "CC-SAM", least=2)
        self.radius_scale, self.flat_ratio, self.second = radius_scale, flat_ratio, second
        super().__init__(optimizer, model, radii, **options)
        self.images = counts.to(self.trained()[0].device)       # (C,) training images a class
        if second.runs:
            self.layer, self.compiles = _classifier(model, len(counts)), False      # its inputs are changed by a hook

    @property
    def stage(self) -> int:
        """1 before the second stage, 2 in it."""
        return 1 if self.epochs_done < self.second.switch else 2

    def _second_step(self, closures: Sequence[Closure], scaler) -> Tensor:
        second, weights = self.second, class_weights(self.images)
        share = adversarial_share(self.epochs_done, second.switch, second.total_epochs, second.cap)
        strengths = second.adversarial * adversarial_lengths(self.images, second.length)
        with running_statistics_held(self.model):
            loss, gradient = second_stage_gradient(self.layer, closures, weights, strengths, share, scaler)
        hand_over(self.trained(), gradient)
        self.base.step() if scaler is None else scaler.step(self.base)
        return loss


class NetworkCCSAM(ClassConditionalSAM):
    """CC-SAM over all parameters: GroupSAM with a group a class and radii that the gradients decide."""

    def __init__(self, optimizer, model, class_counts, radius_scale, flat_ratio, second: SecondStage, **options):
        names = [_name(c) for c in range(len(checked_counts(class_counts, "CC-SAM")))]
        super().__init__(optimizer, model, class_counts, radius_scale, flat_ratio, second, dict.fromkeys(names, 1.0), **options)
        self.classes = {name: c for c, name in enumerate(names)}
        self.in_batch: Counter = Counter()      # samples a class in the batch at hand
        self.counting = True

    @torch.no_grad()
    def step(self, *closures: Closure, scaler=None) -> Tensor:
        """Take one step; see GroupSAM.step."""
        if self.stage == 2:
            self._together([], closures)
            return self._second_step(closures, scaler)
        self.in_batch, self.counting, self.pieces, self.in_place = Counter(), True, len(closures), []
        return super().step(*closures, scaler=scaler)

    def _read(self, answer) -> tuple[Tensor, Masks]:
        losses, masks = read_answer(answer)
        labels = labels_of(masks, losses)
        if self.counting:
            counts = torch.bincount(labels, minlength=len(self.classes))
            self.in_batch.update(dict(enumerate(self.processes.sum_together([counts])[0].tolist())))
        return losses, {**masks, **{name: labels == c for name, c in self.classes.items()}}

    def _takes_part(self, bundle: list[str]) -> bool:
        # With several pieces a class may still come: only the whole batch tells which are absent.
        return self.pieces > 1 or any(self.in_batch[self.classes[group]] for group in bundle)

    def _ascent(self, group: str, gradient: Gradient, scaler) -> tuple[Gradient, float | Tensor]:
        self.counting, count = False, self.in_batch[self.classes[group]]
        if self.flat_ratio < 1:
            self.in_place.append(gradient)
        if not count:
            return {}, 0.0
        direction = self.direction(group, gradient, self._scale_of(scaler))
        mean_length = norm(direction) / self._scale_of(scaler) * (sum(self.in_batch.values()) / count)
        size, images = sum(p.numel() for p in gradient), self.images[self.classes[group]]
        return direction, self.radius_scale * class_radius(norm({p: p for p in gradient}), mean_length, size, images)

    def _descent(self, total: Gradient, scaler) -> Gradient:
        in_place, self.in_place = self.in_place, []
        return total if self.flat_ratio == 1 else _mixed(add(*in_place), total, self.flat_ratio)


@dataclass(eq=False)
class Outputs:
    """What the classifier was given and returned in the clean pass, and how its outputs change in the perturbed one."""

    inputs: list[Tensor] = field(default_factory=list)      # one (b, D) a closure
    logits: list[Tensor] = field(default_factory=list)      # one (b, C) a closure
    rows: Tensor | None = None      # (b,) which samples of the batch the forward at hand holds; None: leave it alone
    kernel: Tensor | None = None    # (B, B) 1 where two samples are of one class
    slopes: Tensor | None = None    # (B, C) slope of the class's mean loss at each sample's outputs
    factors: Tensor | None = None   # (B,) ||eps_c|| / ||grad l_c|| of the sample's class


class ClassifierCCSAM(ClassConditionalSAM):
    """CC-SAM over the last linear layer."""

    compiles = False    # the classifier is watched by a hook, which a compiled network does not call

    def __init__(self, optimizer, model, class_counts, radius_scale, flat_ratio, second: SecondStage, **options):
        super().__init__(optimizer, model, class_counts, radius_scale, flat_ratio, second, {"all": 0.0}, **options)
        if self.rule.scaling != "none" or self.direction.sigma:
            raise InputError("CC-SAM with perturb=classifier takes the plain ascent: leave scaling and friendly out, or use "
                             "perturb=network")
        if self.processes.count > 1:
            raise InputError("CC-SAM with perturb=classifier knows one process: use perturb=network, or start one process")
        self.layer = _classifier(model, len(self.images))

    @torch.no_grad()
    def step(self, *closures: Closure, scaler=None) -> Tensor:
        """Take one step; see GroupSAM.step."""
        self._together([], closures)
        if self.stage == 2:
            return self._second_step(closures, scaler)
        with self._watched() as outputs:
            loss, in_place = self._clean(closures, outputs, scaler)
            cuts = torch.arange(len(outputs.kernel), device=outputs.kernel.device).split([len(h) for h in outputs.inputs])
            with self._perturbed_pass():
                total = self._pass([_at(rows, closure, outputs) for rows, closure in zip(cuts, closures)], [["all"]], scaler)[1]
        flat = total[0] if self.flat_ratio == 1 else _mixed(in_place, total[0], self.flat_ratio)
        hand_over(self.trained(), self._descent(flat, scaler))
        self.base.step() if scaler is None else scaler.step(self.base)
        return loss

    def _clean(self, closures: Sequence[Closure], outputs: Outputs, scaler) -> tuple[Tensor, Gradient]:
        """Run the clean pass and fill `outputs` in; return the mean loss, and its gradient where r < 1 asks for it."""
        slopes, labels, losses, mean, parameters = [], [], [], WeightedMean(), self.trained()
        for closure in closures:
            with torch.enable_grad():
                own, masks = read_answer(closure())
                whole = own.sum()
                term = whole / len(own) if scaler is None else scaler.scale(whole / len(own))
            self._check_seen(outputs, len(labels) + 1, len(own))
            slopes += torch.autograd.grad(whole, outputs.logits[-1], retain_graph=self.flat_ratio < 1)
            if self.flat_ratio < 1:
                found = torch.autograd.grad(term, parameters, allow_unused=True)
                mean.include({p: g for p, g in zip(parameters, found) if g is not None}, len(own))
            labels.append(labels_of(masks, own))
            losses.append(own.detach())
        self._set_ascent(outputs, torch.cat(slopes), torch.cat(labels))
        return torch.cat(losses).mean(), mean.gradient

    def _check_seen(self, outputs: Outputs, closures: int, size: int) -> None:
        if len(outputs.logits) != closures or outputs.logits[-1].ndim != 2 or len(outputs.logits[-1]) != size:
            found = ", ".join(str(tuple(z.shape)) for z in outputs.logits[closures - 1:]) or "none"
            raise InputError(f"CC-SAM with perturb=classifier saw outputs of the classifier of shape {found} in a closure: "
                             f"expected one ({size}, {len(self.images)}), a row a sample; use perturb=network for such a model "
                             "or loss")

    def _set_ascent(self, outputs: Outputs, slopes: Tensor, labels: Tensor) -> None:
        """Find each class's ascent from the slopes (B, C) of the samples' losses at the outputs."""
        inputs = torch.cat([h.detach().double() for h in outputs.inputs])
        outputs.kernel = (labels[:, None] == labels[None, :]).double()
        outputs.slopes = slopes.double() / outputs.kernel.sum(1, keepdim=True)
        products = inputs @ inputs.T + (self.layer.bias is not None)
        # ||grad l_c||^2 = sum over i, j of class c of (h_i . h_j + 1) (s_i . s_j), at each of the class's samples
        lengths = (outputs.kernel @ (outputs.kernel * products * (outputs.slopes @ outputs.slopes.T)).sum(1)).clamp(min=0).sqrt()
        own = list(self.layer.parameters())
        radii = self.radius_scale * class_radius(norm({p: p for p in own}), lengths, sum(p.numel() for p in own),
                                                 self.images[labels])
        outputs.factors = torch.where(lengths > 0, radii / lengths, 0.0)

    @contextmanager
    def _watched(self) -> Iterator[Outputs]:
        """Hook the classifier: it tells its inputs and outputs, and returns those of the perturbed one where rows are set."""
        outputs = Outputs()
        bias = self.layer.bias is not None

        def hook(layer: nn.Module, given: tuple[Tensor], logits: Tensor) -> Tensor | None:
            if outputs.rows is None:
                outputs.inputs.append(given[0])
                outputs.logits.append(logits)
                return None
            known = torch.cat([h.detach() for h in outputs.inputs]).to(given[0])
            weights = outputs.kernel[outputs.rows] * outputs.factors[outputs.rows, None]        # (b, B)
            return logits + ((given[0] @ known.T + bias) * weights.to(logits)) @ outputs.slopes.to(logits)

        handle = self.layer.register_forward_hook(hook)
        try:
            yield outputs
        finally:
            handle.remove()


def _at(rows: Tensor, closure: Closure, outputs: Outputs) -> Closure:
    """Return the closure with the classifier perturbed for its samples."""
    def perturbed():
        outputs.rows = rows
        return closure()
    return perturbed


def _classifier(model: nn.Module, num_classes: int) -> nn.Linear:
    found = [layer for layer in model.modules() if isinstance(layer, nn.Linear) and layer.out_features == num_classes]
    if not found:
        raise InputError(f"CC-SAM with perturb=classifier needs a linear last layer of {num_classes} outputs, and the model has "
                         "none (a cosine head is none): use perturb=network")
    return found[-1]


def _mixed(in_place: Gradient, flat: Gradient, ratio: float) -> Gradient:
    return add(times(in_place, 1 - ratio), times(flat, ratio))


def _name(c: int) -> str:
    return f"class:{c}"
