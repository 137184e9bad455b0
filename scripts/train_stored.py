"""Train a stored run from where it stands: its log, its progress, and what happens when it is asked to end."""

import argparse
import shlex
import sys
from contextlib import nullcontext
from dataclasses import dataclass
from typing import TextIO

from checkpoints.run_file import FILE_NAME
from checkpoints.store import RunStore
from landscape.data.batches import batch_sizes
from landscape.configuration import NOT_IDENTITY, TrainConfig
from landscape.data import LongTailData
from landscape.determinism import deterministic
from landscape.distributed import Processes
from landscape.partial_epoch import steps_into_epoch
from landscape.training import train
from scripts.interruptions import Interruption, shared_by_processes
from scripts.log_scalars import Scalars
from scripts.options import Progress, say
from scripts.train_log import ended_in_log, log_begin, position, row_line
from scripts.train_settings import telling_settings

LONG = 2000     # test images, whose evaluation is worth a line


@dataclass(frozen=True)
class Stop:
    """Where a training was asked to end."""

    signal: str
    status: int     # with which to exit
    epochs: int     # done
    steps: int      # done in the next epoch
    text: str       # the same in words


def train_beside(args: argparse.Namespace, config: TrainConfig, data: LongTailData, processes: Processes) -> int:
    """Train with the first process, which alone writes and prints; return the exit status."""
    with Interruption(quiet=True) as asked, deterministic(args.deterministic):
        result = train(config, data=data, stop=shared_by_processes(asked), processes=processes)
    return asked.status if result.stopped else 0


def train_stored(args: argparse.Namespace, config: TrainConfig, data: LongTailData, store: RunStore,
                 processes: Processes = Processes()) -> Stop | None:
    """Train to the end and mark the run as finished, or until a signal comes and say where that was."""
    quiet, steps = args.quiet or args.json, len(batch_sizes(len(data.train), config.batch_size))
    with store.writer(), Interruption(quiet=quiet) as asked, ended_in_log(store), deterministic(args.deterministic):
        recorder = store.recorder()
        point = recorder.resumed()
        done = (int(point["epochs_done"]) if point else 0, steps_into_epoch(point))
        _begin(args, config, data, store, position(config, *done, steps) if any(done) else "")
        total = _num_steps(config, steps)
        with _scalars(args, store, recorder.rows) as scalars, Progress(total, "training", quiet=quiet) as bar:
            bar.skip(min(done[0] * steps + done[1], total))

            def progress(row: dict[str, float]) -> None:
                _tell(row, config, store, quiet)
                if scalars:
                    scalars.row(row)

            def on_step(number: int) -> None:
                bar.update(number)
                if not quiet and _is_evaluated(config, bar.done, steps, total) and len(data.test) >= LONG:
                    _above_the_bar(f"evaluating on {len(data.test)} test images", sys.stderr)

            result = train(config, data=data, recorder=recorder, progress=progress, on_step=on_step,
                           stop=shared_by_processes(asked), processes=processes)
        _tell_skipped(args, data, store)
        if not result.stopped:
            store.mark_finished()
            store.log("finished")
            return None
        inside = bar.done - result.epochs_done * steps
        text = f"stopped by {asked.name} after {position(config, result.epochs_done, inside, steps)}"
        store.log(text)
        return Stop(asked.name, asked.status, result.epochs_done, inside, text)


def tell_stop(args: argparse.Namespace, store: RunStore, stop: Stop) -> None:
    """Say how to go on, whatever else is silent."""
    print(f"{store.path}: {stop.text}, nothing is lost; go on with: {_command(args, store)}", file=sys.stderr)


def _command(args: argparse.Namespace, store: RunStore) -> str:
    """Return the words that continue a run: its settings are stored, where it is computed is not."""
    words = ["landscape", "train", "--resume", "--out", str(store.path)]
    for name in ("data_dir", "gpu", "deterministic", "tensorboard", *NOT_IDENTITY):
        value = getattr(args, name, None)
        if isinstance(value, bool):
            words += [f"--{name}"] if value else []
        elif value is not None:
            words += [f"--{name}", str(value)]
    return shlex.join(words)


def _begin(args: argparse.Namespace, config: TrainConfig, data: LongTailData, store: RunStore, where: str) -> None:
    """Print the settings, and say on the log who begins or goes on, and with what."""
    notes = list(data.notes)
    if where and store.provenance.get("deterministic", False) != args.deterministic:
        notes.append(f"begun {'without' if args.deterministic else 'with'} --deterministic, "
                     f"continued {'with' if args.deterministic else 'without'} it")
        say(args, f"note: {notes[-1]}")
    for line in (f"run {store.path}", *(f"  {name} = {value}" for name, value in telling_settings(config, data).items()),
                 f"  the others as {'the recipe or ' if config.recipe else ''}--help says, all in {FILE_NAME}",
                 *([f"continuing after {where}"] if where else [])):
        say(args, line)
    log_begin(store, config, where, notes)


def _tell_skipped(args: argparse.Namespace, data: LongTailData, store: RunStore) -> None:
    """Name on the log each broken image that was left out, and say how many there were."""
    for file, reason in data.skipped.items():
        store.log(f"left out: {file} ({reason})")
    if data.skipped:
        say(args, f"note: {len(data.skipped)} broken images were left out, named in {store.path / 'train.log'}")


def _tell(row: dict[str, float], config: TrainConfig, store: RunStore, quiet: bool) -> None:
    line = row_line(row, config.epochs)
    store.log(line)
    if not quiet and any(name.startswith("test_") for name in row):
        _above_the_bar(line, sys.stdout)


def _above_the_bar(line: str, stream: TextIO) -> None:
    """Print at once, above the bar where there is one."""
    from tqdm import tqdm

    tqdm.write(line, file=stream)
    stream.flush()


def _scalars(args: argparse.Namespace, store: RunStore, rows: list[dict[str, str]]):
    return Scalars(store.path, rows) if args.tensorboard else nullcontext()


def _is_evaluated(config: TrainConfig, done: int, steps: int, total: int) -> bool:
    """Tell whether the network is evaluated next, after `done` steps of `total`, `steps` an epoch."""
    return done == total or done % (steps * config.eval_every) == 0


def _num_steps(config: TrainConfig, steps: int) -> int:
    return config.epochs * steps if config.max_steps is None else min(config.epochs * steps, config.max_steps)
