"""What sharpness-aware ascents do to gradients along eigenvectors: the arithmetic behind alignment, amplification, ablation.

An ascent moves theta by eps = rho g / ||g||, g the gradient of the loss that an optimizer climbs. Along a unit eigenvector v of
a group S's Hessian, H v = lambda v, with component c = <v, grad L_S(theta)>,

    alignment       |<v, eps>| / ||eps||; for a random direction in d dimensions sqrt(2 / (pi d)) on average
    amplification   <v, grad L_S(theta + eps)> / c = 1 + lambda <v, eps> / c + O(rho^2 / c), exact on a quadratic

If eps climbs L_S itself, <v, eps> / c = rho' = rho / ||grad L_S|| whatever v is. For lambda < 0 the component then shrinks where
rho' |lambda| < 1, shrinks with its sign flipped between 1 and 2, and grows with its sign flipped beyond 2 (worked out from
Rangwani et al. 2022, Theorem 1, whose step is not normalized). No other eps has a rho' of its own.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from itertools import count, islice
from math import pi, sqrt
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from analysis.operators.kernels import reproducible_kernels
from landscape.batchnorm import running_statistics_held
from landscape.configuration import TrainConfig
from landscape.data import LongTailData
from landscape.data.batches import batch_sizes, shuffled_batches
from landscape.optimizers import SAM, SSESAM, GroupSAM, ImbSAM
from landscape.optimizers.ascent import Gradient
from landscape.parameters import theta, trainable, unflatten
from landscape.steps import TrainingStep, views_for

ROUNDINGS = 10      # a component counts as real where it is so many times what rounding makes of it
PROBE = 0.05        # radius of an ascent that the run leaves out, to see where it would have gone
NOTHING = 1e-6      # share of a gradient below which what is left of it is float32 rounding


@dataclass(frozen=True)
class Ascent:
    """One ascent of an optimizer: whose gradient it climbs, and the setting that holds its radius."""

    climbs: str     # all | head | tail
    radius: str     # rho | head_rho | tail_rho


ASCENTS = {"sam": Ascent("all", "rho"), "imbsam": Ascent("tail", "rho"), "ssesam_head": Ascent("head", "head_rho"),
           "ssesam_tail": Ascent("tail", "tail_rho")}


def radii(config: TrainConfig, rho: float | None = None) -> dict[str, float]:
    """Return the radius of each ascent of ASCENTS: the configuration's, or `rho` for all."""
    return {name: getattr(config, ascent.radius) if rho is None else rho for name, ascent in ASCENTS.items()}


def null_alignment(size: int) -> float:
    """Return E |cos| of a random direction in `size` dimensions, sqrt(2 / (pi d)), to a relative 1 / (4 d)."""
    return sqrt(2 / (pi * size))


def alignments(vectors: Tensor, direction: Tensor) -> np.ndarray:
    """Return |<v, d>| / (||v|| ||d||) for each row v (k, d), accumulated in float64; NaN for a direction of zero."""
    direction = direction.double()
    unit = direction / torch.linalg.vector_norm(direction)
    return np.array([abs(float(_unit(v) @ unit)) for v in vectors])


def components(vectors: Tensor, gradient: Tensor) -> np.ndarray:
    """Return <v, g> / ||v|| for each row v (k, d), accumulated in float64."""
    return np.array([float(_unit(v) @ gradient.double()) for v in vectors])


def amplification(vectors: Tensor, eigenvalues: np.ndarray, gradient: Tensor, moved: Tensor,
                  eps: Tensor) -> dict[str, np.ndarray]:
    """Return component, measured and predicted amplification (k,) from the gradients (d,) at theta and at theta + eps."""
    component = components(vectors, gradient)
    with np.errstate(divide="ignore", invalid="ignore"):
        return {"component": component, "measured": components(vectors, moved) / component,
                "predicted": 1 + np.asarray(eigenvalues) * components(vectors, eps) / component}


def reliable(component: np.ndarray, component64: np.ndarray, norm: float, dtype: torch.dtype) -> np.ndarray:
    """Return which components (k,) stand out of rounding: of the gradient, told by float64, and of eigenvectors in `dtype`."""
    rounding = np.maximum(np.abs(component - component64), torch.finfo(dtype).eps * norm)
    return np.abs(component64) > ROUNDINGS * rounding


def region(strength: float) -> str:
    """Return what rho' |lambda| does to the gradient's component along an eigenvector of lambda < 0, in words."""
    if strength < 1:
        return "shrinks"
    return "shrinks, sign flipped" if strength < 2 else "amplifies, sign flipped"


def ablated(gradient: Tensor, whole: Tensor) -> dict[str, Tensor]:
    """Return a group's gradient (d,) in full, projected on the global gradient, and with that removed (Chen et al. 2026, Eq. 12).

    Where nothing but rounding is left, as for the only group there is, what is removed is exactly zero; so is the projection
    on a global gradient of zero.
    """
    gradient, whole = gradient.double(), whole.double()
    square = whole @ whole
    projected = whole * (gradient @ whole / square) if square > 0 else torch.zeros_like(gradient)
    removed = gradient - projected
    if torch.linalg.vector_norm(removed) <= NOTHING * torch.linalg.vector_norm(gradient):
        removed = torch.zeros_like(gradient)
    return {"full": gradient, "projected": projected, "removed": removed}


def as_gradient(vector: Tensor, model: nn.Module) -> Gradient:
    """Return a vector (d,) as `landscape.optimizers.ascent` takes gradients: cut into the model's trainable parameters."""
    pieces = unflatten(vector, model)
    return {p: pieces[name].to(p) for name, p in trainable(model).items()}


def minibatch_ascents(config: TrainConfig, data: LongTailData, model: nn.Module, *, epoch: int, number: int, seed: int,
                      rho: float | None = None) -> Iterator[dict[str, Tensor]]:
    """Yield what each optimizer's step adds to theta (d,) on `number` mini-batches, drawn and augmented as in training.

    The optimizers' own steps are taken, in training mode with batch statistics, but for the base step and the running
    statistics: the model is as before. `epoch` decides on deferred re-weighting. An ascent without its group's images is zero.
    """
    # One piece a step, and float32 whatever the training lowers it to: the moves are read off the parameters.
    config = replace(config, accumulate=1, compile=False, precision="float32")
    like = next(model.parameters())
    steps = {names: TrainingStep(config, data, model, optimizer, like.device, like.dtype)
             for names, optimizer in _optimizers(config, model, rho).items()}
    for inputs, labels in islice(drawn(config, data, like.dtype, seed), number):
        yield {name: move for names, step in steps.items()
               for name, move in zip(names, _moves(step, model, inputs, labels, epoch, seed))}


class _Still(torch.optim.Optimizer):
    """A base optimizer that takes no step: ascents alone move the parameters."""

    def __init__(self, parameters: Any):
        super().__init__(parameters, {"lr": 0.0})

    def step(self, closure: Any = None) -> None:
        """Leave the parameters where they are."""


def _optimizers(config: TrainConfig, model: nn.Module, rho: float | None) -> Mapping[tuple[str, ...], GroupSAM]:
    """Return the optimizers by the ascents that a step of theirs makes, in this order."""
    options = {"norm_epsilon": config.norm_epsilon}
    length = {name: radius or PROBE for name, radius in radii(config, rho).items()}
    base = _Still(trainable(model).values())
    return {("sam",): SAM(base, model, length["sam"], **options), ("imbsam",): ImbSAM(base, model, length["imbsam"], **options),
            ("ssesam_head", "ssesam_tail"): SSESAM(base, model, length["ssesam_head"], length["ssesam_tail"], gamma=1.0,
                                                   **options)}


def _moves(step: TrainingStep, model: nn.Module, inputs: Tensor, labels: Tensor, epoch: int, seed: int) -> list[Tensor]:
    """Take a step and return where its perturbed forwards were, relative to theta."""
    places: list[Tensor] = []
    # Of what the step calls: for a loss that contrasts views, that is more than the network's own forward.
    watching = step.forward.register_forward_pre_hook(lambda module, args: places.append(theta(model)))
    try:
        with _training_mode(model), running_statistics_held(model), reproducible_kernels(), torch.random.fork_rng():
            torch.manual_seed(seed)     # of dropout
            step(inputs, labels, epoch)
    finally:
        watching.remove()
    return [place.double() - places[0].double() for place in places[1:]]


@contextmanager
def _training_mode(model: nn.Module) -> Iterator[None]:
    modes = [(module, module.training) for module in model.modules()]
    try:
        model.train()
        yield
    finally:
        for module, training in modes:
            module.training = training


def drawn(config: TrainConfig, data: LongTailData, dtype: torch.dtype, seed: int) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield mini-batches of training images without end, an epoch's after another's."""
    sizes = batch_sizes(len(data.train), config.batch_size)
    for epoch in count():
        order, augmentation = map(int, np.random.SeedSequence((seed, epoch)).generate_state(2))
        yield from shuffled_batches(data, sizes, order, augmentation if config.augment else None, dtype,
                                    views_for(config, data))


def _unit(vector: Tensor) -> Tensor:
    vector = vector.double()
    return vector / torch.linalg.vector_norm(vector)
