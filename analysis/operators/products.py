"""Products with one microbatch: one function an engine, each checked by `analysis.operators.verification` before it is trusted.

Every engine takes an objective and theta and returns a function that prepares a batch; the product then maps rows V (k, d)
to rows HV (k, d).

    linearized            jvp(grad f) traced once and cut into stages, what does not depend on v kept: the fastest
    linearized-graphed    its stages replayed as CUDA graphs: small networks on a GPU
    linearized-compiled   its passes over images through TorchInductor: half a minute to prepare, for long runs
    jvp                   forward over reverse, evaluated anew for each vector (Pearlmutter 1994)
    reverse               reverse over reverse on the module itself: custom autograd functions, checkpointing
    differences           central differences of the gradient: inexact, never chosen on its own

No engine is exact for every network: tracing is defeated by branches on data, forward mode by custom functions, and a
`no_grad` inside a forward makes the product of forward mode unsymmetric.
"""

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import cached_property

import torch
from torch import Tensor

from analysis.operators.batches import Batch
from analysis.operators.folding import Folding
from analysis.operators.graphs import graphed
from analysis.operators.objective import Objective, identity
from analysis.operators.prepared import Prepared, Shared, apply_rows, held_bytes
from analysis.operators.stages import Stages, TracingError
from analysis.operators.tracing import compiled, trace

GRAPHED, COMPILED = "-graphed", "-compiled"
FINISHES = {GRAPHED: graphed, COMPILED: compiled}       # of a trace: (stages, theta, v, samples, fixed) -> stages
# Bytes that a microbatch keeps, up to which several vectors at once are faster than one by one: measured on a CPU (a block of
# eight takes 0.5 to 0.8 of the time at half of it, 2 to 3 times as long at twenty times as many), assumed of a GPU.
BLOCKED = {"cpu": 1 << 20, "cuda": 1 << 26}
SMALL = 100_000     # parameters: below, a product is bound by dispatch rather than by arithmetic


Prepare = Callable[[Batch], Prepared]


class EngineError(RuntimeError):
    """An engine cannot serve this network; the text says why."""


@dataclass(frozen=True, eq=False)
class Linearized:
    """Traced products by batch shape, shared by the microbatches of one operator and by operators of one architecture."""

    objective: Objective
    theta: Tensor
    traces: dict[tuple, Stages]
    finish: str = ""        # one of FINISHES, for one vector at a time
    _shared: dict[tuple, Shared] = field(default_factory=dict)

    def __call__(self, batch: Batch) -> Prepared:
        """Return the product of one batch; what it keeps lives as long as the product."""
        key, stages = self.key(batch), self._stages(batch)
        with torch.no_grad():
            known = self._shared.get(key)
            setting = known.setting if known else stages.set_up(self.theta, self._fixed)
            *residuals, losses = stages.primal(*_samples(batch), *setting.primal)
            self._shared[key] = known or Shared(stages, setting, self._pays_as_block(held_bytes(residuals)))
        return Prepared.traced(self._shared[key], residuals, losses)

    def _pays_as_block(self, held: int) -> bool:
        """Tell whether several vectors are faster together: where dispatch, and not memory, is what takes the time."""
        dispatched = self.theta.numel() < SMALL and held <= BLOCKED.get(self.theta.device.type, BLOCKED["cuda"])
        return not self.finish and dispatched

    @torch.no_grad()
    def losses(self, theta: Tensor, batch: Batch) -> Tensor:
        """Return the losses of the batch (B,) at other parameters, as the traced function computes them."""
        stages = self._stages(batch)
        return stages.primal(*_samples(batch), *stages.set_up(theta, self._fixed).primal)[-1]

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

    @property
    def _fixed(self) -> tuple[Tensor, ...]:
        return tuple(self.objective.fixed.values())

    def _stages(self, batch: Batch) -> Stages:
        try:
            for finish in dict.fromkeys(("", self.finish)):     # what is finished is traced first
                if self.key(batch, finish) not in self.traces:
                    given = self.theta, torch.ones_like(self.theta), _samples(batch), self._fixed
                    self.traces[self.key(batch, finish)] = (
                        FINISHES[finish](self.traces[self.key(batch, "")], *given) if finish else self._trace(batch, *given))
        except TracingError as reason:
            raise EngineError(str(reason)) from reason
        return self.traces[self.key(batch)]

    def _trace(self, batch: Batch, theta: Tensor, v: Tensor, samples: tuple[Tensor, ...], fixed: tuple[Tensor, ...]) -> Stages:
        few = batch.some(2)     # evaluated first, since tracing what cannot be evaluated may end the process
        self._traced(few)(theta, v, *_samples(few), *fixed)
        return trace(self._traced(batch), theta, v, samples, fixed)

    def _traced(self, batch: Batch) -> Callable[..., tuple[Tensor, Tensor]]:
        count = len(batch.tensors)

        def product(theta: Tensor, v: Tensor, *tensors: Tensor) -> tuple[Tensor, Tensor]:
            local, fixed = replace(batch, tensors=tensors[:count], weights=tensors[count]), tensors[count + 1:]
            with Folding(channels_last=theta.numel() >= SMALL and theta.dtype == torch.float32):  # float64 has no such kernels
                return (self.objective.product(theta, v, local, fixed),
                        self.objective.sample_losses(theta, local, dict(zip(self.objective.fixed, fixed))))
        return product


def _samples(batch: Batch) -> tuple[Tensor, ...]:
    return *batch.tensors, batch.weights


def linearized(objective: Objective, theta: Tensor, traces: dict) -> Prepare:
    """Keep what does not depend on v; only the linear part is evaluated for each vector."""
    return Linearized(objective, theta, traces)


def linearized_graphed(objective: Objective, theta: Tensor, traces: dict) -> Prepare:
    """The same with the linear part captured as a CUDA graph, once a shape of batch."""
    return Linearized(objective, theta, traces, GRAPHED)


def linearized_compiled(objective: Objective, theta: Tensor, traces: dict) -> Prepare:
    """The same with the linear part compiled, once a shape of batch, and never evaluated eagerly instead."""
    return Linearized(objective, theta, traces, COMPILED)


def jvp(objective: Objective, theta: Tensor, traces: dict) -> Prepare:
    """Differentiate the gradient in direction v, forward over reverse; nothing is kept."""
    def prepare(batch: Batch) -> Prepared:
        return Prepared(lambda V: apply_rows(lambda v: objective.product(theta, v, batch), V, theta.numel() < SMALL))
    return prepare


def reverse(objective: Objective, theta: Tensor, traces: dict) -> Prepare:
    """Differentiate <gradient, v>, reverse over reverse, on the module's own parameters; the graph is built for each block."""
    def prepare(batch: Batch) -> Prepared:
        def product(V: Tensor) -> Tensor:
            row = objective.product_in_place(batch)
            return torch.stack([row(v) for v in V])
        return Prepared(product)
    return prepare


def differences(objective: Objective, theta: Tensor, traces: dict) -> Prepare:
    """Difference the gradient at theta +- h v, |h v| = eps^(1/3) |theta|. Inexact: error O(h^2) plus rounding / h."""
    def prepare(batch: Batch) -> Prepared:
        return Prepared(lambda V: torch.stack([objective.differenced(theta, v, batch) for v in V]))
    return prepare


ENGINES = {"linearized": linearized, "linearized" + GRAPHED: linearized_graphed, "linearized" + COMPILED: linearized_compiled,
           "jvp": jvp, "reverse": reverse, "differences": differences}
EXACT = ("linearized", "jvp", "reverse")        # in order of preference
