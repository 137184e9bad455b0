"""How products are made: by which engine, and which microbatches stay in memory between them."""

import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from analysis import products
from analysis.objective import Batch, Objective
from analysis.products import Prepare, Product
from landscape.errors import InputError

SHARE = 0.5     # of the free memory: vectors, bases and other processes need the rest


@dataclass(frozen=True, eq=False)
class Choice:
    """The engine that serves an objective, and why those before it do not."""

    engine: str
    reasons: dict[str, str]
    prepare: Prepare


def choose(objective: Objective, theta: Tensor, batches: list[Batch], wanted: str, traces: dict) -> Choice:
    """Return the first engine that passes its checks on one batch of each shape; `wanted` is a name or "auto"."""
    reasons: dict[str, str] = {}
    for name in (products.EXACT if wanted == "auto" else (wanted,)):
        try:
            prepare = products.ENGINES[name](objective, theta, traces)
            for batch in {batch.shapes: batch for batch in reversed(batches)}.values():
                values = products.check(prepare(batch)[0], theta, products.tolerance(name, theta.dtype))
                products.confirm(name, values, objective, theta, batch)
            return Choice(name, reasons, prepare)
        except torch.OutOfMemoryError:
            raise
        except (RuntimeError, NotImplementedError) as reason:
            reasons[name] = (str(reason).strip().splitlines() or [type(reason).__name__])[0]
    causes = "; ".join(f"{name}: {reason}" for name, reason in reasons.items())
    raise InputError(f"no exact Hessian-vector product for this network ({causes})")


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
