"""A product with one microbatch, prepared for many vectors, and the sum of such products over all microbatches."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from analysis.operators.stages import Setting, Stages

Product = Callable[[Tensor], Tensor]            # rows (k, d) -> rows (k, d)


class Begun(NamedTuple):
    """Vectors after their first stage, one by one; or as one whose later stages are vmapped."""

    rows: list[Sequence[list[Tensor]]]      # each with what the second stage needs of it, and what the last
    block: bool


@dataclass(frozen=True, eq=False)
class Shared:
    """A traced product at one theta: what its microbatches of one shape have in common."""

    stages: Stages
    setting: Setting
    block: bool             # whether several vectors are vmapped

    @torch.no_grad()
    def begin(self, V: Tensor, block: bool = True) -> Begun:
        """Do with the rows (k, d) what needs no microbatch."""
        block = block and self.block and len(V) > 1
        before = self._stage("before", block)
        return Begun([before(v) for v in ([V] if block else V)], block)

    @torch.no_grad()
    def share(self, begun: Begun, residuals: list[Tensor]) -> list[list[Tensor]]:
        """Return the share of the microbatch with these residuals, for each row begun."""
        tangent = self._stage("tangent", begun.block, residuals)
        return [tangent(*carried) for carried, _ in begun.rows]

    @torch.no_grad()
    def end(self, begun: Begun, shares: list[list[Tensor]]) -> Tensor:
        """Return HV (k, d) from the sum of all shares."""
        after = self._stage("after", begun.block)
        rows = [after(*sums, *kept) for sums, (_, kept) in zip(shares, begun.rows)]
        return rows[0] if begun.block else torch.stack(rows)

    def _stage(self, name: str, block: bool, residuals: Sequence[Tensor] = ()) -> Callable:
        function, setting = getattr(self.stages, name), getattr(self.setting, name)

        def stage(*rows: Tensor) -> Any:
            return function(*rows, *setting, *residuals)
        return vmapped(stage) if block else stage


class Prepared(NamedTuple):
    """The product of one batch, what it keeps in memory, and the losses of its samples as a traced function computes them."""

    product: Product
    held: int = 0                       # bytes
    losses: Tensor | None = None        # (B,); None where nothing was traced
    shared: Shared | None = None        # of a traced product, and
    residuals: list[Tensor] = []        # what is this batch's own

    @classmethod
    def traced(cls, shared: Shared, residuals: list[Tensor], losses: Tensor) -> "Prepared":
        """Return the traced product of the batch with these residuals."""
        alone = cls(lambda V: summed([alone], V), held_bytes(residuals), losses, shared, residuals)
        return alone


def summed(products: Iterable[Prepared], V: Tensor) -> Tensor:
    """Return the sum of the products (k, d) of all microbatches, without repeating what they have in common."""
    return in_block(lambda block: _summed(products, V, block))


def _summed(products: Iterable[Prepared], V: Tensor, block: bool) -> Tensor:
    total, begun, shares = torch.zeros_like(V), {}, {}
    for each in products:
        shared = each.shared
        if shared is None:
            total = total + each.product(V)
            continue
        if shared not in begun:
            begun[shared] = shared.begin(V, block)
        new = shared.share(begun[shared], each.residuals)
        # Never in place: a share may be a residual itself.
        shares[shared] = [torch._foreach_add(*pair) for pair in zip(shares[shared], new)] if shared in shares else new
    return sum((shared.end(begun[shared], shares[shared]) for shared in begun), total)


def apply_rows(product: Callable[[Tensor], Tensor], V: Tensor, block: bool) -> Tensor:
    """Apply a product of one vector to rows (k, d), vmapped or one by one.

    A block pays where dispatch is most of the time: on a CPU 2 to 3 times for small networks; for ResNet-32 the convolutions of
    several vectors cost as much together as apart, and the copies between them more.
    """
    block = block and len(V) > 1
    return in_block(lambda may: vmapped(product)(V) if may and block else torch.stack([product(v) for v in V]))


def in_block(evaluate: Callable[[bool], Tensor]) -> Tensor:
    """Evaluate with vmap, or without where some operation has no rule for it."""
    try:
        return evaluate(True)
    except RuntimeError as reason:
        if not any(sign in str(reason) for sign in ("batching rule", "vmap fallback")):
            raise
    return evaluate(False)


def vmapped(function: Callable) -> Callable:
    """Return a function of rows (k, ...) that refuses an operation which it could only evaluate in a slow loop."""
    def of_rows(*rows: Tensor) -> Any:
        with _native_batching():
            return torch.func.vmap(function)(*rows)
    return of_rows


@contextmanager
def _native_batching() -> Iterator[None]:
    before = torch._C._functorch._is_vmap_fallback_enabled()
    torch._C._functorch._set_vmap_fallback_enabled(False)
    try:
        yield
    finally:
        torch._C._functorch._set_vmap_fallback_enabled(before)


def held_bytes(residuals: Sequence[Tensor]) -> int:
    """Return the memory that a list of tensors keeps alive, shared storages counted once."""
    storages = {t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in residuals if isinstance(t, Tensor)}
    return sum(storages.values())
