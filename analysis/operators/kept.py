"""Which microbatches stay in memory between products, and what is given up where memory runs out all the same."""

from collections.abc import Iterator

import torch
from torch import Tensor

from analysis.operators.batches import Batch
from analysis.operators.memory import ran_out
from analysis.operators.prepared import Prepared, summed
from analysis.operators.products import Prepare
from landscape.errors import InputError


class Kept:
    """The products of all microbatches, in order; those that fit the budget are prepared once.

    Where memory runs out all the same, half of what is kept is let go, at last the microbatches are halved, and the product
    is begun again; `notes` says so.
    """

    def __init__(self, prepare: Prepare, batches: list[Batch], budget: float):
        self._prepare, self.batches, self._budget = prepare, batches, budget
        self._kept: dict[int, Prepared] = {}
        self.notes: list[str] = []

    @property
    def num_kept(self) -> int:
        """How many microbatches are kept so far."""
        return len(self._kept)

    @property
    def bytes(self) -> int:
        """The memory that they take."""
        return sum(prepared.held for prepared in self._kept.values())

    @property
    def microbatch(self) -> int:
        """The samples of the largest microbatch."""
        return max(map(len, self.batches))

    def matmat(self, V: Tensor) -> Tensor:
        """Return the sum of the products of all microbatches with rows V (k, d)."""
        while True:
            try:
                return summed(self, V)
            except RuntimeError as reason:
                if not ran_out(reason):
                    raise
                self._retreat(reason)

    def __iter__(self) -> Iterator[Prepared]:
        for place in range(len(self.batches)):
            yield self.prepared(place)

    def release(self) -> None:
        """Let go of what is kept; it is prepared again when it is next needed."""
        self._kept = {}

    def prepared(self, place: int) -> Prepared:
        """Prepare one microbatch, or return it where it is kept."""
        if place in self._kept:
            return self._kept[place]
        prepared = self._prepare(self.batches[place])
        if self.bytes + prepared.held <= self._budget:
            self._kept[place] = prepared
        return prepared

    def _retreat(self, reason: Exception) -> None:
        """Keep half as many, or evaluate half as many samples at once."""
        if self.bytes:
            self._kept = dict(list(self._kept.items())[:len(self._kept) // 2])
            self._budget = self.bytes
            self.notes.append(f"memory ran out: {self.num_kept} of {len(self.batches)} microbatches stay in memory")
        else:
            self._kept, self.batches = {}, halved(self.batches, reason)
            self.notes.append(f"memory ran out: {self.microbatch} samples are evaluated at once")
        if torch.cuda.is_available():
            torch.cuda.empty_cache()


def halved(batches: list[Batch], reason: Exception) -> list[Batch]:
    """Return the batches in pieces half as large; InputError where they cannot be cut."""
    size = max(map(len, batches))
    if size < 2 or not all(batch.is_cuttable for batch in batches):
        raise InputError(f"memory is too small for the product of a single microbatch of {size} samples: use a larger device, or "
                         "memory=0 to keep nothing between products") from reason
    pieces = [piece for batch in batches for piece in batch.cut(-(-size // 2))]
    return [piece.padded(max(map(len, pieces))) for piece in pieces]
