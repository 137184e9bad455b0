"""Linear operators: what every algorithm here sees of a Hessian is matvec, matmat, size, dtype and device.

`HessianOperator` is H = grad^2 L(theta), L(theta) = (1/n) sum_i loss_i(theta), as a sum over microbatches with exact
sample weights, so that any split of the data gives the same product. theta and the buffers are a snapshot taken at
construction, in evaluation mode; the model itself is never changed.
"""

import copy
import hashlib
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from analysis import plan, products
from analysis.objective import Batch, Objective, refuse_coupled, refuse_random, refuse_sum, reproducible_kernels
from analysis.products import refuse_false_gradient
from landscape.errors import InputError
from landscape.parameters import flatten, trainable


class LinearOperator(Protocol):
    """A symmetric matrix known by its products."""

    size: int
    dtype: torch.dtype
    device: torch.device

    def matvec(self, v: Tensor) -> Tensor:
        """Return H v, (d,) -> (d,)."""

    def matmat(self, V: Tensor) -> Tensor:
        """Return H applied to each row, (k, d) -> (k, d)."""


class MatrixOperator:
    """A dense symmetric matrix (d, d) as an operator."""

    def __init__(self, matrix: Tensor):
        if matrix.ndim != 2 or not torch.equal(matrix, matrix.T):
            raise InputError(f"matrix of shape {tuple(matrix.shape)} is not symmetric: pass (A + A.T) / 2")
        self.matrix, self.size = matrix, len(matrix)
        self.dtype, self.device = matrix.dtype, matrix.device

    def matvec(self, v: Tensor) -> Tensor:
        return self.matrix @ v

    def matmat(self, V: Tensor) -> Tensor:
        return V @ self.matrix

    def double(self) -> "MatrixOperator":
        """Return the operator in float64."""
        return MatrixOperator(self.matrix.double())


@dataclass(frozen=True, eq=False)
class Deflated:
    """P A P with P the projector onto the complement of orthonormal rows X (p, d)."""

    operator: LinearOperator
    X: Tensor

    @property
    def size(self) -> int:
        return self.operator.size

    @property
    def dtype(self) -> torch.dtype:
        return self.operator.dtype

    @property
    def device(self) -> torch.device:
        return self.operator.device

    def matvec(self, v: Tensor) -> Tensor:
        return self.matmat(v[None])[0]

    def matmat(self, V: Tensor) -> Tensor:
        return self._project(self.operator.matmat(self._project(V)))

    def _project(self, V: Tensor) -> Tensor:
        return V - (V @ self.X.T) @ self.X


class HessianOperator:
    """The Hessian of a mean loss over given batches, at the model's present parameters.

    model     any module; its trainable parameters, or those named in `params`, are theta
    loss      loss(logits, targets) -> (B,), one value a sample. A module with `.reduction` is copied with "none"
    batches   a sequence or re-iterable of (inputs, targets), read twice to see that it does not change
    forward   forward(model, batch) -> (B,) losses, for batches of another form; `loss` is then not called
    engine    "auto", or one of linearized, jvp, reverse, differences: see `analysis.products`
    memory    "auto", or bytes that kept microbatches may take; the others are computed anew for each product
    traces    a dict that operators of one architecture and loss, constants included, share: each shape of batch is traced once

    Raises InputError for dropout or BatchNorm that would not be deterministic, one-shot iterators, changing batches, losses
    that are not one value a sample, and networks that no engine serves; the text names the cause and the way out.
    """

    def __init__(self, model: nn.Module, loss: Callable[[Tensor, Tensor], Tensor] | None, batches: Iterable, *,
                 params: Sequence[str] | None = None, forward: Callable[[nn.Module, Any], Tensor] | None = None,
                 memory: str | float = "auto", engine: str = "auto", traces: dict | None = None):
        if engine != "auto" and engine not in products.ENGINES:
            raise InputError(f"engine={engine!r} is unknown: expected auto, {', '.join(products.ENGINES)}")
        self._model, self._names = model, tuple(_choose(trainable(model), params))
        self._losses = forward or _supervised(loss)
        self._wanted, self._traces = engine, {} if traces is None else traces
        self.device, self.dtype = _common_kind(self._source())
        self._budget = plan.budget(memory, self.device)
        with _random_state_kept(self.device):       # a DataLoader draws from the global generator even where it does not shuffle
            self.batches = _read(batches, self.device, self.dtype)
        self.num_samples = sum(batch.num_samples for batch in self.batches)
        self.num_matvecs = 0
        self.refresh(first=True)

    def refresh(self, first: bool = False) -> None:
        """Take a new snapshot of the model's parameters and buffers, and choose and check the engine again."""
        source = self._source()
        self.theta = flatten(p.detach() for p in source.values())
        self.size = self.theta.numel()
        self._objective = Objective(_frozen_copy(self._model), self._losses, self._names,
                                    tuple(p.shape for p in source.values()), _fixed(self._model, source))
        with reproducible_kernels(), _random_state_kept(self.device):
            for batch in self.batches:
                refuse_random(self._objective, self.theta, batch)
            refuse_false_gradient(self._objective, self.theta, self.batches[0])
            if first:
                self._prepare_batches()
            chosen = plan.choose(self._objective, self.theta, self.batches, self._wanted, self._traces)
        self.engine, self.reasons = chosen.engine, chosen.reasons
        self._products = plan.Kept(chosen.prepare, self.batches, self._budget)

    def matvec(self, v: Tensor) -> Tensor:
        """Return H v, (d,) -> (d,)."""
        return self.matmat(v[None])[0]

    def matmat(self, V: Tensor) -> Tensor:
        """Return H applied to each row, (k, d) -> (k, d)."""
        if V.ndim != 2 or V.shape[1] != self.size:
            raise InputError(f"vectors of shape {tuple(V.shape)} do not fit: expected (k, {self.size})")
        self._refuse_moved()
        self.num_matvecs += len(V)
        V = V.to(self.device, self.dtype)
        with reproducible_kernels():
            return sum(product(V) for product in self._products)

    def __matmul__(self, v: Tensor) -> Tensor:
        return self.matvec(v) if v.ndim == 1 else self.matmat(v.T).T

    def gradient(self) -> Tensor:
        """Return grad L(theta), (d,)."""
        self._refuse_moved()
        with reproducible_kernels():
            return sum(products.gradient(self._objective, self.theta, batch) for batch in self.batches)

    def loss(self) -> float:
        """Return L(theta), accumulated in float64."""
        with torch.no_grad(), reproducible_kernels():
            return sum(float((self._objective.sample_losses(self.theta, b) * b.weights).double().sum())
                       for b in self.batches)

    def double(self) -> "HessianOperator":
        """Return the same Hessian in float64, for second opinions; it keeps no microbatch between its products."""
        twin = copy.copy(self)
        twin.dtype, twin.theta = torch.float64, self.theta.double()
        twin._objective, twin.batches = self._objective.double(), [batch.double() for batch in self.batches]
        twin._model, twin.num_matvecs = None, 0
        for batch in twin.batches:
            batch.weights.copy_(batch.weights.bool().double() / self.num_samples)
        twin.engine = "jvp" if self.engine == "linearized" else self.engine
        twin._products = plan.Kept(products.ENGINES[twin.engine](twin._objective, twin.theta, {}), twin.batches, 0)
        return twin

    def to_scipy(self):
        """Return a scipy.sparse.linalg.LinearOperator on the host."""
        from scipy.sparse.linalg import LinearOperator as ScipyOperator
        dtype = torch.empty(0, dtype=self.dtype).numpy().dtype

        def matvec(v):
            return self.matvec(torch.as_tensor(v.ravel(), dtype=self.dtype)).cpu().numpy()
        return ScipyOperator((self.size, self.size), matvec=matvec, dtype=dtype)

    @property
    def held_bytes(self) -> int:
        """The memory that kept microbatches take."""
        return self._products.bytes

    def _prepare_batches(self) -> None:
        """Weigh every sample by 1/n; see that samples are independent; fill ragged batches up where the loss is per sample."""
        for batch in self.batches:
            batch.weights.fill_(1.0 / self.num_samples)
        largest = max(self.batches, key=len)
        if self._objective.is_scalar(self.theta, largest):
            refuse_sum(self._objective, self.theta, largest)
        else:
            refuse_coupled(self._objective, self.theta, largest)
            self.batches = [batch.padded(len(largest)) for batch in self.batches]

    def _refuse_moved(self) -> None:
        if self._model is None:     # a float64 twin follows no model
            return
        source = self._source()
        pieces = self.theta.split([p.numel() for p in source.values()])
        for (name, parameter), piece in zip(source.items(), pieces):
            if not torch.equal(parameter.detach().reshape(-1), piece):
                raise InputError(f"parameter {name!r} has changed since the operator was made: call refresh() to follow it")

    def _source(self) -> dict[str, nn.Parameter]:
        """Return the model's own parameters that form theta."""
        parameters = dict(self._model.named_parameters())
        return {name: parameters[name] for name in self._names}


def _choose(parameters: dict[str, nn.Parameter], names: Sequence[str] | None) -> dict[str, nn.Parameter]:
    if names is None:
        return parameters
    unknown = [name for name in names if name not in parameters]
    if unknown or not names:
        raise InputError(f"params={list(names)} is out of range: {unknown or 'nothing'} is no trainable parameter; "
                         f"expected some of {', '.join(parameters)}")
    return {name: p for name, p in parameters.items() if name in set(names)}


def _random_state_kept(device: torch.device):
    return torch.random.fork_rng(devices=[device] if device.type == "cuda" else [])


def _common_kind(parameters: dict[str, nn.Parameter]) -> tuple[torch.device, torch.dtype]:
    kinds = {(p.device, p.dtype) for p in parameters.values()}
    if len(kinds) > 1:
        found = ", ".join(f"{dtype} on {device}" for device, dtype in sorted(kinds, key=str))
        raise InputError(f"parameters are of several kinds ({found}): expected one dtype on one device")
    return kinds.pop()


def _frozen_copy(model: nn.Module) -> nn.Module:
    """Copy the model in evaluation mode, refusing what would make its products vary."""
    twin = copy.deepcopy(model).eval()
    for name, module in twin.named_modules():
        if isinstance(module, _BatchNorm) and not module.track_running_stats:
            raise InputError(f"BatchNorm {name!r} has no running statistics, so a product would depend on the split into "
                             "batches: build it with track_running_stats=True")
    return twin


def _fixed(model: nn.Module, chosen: dict[str, nn.Parameter]) -> dict[str, Tensor]:
    """Snapshot everything that is not in theta: frozen and unchosen parameters, and buffers."""
    rest = {name: p for name, p in model.named_parameters() if name not in chosen}
    return {name: t.detach().clone() for name, t in (rest | dict(model.named_buffers())).items()}


def _supervised(loss: Callable[[Tensor, Tensor], Tensor] | None) -> Callable[[nn.Module, Any], Tensor]:
    if loss is None:
        raise InputError("loss=None is out of range: pass loss(logits, targets) -> (B,), or forward(model, batch) -> (B,)")
    if isinstance(getattr(loss, "reduction", None), str) and loss.reduction != "none":
        loss = copy.copy(loss)
        loss.reduction = "none"

    def losses(model: nn.Module, batch: Any) -> Tensor:
        inputs, targets = batch
        return loss(model(inputs), targets)
    return losses


def _read(batches: Iterable, device: torch.device, dtype: torch.dtype) -> list[Batch]:
    """Read the batches twice, refusing those that change: a Hessian of moving data is not one matrix."""
    if iter(batches) is batches:
        raise InputError("batches is an iterator that can be read once: pass a list, or a DataLoader without shuffling")
    held = [Batch.of(batch, device, dtype) for batch in batches]
    if not held:
        raise InputError("batches is empty: expected at least one batch with one sample")
    if not isinstance(batches, (list, tuple)):
        again = [_digest(Batch.of(batch, device, dtype)) for batch in batches]
        if again != [_digest(batch) for batch in held]:
            raise InputError("batches differ when read a second time: turn off shuffling and random augmentation")
    return held


def _digest(batch: Batch) -> str:
    digest = hashlib.sha256(str(batch.shapes).encode())
    for tensor in batch.tensors:
        digest.update(tensor.detach().cpu().contiguous().view(torch.uint8).numpy().tobytes() if tensor.numel() else b"")
    return digest.hexdigest()
