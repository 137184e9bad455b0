"""The function whose Hessian is taken: theta -> sum_i w_i loss_i(theta), over one batch, with everything else fixed.

The parameters are one flat vector; the other parameters and the buffers are a snapshot. A batch is a tuple of tensors,
so that a traced function can take them as inputs. Evaluated under the math kernel of attention, without the fused
inference path of transformers, since neither has second derivatives.
"""

import copy
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils._pytree import TreeSpec, tree_flatten, tree_unflatten

from landscape.errors import InputError
from landscape.parameters import flatten, split_like

SampleLosses = Callable[[nn.Module, Any], Tensor]


@dataclass(frozen=True, eq=False)
class Batch:
    """One microbatch: its tensors, how they fit together, and each sample's weight in the total."""

    tensors: tuple[Tensor, ...]
    structure: TreeSpec
    weights: Tensor             # (B,) w_i; 1/n for a mean over n samples, 0 for padding
    num_samples: int            # without padding

    @classmethod
    def of(cls, batch: Any, device: torch.device, dtype: torch.dtype) -> "Batch":
        """Move a batch of tensors, in any nesting of tuples, lists and dicts, to a device; floats also to a dtype."""
        leaves, structure = tree_flatten(batch)
        if not leaves or not all(isinstance(leaf, Tensor) for leaf in leaves):
            kinds = ", ".join(sorted({type(leaf).__name__ for leaf in leaves})) or "nothing"
            raise InputError(f"a batch holds {kinds}: expected tensors only, in tuples, lists or dicts")
        moved = tuple(x.detach().to(device, dtype if x.is_floating_point() else x.dtype, copy=True) for x in leaves)
        size = len(leaves[0])
        return cls(moved, structure, torch.ones(size, device=device, dtype=dtype), size)

    def __len__(self) -> int:
        return len(self.weights)

    def padded(self, size: int) -> "Batch":
        """Repeat the last sample, with weight 0, up to `size`, so that one traced function serves a ragged batch too."""
        missing = size - len(self)
        if missing <= 0 or not self.is_cuttable:
            return self
        tensors = tuple(torch.cat([x, x[-1:].expand(missing, *x.shape[1:])]) for x in self.tensors)
        return replace(self, tensors=tensors, weights=torch.cat([self.weights, self.weights.new_zeros(missing)]))

    @property
    def is_cuttable(self) -> bool:
        """Whether the first dimension of every tensor counts samples."""
        return all(x.ndim > 0 and len(x) == len(self) for x in self.tensors)

    def some(self, count: int) -> "Batch":
        """Return the first samples, where the batch can be cut."""
        return self.piece(slice(None, count)) if self.is_cuttable else self

    def piece(self, chosen: slice) -> "Batch":
        """Return some of the samples."""
        return replace(self, tensors=tuple(x[chosen] for x in self.tensors), weights=self.weights[chosen],
                       num_samples=len(self.weights[chosen]))

    def double(self) -> "Batch":
        """Return the batch with its floats in float64."""
        return replace(self, tensors=tuple(_double(x) for x in self.tensors), weights=self.weights.double())

    @property
    def shapes(self) -> tuple:
        """What a traced function depends on: structure, shapes and dtypes."""
        return (str(self.structure), *((tuple(x.shape), x.dtype) for x in (*self.tensors, self.weights)))


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
        pieces = split_like(theta, [_Shape(s) for s in self.shapes])
        state = dict(zip(self.names, pieces)) | dict(self.fixed if fixed is None else fixed)
        inputs = tree_unflatten(list(batch.tensors), batch.structure)
        with differentiable_kernels(self.model):
            losses = torch.func.functional_call(_Losses(self.model, self.losses), _prefixed(state), (inputs,))
        return self._per_sample(losses, batch)

    def in_place(self, batch: Batch) -> Tensor:
        """Return the scalar objective at the parameters that `self.model` holds, as a function of those tensors."""
        with differentiable_kernels(self.model):
            losses = self.losses(self.model, tree_unflatten(list(batch.tensors), batch.structure))
        return (self._per_sample(losses, batch) * batch.weights).sum()

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

    def leaves(self) -> list[nn.Parameter]:
        """Return the parameters of `self.model` that form theta, in order."""
        parameters = dict(self.model.named_parameters())
        return [parameters[name] for name in self.names]

    @staticmethod
    def _per_sample(losses: Tensor, batch: Batch) -> Tensor:
        if losses.ndim == 0:        # a mean over the batch, see `refuse_sum`: each sample stands for it
            return losses.expand(batch.weights.shape)
        if losses.shape != batch.weights.shape:
            raise InputError(f"the loss has shape {tuple(losses.shape)}: expected one value a sample, "
                             f"{tuple(batch.weights.shape)}; pass a loss with reduction='none'")
        return losses

    def is_scalar(self, theta: Tensor, batch: Batch) -> bool:
        """Tell whether the loss is one number a batch."""
        with torch.no_grad():
            return self.sample_losses(theta, batch).stride() == (0,) and len(batch) > 1

    def double(self) -> "Objective":
        """Return the objective in float64."""
        return replace(self, model=copy.deepcopy(self.model).double(), fixed={k: _double(v) for k, v in self.fixed.items()})


def gradient_of(value: Tensor, leaves: Sequence[Tensor], **options: bool) -> Tensor:
    """Return d value / d leaves as one vector; zero where the value does not depend on a leaf."""
    if not value.requires_grad:
        return torch.zeros(sum(leaf.numel() for leaf in leaves), dtype=value.dtype, device=value.device)
    return flatten(torch.autograd.grad(value, leaves, materialize_grads=True, **options))


def refuse_random(objective: Objective, theta: Tensor, batch: Batch) -> None:
    """Evaluate the losses twice: a forward that draws random numbers or counts its calls has no Hessian."""
    with torch.no_grad():
        first, second = (objective.sample_losses(theta, batch) for _ in range(2))
    if not torch.isfinite(first).all():
        raise InputError(f"the loss is not finite for {int((~torch.isfinite(first)).sum())} of {len(first)} samples: "
                         "the Hessian is not defined at these parameters")
    if not torch.equal(first, second):
        raise InputError("two evaluations of the loss differ: remove what is random in the forward (functional dropout needs "
                         "training=self.training)")


def refuse_coupled(objective: Objective, theta: Tensor, batch: Batch) -> None:
    """Refuse a loss in which samples see each other, since the Hessian would depend on the split into batches."""
    if len(batch) < 2 or not batch.is_cuttable:
        return
    half = len(batch) // 2
    with torch.no_grad():
        whole = objective.sample_losses(theta, batch)
        parts = (batch.piece(slice(None, half)), batch.piece(slice(half, None)))
        halves = torch.cat([objective.sample_losses(theta, part) for part in parts])
    if not torch.allclose(whole, halves, rtol=1e4 * torch.finfo(theta.dtype).eps, atol=1e3 * torch.finfo(theta.dtype).eps):
        raise InputError("a sample's loss changes with the other samples of its batch, so the Hessian would depend on the "
                         "batch size: normalize with running statistics, and branch on single samples only")


def refuse_sum(objective: Objective, theta: Tensor, batch: Batch) -> None:
    """Accept a loss of one number a batch only where it is a mean: equal to the size-weighted mean over two halves."""
    half = len(batch) // 2
    with torch.no_grad():
        whole, left, right = (objective.sample_losses(theta, part)[0] for part in
                              (batch, batch.piece(slice(None, half)), batch.piece(slice(half, None))))
    mean = (half * left + (len(batch) - half) * right) / len(batch)
    if not torch.isclose(whole, mean, rtol=1e3 * torch.finfo(theta.dtype).eps, atol=0):
        raise InputError(f"the loss of a batch is {float(whole):.6g}, the mean over its two halves {float(mean):.6g}: "
                         "expected a mean over samples; class weights and ignore_index make another quantity, pass a loss "
                         "with reduction='none'")


class _Losses(nn.Module):
    """The model and its loss as one module, so that functional_call also reaches a forward that takes dicts."""

    def __init__(self, model: nn.Module, losses: SampleLosses):
        super().__init__()
        self.model = model
        self.losses = losses

    def forward(self, batch: Any) -> Tensor:
        return self.losses(self.model, batch)


class _Shape:
    """Stands in for a tensor where only its shape matters."""

    def __init__(self, shape: torch.Size):
        self.shape = shape

    def numel(self) -> int:
        return self.shape.numel()


def _double(tensor: Tensor) -> Tensor:
    return tensor.double() if tensor.is_floating_point() else tensor


def _prefixed(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {f"model.{name}": value for name, value in state.items()}


@contextmanager
def differentiable_kernels(model: nn.Module) -> Iterator[None]:
    """Use the attention and recurrent kernels that have second derivatives, for the length of a with block."""
    fast = torch.backends.mha.get_fastpath_enabled()
    fused = torch._C._get_mkldnn_enabled(), torch._C._get_cudnn_enabled()
    recurrent = any(isinstance(module, nn.RNNBase) for module in model.modules())
    torch.backends.mha.set_fastpath_enabled(False)
    torch._C._set_mkldnn_enabled(fused[0] and not recurrent)
    torch._C._set_cudnn_enabled(fused[1] and not recurrent)
    try:
        with sdpa_kernel(SDPBackend.MATH):
            yield
    finally:
        torch.backends.mha.set_fastpath_enabled(fast)
        torch._C._set_mkldnn_enabled(fused[0])
        torch._C._set_cudnn_enabled(fused[1])


@contextmanager
def reproducible_kernels() -> Iterator[None]:
    """Switch TF32 and non-deterministic cuDNN algorithms off for the length of a with block."""
    flags = [(torch.backends.cudnn, "deterministic", True), (torch.backends.cudnn, "benchmark", False), *_full_precision()]
    before = [getattr(module, name) for module, name, _ in flags]
    try:
        for module, name, value in flags:
            setattr(module, name, value)
        yield
    finally:
        for (module, name, _), value in zip(flags, before):
            setattr(module, name, value)


def _full_precision() -> list[tuple[Any, str, Any]]:
    """Return the switches of full float32 precision; torch refuses to mix its two generations of them."""
    matmul, cudnn = torch.backends.cuda.matmul, torch.backends.cudnn
    if hasattr(matmul, "fp32_precision") and hasattr(cudnn, "conv"):
        return [(part, "fp32_precision", "ieee") for part in (matmul, cudnn.conv, cudnn.rnn)]
    return [(matmul, "allow_tf32", False), (cudnn, "allow_tf32", False)]
