"""Arguments of commands that work on runs: epochs, class groups, where the data lie and where to compute."""

import argparse
import re
from pathlib import Path

from checkpoints.errors import RecordError
from landscape.errors import InputError

GROUPS = re.compile(r"classes|all|head|tail|many|medium|few|class:\d+")
DEVICES = re.compile(r"auto|cpu|cuda(:\d+)?")


def add_epoch_argument(parser: argparse.ArgumentParser) -> None:
    """Add `--epoch`, the checkpoints that a command works on."""
    parser.add_argument("--epoch", nargs="+", default=["last"], metavar="EPOCH", help="last, all, or numbers of stored epochs")


def add_place_arguments(parser: argparse.ArgumentParser) -> None:
    """Add where the data lie and where to compute."""
    parser.add_argument("--data_dir", type=Path, metavar="DIR",
                        help="where CIFAR lies; default: $LANDSCAPE_DATA_DIR, else ./datasets")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda or cuda:N")


def check_groups(words: list[str]) -> None:
    """Refuse the name of no class group; whether the data have it is for the run to tell."""
    for word in words:
        if not GROUPS.fullmatch(word):
            raise InputError(f"group {word!r} is unknown: expected some of all, head, tail, many, medium, few, class:N, classes")


def check_device(name: str) -> None:
    """Refuse the name of no device; whether it is here is for torch to tell."""
    if not DEVICES.fullmatch(name):
        raise InputError(f"device={name!r} is unknown: expected auto, cpu, cuda or cuda:N")


def chosen_epochs(store, wanted: list[str]) -> list[int]:
    """Return the stored epochs that `--epoch` names; RecordError where one is not stored."""
    stored = store.epochs
    if not stored:
        raise RecordError(f"{store.path} holds no checkpoint: train with --checkpoint_epochs, or let the training finish")
    chosen: set[int] = set()
    for word in wanted:
        if word == "all":
            chosen.update(stored)
        elif word == "last":
            chosen.add(stored[-1])
        elif word.isdecimal() and int(word) in stored:
            chosen.add(int(word))
        else:
            raise RecordError(f"{store.path} holds no checkpoint of epoch {word}: expected last, all, or some of "
                              f"{', '.join(map(str, stored))}")
    return sorted(chosen)


def named_groups(subject, wanted: list[str]) -> list[str]:
    """Return the groups asked for, each known and not empty."""
    names = [name for word in wanted
             for name in ([f"class:{c}" for c in range(subject.data.num_classes)] if word == "classes" else [word])]
    for name in names:
        subject.groups.select(name)
    return list(dict.fromkeys(names))
