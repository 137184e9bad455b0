"""What stays in memory between products: linearised microbatches up to a budget, the others computed anew each time."""

import os
from collections.abc import Callable, Iterator
from pathlib import Path

import torch

from analysis.objective import Batch
from analysis.products import Product
from landscape.errors import InputError

SHARE = 0.5     # of the free memory: vectors, bases and other processes need the rest


class Kept:
    """The products of all microbatches, in order; those that fit the budget are prepared once."""

    def __init__(self, prepare: Callable[[Batch], tuple[Product, int]], batches: list[Batch], budget: float):
        self._prepare, self._batches, self._budget = prepare, batches, budget
        self._kept: dict[int, Product] = {}
        self.bytes = 0

    @property
    def num_kept(self) -> int:
        """How many microbatches are kept so far."""
        return len(self._kept)

    def __iter__(self) -> Iterator[Product]:
        for index, batch in enumerate(self._batches):
            yield self._kept.get(index) or self._prepare_one(index, batch)

    def _prepare_one(self, index: int, batch: Batch) -> Product:
        product, size = self._prepare(batch)
        if self.bytes + size <= self._budget:
            self._kept[index] = product
            self.bytes += size
        return product


def budget(memory: str | float, device: torch.device) -> float:
    """Return the bytes that kept microbatches may take: `memory` itself, or half of what is free for "auto"."""
    if memory == "auto":
        return SHARE * free_memory(device)
    if not isinstance(memory, (int, float)) or not memory >= 0:
        raise InputError(f"memory={memory!r} is out of range: expected 'auto' or a number of bytes >= 0")
    return float(memory)


def free_memory(device: torch.device) -> float:
    """Return the bytes that may still be taken: of the GPU, or of this machine within its control group."""
    if device.type == "cuda":
        return float(torch.cuda.mem_get_info(device)[0])
    free = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_AVPHYS_PAGES") if hasattr(os, "sysconf") else 2e9
    return min(free, _group_limit())


def _group_limit() -> float:
    """Return what the control group (version 2) leaves, or infinity where there is none."""
    folder = Path("/sys/fs/cgroup")
    try:
        limit, used = ((folder / name).read_text().strip() for name in ("memory.max", "memory.current"))
    except OSError:
        return float("inf")
    return float("inf") if limit == "max" else float(limit) - float(used)
