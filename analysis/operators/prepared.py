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


@dataclass(eq=False)
class Shared:
    """A traced product at one theta: what its microbatches of one shape have in common."""

    stages: Stages
    setting: Setting
    block: bool             # whether several vectors are vmapped, as long as every operation has a rule for it

    @torch.no_grad()
    def begin(self, V: Tensor) -> Begun:
        """Do with the rows (k, d) what needs no microbatch."""
        if self.block and len(V) > 1:
            carried, kept = self._stage("before", True)(V)
            if carried:         # else there is nothing to map the passes over images over
                return Begun([(carried, kept)], True)
        before = self._stage("before", False)
        return Begun([before(v) for v in V], False)

    @torch.no_grad()
    def share(self, begun: Begun, residuals: Sequence[Tensor]) -> list[list[Tensor]]:
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
    held: int = 0                           # bytes
    losses: Tensor | None = None            # (B,); None where nothing was traced
    shared: Shared | None = None            # of a traced product, and
    residuals: Sequence[Tensor] = ()        # what is this batch's own

    @classmethod
    def traced(cls, shared: Shared, residuals: list[Tensor], losses: Tensor) -> "Prepared":
        """Return the traced product of the batch with these residuals."""
        share = cls(_not_alone, shared=shared, residuals=residuals)     # no cycle: what is let go is gone at once
        return cls(lambda V: summed([share], V), held_bytes(residuals), losses, shared, residuals)


def _not_alone(V: Tensor) -> Tensor:
    raise AssertionError("a share is added up by `summed`")


def summed(products: Iterable[Prepared], V: Tensor) -> Tensor:
    """Return the sum of the products (k, d) of all microbatches, without repeating what they have in common.

    products    can be iterated again: that is done where some operation turns out to have no rule for vmap
    """
    begun: dict[Shared, Begun] = {}
    try:
        return _summed(products, V, begun)
    except RuntimeError as reason:
        if not (_has_no_rule(reason) and any(each.block for each in begun.values())):
            raise
    for shared in begun:
        shared.block = False
    return summed(products, V)


def _summed(products: Iterable[Prepared], V: Tensor, begun: dict[Shared, Begun]) -> Tensor:
    total, shares = torch.zeros_like(V), {}
    for each in products:
        shared = each.shared
        if shared is None:
            total = total + each.product(V)
        else:
            begun[shared] = begun.get(shared) or shared.begin(V)
            new = shared.share(begun[shared], each.residuals)
            # Never in place: a share may be a residual itself.
            shares[shared] = [torch._foreach_add(*pair) for pair in zip(shares[shared], new)] if shared in shares else new
            del new
        del each        # before the next is prepared
    return sum((shared.end(begun[shared], shares[shared]) for shared in shares), total)


def apply_rows(product: Callable[[Tensor], Tensor], V: Tensor, block: bool) -> Tensor:
    """Apply a product of one vector to rows (k, d), vmapped or one by one.

    A block pays where dispatch is most of the time: on a CPU 2 to 3 times for small networks; for ResNet-32 the convolutions of
    several vectors cost as much together as apart, and the copies between them more.
    """
    if block and len(V) > 1:
        try:
            return vmapped(product)(V)
        except RuntimeError as reason:
            if not _has_no_rule(reason):
                raise
    return torch.stack([product(v) for v in V])


def vmapped(function: Callable) -> Callable:
    """Return a function of rows (k, ...) that refuses an operation which it could only evaluate in a slow loop."""
    def of_rows(*rows: Tensor) -> Any:
        with _native_batching():
            return torch.func.vmap(function)(*rows)
    return of_rows


def _has_no_rule(reason: RuntimeError) -> bool:
    return any(sign in str(reason) for sign in ("batching rule", "vmap fallback"))


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
