"""The data of an operator: batches of tensors that hold still, read twice to be sure, and this process's share of them.

A batch is a tuple of tensors, in any nesting, so that a traced function can take them as inputs. Across processes every
one reads the whole data and keeps a contiguous span of the samples; batches are cut where spans meet.
"""

import hashlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import TreeSpec, tree_flatten
from torch.utils.data import Dataset, IterableDataset

from landscape.distributed import Processes
from landscape.errors import InputError


@dataclass(frozen=True, eq=False)
class Batch:
    """One microbatch: its tensors, how they fit together, and each sample's weight in the total."""

    tensors: tuple[Tensor, ...]
    structure: TreeSpec
    weights: Tensor             # (B,) w_i; 1/n for a mean over n samples, 0 for padding
    num_samples: int            # without padding
    place: int = 0              # among the batches as they were given
    fillable: bool = True       # whether a sample may stand there with weight 0: not in a loss of one number a batch

    @classmethod
    def of(cls, batch: Any, device: torch.device, dtype: torch.dtype, place: int = 0) -> "Batch":
        """Move a batch of tensors, in any nesting of tuples, lists and dicts, to a device; floats also to a dtype."""
        leaves, structure = tree_flatten(batch)
        if not leaves or not all(isinstance(leaf, Tensor) for leaf in leaves):
            kinds = ", ".join(sorted({type(leaf).__name__ for leaf in leaves})) or "nothing"
            raise InputError(f"a batch holds {kinds}: expected tensors only, in tuples, lists or dicts")
        if any(leaf.layout != torch.strided for leaf in leaves):
            raise InputError(f"batch {place} holds a sparse tensor: expected dense ones, call .to_dense() on it")
        if leaves[0].ndim == 0:
            raise InputError(f"batch {place} begins with a number: expected tensors of one row a sample, (B, ...)")
        moved = tuple(x.detach().to(device, dtype if x.is_floating_point() else x.dtype, copy=True) for x in leaves)
        size = len(leaves[0])
        return cls(moved, structure, torch.ones(size, device=device, dtype=dtype), size, place)

    def __len__(self) -> int:
        return len(self.weights)

    def padded(self, size: int) -> "Batch":
        """Repeat the last sample, with weight 0, up to `size`, so that one traced function serves a ragged batch too."""
        missing = size - len(self)
        if missing <= 0 or not (self.is_cuttable and self.fillable):
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
                       num_samples=len(range(self.num_samples)[chosen]))

    def cut(self, limit: int) -> "list[Batch]":
        """Return nearly equal pieces of at most `limit` samples, or the batch itself where it cannot be cut."""
        if len(self) <= limit or not self.is_cuttable:
            return [self]
        count = -(-len(self) // limit)
        ends = [place * len(self) // count for place in range(count + 1)]
        return [self.piece(slice(start, stop)) for start, stop in zip(ends, ends[1:])]

    def halves(self) -> "tuple[Batch, Batch] | None":
        """Return both halves of a batch that can be cut."""
        half = len(self) // 2
        return (self.piece(slice(None, half)), self.piece(slice(half, None))) if half and self.is_cuttable else None

    def double(self) -> "Batch":
        """Return the batch with its floats in float64."""
        return replace(self, tensors=tuple(x.double() if x.is_floating_point() else x for x in self.tensors),
                       weights=self.weights.double())

    @property
    def shapes(self) -> tuple:
        """What a traced function depends on: structure, shapes and dtypes."""
        return (str(self.structure), *((tuple(x.shape), x.dtype) for x in (*self.tensors, self.weights)))

    def digest(self) -> str:
        """Return a hash of structure and values."""
        found = hashlib.sha256(str(self.shapes).encode())
        for tensor in self.tensors:
            add_bytes(found, tensor)
        return found.hexdigest()


def add_bytes(digest, tensor: Tensor) -> None:
    """Add a tensor's bits to a running hash."""
    if tensor.numel():
        digest.update(tensor.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy())


@dataclass(frozen=True, eq=False)
class Data:
    """What one process holds of the data, and what it knows of the rest."""

    own: list[Batch]        # the batches, or pieces of them, of this process
    largest: Batch          # the first of the largest, whole
    num_samples: int        # of all processes together
    digest: str             # of the whole data, where they may change or another process has to agree


def read(batches: Iterable, device: torch.device, dtype: torch.dtype, processes: Processes) -> Data:
    """Read the batches twice, refusing those that change: a Hessian of moving data is not one matrix."""
    if isinstance(batches, Iterator):
        raise InputError("batches is an iterator that can be read once: pass a list, or a DataLoader without shuffling")
    if isinstance(batches, Dataset) and not isinstance(batches, IterableDataset):
        raise InputError(f"batches is a {type(batches).__name__}, whose items are taken for batches: wrap it in a "
                         "DataLoader(dataset, batch_size=...); batch_size=None where its items are batches")
    may_change = not isinstance(batches, (list, tuple))
    outlines = [_Outline.of(Batch.of(batch, device, dtype, place), may_change or processes.count > 1)
                for place, batch in enumerate(batches)]
    num_samples = sum(outline.size for outline in outlines)
    if not num_samples:
        raise InputError("batches is empty: expected at least one batch with one sample")
    spans = _spans(outlines, *processes.span(num_samples))
    place = max(range(len(outlines)), key=lambda i: outlines[i].size)
    own, largest, seen = [], None, 0
    for index, batch in enumerate(batches):
        held = Batch.of(batch, device, dtype, index)
        if seen >= len(outlines) or (may_change and held.digest() != outlines[index].digest):
            raise InputError("batches differ when read a second time: turn off shuffling and random augmentation")
        seen += 1
        if spans[index]:
            own.append(held if len(spans[index]) == len(held) else held.piece(slice(spans[index].start, spans[index].stop)))
        largest = held if index == place else largest
    if seen < len(outlines):
        raise InputError("batches differ when read a second time: turn off shuffling and random augmentation")
    digest = hashlib.sha256("".join(outline.digest for outline in outlines).encode()).hexdigest()
    return Data(own, largest, num_samples, digest)


@dataclass(frozen=True)
class _Outline:
    """What is remembered of a batch between two readings."""

    size: int
    is_cuttable: bool
    digest: str

    @classmethod
    def of(cls, batch: Batch, hashed: bool) -> "_Outline":
        return cls(len(batch), batch.is_cuttable, batch.digest() if hashed else "")


def _spans(outlines: list[_Outline], start: int, stop: int) -> list[range]:
    """Return the samples of each batch within a span of all samples; a batch that cannot be cut goes where it begins."""
    spans, begin = [], 0
    for outline in outlines:
        first, last = max(start - begin, 0), min(stop - begin, outline.size)
        if not outline.is_cuttable:
            first, last = (0, outline.size) if start <= begin < stop else (0, 0)
        spans.append(range(first, max(first, last)))
        begin += outline.size
    return spans
