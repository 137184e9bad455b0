"""What the benchmarks share: interleaved rounds (`analysis.operators.rounds`), memory, tables, and what machine it was."""

import argparse
import ctypes
import gc
import json
import os
import platform
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

from analysis.operators.rounds import LEAST_ROUNDS, Rounds, interleave, spread, timed
from checkpoints.provenance import revision
from landscape.errors import InputError
from landscape.training import choose_device
from scripts.options import plain

__all__ = ["LEAST_ROUNDS", "LIBRARIES", "MIB", "Memory", "Rounds", "add_place_arguments", "at_least", "compile_seconds",
           "fresh_compiler_cache", "installed", "interleave", "load_average", "machine", "note", "plain", "release_memory",
           "set_up_torch", "spread", "table", "timed", "write_json"]

LIBRARIES = ("torch", "numpy", "scipy", "saddle-landscape", "pyhessian", "curvlinops-for-pytorch", "hessian-eigenthings")
MIB = 2**20
STARTED = time.perf_counter()


def add_place_arguments(parser: argparse.ArgumentParser) -> None:
    """Add where the data lie, where it is computed, and where the samples go."""
    parser.add_argument("--data_dir", type=Path, metavar="DIR", help="where CIFAR-100 lies; without it images are random")
    parser.add_argument("--device", default="cpu", help="cpu, cuda, cuda:N or auto")
    parser.add_argument("--threads", type=int, help="threads of torch on the CPU")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write raw samples, versions and device")


def at_least(args: argparse.Namespace, **bounds: int) -> None:
    """Refuse an argument below its bound."""
    for name, bound in bounds.items():
        if getattr(args, name) < bound:
            raise InputError(f"{name}={getattr(args, name)} is out of range: expected an integer >= {bound}")


def note(text: str) -> None:
    """Say what begins, and when, on standard error."""
    print(f"[{time.perf_counter() - STARTED:4.0f} s] {text}", file=sys.stderr, flush=True)


def compile_seconds() -> float:
    """Return the seconds that torch has spent compiling so far: its outermost phase, which holds the others."""
    try:
        from torch._dynamo.utils import calculate_time_spent
    except ImportError:
        return 0.0
    return max(calculate_time_spent().values(), default=0.0)


def fresh_compiler_cache() -> None:
    """Let this process compile anew, so that its compile times are those of a first use."""
    os.environ["TORCHINDUCTOR_CACHE_DIR"] = tempfile.mkdtemp(prefix="bench-inductor-")


class Memory:
    """Growth of the memory in use since construction: the resident set of this process, or what CUDA has allocated."""

    def __init__(self, device: torch.device):
        self.device = device
        self.start = self._now()
        self.restart_peak()

    def restart_peak(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(self.device)
        else:
            try:
                Path("/proc/self/clear_refs").write_text("5")   # sets the high-water mark to what is resident now
            except OSError:
                pass

    def held(self) -> int:
        """Return bytes held now."""
        return self._now() - self.start

    def peak(self) -> int:
        """Return the most bytes held since `restart_peak`."""
        if self.device.type == "cuda":
            return torch.cuda.max_memory_allocated(self.device) - self.start
        return _status("VmHWM") - self.start

    def _now(self) -> int:
        release_memory()
        return torch.cuda.memory_allocated(self.device) if self.device.type == "cuda" else _status("VmRSS")


def release_memory() -> None:
    """Give memory that nothing uses back to the system."""
    gc.collect()
    try:
        ctypes.CDLL(None).malloc_trim(0)
    except (AttributeError, OSError, TypeError):    # not the GNU C library
        pass


def machine(device: torch.device) -> dict[str, Any]:
    """Return what the numbers depend on: processor, device, threads, versions, and how busy the machine is."""
    return {"cpu": _cpu(), "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
            "device": torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu",
            "threads": torch.get_num_threads(), "python": platform.python_version(), "platform": platform.platform(),
            "versions": {name: installed(name) for name in LIBRARIES}, "load_average": load_average(),
            "revision": revision(), "time": time.strftime("%Y-%m-%d %H:%M:%S %z")}


def installed(name: str) -> str | None:
    """Return the version of a distribution, or None."""
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def write_json(path: Path | None, document: Mapping[str, Any]) -> None:
    """Write a document, numbers that are not finite as null."""
    if path is not None:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(plain(document), indent=1, allow_nan=False) + "\n", encoding="utf-8")


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Set rows of words in columns, the first to the left, the others to the right."""
    lines = [list(head), *map(list, rows)]
    widths = [max(len(line[i]) for line in lines) for i in range(len(head))]
    return "\n".join("  ".join(word.ljust(w) if i == 0 else word.rjust(w) for i, (word, w) in enumerate(zip(line, widths)))
                     .rstrip() for line in lines)


def set_up_torch(threads: int | None, device: str) -> torch.device:
    """Choose threads and device as the command line says."""
    if threads is not None:
        if threads < 1:
            raise InputError(f"threads={threads} is out of range: expected an integer >= 1")
        torch.set_num_threads(threads)
    compile_seconds()       # loads the compiler, which is no part of what is timed
    return choose_device(device)


def _status(field: str) -> int:
    """Return a line of /proc/self/status in bytes; elsewhere the peak that the system keeps."""
    try:
        lines = Path("/proc/self/status").read_text().splitlines()
        return 1024 * next(int(line.split()[1]) for line in lines if line.startswith(field + ":"))
    except (OSError, StopIteration):
        import resource
        return 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def _cpu() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return next(line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()


def load_average() -> list[float]:
    return list(os.getloadavg()) if hasattr(os, "getloadavg") else []
