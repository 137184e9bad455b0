"""`landscape train`, and `python scripts/train.py`: train one network and leave a run folder behind.

Every setting of TrainConfig is an option under the name that the literature uses for it. A folder that holds a run of
the same configuration is continued, or its finished result printed; with another configuration it is refused.
"""

import argparse
import hashlib
import json
import re
import sys
from pathlib import Path
from typing import Any

if __name__ == "__main__":  # run as a file: Python has put this folder on the path, and not the one above it
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch

from checkpoints.provenance import provenance
from checkpoints.store import RunStore
from landscape.batches import batch_sizes
from landscape.configuration import TrainConfig
from landscape.data import LongTailData
from landscape.data.longtail import read_imb_factor
from landscape.errors import InputError
from landscape.groups import ClassGroups
from landscape.training import build_network, choose_device, train, training_data
from scripts.forecast import of_training
from scripts.options import Progress, add_common_arguments, emit_json, say
from scripts.train_settings import add_settings, given_settings

NAME = "train"
HELP = "train a network on long-tailed data and store its run"

GROUPS = ("all", "head", "tail", "many", "medium", "few")


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
    add_common_arguments(parser, dry_run=True)


def run(args: argparse.Namespace) -> int:
    """Train, continue training, or print what a finished run has reached."""
    config = _config(args)
    data = training_data(config, args.data_dir, progress=not (args.quiet or args.json))
    config = config.resolved(data)
    for note in data.notes:
        say(args, f"note: {note}")
    if args.dry_run:
        return _forecast(args, config, data)
    build_network(config, data)     # a network that cannot be built leaves no run folder behind
    if config.opt in ("imbsam", "ssesam") and (absent := ClassGroups.head_tail(data.counts, config.eta).absent):
        say(args, f"note: no class is {absent[0]} at eta={config.eta:g}, class sizes run from {data.counts.min()} to "
                  f"{data.counts.max()}: {config.opt} has one group only")
    path = args.out or Path("runs") / slug(config)
    store = RunStore.create(path, config.identity(), provenance=origin(config, data))
    check_origin(store, config, data)
    if "imported" in store.provenance:
        raise InputError(f"{path} holds weights imported from elsewhere, which are not trained on: choose another --out")
    if store.finished:
        say(args, f"{path}: finished before; nothing to train")
    else:
        _train(args, config, data, store)
    return _report(args, store)


def check_origin(store: RunStore, config: TrainConfig, data: LongTailData) -> None:
    """Refuse to go on with a run whose data have changed."""
    if store.provenance.get("data_hash", data.hash) != data.hash:
        raise InputError(
            f"{store.path} was begun on other images or labels than dataset={config.dataset!r} holds now: "
            "put them back, or choose another --out"
        )


def slug(config: TrainConfig) -> str:
    """Return a folder name that a person can read and that no other configuration has."""
    identity = json.dumps(config.identity(), sort_keys=True)
    factor = "" if config.imb_factor is None else f"if{config.imb_factor:g}"
    words = (
        config.dataset,
        factor,
        config.arch,
        config.loss,
        config.opt,
        f"seed{config.seed}",
        hashlib.sha256(identity.encode()).hexdigest()[:8],
    )
    return "-".join(re.sub(r"[^a-z0-9.]+", "_", word.lower()).strip("_.") for word in words if word)


def _config(args: argparse.Namespace) -> TrainConfig:
    given = given_settings(args)
    if "imb_factor" in given and (note := read_imb_factor(given["imb_factor"])[1]):
        say(args, f"note: {note}")
    if args.gpu is not None:
        given["device"] = _gpu(args)
    if args.resume and args.out is None:
        raise InputError("--resume needs --out: name the run folder to continue")
    stored = RunStore.open(args.out).config if args.resume else {}
    return TrainConfig.from_dict(stored | given)


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


def _train(args: argparse.Namespace, config: TrainConfig, data: LongTailData, store: RunStore) -> None:
    with store.writer():
        recorder = store.recorder()
        point = recorder.resumed()
        done = int(point["epochs_done"]) if point else 0
        for line in (
            f"run {store.path}",
            *(f"  {name} = {value}" for name, value in config.as_dict().items()),
            *([f"continuing after epoch {done}"] if done else []),
        ):
            say(args, line)

        def progress(row: dict[str, float]) -> None:
            line = _row_line(row, config.epochs)
            store.log(line)
            if any(name.startswith("test_") for name in row) and not (args.quiet or args.json):
                from tqdm import tqdm

                tqdm.write(line)  # prints above the bar, where there is one

        steps = _num_steps(config, data)
        with Progress(steps, "training", quiet=args.quiet or args.json) as bar:
            bar.update(min(done * len(batch_sizes(len(data.train), config.batch_size)), steps))
            train(config, data=data, recorder=recorder, progress=progress, on_step=bar.update)
        store.mark_finished()


def _num_steps(config: TrainConfig, data: LongTailData) -> int:
    steps = config.epochs * len(batch_sizes(len(data.train), config.batch_size))
    return steps if config.max_steps is None else min(steps, config.max_steps)


def _row_line(row: dict[str, float], epochs: int) -> str:
    parts = [f"epoch {row['epoch']}/{epochs}", f"lr {row['lr']:.3g}", f"train loss {row['train_loss']:.4f}"]
    parts += [f"{group} {row[f'test_accuracy/{group}']:.1%}" for group in GROUPS if f"test_accuracy/{group}" in row]
    return "  ".join(parts)


def _report(args: argparse.Namespace, store: RunStore) -> int:
    """Print the last epoch's accuracies and, beside them, those of the epoch that is best on the test images."""
    table = store.metrics().dropna(subset=["test_accuracy/all"])
    last, best = table.iloc[-1], table.loc[table["test_accuracy/all"].idxmax()]
    groups = [group for group in GROUPS if f"test_accuracy/{group}" in table]
    say(args, f"\n{'test accuracy in %':36}" + "".join(f"{group:>8}" for group in groups))
    for name, row in (("last", last), ("best on test", best)):
        for measure, words in (("test_accuracy", ""), ("test_accuracy_flip", ", flips averaged")):
            if f"{measure}/all" in table:
                cells = "".join(f"{100 * row[f'{measure}/{group}']:8.1f}" for group in groups)
                say(args, f"{f'epoch {row.epoch:.0f}, {name}{words}':36}{cells}")
    say(args, f"\nnext: landscape spectrum {store.path}")
    emit_json(
        args,
        {
            "run": store.path,
            "finished": store.finished,
            "config": store.config,
            "epochs": store.epochs,
            "last": last.dropna().to_dict(),
            "best_on_test": best.dropna().to_dict(),
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
