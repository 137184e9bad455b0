"""GKP-GSA as its authors released it: one joint ascent of groups that share one gradient.

    g      = grad of  alpha L_B + (1 - alpha) sum over k of L_gkp^k  at theta
    r_k    = r_{k-1} - m_k,  m_k <- 0.9 m_k + 0.1 r_{k-1},  r_0 = g       (in a group's first step m_k = g, and r_k = r_{k-1})
    eps_k  = sqrt(d) clamp(0.1 rho_k, 2e-3, 3e-3) w^2 r_k / || |w| r_k ||
    eps    = sum over k of (n_k / |B|) eps_k,  n_k samples of group k in the batch
    theta <- base step with the gradient of  alpha L_B + (1 - alpha) sum over k of (n_k / |B|) L_gkp^k  at theta + eps

Where it differs from the paper (`gkp_gsa`, `preservation`):
     1  groups, anchors and Fisher information are found once, before training, when all classes have the same parameters:
        the cut is degenerate (here: groups by class size), all anchors are the initial parameters, and the memory, which the
        release goes on filling, decides nothing (here: it is not filled)
     2  with one group, its default, the penalty is zero and the method is Friendly-SAM (Li et al. 2024) on its loss; here the
        default stays that of the paper's variant, four
     3  Q = -1 / Dis - log Var, measured on the test images; here on the training images, as in the paper's variant
     4  similarity (1 + cos) / 2 of parameters with running statistics and projection heads
     5  the Fisher information squares gradients of batch means, of the logit-adjusted loss, and divides by the samples; it and
        the penalty are of the encoder and the heads
     6  lambda = 10; alpha falls from 0.9 to 0.8
     7  the groups' directions start from one gradient, of loss and penalty; what is taken off is a moving average and not
        equation 12's projection, in place, so that group k starts from what group k - 1 left
     8  the radius hardly depends on anything, by its clamp; ascents are ASAM's (Kwon et al. 2021)
     9  one perturbed pass for all groups, in which BatchNorm's statistics stand still (here: with batchnorm=clean; they move in
        every pass by default)
    10  equation 15's regularizer is not there

So `gkp_variant=released` alone is the released update, not the released run: that is --gkp_variant released --batchnorm clean
--opt_options num_groups=1, which the recipe gkp-gsa fills in.

Its G clean forwards, all of the same batch and weights, are one here. Two forwards and two backwards a step.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from landscape.optimizers.ascent import Gradient, add, displaced, is_finite, norm, times
from landscape.optimizers.closures import Closure, num_samples
from landscape.parameters import flatten, split_like

if TYPE_CHECKING:
    from landscape.optimizers.gkp_gsa import GKPGSA

DECAY, SIGMA = 0.9, 1.0         # of the moving average; how much of it is taken off
SHARE, LOW, HIGH = 0.1, 2e-3, 3e-3


def released_gradient(optimizer: "GKPGSA", closures: Sequence[Closure], scaler=None) -> tuple[Tensor, Gradient]:
    """Return the batch's mean loss and the gradient of the perturbed pass, times the scale of a GradScaler."""
    counts: list[Tensor] = []
    parameters, alpha, preservation = optimizer.trained(), optimizer.alpha, optimizer.preservation
    loss, (slope,) = optimizer._pass([_counting(closure, optimizer, counts) for closure in closures], [["all"]], scaler)
    if scaler is not None and not is_finite(slope):
        return loss, slope              # overflow: the scaler skips the step, and no average moves
    scale = optimizer._scale_of(scaler)
    shares = sum(counts) / sum(counts).sum()                                                # (G,)
    clean = _vector(_mixed(times(slope, 1 / scale), preservation.gradient(), alpha), parameters)
    step = joint_ascent(optimizer, clean, shares)
    ascent = dict(zip(parameters, split_like(step, parameters)))
    optimizer.lengths["all"] = norm(ascent)
    with displaced(ascent, optimizer.lengths["all"], optimizer.rule), optimizer._perturbed_pass():
        _, (slope,) = optimizer._pass(closures, [["all"]], scaler)
        penalty = times(preservation.gradient(shares), scale)
    return loss, _mixed(slope, penalty, alpha)


def joint_ascent(optimizer: "GKPGSA", slope: Tensor, shares: Tensor) -> Tensor:
    """Return eps (d,) from the gradient (d,) and the groups' shares of the batch (G,); the moving averages move."""
    theta = flatten(p.detach() for p in optimizer.trained())
    residual, total = slope, torch.zeros_like(slope)
    for group, share in zip(optimizer.radii, shares):
        before, average = residual, optimizer.moving.get(group)
        residual = before if average is None else before - SIGMA * average
        optimizer.moving[group] = before.clone() if average is None else DECAY * average + (1 - DECAY) * before
        length = torch.linalg.vector_norm(residual, dtype=torch.float64)
        rho = (SHARE * optimizer.radius(length, group)).clamp(LOW, HIGH)
        scale = torch.linalg.vector_norm(theta.abs() * residual, dtype=torch.float64)
        factor = torch.where(scale > 0, share * len(theta) ** 0.5 * rho / scale, 0.0)
        total = total + factor.to(theta.dtype) * theta.square() * residual
    return total


def _counting(closure: Closure, optimizer: "GKPGSA", counts: list[Tensor]) -> Closure:
    def answer():
        returned = closure()
        losses, masks = optimizer._read(returned)
        found = num_samples(losses, masks, list(optimizer.radii), optimizer.processes)
        counts.append(torch.stack([found[group] for group in optimizer.radii]).double())
        return returned
    return answer


def _mixed(slope: Gradient, penalty: Gradient, alpha: float) -> Gradient:
    return add(times(slope, alpha), times(penalty, 1 - alpha))


def _vector(gradient: Gradient, parameters: Sequence[Tensor]) -> Tensor:
    return flatten(gradient[p] if p in gradient else torch.zeros_like(p) for p in parameters)
