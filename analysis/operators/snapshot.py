"""A matrix of second derivatives at parameters that hold still: its products, gradient and loss, as sums over microbatches."""

import torch
from torch import Tensor

from analysis.operators import plan
from analysis.operators.algebra import Operator, finite
from analysis.operators.batches import Batch
from analysis.operators.kernels import reproducible_kernels
from analysis.operators.objective import Objective
from landscape.distributed import Processes, fingerprint
from landscape.errors import InputError


class Snapshot(Operator):
    """A matrix of second derivatives at fixed parameters, over this process's share of the samples."""

    def __init__(self, objective: Objective, theta: Tensor, products: plan.Kept | None, num_samples: int, processes: Processes):
        self._objective, self.theta, self._products = objective, theta, products
        self.size, self.dtype, self.device = theta.numel(), theta.dtype, theta.device
        self.num_samples, self._processes, self.num_matvecs = num_samples, processes, 0

    @property
    def processes(self) -> Processes:
        """Those that hold a share of the samples each."""
        return self._processes

    @property
    def batches(self) -> list[Batch]:
        """The pieces that are evaluated, smaller than they were begun with where memory ran out."""
        return self._products.batches if self._products else []

    def matmat(self, V: Tensor) -> Tensor:
        """Return H applied to each row, (k, d) -> (k, d)."""
        if V.ndim != 2 or V.shape[1] != self.size:
            raise InputError(f"vectors of shape {tuple(V.shape)} do not fit: expected (k, {self.size})")
        if not len(V):
            return V.to(self.device, self.dtype, copy=True)
        self.num_matvecs += len(V)
        here = self._processes
        with reproducible_kernels():
            V = V.to(self.device, self.dtype, copy=V.is_inference())
            HV = here.sum(here.together(lambda: self._own_product(V), fingerprint(V) if here.count > 1 else 0))
        return finite(HV)

    def _own_product(self, V: Tensor) -> Tensor:
        self._refuse_moved()
        return self._products.matmat(V) if self._products else torch.zeros_like(V)

    def gradient(self) -> Tensor:
        """Return grad L(theta), (d,)."""
        def own() -> Tensor:
            self._refuse_moved()
            return sum((self._objective.gradient(self.theta, batch) for batch in self.batches), torch.zeros_like(self.theta))
        with reproducible_kernels():
            return self._processes.sum(self._processes.together(own)[None])[0]

    def loss(self) -> float:
        """Return L(theta), accumulated in float64."""
        def own() -> Tensor:
            losses = ((self._objective.sample_losses(self.theta, b) * b.weights).double().sum() for b in self.batches)
            return sum(losses, torch.zeros((), dtype=torch.float64, device=self.device))
        with reproducible_kernels(), torch.no_grad():
            return float(self._processes.sum(self._processes.together(own).reshape(1, 1)))

    def _refuse_moved(self) -> None:
        """Refuse to go on where what the snapshot was taken of has changed."""
