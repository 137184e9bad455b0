"""The generalised Gauss-Newton matrix, the positive semi-definite part of the Hessian (Schraudolph 2002).

    G = (1/n) sum_i J_i' (d^2 loss_i / d z_i^2) J_i,    J_i = d z_i / d theta,    z_i the outputs of the network

For a loss that is convex in the outputs, cross-entropy for one, G is positive semi-definite: negative curvature of the loss
comes from H - G = (1/n) sum_i sum_c (d loss_i / d z_ic) grad^2 z_ic alone, the curvature of the network itself. For a model that
is linear in its parameters H = G. For cross-entropy G is also the Fisher information of the model's predictions (Martens 2020).
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import grad, jvp, vjp

from analysis.operators.batches import Batch
from analysis.operators.hessian import LossOperator
from analysis.operators.kernels import differentiable_kernels
from analysis.operators.objective import Objective, Supervised, difference_step, doubled, gradient_of, nested
from analysis.operators.trial import first_evaluation
from landscape.errors import InputError


@dataclass(frozen=True)
class Composed:
    """loss(outputs(model, batch), batch), for batches and models of any form."""

    outputs: Callable[[nn.Module, Any], Tensor]
    of_outputs: Callable[[Tensor, Any], Tensor]

    def __call__(self, model: nn.Module, batch: Any) -> Tensor:
        return self.of_outputs(self.outputs(model, batch), batch)

    def double(self) -> "Composed":
        """Return the same with the constants of functions that are modules in float64."""
        return Composed(doubled(self.outputs), doubled(self.of_outputs))


class GaussNewtonObjective(Objective):
    """The same function, with the Gauss-Newton matrix in place of the Hessian; `losses` also gives `outputs` and `of_outputs`."""

    losses: Supervised | Composed

    def product(self, theta: Tensor, v: Tensor, batch: Batch, fixed: Sequence[Tensor] | None = None) -> Tensor:
        """Return J' (Q (J v)), Q the Hessian of the loss at the outputs: forward, forward over reverse, reverse."""
        values = None if fixed is None else dict(zip(self.fixed, fixed))

        def outputs(t: Tensor) -> Tensor:
            return self.evaluate(self.losses.outputs, t, batch, values)
        z, pull_back = vjp(outputs, theta)
        Jv = jvp(outputs, (theta,), (v,))[1]
        return pull_back(jvp(grad(lambda z: self._of_outputs(z, batch)), (z,), (Jv,))[1])[0]

    def product_in_place(self, batch: Batch) -> Callable[[Tensor], Tensor]:
        """Return v -> G v in reverse mode alone: J'u is linear in u, so that its derivative along u gives J v."""
        leaves = self.leaves()
        with torch.enable_grad():
            z = self._outputs_in_place(batch)
            u = torch.zeros_like(z, requires_grad=True)
            pulled = gradient_of((z * u).sum(), leaves, create_graph=True)

        def product(v: Tensor) -> Tensor:
            with torch.enable_grad():
                Jv = gradient_of((pulled * v).sum(), [u], retain_graph=True)
                return gradient_of((z * self._curved(z, Jv, batch)).sum(), leaves, retain_graph=True)
        return product

    def differenced(self, theta: Tensor, v: Tensor, batch: Batch, step: float | None = None) -> Tensor:
        """Return G v with J v by central differences of the outputs: inexact."""
        h = step or difference_step(theta, v)
        with torch.no_grad():
            ahead, behind = (self.evaluate(self.losses.outputs, theta + sign * h * v, batch) for sign in (1, -1))
        with self.moved_to(theta) as leaves, torch.enable_grad():
            z = self._outputs_in_place(batch)
            return gradient_of((z * self._curved(z, (ahead - behind) / (2 * h), batch)).sum(), leaves)

    def _curved(self, z: Tensor, tangent: Tensor, batch: Batch) -> Tensor:
        """Return the Hessian of the loss at outputs z, applied to a tangent of z."""
        seat = z.detach().requires_grad_()
        slope = gradient_of(self._of_outputs(seat, batch), [seat], create_graph=True)
        return gradient_of((slope * tangent.reshape(-1)).sum(), [seat]).view_as(z)

    def _of_outputs(self, z: Tensor, batch: Batch) -> Tensor:
        with differentiable_kernels(self.model):
            losses = self.losses.of_outputs(z, nested(batch))
        return (self.per_sample(losses, batch) * batch.weights).sum()

    def _outputs_in_place(self, batch: Batch) -> Tensor:
        with differentiable_kernels(self.model):
            return self.losses.outputs(self.model, nested(batch))


class GaussNewtonOperator(LossOperator):
    """The Gauss-Newton matrix of a mean loss over given batches; `HessianOperator` explains the options.

    loss      loss(logits, targets) -> (B,), one value a sample; with `outputs`, loss(outputs, batch) -> (B,)
    outputs   outputs(model, batch) -> Tensor (B, ...), for batches of another form
    """

    def __init__(self, model: nn.Module, loss: Callable[[Tensor, Any], Tensor], batches: Iterable, *,
                 outputs: Callable[[nn.Module, Any], Tensor] | None = None, forward: None = None, **options: Any):
        if forward is not None:
            raise InputError("forward= gives losses alone, and a Gauss-Newton matrix needs the outputs between: pass "
                             "outputs=lambda model, batch: logits, and loss(outputs, batch) -> (B,)")
        super().__init__(model, lambda: Supervised.of(loss) if outputs is None else Composed(outputs, Supervised.of(loss).loss),
                         batches, **options)

    def _objective_of(self, model: nn.Module, names: tuple[str, ...], shapes: tuple[torch.Size, ...],
                      fixed: dict[str, Tensor]) -> Objective:
        objective = GaussNewtonObjective(model, self._losses, names, shapes, fixed)
        whole = self._data.largest
        with torch.no_grad(), first_evaluation(objective, whole):
            found = objective._outputs_in_place(whole.some(2))
        if not isinstance(found, Tensor):
            raise InputError(f"the model gives a {type(found).__name__}: expected a tensor; pass outputs=lambda model, batch: "
                             "logits, and loss(outputs, batch) -> (B,)")
        return objective
