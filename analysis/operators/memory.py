"""How much memory there is to plan with: of the GPU, or of this machine within its control groups."""

from collections.abc import Iterator
from pathlib import Path

import psutil
import torch

SHARE = 0.5     # of the free memory: vectors, bases and other processes need the rest
PROCESS, GROUPS = Path("/proc/self"), Path("/sys/fs/cgroup")


def budget(memory: str | float, device: torch.device) -> float:
    """Return the bytes that kept microbatches may take: `memory` itself, or half of what is free for "auto"."""
    return SHARE * free_memory(device) if memory == "auto" else float(memory)


def free_memory(device: torch.device) -> float:
    """Return the bytes that may still be taken: of the GPU, or of this machine within its control groups."""
    if device.type == "cuda":
        return float(torch.cuda.mem_get_info(device)[0])
    return min(psutil.virtual_memory().available, _group_limit())


def ran_out(error: BaseException) -> bool:
    """Tell whether an allocation failed: of the memory of a CPU, torch says so by a plain RuntimeError."""
    return isinstance(error, (torch.OutOfMemoryError, MemoryError)) or (
        isinstance(error, RuntimeError) and "DefaultCPUAllocator" in str(error))


def _group_limit() -> float:
    """Return what this process's control group and those around it leave, of either version; infinity where none limits.

    Files that the kernel caches for a group count as used, although it would let go of them: less is planned, never more.
    """
    return min((_left(folder / limit, folder / used) for root, path, limit, used in _groups()
                for folder in (root / path, *(root / parent for parent in path.parents))), default=float("inf"))


def _groups() -> Iterator[tuple[Path, Path, str, str]]:
    """Yield where control groups with a memory limit are mounted, this process's own there, and the names of its two files.

    In a container the own group may be one that is not to be seen: the mount's root is then the container's.
    """
    own = {"": ".", "memory": "."}
    try:
        lines = (PROCESS / "cgroup").read_text().splitlines()
    except OSError:
        lines = []
    for line in lines:
        _, controllers, path = line.split(":", 2)       # such as 0::/job/step, or 4:memory:/job
        own |= {name: path.lstrip("/") for name in controllers.split(",")}
    yield GROUPS, Path(own[""]), "memory.max", "memory.current"
    yield GROUPS / "memory", Path(own["memory"]), "memory.limit_in_bytes", "memory.usage_in_bytes"


def _left(limit: Path, used: Path) -> float:
    try:
        most, taken = (path.read_text().strip() for path in (limit, used))
    except OSError:
        return float("inf")
    return float("inf") if most == "max" else max(float(most) - float(taken), 0.0)
