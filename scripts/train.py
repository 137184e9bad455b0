"""`landscape train`, and `python scripts/train.py`: train one network and leave a run folder behind.

Every setting of TrainConfig is an option under the name that the literature uses for it. A folder that holds a run of
the same configuration is continued, or its finished result printed; with another configuration it is refused.
`torchrun --nproc_per_node N -m scripts.cli train ...` shares each batch among N processes; the first alone writes and prints.
SIGTERM, SIGUSR1 and Ctrl-C end it after the step at hand, and the same command goes on from there.
"""

import argparse
import sys
from pathlib import Path
from typing import Any

if __name__ == "__main__":  # run as a file: Python has put this folder on the path, and not the one above it
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch

from checkpoints.chosen_epoch import choose, every_choice
from checkpoints.errors import RecordError
from checkpoints.provenance import provenance
from checkpoints.recorder import METRICS
from checkpoints.store import RunStore
from landscape.optimizers.building import build_optimizer
from landscape.configuration import TrainConfig
from landscape.data import LongTailData
from landscape.data.longtail import read_imb_factor
from landscape.distributed import Processes, init_from_environment, main_first
from landscape.errors import InputError
from landscape.family import method
from landscape.groups import ClassGroups
from landscape.losses import build_loss
from landscape.parallel import batchnorm_note
from landscape.training import build_network, choose_device, training_data
from scripts.forecast import of_training
from scripts.log_scalars import writer_class
from scripts.options import add_common_arguments, emit_json, say, tell_reading
from scripts.run_folder import open_run, slug
from scripts.train_settings import add_settings, check_read, given_settings
from scripts.train_log import GROUPS
from scripts.train_stored import Stop, tell_stop, train_beside, train_stored

NAME = "train"
HELP = "train a network on long-tailed data and store its run"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_settings(parser)
    parser.add_argument("--gpu", type=int, metavar="N", help="train on this GPU; without one, on the CPU")
    parser.add_argument(
        "--data_dir",
        type=Path,
        metavar="DIR",
        help="where CIFAR lies or is downloaded to; default: $LANDSCAPE_DATA_DIR, else ./datasets",
    )
    parser.add_argument(
        "--out", type=Path, metavar="RUN", help="run folder; default: runs/ and a name made of the settings"
    )
    parser.add_argument(
        "--resume",
        action="store_true",
        help="continue the run in --out with its stored settings "
        "(a run of the same settings is continued without this, too)",
    )
    parser.add_argument(
        "--deterministic", action="store_true", help="use deterministic operations alone, so that a GPU repeats a run bit by bit"
    )
    parser.add_argument("--tensorboard", action="store_true", help="write each epoch's metrics to RUN/tensorboard, too")
    add_common_arguments(parser, dry_run=True)


def run(args: argparse.Namespace) -> int:
    """Train, continue training, or print what a finished run has reached."""
    with init_from_environment() as processes:
        if processes.rank > 0:
            args.quiet, args.json = True, False
        return _run(args, processes)


def _run(args: argparse.Namespace, processes: Processes) -> int:
    config = _config(args)
    if args.tensorboard:
        writer_class()      # say what is missing before anything is loaded
    tell_reading(args, config.dataset)
    with main_first():      # where data are downloaded, once
        data = training_data(config, args.data_dir, progress=not (args.quiet or args.json))
    config = config.resolved(data)
    for note in data.notes:
        say(args, f"note: {note}")
    if args.dry_run:
        return processes.on_first(lambda: _forecast(args, config, data))
    network = build_network(config, data)       # what cannot be built leaves no run folder behind
    build_optimizer(config, network, class_counts=data.counts.tolist())
    build_loss(config.loss, data.counts, **config.loss_options)
    if note := batchnorm_note(network, processes, choose_device(config.device)):
        say(args, f"note: {note}")
    if method(config.opt).groups == "head_tail" and (absent := ClassGroups.head_tail(data.counts, config.eta).absent):
        say(args, f"note: no class is {absent[0]} at eta={config.eta:g}, class sizes run from {data.counts.min()} to "
                  f"{data.counts.max()}: {config.opt} has one group only")
    opened: list[RunStore] = []     # by the first process alone
    finished = processes.on_first(lambda: opened.append(_store(args, config, data)) or opened[0].finished)
    if not opened:
        return 0 if finished else train_beside(args, config, data, processes)
    store = opened[0]
    if finished:
        say(args, f"{store.path}: finished before; nothing to train")
    elif stop := train_stored(args, config, data, store, processes):
        return _stopped(args, store, stop)
    return _report(args, config, store)


def _store(args: argparse.Namespace, config: TrainConfig, data: LongTailData) -> RunStore:
    """Make the run's folder, or open the one that is there and may be continued."""
    path = args.out or Path("runs") / slug(config)
    store = open_run(path, config, origin(config, data, deterministic=args.deterministic))
    check_origin(store, config, data)
    if "imported" in store.provenance:
        raise InputError(f"{path} holds weights imported from elsewhere, which are not trained on: choose another --out")
    return store


def check_origin(store: RunStore, config: TrainConfig, data: LongTailData) -> None:
    """Refuse to go on with a run whose data have changed."""
    if store.provenance.get("data_hash", data.hash) != data.hash:
        raise InputError(
            f"{store.path} was begun on other images or labels than dataset={config.dataset!r} holds now: "
            "put them back, or choose another --out"
        )


def _config(args: argparse.Namespace) -> TrainConfig:
    stored = _stored(args)
    given = given_settings(args, stored)
    if "imb_factor" in given and (note := read_imb_factor(given["imb_factor"])[1]):
        say(args, f"note: {note}")
    if args.gpu is not None:
        given["device"] = _gpu(args)
    config = TrainConfig.from_dict(stored | given)
    check_read(args.typed, config.opt)
    return config


def _stored(args: argparse.Namespace) -> dict[str, Any]:
    """Return the settings of the run to resume; without --resume, none."""
    if args.resume and args.out is None:
        raise InputError("--resume needs --out: name the run folder to continue")
    return RunStore.open(args.out).config if args.resume else {}


def _gpu(args: argparse.Namespace) -> str:
    if args.gpu < 0:
        raise InputError(f"gpu={args.gpu} is out of range: expected the number of a GPU, from 0")
    if args.gpu < torch.cuda.device_count():
        return f"cuda:{args.gpu}"
    if not args.quiet:
        print(f"--gpu {args.gpu}: no such GPU on this machine, training on the CPU", file=sys.stderr)
    return "cpu"


def origin(config: TrainConfig, data: LongTailData, **more: Any) -> dict[str, Any]:
    """Return where a run comes from: this process, its data and its device, and `more`."""
    return provenance(
        data_hash=data.hash,
        class_counts=data.counts.tolist(),
        class_names=list(data.class_names),
        notes=list(data.notes),
        device=str(choose_device(config.device)),
        threads=config.threads or torch.get_num_threads(),
        **more,
    )


def _stopped(args: argparse.Namespace, store: RunStore, stop: Stop) -> int:
    tell_stop(args, store, stop)
    emit_json(args, {"run": store.path, "finished": False, "config": store.config, "epochs": store.epochs,
                     "stopped_by": stop.signal, "epochs_done": stop.epochs, "steps_done_in_epoch": stop.steps})
    return stop.status


def _whole_metrics(store: RunStore):
    """Return the metrics of a run; refuse those that end before its last checkpoint, or without an evaluation."""
    table = store.metrics()
    last = int(table["epoch"].max()) if len(table) else 0
    if last < max(store.epochs, default=0) or choose(table, "last", False) is None:
        raise RecordError(f"{store.path / METRICS} ends at epoch {last}, without the last test accuracy: it was cut off; "
                          "put back a copy, or train the run again into another folder")
    return table


def _report(args: argparse.Namespace, config: TrainConfig, store: RunStore) -> int:
    """Print the result's accuracies and, beside them, those of the other choices of epoch and of flips."""
    table = _whole_metrics(store)
    result, choices = choose(table, config.selection, config.flip_average), every_choice(table)
    groups = [group for group in GROUPS if group in result.accuracy]
    lines = {f"{'*' if choice == result else ' '} {choice.words}": choice.accuracy for choice in choices}
    width = max(map(len, lines)) + 2
    say(args, f"\n{'test accuracy in %; * the result':{width}}" + "".join(f"{group:>8}" for group in groups))
    for name, accuracy in lines.items():
        say(args, f"{name:{width}}" + "".join(f"{100 * accuracy[group]:8.1f}" for group in groups))
    say(args, f"\nnext: landscape spectrum {store.path}")
    emit_json(
        args,
        {
            "run": store.path,
            "finished": store.finished,
            "config": store.config,
            "epochs": store.epochs,
            "result": result.document,
            "last": choose(table, "last", False).row,
            "best_on_test": choose(table, "test_best", False).row,
        },
    )
    return 0


def _forecast(args: argparse.Namespace, config: TrainConfig, data: LongTailData) -> int:
    """Time a few steps, and say how long the run would take."""
    forecast = of_training(config, data)
    each, size = forecast.details["seconds_per_step"], forecast.details["checkpoint_bytes"]
    say(
        args,
        f"{config.epochs} epochs, {forecast.counts['steps']} steps of {each:.3g} s, and evaluation; "
        f"{len(config.kept_epochs())} checkpoints of {size / 2**20:.3g} MiB",
    )
    say(args, forecast.line)
    emit_json(args, forecast.document | {"config": config.as_dict()})
    return 0


if __name__ == "__main__":
    from scripts.cli import main

    sys.exit(main([NAME, *sys.argv[1:]]))
