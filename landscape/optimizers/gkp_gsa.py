"""GKP-GSA: what each group of classes was best at is preserved, and each group ascends where the others do not go.

For every group g of G, from the same theta and one mini-batch B, with g_g the gradient of L_g = (1/|B|) sum of g's losses,
g_D = sum over g of g_g that of the batch, d the number of parameters and n_g the group's size,

    direction   g^_g  = g_g - (<g_g, g_D> / <g_D, g_D>) g_D                                        equation 12
    radius      rho_g = (||theta|| / (2 ||g^_g||))^(1/2) d^(-1/4) max(n_g - 1, 1)^(-1/4)           equation 13
    ascent      eps_g = Z sqrt(d) rho_g g^_g / ||g^_g||                                            equation 14, scaled by Z
    L_gsa^g     = L_g(theta + eps_g) [+ ||theta|| / (2 sqrt(max(n_g - 1, 1)) Z rho_g)]             equation 15
    theta      <- base step with the gradient of  sum over g of [alpha L_gsa^g + (1 - alpha) L_gkp^g]      equation 16
    alpha(e)    = end + (start - end) (1 + cos(pi e / epochs)) / 2 in epoch e                      equation 20

and L_gkp^g the penalty of `preservation`. Source: Chen et al. 2026, arXiv 2603.21217.

Where the paper is silent or says two things (the default first; the rest is in `preservation`, `clustering` and `memory`):
    dimension_power 0.25 | 0.5      d^(-1/4) of equation 13, or d^(-1/2), as equation 37 prints it
    radius_size samples | classes   what n_g counts in equations 13 and 15: training images (supplement 9.2), or classes
    regroup_every                   a tenth of the epochs
    regularizer false | true        the bracket of equation 15, whose gradient is taken with rho_g held: theta / ||theta|| times
                                    1 / (2 sqrt(n_g - 1) Z rho_g)
    direction removed | full | projected    equation 12, or the other two rows of the paper's table 5
    L_g                             the sum over |B|, not the group's mean (weighting=group_mean): g^_g is shorter by its share
                                    n / |B| of the batch, and rho_g longer by sqrt(|B| / n)
    lambda = 0                      alpha stays: the step is alpha times that of the ascents, not renormalized to 1

Degenerate cases. With one group, equation 12 leaves nothing: no ascent, and no penalty, so alpha times SGD's gradient
remains (the paper's own point G = 1 must be something else: direction=full is SAM with the radius of equation 13). A group
whose gradient is parallel to the batch's, up to rounding, does not ascend either: what would be left is noise, and the
smaller it is, the longer the step. A group absent from the batch adds zero to the loss; its penalty, which is of no batch,
stays. A group of one sample or class has max(n_g - 1, 1) = 1.

Cost of a step: G + 1 forwards and 2 G backwards; 1 and G where nothing ascends. Where alpha is 1, Z is 0 and
lambda is 0, it is SGD's step.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from landscape.data import LongTailData
from landscape.distributed import Processes
from landscape.errors import InputError
from landscape.losses.adjusted import logit_adjustment
from landscape.optimizers.ascent import Gradient, add, displaced, hand_over, is_finite, norm, times
from landscape.optimizers.closures import Closure, Masks, labels_of, read_answer
from landscape.optimizers.group_sam import GroupSAM
from landscape.optimizers.preservation import SIZES, Preservation, PreservationRule
from landscape.optimizers.released_gkp_gsa import released_gradient

VARIANTS = ("paper", "released")
DIRECTIONS = ("removed", "full", "projected")
PARALLEL = 100.0    # roundings of a gradient, below which what is left of it by a projection is noise
DEFAULTS = {        # of what the variants differ in
    "paper": {"penalty": 100.0, "alpha_start": 0.95, "alpha_end": 0.6, "beta": 0.5},
    "released": {"penalty": 10.0, "alpha_start": 0.9, "alpha_end": 0.8, "beta": 1.0},
}
PAPER_ONLY = {"scale": 0.01, "direction": "removed", "regularizer": False, "penalty_size": "samples", "similarity": "rbf",
              "regroup_every": None, "fisher_at": "anchor"}
RELEASED_RULE = {"quality": "released", "regroup_every": 0, "similarity": "cosine", "penalty_size": "samples",
                 "fisher": "batches", "fisher_at": "current", "heads": True}


class GKPGSA(GroupSAM):
    """Grouped knowledge preservation and grouped sharpness-aware updates (Chen et al. 2026); `released`: their code's update.

    `penalty` is lambda, `scale` is Z; None is the variant's default, or a tenth of the epochs for `regroup_every`. Groups
    are called group:0 (that of the largest classes) to group:G-1, and closures give the batch's "labels" for them. A
    training calls `observe` before its first epoch and after each, with its data; `arrays` holds what that has found.

    Five forwards and eight backwards a step with four groups.
    """

    def __init__(self, optimizer: Optimizer, model: nn.Module, gkp_variant: str = "paper", num_groups: int = 4,
                 penalty: float | None = None, alpha_start: float | None = None, alpha_end: float | None = None,
                 scale: float = 0.01, direction: str = "removed", regularizer: bool = False, dimension_power: float = 0.25,
                 radius_size: str = "samples", penalty_size: str = "samples", beta: float | None = None,
                 similarity: str = "rbf", regroup_every: int | None = None, fisher_at: str = "anchor",
                 fisher_samples: int = 1024, *, class_counts: Sequence[int] = (), total_epochs: int = 200,
                 processes: Processes = Processes(), **options):
        self.variant = _one_of("gkp_variant", gkp_variant, VARIANTS)
        self.kind = _one_of("direction", direction, DIRECTIONS)
        paper = {"scale": scale, "direction": direction, "regularizer": regularizer, "penalty_size": penalty_size,
                 "similarity": similarity, "regroup_every": regroup_every, "fisher_at": fisher_at}
        if gkp_variant == "released" and (odd := [name for name, value in paper.items() if value != PAPER_ONLY[name]]):
            raise InputError(f"{odd[0]}={paper[odd[0]]} is of gkp_variant=paper: the released code leaves no choice there")
        own = DEFAULTS[gkp_variant] | _given(penalty=penalty, alpha_start=alpha_start, alpha_end=alpha_end, beta=beta)
        self.alphas = tuple(_number(name, own[name], high=1) for name in ("alpha_start", "alpha_end"))
        self.scale, self.regularizer = _number("scale", scale), regularizer
        if regularizer and scale == 0:
            raise InputError("scale=0 is out of range with regularizer=true, which divides by the radius: expected scale > 0")
        self.dimension_power = _one_of("dimension_power", dimension_power, (0.25, 0.5))
        self.radius_size, self.total_epochs = _one_of("radius_size", radius_size, SIZES), total_epochs
        rule = {"penalty_size": penalty_size, "similarity": similarity, "fisher_at": fisher_at}
        rule |= {"regroup_every": max(round(total_epochs / 10), 1) if regroup_every is None else regroup_every}
        if gkp_variant == "released":
            rule = RELEASED_RULE | {"loss": logit_adjustment(class_counts)}
        rule |= {"strength": _number("penalty", own["penalty"]), "beta": _number("beta", own["beta"])}
        self.preservation = Preservation(model, class_counts, PreservationRule(
            num_groups=num_groups, fisher_samples=fisher_samples, **rule), processes)
        self.moving: dict[str, Tensor] = {}         # released: each group's moving average of gradients (d,)
        self.lengths: dict[str, Tensor] = {}        # of the last step's ascents, in parameter units; 0-dimensional
        radii = {f"group:{g}": self.scale for g in range(num_groups)}
        super().__init__(optimizer, model, radii, processes=processes, **options)
        if self.weighting == "double_tail":
            raise InputError("weighting=double_tail needs a group called tail: expected batch or group_mean with gkp_gsa")
        if self.direction.sigma:
            raise InputError("friendly is not for gkp_gsa, whose direction is equation 12's, and the released one a moving "
                             "average's already: leave it out")
        if gkp_variant == "released" and self.rule.scaling != "none":
            raise InputError("scaling is not for gkp_gsa as released, whose ascents are ASAM's already: leave it out")

    @property
    def alpha(self) -> float:
        """The share of the perturbed losses in the epoch at hand."""
        start, end = self.alphas
        return end + (start - end) * (1 + math.cos(math.pi * min(self.epochs_done / self.total_epochs, 1))) / 2

    @torch.no_grad()
    def step(self, *closures: Closure, scaler: "torch.amp.GradScaler | None" = None) -> Tensor:
        """Take one step; return the mean loss of the batch at the old parameters, on the device. See GroupSAM.step."""
        self._together([], closures)
        loss, gradient = (released_gradient if self.variant == "released" else paper_gradient)(self, closures, scaler)
        hand_over(self.trained(), gradient)
        self.base.step() if scaler is None else scaler.step(self.base)
        return loss

    def observe(self, data: LongTailData) -> None:
        """Renew memory, groups, anchors and Fisher information where they are due; nothing is after the last epoch."""
        if self.epochs_done < self.total_epochs:
            self.preservation.observe(data, self.epochs_done)

    def renew(self, data: LongTailData) -> None:
        """Find memory, groups, anchors and Fisher information at the present parameters: from here on there is a penalty."""
        self.preservation.observe(data, self.preservation.rule.regroup_every)

    def report(self) -> dict[str, float]:
        """Return alpha and the penalty, the sum of L_gkp^g, as they are now, and the lengths of the last step's ascents.

        A training asks before `end_epoch`: a row has its epoch's alpha, and the penalty of its anchors at its end.
        """
        lengths = {f"ascent/{name}": float(length) for name, length in self.lengths.items()}
        return {"alpha": self.alpha, "gkp_penalty": self.preservation.value()} | lengths

    def arrays(self) -> dict[str, Any]:
        """Return what is kept, besides the base optimizer's state, as arrays."""
        moving = {f"moving/{name}": vector.cpu().numpy() for name, vector in self.moving.items()}
        lengths = {f"ascent/{name}": length.cpu().numpy() for name, length in self.lengths.items()}
        return self.preservation.arrays() | moving | lengths

    def load_arrays(self, arrays: Mapping[str, Any]) -> None:
        """Go on from what `arrays` returned."""
        self.preservation.load_arrays(arrays)
        like = self.trained()[0]
        self.moving = {name.removeprefix("moving/"): torch.tensor(value).to(like) for name, value in arrays.items()
                       if name.startswith("moving/")}
        self.lengths = {name.removeprefix("ascent/"): torch.tensor(value) for name, value in arrays.items()
                        if name.startswith("ascent/")}

    def radius(self, slope: Tensor, group: str) -> Tensor:
        """Return rho_g of equation 13, without Z, from the norm of its direction; float64, infinite for the norm 0."""
        parameters, size = self.trained(), self._size_of(group)
        number = sum(p.numel() for p in parameters)
        length = norm({p: p for p in parameters})
        return (length / (2 * slope)).sqrt() * number ** -self.dimension_power * size ** -0.25

    def _size_of(self, group: str) -> int:
        return max(int(self.preservation.sizes[self.radius_size][list(self.radii).index(group)]) - 1, 1)

    def _read(self, answer) -> tuple[Tensor, Masks]:
        losses, masks = read_answer(answer)
        groups = self.preservation.groups_on(losses.device)[labels_of(masks, losses)]
        return losses, {name: groups == g for g, name in enumerate(self.radii)}


def paper_gradient(optimizer: GKPGSA, closures: Sequence[Closure], scaler=None) -> tuple[Tensor, Gradient]:
    """Return the batch's mean loss and the gradient of equation 16, times the scale of a GradScaler."""
    groups, by_mean, scale = list(optimizer.radii), optimizer.weighting == "group_mean", optimizer._scale_of(scaler)
    loss, clean = optimizer._pass(closures, [[group] for group in groups] + [["all"]] * by_mean, scaler)
    if scaler is not None and not is_finite(*clean):
        return loss, add(*clean)        # overflow: the scaler skips the step
    whole = clean.pop() if by_mean else add(*clean)
    total, alpha = {}, optimizer.alpha
    still = optimizer.scale == 0 or (len(groups) == 1 and optimizer.kind == "removed")
    for group, slope in zip(groups, clean):
        if still:
            total = add(total, slope)
            continue
        direction = _direction(slope, whole, optimizer.kind)
        rho, inverse = _lengths(optimizer, group, norm(direction) / scale, norm(slope) / scale)
        optimizer.lengths[group] = rho
        with displaced(direction, rho, optimizer.rule), optimizer._perturbed_pass():
            total = add(total, *optimizer._pass(closures, [[group]], scaler)[1])
        if optimizer.regularizer:
            total = add(total, times(_pull(optimizer, group, inverse), scale))
    return loss, add(times(total, alpha), times(optimizer.preservation.gradient(), (1 - alpha) * scale))


def _direction(slope: Gradient, whole: Gradient, kind: str) -> Gradient:
    if kind == "full":
        return slope
    share = (inner(slope, whole) / inner(whole, whole)).nan_to_num(0.0)     # 0/0: a batch without a gradient has no direction
    projection = times(whole, share)
    return projection if kind == "projected" else add(slope, times(projection, -1.0))


def _lengths(optimizer: GKPGSA, group: str, length: Tensor, of_slope: Tensor) -> tuple[Tensor, Tensor]:
    """Return ||eps_g||, and 1 / (Z rho_g), from ||g^_g|| and ||g_g||; both zero where there is no direction."""
    parameters = optimizer.trained()
    noise = PARALLEL * torch.finfo(parameters[0].dtype).eps * of_slope
    rho = optimizer.scale * optimizer.radius(length, group)
    ascends = length > noise
    width = math.sqrt(sum(p.numel() for p in parameters))
    return torch.where(ascends, width * rho, 0.0), torch.where(ascends, 1 / rho, 0.0)


def _pull(optimizer: GKPGSA, group: str, inverse: Tensor) -> Gradient:
    """Return the gradient of equation 15's bracket, with rho_g held."""
    theta = {p: p.detach() for p in optimizer.trained()}
    return times(theta, inverse / (2 * math.sqrt(optimizer._size_of(group)) * norm(theta)))


def inner(one: Gradient, other: Gradient) -> Tensor:
    """Return the inner product of two gradients, float64."""
    return sum((one[p].double() * other[p].double()).sum() for p in one if p in other)


def _given(**values: Any) -> dict[str, Any]:
    return {name: value for name, value in values.items() if value is not None}


def _one_of(name: str, value: Any, choices: Sequence[Any]) -> Any:
    if value not in choices:
        raise InputError(f"{name}={value!r} is unknown: expected one of {', '.join(map(str, choices))}")
    return value


def _number(name: str, value: Any, high: float = math.inf) -> float:
    if not isinstance(value, (int, float)) or isinstance(value, bool) or not 0 <= value <= high or not math.isfinite(value):
        bound = "a finite number >= 0" if high == math.inf else f"0 <= {name} <= {high:g}"
        raise InputError(f"{name}={value!r} is out of range: expected {bound}")
    return float(value)
