"""`landscape import WEIGHTS...`: bring weights trained elsewhere into a run folder, to be analysed like a trained run's.

The settings say which network and which data the weights belong to; those of the training itself (`--opt`, `--rho`, ...)
are kept as labels where they are given. Every file is read, matched and evaluated before anything is written.
"""

import argparse
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from checkpoints.errors import RecordError
from checkpoints.provenance import provenance
from checkpoints.recorder import METRICS, read_rows
from checkpoints.records import Checkpoint
from checkpoints.run_file import FILE_NAME, differences, refuse_differences, refuse_foreign_content
from checkpoints.store import RunStore
from landscape.configuration import NOT_IDENTITY, TrainConfig
from landscape.data import LongTailData
from landscape.errors import InputError
from landscape.evaluation import evaluate
from landscape.groups import ClassGroups
from landscape.models.matching import load_weights
from landscape.snapshot import state_arrays
from landscape.training import build_network, check_outputs, choose_device, training_data
from landscape.models.weights import Weights, read_weights, sha256
from scripts.options import add_common_arguments, emit_json, say, tell_reading
from scripts.train import check_origin, origin
from scripts.run_folder import open_run
from scripts.train_settings import add_settings, given_settings

NAME = "import"
HELP = "bring weights trained elsewhere into a run folder"

GROUPS = ("all", "head", "tail", "many", "medium", "few")


@dataclass(frozen=True)
class Arrival:
    """One file that fits, and what is known of it; its tensors are read again when they are written."""

    path: Path
    sha256: str
    epoch: int
    source: dict[str, Any]      # for the checkpoint's provenance
    metrics: dict[str, float]   # on the test images; empty where they were not asked for


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("weights", nargs="+", type=Path, metavar="WEIGHTS",
                        help="files of weights: .pth, .pt, .pth.tar (tensors alone are read) or .safetensors")
    parser.add_argument("--epoch", nargs="+", type=int, metavar="N",
                        help="epochs after which the files were saved, one a file; default: what a file says of itself, "
                             "else the last epoch")
    parser.add_argument("--out", type=Path, required=True, metavar="RUN",
                        help="run folder to make, or one made by import to add epochs to")
    parser.add_argument("--entry", metavar="NAME", help="the dictionary in the file that holds the weights; "
                        "default: state_dict, model, net and the like")
    parser.add_argument("--ignore", nargs="+", default=(), metavar="PATTERN",
                        help="names in the file to leave out, such as 'projection.*'; by default none is")
    parser.add_argument("--evaluate", action=argparse.BooleanOptionalAction, default=True,
                        help="evaluate on the test images, to be compared with what the weights' author reports; default: yes")
    parser.add_argument("--data_dir", type=Path, metavar="DIR", help="where CIFAR lies or is downloaded to; "
                        "default: $LANDSCAPE_DATA_DIR, else ./datasets")
    add_settings(parser)
    add_common_arguments(parser)


def run(args: argparse.Namespace) -> int:
    """Check every file against the network and the data, then write one checkpoint each."""
    _check_usage(args)
    known = _existing(args.out)
    stored = known.config if known else {}
    given = given_settings(args, stored)
    settings = stored | given
    config = TrainConfig.from_dict(settings)
    tell_reading(args, config.dataset)
    data = training_data(config, args.data_dir, progress=not (args.quiet or args.json))
    config = config.resolved(data)
    if known:
        _check_known(known, config, data)
    for note in data.notes:
        say(args, f"note: {note}")
    arrivals = _arrivals(args, config, data)
    if "epochs" not in (*given, *(known.provenance.get("stated", ()) if known else ())):
        # Nobody has said how long the training was: at least as long as the last file speaks of.
        config = replace(config, epochs=max(1, stored.get("epochs", 1), *(arrival.epoch for arrival in arrivals)))
    _check_epochs(known, arrivals, config)
    store = _write(args, known, config, data, arrivals, sorted(given))
    _report(args, store, arrivals)
    return 0


def _check_usage(args: argparse.Namespace) -> None:
    if args.epoch is not None and len(args.epoch) != len(args.weights):
        raise InputError(f"--epoch names {len(args.epoch)} epochs for {len(args.weights)} files: expected one a file")
    if again := [epoch for epoch in args.epoch or () if args.epoch.count(epoch) > 1]:
        raise InputError(f"--epoch names {again[0]} for {len(again)} files, the same: expected another epoch for each file")
    for path in args.weights:   # before data are loaded for minutes
        if not path.is_file():
            raise InputError(f"{path} {'is a folder' if path.is_dir() else 'does not exist'}: expected a file of weights")


def _existing(path: Path) -> RunStore | None:
    """Return the imported run in a folder, None for a free place; any other run or file there is an error."""
    if not (path / FILE_NAME).is_file():
        refuse_foreign_content(path)
        return None
    store = RunStore.open(path)
    if "imported" not in store.provenance:
        raise RecordError(f"{path} holds a run that was trained here: choose another folder for imported weights")
    return store


def _check_known(known: RunStore, config: TrainConfig, data: LongTailData) -> None:
    """Refuse, before anything is evaluated, to add to a run of other settings or data."""
    refuse_differences(known.path, differences(known.config, config.identity(), (*NOT_IDENTITY, "epochs"),
                                               TrainConfig().identity()))
    check_origin(known, config, data)
    if config.epochs < known.config["epochs"]:
        raise InputError(f"epochs={config.epochs} is out of range: {known.path} speaks of {known.config['epochs']} epochs, and "
                         "may become longer, not shorter")


def _arrivals(args: argparse.Namespace, config: TrainConfig, data: LongTailData) -> list[Arrival]:
    device = choose_device(config.device)
    data = data.to(device)
    model = build_network(config, data).to(device, getattr(torch, config.dtype))
    check_outputs(model, data, getattr(torch, config.dtype))
    return [_arrival(args, index, model, config, data) for index in range(len(args.weights))]


def _arrival(args: argparse.Namespace, index: int, model: nn.Module, config: TrainConfig, data: LongTailData) -> Arrival:
    weights, changes = _load(args, args.weights[index], model, config, data)
    epoch = args.epoch[index] if args.epoch else _said_epoch(args, weights, config)
    say(args, f"{weights.path}: {len(weights.tensors)} tensors fit {_called(config, data)}; epoch {epoch}")
    for line in (f"taken from the entry {weights.entry}; left beside it: {', '.join(weights.beside) or 'nothing'}"
                 if weights.entry else "", *changes, *(f"ignored: {pattern}" for pattern in args.ignore)):
        if line:
            say(args, f"  {line}")
    metrics = {}
    if args.evaluate:
        say(args, f"  evaluating on {len(data.test)} test images")
        groups = ClassGroups.standard(data.counts, config.eta, config.many, config.few)
        metrics = evaluate(model, data, groups.with_classes())
    source = {"file": weights.path.name, "sha256": weights.sha256, "entry": weights.entry, "beside": list(weights.beside),
              "changes": list(changes), "ignored": list(args.ignore), "epoch_in_file": weights.epoch}
    return Arrival(weights.path, weights.sha256, epoch, source, metrics)


def _load(args: argparse.Namespace, path: Path, model: nn.Module, config: TrainConfig,
          data: LongTailData) -> tuple[Weights, tuple[str, ...]]:
    weights = read_weights(path, args.entry)
    return weights, load_weights(model, weights, ignore=args.ignore, called=_called(config, data))


def _called(config: TrainConfig, data: LongTailData) -> str:
    return f"arch={config.arch} with the {data.num_classes} classes of dataset={config.dataset} and loss={config.loss}"


def _said_epoch(args: argparse.Namespace, weights: Weights, config: TrainConfig) -> int:
    if weights.epoch is not None:
        return weights.epoch
    if len(args.weights) > 1:
        raise InputError(f"{weights.path} does not say after how many epochs it was saved: give --epoch, one a file")
    say(args, f"note: {weights.path} does not say after how many epochs it was saved: taken for the last, {config.epochs}; "
              "--epoch N says otherwise")
    return config.epochs


def _check_epochs(known: RunStore | None, arrivals: list[Arrival], config: TrainConfig) -> None:
    seen: dict[int, Arrival] = {}
    for arrival in arrivals:
        epoch = arrival.epoch
        if not 0 <= epoch <= config.epochs:
            raise InputError(f"epoch={epoch} of {arrival.path} is out of range: expected 0 <= epoch <= epochs={config.epochs}; "
                             "--epochs says how long the training was")
        if epoch in seen:
            raise InputError(f"{seen[epoch].path} and {arrival.path} both say epoch {epoch}: give --epoch, one a file")
        seen[epoch] = arrival
    for epoch in seen if known else ():
        if known.has("checkpoint", epoch=epoch) and _stored_hash(known, epoch) != seen[epoch].sha256:
            raise RecordError(f"{known.path} holds epoch {epoch} from another file: choose another epoch or another --out")


def _stored_hash(store: RunStore, epoch: int) -> str | None:
    return store.read("checkpoint", epoch=epoch).provenance.get("imported", {}).get("sha256")


def _write(args: argparse.Namespace, known: RunStore | None, config: TrainConfig, data: LongTailData, arrivals: list[Arrival],
           stated: list[str]) -> RunStore:
    files = {str(a.epoch): {"file": a.source["file"], "sha256": a.sha256} for a in arrivals}
    made_from = origin(config, data, imported=files, stated=stated)
    store = known or open_run(args.out, config, made_from)
    model = build_network(config, data).to(getattr(torch, config.dtype))
    with store.writer():
        store.amend_config(epochs=config.epochs)
        store.amend_provenance(imported=store.provenance["imported"] | files,
                               stated=sorted({*store.provenance.get("stated", ()), *stated}))
        for arrival in arrivals:
            if sha256(arrival.path) != arrival.sha256:
                raise InputError(f"{arrival.path} has changed meanwhile: import it again")
            _load(args, arrival.path, model, config, data)
            store.write(Checkpoint(arrival.epoch, state_arrays(model),
                                   provenance(imported=arrival.source, data_hash=data.hash)))
        _add_metrics(store, arrivals)
        store.mark_finished()
    return store


def _add_metrics(store: RunStore, arrivals: list[Arrival]) -> None:
    rows: dict[int, dict] = {int(row["epoch"]): row for row in read_rows(store.path / METRICS)}
    rows |= {a.epoch: {"epoch": a.epoch} | a.metrics for a in arrivals if a.metrics}
    recorder = store.recorder()     # starts anew: an imported run has no point to resume from
    for epoch in sorted(rows):
        recorder.epoch(rows[epoch])


def _report(args: argparse.Namespace, store: RunStore, arrivals: list[Arrival]) -> None:
    groups = [group for group in GROUPS if any(f"test_accuracy/{group}" in a.metrics for a in arrivals)]
    if groups:
        say(args, f"\n{'test accuracy in %':24}" + "".join(f"{group:>8}" for group in groups))
    for arrival in arrivals if groups else ():
        for measure, words in (("test_accuracy", ""), ("test_accuracy_flip", ", flips averaged")):
            if f"{measure}/all" in arrival.metrics:
                cells = "".join(f"{100 * arrival.metrics[f'{measure}/{group}']:8.1f}" for group in groups)
                say(args, f"{f'epoch {arrival.epoch}{words}':24}{cells}")
    if groups:
        say(args, "If their author reports other numbers, look at --dataset, --normalization, --subset and --arch.")
    say(args, f"\nnext: landscape spectrum {store.path}")
    emit_json(args, {"run": store.path, "epochs": store.epochs, "config": store.config,
                     "imported": [a.source | {"epoch": a.epoch, "metrics": a.metrics} for a in arrivals]})
