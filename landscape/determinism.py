"""Make torch choose the deterministic form of every operation, and put its switches back afterwards.

On the CPU training repeats bit by bit without this. On a GPU some kernels add in the order in which threads happen to
arrive; with this, and on the same kind of device and version of torch, two runs agree in every bit, at some cost in speed.
"""

import os
import re
from collections.abc import Iterator
from contextlib import contextmanager

import torch

from landscape.errors import InputError

WORKSPACE = "CUBLAS_WORKSPACE_CONFIG"
WORKSPACE_SIZES = (":4096:8", ":16:8")    # those that cuBLAS's manual names for results that repeat


@contextmanager
def deterministic(wanted: bool = True) -> Iterator[None]:
    """Compute deterministically inside, where wanted. InputError names an operation that has no deterministic form."""
    if not wanted:
        yield
        return
    before = _switches()
    try:
        if torch.cuda.is_available():
            _set_workspace()
        _set(True, False, deterministic_cudnn=True, benchmark=False)
        yield
    except RuntimeError as error:
        if operation := without_deterministic_form(error):
            raise InputError(f"deterministic: {operation} has no deterministic form on this device: "
                             "train on the CPU, use a network without it, or leave deterministic out") from error
        raise
    finally:
        _restore(before)


def _set_workspace() -> None:
    size = os.environ.setdefault(WORKSPACE, WORKSPACE_SIZES[0])    # cuBLAS reads it when it is first used
    if size not in WORKSPACE_SIZES:
        raise InputError(f"{WORKSPACE}={size!r} is out of range: deterministic needs one of "
                         f"{', '.join(WORKSPACE_SIZES)}; change it, or unset it")


def without_deterministic_form(error: RuntimeError) -> str | None:
    """Return the operation that torch refuses to do deterministically, where that is what an error says."""
    found = re.search(r"(\S+) does not have a deterministic implementation", str(error))
    return found and found[1]


def _switches() -> tuple[bool, bool, bool, bool, str | None]:
    return (torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled(),
            torch.backends.cudnn.deterministic, torch.backends.cudnn.benchmark, os.environ.get(WORKSPACE))


def _set(enabled: bool, warn_only: bool, deterministic_cudnn: bool, benchmark: bool) -> None:
    torch.use_deterministic_algorithms(enabled, warn_only=warn_only)
    torch.backends.cudnn.deterministic = deterministic_cudnn
    torch.backends.cudnn.benchmark = benchmark


def _restore(before: tuple[bool, bool, bool, bool, str | None]) -> None:
    *switches, workspace = before
    _set(*switches)
    if workspace is None:
        os.environ.pop(WORKSPACE, None)
