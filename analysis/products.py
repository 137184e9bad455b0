"""Hessian-vector products of one microbatch: one function an engine, each checked before it is trusted.

Every engine takes an objective and theta and returns a function that prepares the `Product` of a batch, which maps rows
V (k, d) to rows HV (k, d).

    linearized   jvp(grad f) traced once, split at what depends on v, the rest kept: the fastest
    jvp          forward over reverse, evaluated anew for each vector (Pearlmutter 1994)
    reverse      reverse over reverse on the module itself: custom autograd functions, checkpointing
    differences  central differences of the gradient: inexact, never chosen on its own

No engine is exact for every network: tracing is defeated by branches on data, forward mode by custom functions, and a
`no_grad` inside a forward makes the product of forward mode unsymmetric. `check` tells.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from analysis.objective import Batch, Objective, gradient_of
from analysis.tracing import Split, TracingError, held_bytes, trace_split
from landscape.errors import InputError
from landscape.parameters import split_like

Product = Callable[[Tensor], Tensor]            # rows (k, d) -> rows (k, d)
Prepare = Callable[[Batch], tuple[Product, int]]    # a batch -> its product, and the bytes that it keeps
# Below so many parameters a product is bound by dispatch, and a block of vectors costs little more than one.
VMAP_SIZE = 100_000


class EngineError(RuntimeError):
    """An engine cannot serve this network; the text says why."""


@dataclass(frozen=True, eq=False)
class Linearized:
    """Traced products by batch shape, shared by the microbatches of one operator and by operators of one architecture."""

    objective: Objective
    theta: Tensor
    traces: dict[tuple, Split]

    def __call__(self, batch: Batch) -> tuple[Product, int]:
        """Return the product of one batch and the bytes that it keeps."""
        tensors = (*batch.tensors, batch.weights, *self.objective.fixed.values())
        split = self._split(batch, tensors)
        with torch.no_grad():
            residuals = split.primal(self.theta, *tensors)

        def product(V: Tensor) -> Tensor:
            with torch.no_grad():
                return apply_rows(lambda v: split.tangent(v, *residuals), V)
        return product, held_bytes(residuals)

    def _split(self, batch: Batch, tensors: tuple[Tensor, ...]) -> Split:
        fixed = tuple((name, tuple(t.shape), t.dtype) for name, t in self.objective.fixed.items())
        key = (batch.shapes, self.objective.names, self.objective.shapes, fixed, self.theta.device)
        if key not in self.traces:
            try:
                self.traces[key] = trace_split(self._traced(batch), self.theta, torch.ones_like(self.theta), tensors)
            except TracingError as reason:
                raise EngineError(str(reason)) from reason
        return self.traces[key]

    def _traced(self, batch: Batch) -> Callable[..., Tensor]:
        count = len(batch.tensors)

        def product(theta: Tensor, v: Tensor, *tensors: Tensor) -> Tensor:
            local = replace(batch, tensors=tensors[:count], weights=tensors[count])
            return self.objective.product(theta, v, local, tensors[count + 1:])
        return product


def linearized(objective: Objective, theta: Tensor, traces: dict) -> Prepare:
    """Keep what does not depend on v; only the linear part is evaluated for each vector."""
    return Linearized(objective, theta, traces)


def jvp(objective: Objective, theta: Tensor, traces: dict) -> Prepare:
    """Differentiate the gradient in direction v, forward over reverse; nothing is kept."""
    def prepare(batch: Batch) -> tuple[Product, int]:
        return lambda V: apply_rows(lambda v: objective.product(theta, v, batch), V), 0
    return prepare


def reverse(objective: Objective, theta: Tensor, traces: dict) -> Prepare:
    """Differentiate <gradient, v>, reverse over reverse, on the module's own parameters; the graph is built for each block."""
    def prepare(batch: Batch) -> tuple[Product, int]:
        def product(V: Tensor) -> Tensor:
            row = objective.product_in_place(batch)
            return torch.stack([row(v) for v in V])
        return product, 0
    return prepare


def differences(objective: Objective, theta: Tensor, traces: dict) -> Prepare:
    """Difference the gradient at theta +- h v, |h v| = eps^(1/3) |theta|. Inexact: error O(h^2) plus rounding / h."""
    step = torch.finfo(theta.dtype).eps ** (1 / 3) * max(float(theta.norm()), 1.0)

    def prepare(batch: Batch) -> tuple[Product, int]:
        def row(v: Tensor) -> Tensor:
            h = step / float(v.norm())
            return (gradient(objective, theta + h * v, batch) - gradient(objective, theta - h * v, batch)) / (2 * h)
        return lambda V: torch.stack([row(v) for v in V]), 0
    return prepare


ENGINES = {"linearized": linearized, "jvp": jvp, "reverse": reverse, "differences": differences}
EXACT = ("linearized", "jvp", "reverse")        # in order of preference


def gradient(objective: Objective, theta: Tensor, batch: Batch) -> Tensor:
    """Return the gradient (d,) of the objective over one batch, on the module's own parameters."""
    leaves = objective.leaves()
    saved = [leaf.detach().clone() for leaf in leaves]
    try:
        _assign(leaves, split_like(theta, leaves))
        with torch.enable_grad():
            return gradient_of(objective.in_place(batch), leaves)
    finally:
        _assign(leaves, saved)


def apply_rows(product: Callable[[Tensor], Tensor], V: Tensor) -> Tensor:
    """Apply a product of one vector to rows (k, d): as one block for small networks, else one by one."""
    if len(V) > 1 and V.shape[1] < VMAP_SIZE:
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


def check(product: Product, theta: Tensor, tolerance: float) -> Tensor:
    """Call a product three times and test that it repeats itself and is symmetric; return its values on two fixed vectors.

    Raises EngineError with the measured discrepancy.
    """
    U = probe_vectors(theta)
    first, again, third = product(U), product(U), product(U)
    for later, name in ((again, "second"), (third, "third")):
        if (gap := relative_gap(later, first)) > tolerance:
            raise EngineError(f"its {name} call differs from the first by {gap:.1e}")
    left, right = (U[0] * first[1]).sum(), (U[1] * first[0]).sum()
    scale = first.norm() * U.norm()
    if (gap := float((left - right).abs() / scale.clamp_min(torch.finfo(theta.dtype).tiny))) > tolerance:
        raise EngineError(f"it is not symmetric: u'Hv and v'Hu differ by {gap:.1e}, so the gradient is not that of the loss "
                          "(a no_grad or detach inside the forward?)")
    return first


def confirm(name: str, values: Tensor, objective: Objective, theta: Tensor, batch: Batch) -> None:
    """Compare with a second, independent engine; with differences in float64 where no other exact one works."""
    if name == "differences":
        return
    other = "reverse" if name != "reverse" else "jvp"
    limit = tolerance(other, theta.dtype)
    try:
        second = ENGINES[other](objective, theta, {})(batch)[0](probe_vectors(theta))
    except (RuntimeError, NotImplementedError):
        other, limit = "differences", max(1e-4, limit)
        wide = differences(objective.double(), theta.double(), {})(batch.double())[0]
        second = wide(probe_vectors(theta).double()).to(theta.dtype)
    if (gap := relative_gap(values, second)) > limit:
        raise EngineError(f"it differs from {other} by {gap:.1e}, more than {limit:.0e}")


def refuse_false_gradient(objective: Objective, theta: Tensor, batch: Batch) -> None:
    """Compare autograd's gradient with the slope of the loss along it, in float64: detached values make them differ."""
    wide, theta, batch = objective.double(), theta.double(), batch.some(32).double()
    try:
        slope = gradient(wide, theta, batch)
    except (RuntimeError, NotImplementedError):     # a constant of another dtype: there is no float64 opinion
        return
    length = float(slope.norm())
    step = 1e-6 * max(float(theta.norm()), 1.0)
    with torch.no_grad():
        ahead, behind = (float(wide(theta + sign * step * slope / max(length, 1e-300), batch)) for sign in (1, -1))
    found, noise = (ahead - behind) / (2 * step), 1e-12 * (abs(ahead) + abs(behind)) / step
    if abs(found - length) > 1e-2 * length + noise:
        raise InputError(f"the gradient is not that of the loss: its length is {length:.4g}, the slope of the loss along it "
                         f"{found:.4g}; a detach or no_grad inside the forward leaves no Hessian")


def probe_vectors(theta: Tensor) -> Tensor:
    """Return two fixed unit vectors (2, d), drawn on the CPU."""
    generator = torch.Generator().manual_seed(0)
    U = torch.randn(2, theta.numel(), generator=generator, dtype=torch.float64)
    return (U / U.norm(dim=1, keepdim=True)).to(theta.device, theta.dtype)


def relative_gap(a: Tensor, b: Tensor) -> float:
    """Return |a - b| / max(|a|, |b|); 0 where both vanish, infinite where one is not finite."""
    scale = float(torch.maximum(a.norm(), b.norm()))
    gap = float((a - b).norm())
    if not (torch.isfinite(a).all() and torch.isfinite(b).all()):
        return float("inf")
    return gap / scale if scale > 0 else 0.0


def tolerance(engine: str, dtype: torch.dtype) -> float:
    """Return the relative difference up to which products count as equal: 10^3 units of rounding; more for differences."""
    eps = torch.finfo(dtype).eps
    return 1e2 * eps ** (1 / 3) if engine == "differences" else 1e3 * eps


@torch.no_grad()
def _assign(leaves: Sequence[Tensor], values: Sequence[Tensor]) -> None:
    for leaf, value in zip(leaves, values):
        leaf.copy_(value)
