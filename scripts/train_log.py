"""RUN/train.log: when a run was started, stopped and continued, each of its epochs, and what ended it early."""

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress

import torch

from checkpoints.store import RunStore
from landscape.configuration import TrainConfig
from landscape.training import choose_device

GROUPS = ("all", "head", "tail", "many", "medium", "few")


def log_begin(store: RunStore, config: TrainConfig, where: str, notes: Sequence[str] = ()) -> None:
    """Tell who begins, or goes on after `where`, on what device, and what is to be known about it."""
    store.log(f"{f'continued after {where}' if where else 'started'} by process {os.getpid()} on "
              f"{choose_device(config.device)}, torch {torch.__version__}: {store.origin.get('command', '')}")
    for note in notes:
        store.log(f"note: {note}")


def position(config: TrainConfig, epochs: int, inside: int, steps: int) -> str:
    """Say how far a training is: epochs done, and steps of the next one, which has `steps`."""
    step = f" and {inside} of {steps} steps" if inside else ""
    return f"{epochs} of {config.epochs} epochs{step}"


def row_line(row: dict[str, float], epochs: int) -> str:
    """Return one epoch's row of metrics in words."""
    parts = [f"epoch {row['epoch']}/{epochs}", f"lr {row['lr']:.3g}", f"train loss {row['train_loss']:.4f}"]
    parts += [f"{group} {row[f'test_accuracy/{group}']:.1%}" for group in GROUPS if f"test_accuracy/{group}" in row]
    parts += [f"{row['skipped_images']} broken images left out"] if "skipped_images" in row else []
    return "  ".join(parts)


@contextmanager
def ended_in_log(store: RunStore) -> Iterator[None]:
    """Leave on the log what ended a training early; a log that cannot be written matters less than that."""
    try:
        yield
    except BaseException as error:
        with suppress(OSError):
            store.log(f"ended by {type(error).__name__}: {' '.join(str(error).split())[:500]}")
        raise
