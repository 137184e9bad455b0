"""Escape from saddles by noise: perturbed gradient descent, and the low-pass filtered loss of LPF-SGD.

    PGD      theta <- base step with g + xi,                     xi ~ N(0, (r^2 / d) I)
    LPF-SGD  theta <- base step with the mean over M draws of grad L(theta + eps),   eps_j ~ N(0, (s ||theta_F(j)||)^2)

where d is the number of parameters, so that ||xi|| is about r, and F(j) the filter that parameter j is of: a row of a
weight, the whole of a bias or of a normalizer's scale. Sources: PGD, Jin et al. 2021, algorithm 1, whose stochastic form
draws at every step; LPF-SGD, Bisla et al. 2022, whose released code has M pieces of the batch, each with noise of its own.

These are the baselines with which Rangwani et al. 2022 compare SAM's escape. Their code has neither, and the constants of
their runs are not recorded here: r = 0.1 is our choice; s = 0.001 and one draw are the defaults of the LPF-SGD release.
`--accumulate M` with LPF-SGD is the release's way: M pieces, one draw each, at the cost of an SGD step. `lpf_growth` = a
lets s grow over training to s (1 + a), as s (1 + a (1 - cos(pi t / T)) / 2) at epoch t of T; the paper's schedule has such a
form (its constants are unverified), and the release of the networks for CIFAR has none.
"""

import math
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from landscape.errors import InputError
from landscape.optimizers.ascent import Gradient, WeightedMean, move, undone
from landscape.optimizers.group_sam import GroupSAM


class PGD(GroupSAM):
    """Perturbed gradient descent: Gaussian noise of length about `noise_radius` on every step's gradient.

    One forward and one backward a step.
    """

    def __init__(self, optimizer: Optimizer, model: nn.Module, *, noise_radius: float = 0.1, **options):
        self.noise_radius = _amount("noise_radius", noise_radius)
        super().__init__(optimizer, model, {"all": 0.0}, **options)

    def _descent(self, total: Gradient, scaler) -> Gradient:
        size = sum(p.numel() for p in total)
        if not self.noise_radius or not size:
            return total
        factor = self.noise_radius / math.sqrt(size) * self._scale_of(scaler)
        return {p: slope + factor * xi for (p, slope), xi in zip(total.items(), _normal(self, list(total)))}


class LPFSGD(GroupSAM):
    """LPF-SGD: the gradient at parameters moved by Gaussian noise of `lpf_std` times each filter's norm.

    `lpf_draws` forwards and as many backwards a step. The loss that a step returns is that of the moved parameters.
    """

    def __init__(self, optimizer: Optimizer, model: nn.Module, total_epochs: int = 200, *, lpf_std: float = 0.001,
                 lpf_draws: int = 1, lpf_growth: float = 0.0, **options):
        self.lpf_std, self.lpf_growth = _amount("lpf_std", lpf_std), _amount("lpf_growth", lpf_growth)
        if not (isinstance(lpf_draws, int) and lpf_draws >= 1):
            raise InputError(f"lpf_draws={lpf_draws} is out of range: expected an integer >= 1")
        self.lpf_draws, self.total_epochs = lpf_draws, total_epochs
        super().__init__(optimizer, model, {"all": 0.0}, **options)

    @property
    def std(self) -> float:
        """The noise's standard deviation now, in units of a filter's norm."""
        return self.lpf_std * (1 + self.lpf_growth * (1 - math.cos(math.pi * self.epochs_done / self.total_epochs)) / 2)

    def _pass(self, closures, bundles, scaler) -> tuple[Tensor, list[Gradient]]:
        losses, means = [], [WeightedMean() for _ in bundles]
        for _ in range(self.lpf_draws):
            loss, gradients = super()._pass(closures, bundles, scaler)
            losses.append(loss)
            for mean, gradient in zip(means, gradients):
                mean.include(gradient, 1)
        return sum(losses[1:], losses[0]) / self.lpf_draws, [mean.gradient for mean in means]

    @contextmanager
    def _place(self):
        parameters = self.trained()
        step = [self.std * _filter_norms(p) * xi for p, xi in zip(parameters, _normal(self, parameters))] if self.std else []
        with undone(move(parameters, step, self.rule) if step else None):
            yield


def _filter_norms(p: Tensor) -> Tensor:
    """Return the norm of each row (n, 1, ...) of a weight, of all of a vector."""
    return p.norm() if p.ndim < 2 else p.flatten(1).norm(dim=1).view(-1, *[1] * (p.ndim - 1))


def _normal(optimizer: GroupSAM, parameters: list[Tensor]) -> list[Tensor]:
    """Return standard normal tensors like the parameters, the same on every process: the first one's draw.

    Drawn in the order of indices, so that the layout in memory decides nothing.
    """
    draws = [torch.empty_like(p).copy_(torch.randn(p.shape, dtype=p.dtype, device=p.device)) for p in parameters]
    if optimizer.processes.rank:
        draws = [torch.zeros_like(p) for p in parameters]
    return optimizer.processes.sum_together(draws)


def _amount(name: str, value: float) -> float:
    if not (math.isfinite(value) and value >= 0):
        raise InputError(f"{name}={value} is out of range: expected a finite number >= 0; 0 switches the noise off")
    return float(value)
