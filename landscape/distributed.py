"""Several processes, one result: each computes on its share of the samples, and the sums are everyone's.

Every process runs the same program on the same parameters (start it with torchrun). Sums arrive with the same bits
everywhere, so that all take the same turns without speaking to each other.

    with init_from_environment():                   # does nothing where torchrun did not start us
        H = HessianOperator(model, loss, batches)   # the whole data on every process; each keeps its share
        pairs = extreme_eigenpairs(H, k=5, generator=...)
        if is_main(): ...                           # write here

    with init_from_environment() as processes:
        optimizer = SSESAM(base, model, processes=processes)    # each process's closure holds its share of the batch
"""

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from landscape.errors import InputError, first_line

T = TypeVar("T")
SAME_ON_EVERY_RANK = ("pass the same model and the whole data on every rank (no DistributedSampler), "
                      "each keeps its own share")


@dataclass(frozen=True)
class Processes:
    """This process among those that share the work; one that is alone speaks to nobody."""

    rank: int = 0
    count: int = 1

    @classmethod
    def present(cls, share: bool = True) -> "Processes":
        """Return the initialised default process group, or this process alone."""
        if share and dist.is_available() and dist.is_initialized():
            return cls(dist.get_rank(), dist.get_world_size())
        return cls()

    def span(self, size: int) -> tuple[int, int]:
        """Return the share [start, stop) of this process in `size` items; the first process always has one."""
        return -(-self.rank * size // self.count), -(-(self.rank + 1) * size // self.count)

    def share(self, size: int) -> slice:
        """Return this process's part of a batch, at most one sample more than another's.

        A batch of fewer samples than processes is everyone's whole: each then counts its samples as often as there are
        processes, which leaves every mean as it is, and no process is without a sample to run through its network.
        """
        return slice(*self.span(size)) if size >= self.count else slice(0, size)

    def sum_together(self, values: list[Tensor]) -> list[Tensor]:
        """Return the sum over all processes of each tensor, in one exchange of one buffer of the widest of their types.

        The shapes must be the same on every process. Nothing waits for the device.
        """
        if self.count == 1 or not values:
            return values
        buffer = torch.cat([value.detach().reshape(-1) for value in values])
        dist.all_reduce(buffer)
        parts = buffer.split([value.numel() for value in values])
        return [part.view(value.shape).to(value.dtype) for part, value in zip(parts, values)]

    def sum(self, values: Tensor) -> Tensor:
        """Return the sum over all processes of rows (k, d), accumulated in float64, the same bits everywhere."""
        if self.count > 1:
            values = values.clone()
            for row in values:
                wide = row.double()
                dist.all_reduce(wide)
                row.copy_(wide)
        return values

    def together(self, compute: Callable[[], T], mark: int = 0) -> T:
        """Run `compute` here and raise everywhere if it failed anywhere, or if `mark` differs between the processes."""
        if self.count == 1:
            return compute()
        result, failure = None, None
        try:
            result = compute()
        except Exception as error:      # whatever it is, the others must hear of it
            failure = error
        state = torch.tensor([failure is not None, mark, -mark], dtype=torch.int64, device=_wire())
        dist.all_reduce(state, op=dist.ReduceOp.MAX)
        failed, largest, smallest = state.tolist()
        if failed:
            self._raise(failure)
        if largest != -smallest:
            raise InputError("the processes multiply different vectors: seed the generators alike on every rank")
        return result

    def on_first(self, compute: Callable[[], T]) -> T:
        """Return on every process what `compute` gives on the first, which alone runs it.

        What it raises, it raises as it is; the others raise an InputError with its text.
        """
        result, failure = None, None
        try:
            result = compute() if self.rank == 0 else None
        except Exception as error:      # whatever it is, the others must hear of it
            if self.count == 1:
                raise
            failure = error
        result, text = self.first((result, failure and first_line(failure)))
        if text is not None:
            raise failure or InputError(f"rank 0 of {self.count}: {text}")
        return result

    def first(self, value: T) -> T:
        """Return what the first process passed."""
        held = [value]
        if self.count > 1:
            dist.broadcast_object_list(held, device=_wire())
        return held[0]

    def refuse_different(self, what: str, digest: str, remedy: str = SAME_ON_EVERY_RANK) -> None:
        """Raise everywhere if a hash is not the same on every process."""
        if self.count > 1:
            digests = self.gather(digest)
            if odd := [rank for rank, other in enumerate(digests) if other != digests[0]]:
                raise InputError(f"{what} of rank {odd[0]} differ from those of rank 0: {remedy}")

    def gather(self, value: Any) -> list:
        """Return what every process passed, in the order of their ranks."""
        if self.count == 1:
            return [value]
        values = [None] * self.count
        dist.all_gather_object(values, value)
        return values

    def _raise(self, failure: Exception | None) -> None:
        own = failure and (isinstance(failure, InputError), first_line(failure))
        found = [(rank, *report) for rank, report in enumerate(self.gather(own)) if report]
        kind = InputError if all(is_input for _, is_input, _ in found) else RuntimeError
        rank, _, text = found[0]
        raise kind(f"rank {rank} of {self.count}: {text}") from failure


def fingerprint(V: Tensor) -> int:
    """Return a number that tells vectors apart: the sum of their bits, and their shape."""
    bits = V.contiguous().view(torch.int64 if V.element_size() == 8 else torch.int32)
    return (int(bits.sum(dtype=torch.int64)) // 4 + 7919 * V.shape[0])       # // 4: its negative must exist


def is_main() -> bool:
    """Tell whether this process writes: the first of its group, or the only one."""
    return Processes.present().rank == 0


@contextmanager
def main_first() -> Iterator[bool]:
    """Let the first process run the block, a download for one, before the others; gives `is_main()`."""
    here = Processes.present()
    if here.count > 1 and here.rank:
        dist.barrier()
    try:
        yield here.rank == 0
    finally:
        if here.count > 1 and not here.rank:
            dist.barrier()


@contextmanager
def init_from_environment() -> Iterator[Processes]:
    """Join the processes that torchrun started, each on a GPU of its own where there are GPUs, and leave at the end."""
    if int(os.environ.get("WORLD_SIZE", 1)) == 1 or dist.is_initialized():
        yield Processes.present()
        return
    if torch.cuda.is_available():
        torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", 0)) % torch.cuda.device_count())
    dist.init_process_group("cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo")
    try:
        yield Processes.present()
    finally:
        dist.destroy_process_group()


def _wire() -> torch.device:
    """Return where the tensors live that the group can carry."""
    carries_host = "cpu" in dist.get_backend_config() or dist.get_backend() == "gloo"
    return torch.device("cpu") if carries_host else torch.device("cuda", torch.cuda.current_device())
