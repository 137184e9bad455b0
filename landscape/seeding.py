"""Torch's global generators, seeded for the length of a with block: for what draws from nothing else, dropout for one."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch


@contextmanager
def global_seed(seed: int, device: torch.device) -> Iterator[None]:
    """Seed the generators of the CPU and of a GPU, and give the caller's back afterwards."""
    cuda = [device] if device.type == "cuda" else []
    with torch.random.fork_rng(devices=cuda):
        torch.random.default_generator.manual_seed(seed)
        for gpu in cuda:
            with torch.cuda.device(gpu):
                torch.cuda.manual_seed(seed)
        yield
