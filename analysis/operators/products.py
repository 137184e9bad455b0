"""Products with one microbatch: one function an engine, each checked by `analysis.operators.verification` before it is trusted.

Every engine takes an objective and theta and returns a function that prepares a batch; the product then maps rows V (k, d)
to rows HV (k, d).

    linearized            jvp(grad f) traced once, split at what depends on v, the rest kept: the fastest
    linearized-graphed    its linear part replayed as a CUDA graph: small networks on a GPU
    linearized-compiled   its linear part through TorchInductor: a minute or two to prepare, for long runs
    jvp                   forward over reverse, evaluated anew for each vector (Pearlmutter 1994)
    reverse               reverse over reverse on the module itself: custom autograd functions, checkpointing
    differences           central differences of the gradient: inexact, never chosen on its own

No engine is exact for every network: tracing is defeated by branches on data, forward mode by custom functions, and a
`no_grad` inside a forward makes the product of forward mode unsymmetric.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cached_property
from typing import NamedTuple

import torch
from torch import Tensor

from analysis.operators.batches import Batch
from analysis.operators.folding import Folding
from analysis.operators.graphs import graphed
from analysis.operators.objective import Objective, identity
from analysis.operators.tracing import Split, TracingError, compiled, held_bytes, trace_split

Product = Callable[[Tensor], Tensor]            # rows (k, d) -> rows (k, d)
GRAPHED, COMPILED = "-graphed", "-compiled"
FINISHES = {GRAPHED: graphed, COMPILED: compiled}       # what may be made of a trace: (split, theta, v, tensors) -> split
SMALL = 100_000     # parameters: below, a product is bound by dispatch rather than by arithmetic


class Prepared(NamedTuple):
    """The product of one batch, what it keeps in memory, and the losses of its samples as a traced function computes them."""

    product: Product
    held: int = 0                   # bytes
    losses: Tensor | None = None    # (B,); None where nothing was traced


Prepare = Callable[[Batch], Prepared]


class EngineError(RuntimeError):
    """An engine cannot serve this network; the text says why."""


@dataclass(frozen=True, eq=False)
class Linearized:
    """Traced products by batch shape, shared by the microbatches of one operator and by operators of one architecture."""

    objective: Objective
    theta: Tensor
    traces: dict[tuple, Split]
    block: bool = True
    finish: str = ""        # one of FINISHES, for one vector at a time

    def __call__(self, batch: Batch) -> Prepared:
        """Return the product of one batch; what it keeps lives as long as the product."""
        tensors = (*batch.tensors, batch.weights, *self.objective.fixed.values())
        split = self._split(batch, tensors)
        with torch.no_grad():
            *residuals, losses = split.primal(self.theta, *tensors)

        def product(V: Tensor) -> Tensor:
            with torch.no_grad():
                return apply_rows(lambda v: split.tangent(v, *residuals), V, self.block and not self.finish)
        return Prepared(product, held_bytes(residuals), losses)

    def key(self, batch: Batch, finish: str | None = None) -> tuple:
        """Return what a trace depends on."""
        fixed = tuple((name, tuple(t.shape), t.dtype) for name, t in self.objective.fixed.items())
        return (type(self.objective).__name__, self._loss, batch.shapes, self.objective.names, self.objective.shapes, fixed,
                self.theta.dtype, self.theta.device, self.finish if finish is None else finish)

    @cached_property
    def _loss(self) -> tuple:
        """What tells one loss from another; a function is kept alive, so that its identity is not given to another."""
        self.traces.setdefault("losses", []).append(self.objective.losses)
        return identity(self.objective.losses)

    def _split(self, batch: Batch, tensors: tuple[Tensor, ...]) -> Split:
        try:
            for finish in dict.fromkeys(("", self.finish)):     # what is finished is traced first
                if self.key(batch, finish) not in self.traces:
                    v = torch.ones_like(self.theta)
                    self.traces[self.key(batch, finish)] = (
                        FINISHES[finish](self.traces[self.key(batch, "")], self.theta, v, tensors) if finish else
                        self._trace(batch, v, tensors))
        except TracingError as reason:
            raise EngineError(str(reason)) from reason
        return self.traces[self.key(batch)]

    def _trace(self, batch: Batch, v: Tensor, tensors: tuple[Tensor, ...]) -> Split:
        one = batch.some(1)     # evaluated first, since tracing what cannot be evaluated may end the process
        self._traced(one)(self.theta, v, *one.tensors, one.weights, *self.objective.fixed.values())
        return trace_split(self._traced(batch), self.theta, v, tensors)

    def _traced(self, batch: Batch) -> Callable[..., tuple[Tensor, Tensor]]:
        count = len(batch.tensors)

        def product(theta: Tensor, v: Tensor, *tensors: Tensor) -> tuple[Tensor, Tensor]:
            local, fixed = replace(batch, tensors=tensors[:count], weights=tensors[count]), tensors[count + 1:]
            with Folding(channels_last=theta.numel() >= SMALL and theta.dtype == torch.float32):  # float64 has no such kernels
                return (self.objective.product(theta, v, local, fixed),
                        self.objective.sample_losses(theta, local, dict(zip(self.objective.fixed, fixed))))
        return product


def linearized(objective: Objective, theta: Tensor, traces: dict, block: bool = True) -> Prepare:
    """Keep what does not depend on v; only the linear part is evaluated for each vector."""
    return Linearized(objective, theta, traces, block)


def linearized_graphed(objective: Objective, theta: Tensor, traces: dict, block: bool = True) -> Prepare:
    """The same with the linear part captured as a CUDA graph, once a shape of batch."""
    return Linearized(objective, theta, traces, block, GRAPHED)


def linearized_compiled(objective: Objective, theta: Tensor, traces: dict, block: bool = True) -> Prepare:
    """The same with the linear part compiled, once a shape of batch, and never evaluated eagerly instead."""
    return Linearized(objective, theta, traces, block, COMPILED)


def jvp(objective: Objective, theta: Tensor, traces: dict, block: bool = True) -> Prepare:
    """Differentiate the gradient in direction v, forward over reverse; nothing is kept."""
    def prepare(batch: Batch) -> Prepared:
        return Prepared(lambda V: apply_rows(lambda v: objective.product(theta, v, batch), V, block))
    return prepare


def reverse(objective: Objective, theta: Tensor, traces: dict, block: bool = True) -> Prepare:
    """Differentiate <gradient, v>, reverse over reverse, on the module's own parameters; the graph is built for each block."""
    def prepare(batch: Batch) -> Prepared:
        def product(V: Tensor) -> Tensor:
            row = objective.product_in_place(batch)
            return torch.stack([row(v) for v in V])
        return Prepared(product)
    return prepare


def differences(objective: Objective, theta: Tensor, traces: dict, block: bool = True) -> Prepare:
    """Difference the gradient at theta +- h v, |h v| = eps^(1/3) |theta|. Inexact: error O(h^2) plus rounding / h."""
    def prepare(batch: Batch) -> Prepared:
        return Prepared(lambda V: torch.stack([objective.differenced(theta, v, batch) for v in V]))
    return prepare


ENGINES = {"linearized": linearized, "linearized" + GRAPHED: linearized_graphed, "linearized" + COMPILED: linearized_compiled,
           "jvp": jvp, "reverse": reverse, "differences": differences}
EXACT = ("linearized", "jvp", "reverse")        # in order of preference


def apply_rows(product: Callable[[Tensor], Tensor], V: Tensor, block: bool) -> Tensor:
    """Apply a product of one vector to rows (k, d), as one block or one by one.

    A block pays where dispatch is most of the time: on a CPU 2 to 3 times for small networks; for ResNet-32 the convolutions of
    several vectors cost as much together as apart, and the copies between them more.
    """
    if len(V) > 1 and block and V.shape[1] < SMALL:
        try:
            with native_batching():
                return torch.func.vmap(product)(V)
        except RuntimeError as reason:
            if not any(sign in str(reason) for sign in ("batching rule", "vmap fallback")):
                raise
    return torch.stack([product(v) for v in V])


@contextmanager
def native_batching() -> Iterator[None]:
    """Let vmap refuse an operation that it could only evaluate in a slow loop."""
    before = torch._C._functorch._is_vmap_fallback_enabled()
    torch._C._functorch._set_vmap_fallback_enabled(False)
    try:
        yield
    finally:
        torch._C._functorch._set_vmap_fallback_enabled(before)
