"""The function whose Hessian is taken: theta -> sum_i w_i loss_i(theta), over one batch, with everything else fixed.

The parameters are one flat vector; the other parameters and the buffers are a snapshot. Evaluated under the math kernel of
attention, without the fused inference path of transformers, since neither has second derivatives.

An objective also says what its product is, twice: as a pure function of theta, for forward mode and tracing, and in reverse
mode on the module's own parameters. `analysis.operators.gauss_newton` gives another product to the same function.
"""

import copy
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, fields, is_dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_unflatten

from analysis.operators.batches import Batch
from analysis.operators.kernels import differentiable_kernels
from landscape.errors import InputError
from landscape.parameters import called_with, copied, flatten, holding, split_like

SampleLosses = Callable[[nn.Module, Any], Tensor]


@dataclass(frozen=True, eq=False)
class Supervised:
    """loss(model(inputs), targets) for batches (inputs, targets); a loss that is a module is kept as a copy.

    `reduced` is the loss as it was given, where it reduces a batch to one number itself.
    """

    loss: Callable[[Tensor, Tensor], Tensor]
    reduced: Callable[[Tensor, Tensor], Tensor] | None = None

    @classmethod
    def of(cls, loss: Callable[[Tensor, Tensor], Tensor] | None) -> "Supervised":
        """Take a per-sample loss; a module with `.reduction` is copied with "none"."""
        if loss is None:
            raise InputError("loss=None is out of range: pass loss(logits, targets) -> (B,), or forward(model, batch) -> (B,)")
        if isinstance(loss, nn.Module):
            loss = copy.deepcopy(loss)
        if not isinstance(getattr(loss, "reduction", None), str) or loss.reduction == "none":
            return cls(loss)
        apart = copy.copy(loss)
        apart.reduction = "none"
        return cls(apart, loss)

    def __call__(self, model: nn.Module, batch: Any) -> Tensor:
        return self.of_outputs(self.outputs(model, batch), batch)

    def outputs(self, model: nn.Module, batch: Any) -> Tensor:
        """Return the model's outputs, (B, ...)."""
        return model(_pair(batch)[0])

    def of_outputs(self, outputs: Tensor, batch: Any) -> Tensor:
        """Return the losses (B,) of given outputs."""
        return self.loss(outputs, _pair(batch)[1])

    def claimed(self, model: nn.Module, batch: Any) -> Tensor:
        """Return the number that the loss as it was given makes of a batch."""
        return self.reduced(self.outputs(model, batch), _pair(batch)[1])

    def double(self) -> "Supervised":
        """Return the same with the constants of a loss that is a module in float64."""
        return Supervised(doubled(self.loss), self.reduced and doubled(self.reduced))


def doubled(function: Callable) -> Callable:
    """Return a function whose constants are in float64, where it is a module or says how."""
    if isinstance(function, nn.Module):
        return copy.deepcopy(function).double()
    return function.double() if hasattr(function, "double") else function


def _pair(batch: Any) -> tuple:
    if not (isinstance(batch, (tuple, list)) and len(batch) == 2):
        raise InputError(f"a batch is a {type(batch).__name__} of {len(batch)}: expected (inputs, targets); pass "
                         "forward=lambda model, batch: per_sample_losses for batches of another form")
    return tuple(batch)


@dataclass(frozen=True, eq=False)
class Objective:
    """The weighted sum of per-sample losses as a pure function of theta, other tensors being a snapshot."""

    model: nn.Module
    losses: SampleLosses                # (model, batch) -> (B,)
    names: tuple[str, ...]              # the parameters in theta, in order
    shapes: tuple[torch.Size, ...]
    fixed: Mapping[str, Tensor]         # frozen parameters and buffers

    def __call__(self, theta: Tensor, batch: Batch, fixed: Sequence[Tensor] | None = None) -> Tensor:
        """Return sum_i w_i loss_i(theta), a scalar."""
        fixed_values = self.fixed if fixed is None else dict(zip(self.fixed, fixed))
        losses = self.sample_losses(theta, batch, fixed_values)
        return (losses * batch.weights).sum()

    def sample_losses(self, theta: Tensor, batch: Batch, fixed: Mapping[str, Tensor] | None = None) -> Tensor:
        """Return the per-sample losses (B,)."""
        return self.per_sample(self.evaluate(self.losses, theta, batch, fixed), batch)

    def evaluate(self, function: Callable[[nn.Module, Any], Tensor], theta: Tensor, batch: Batch,
                 fixed: Mapping[str, Tensor] | None = None) -> Tensor:
        """Return function(model, batch) with the model at theta, as a pure function of theta."""
        pieces = split_like(theta, [_Shape(s) for s in self.shapes])
        state = dict(zip(self.names, pieces)) | dict(self.fixed if fixed is None else fixed)
        prefixed = {f"model.{name}": value for name, value in state.items()}
        with differentiable_kernels(self.model):
            return called_with(_Called(self.model, function), prefixed, nested(batch))

    def in_place(self, batch: Batch) -> Tensor:
        """Return the scalar objective at the parameters that `self.model` holds, as a function of those tensors."""
        with differentiable_kernels(self.model):
            losses = self.losses(self.model, nested(batch))
        return (self.per_sample(losses, batch) * batch.weights).sum()

    def product(self, theta: Tensor, v: Tensor, batch: Batch, fixed: Sequence[Tensor] | None = None) -> Tensor:
        """Return H v, the derivative of the gradient at theta in direction v, forward over reverse (Pearlmutter 1994)."""
        return torch.func.jvp(torch.func.grad(lambda t: self(t, batch, fixed)), (theta,), (v,))[1]

    def product_in_place(self, batch: Batch) -> Callable[[Tensor], Tensor]:
        """Return v -> H v at the parameters that `self.model` holds, reverse over reverse; its graph lives with it."""
        leaves = self.leaves()
        with torch.enable_grad():
            gradient = gradient_of(self.in_place(batch), leaves, create_graph=True)

        def product(v: Tensor) -> Tensor:
            with torch.enable_grad():
                return gradient_of((gradient * v).sum(), leaves, retain_graph=True)
        return product

    def differenced(self, theta: Tensor, v: Tensor, batch: Batch, step: float | None = None) -> Tensor:
        """Return H v by central differences of the gradient: inexact, error O(h^2) plus rounding / h, h v the step."""
        h = step or difference_step(theta, v)
        return (self.gradient(theta + h * v, batch) - self.gradient(theta - h * v, batch)) / (2 * h)

    def gradient(self, theta: Tensor, batch: Batch) -> Tensor:
        """Return the gradient (d,) over one batch, on the module's own parameters."""
        with self.moved_to(theta) as leaves, torch.enable_grad():
            return gradient_of(self.in_place(batch), leaves)

    @contextmanager
    def moved_to(self, theta: Tensor) -> Iterator[list[nn.Parameter]]:
        """Give `self.model` the parameters theta for the length of a with block; the old ones return bit by bit."""
        leaves = self.leaves()
        with holding(leaves, theta):
            yield leaves

    def leaves(self) -> list[nn.Parameter]:
        """Return the parameters of `self.model` that form theta, in order."""
        parameters = dict(self.model.named_parameters())
        return [parameters[name] for name in self.names]

    @staticmethod
    def per_sample(losses: Tensor, batch: Batch) -> Tensor:
        """Return losses as one value a sample (B,)."""
        if losses.ndim == 0:        # a mean over the batch, see `checks.refuse_sum`: each sample stands for it
            return losses.expand(batch.weights.shape)
        if losses.shape != batch.weights.shape:
            raise InputError(f"the loss has shape {tuple(losses.shape)}: expected one value a sample, "
                             f"{tuple(batch.weights.shape)}; pass a loss with reduction='none', averaged over all but them: "
                             "losses.flatten(1).mean(1)")
        return losses

    def is_scalar(self, theta: Tensor, batch: Batch) -> bool:
        """Tell whether the loss is one number a batch."""
        with torch.no_grad():
            return self.sample_losses(theta, batch).stride() == (0,) and len(batch) > 1

    def double(self) -> "Objective":
        """Return the objective in float64."""
        fixed = {name: t.double() if t.is_floating_point() else t for name, t in self.fixed.items()}
        return replace(self, model=copied(self.model).double(), fixed=fixed, losses=doubled(self.losses))


def identity(losses: Any) -> tuple:
    """Return what tells one loss from another: of a module its class, settings and constants, of a function which one it is."""
    if isinstance(losses, nn.Module):
        return tuple((type(module).__qualname__, repr(sorted(_settings(module).items()))) for module in losses.modules()) + tuple(
            (name, tuple(value.flatten().tolist())) for name, value in losses.state_dict().items())
    if is_dataclass(losses):
        return tuple(identity(getattr(losses, part.name)) for part in fields(losses))
    return (id(losses),)


def _settings(module: nn.Module) -> dict[str, Any]:
    return {name: value.tolist() if isinstance(value, Tensor) else value for name, value in vars(module).items()
            if name[0] != "_"}


def gradient_of(value: Tensor, leaves: Sequence[Tensor], **options: bool) -> Tensor:
    """Return d value / d leaves as one vector; zero where the value does not depend on a leaf."""
    if not value.requires_grad:
        return torch.zeros(sum(leaf.numel() for leaf in leaves), dtype=value.dtype, device=value.device)
    return flatten(torch.autograd.grad(value, leaves, materialize_grads=True, **options))


def nested(batch: Batch) -> Any:
    """Return a batch as the user nested it."""
    return tree_unflatten(list(batch.tensors), batch.structure)


def difference_step(theta: Tensor, v: Tensor) -> float:
    """Return h with |h v| = eps^(1/3) max(|theta|, 1), where truncation and rounding of a central difference balance."""
    length = float(v.norm())
    return torch.finfo(theta.dtype).eps ** (1 / 3) * max(float(theta.norm()), 1.0) / (length if length > 0 else 1.0)


class _Called(nn.Module):
    """The model and a function of it as one module, so that functional_call also reaches a forward that takes dicts."""

    def __init__(self, model: nn.Module, function: Callable[[nn.Module, Any], Tensor]):
        super().__init__()
        self.model = model
        self.function = function

    def forward(self, batch: Any) -> Tensor:
        return self.function(self.model, batch)


class _Shape:
    """Stands in for a tensor where only its shape matters."""

    def __init__(self, shape: torch.Size):
        self.shape = shape

    def numel(self) -> int:
        return self.shape.numel()
