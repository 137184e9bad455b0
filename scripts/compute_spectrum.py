"""`landscape spectrum RUN`: eigenspectra of class groups at stored checkpoints, with intervals and residuals."""

import argparse
from dataclasses import fields
from pathlib import Path

from checkpoints.errors import RecordError
from checkpoints.records import Curvature, Estimate
from scripts.options import Progress, add_common_arguments, emit_json, say

NAME = "spectrum"
HELP = "compute Hessian eigenspectra of class groups at the checkpoints of a run"

TEXTS = {
    "num_matvecs": "Lanczos steps of each probe", "num_probes": "independent random starts; one gives no interval",
    "num_pairs": "eigenpairs at each end", "tol": "a pair has converged when its residual is below tol * |lambda|",
    "max_matvecs": "products for the pairs beyond those of the probes", "trace_probes": "products for the trace",
    "max_samples": "images of a group, drawn with --seed; default: all", "batch_size": "images evaluated at once",
    "split": "un-augmented training images, or test images", "loss": "cross-entropy, or the run's training loss",
    "dtype": "of the products; pairs are verified in float64 all the same", "seed": "of probes and subsets"}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    from analysis import settings
    choices = {"split": settings.SPLITS, "loss": settings.LOSSES, "dtype": settings.DTYPES}
    parser.add_argument("runs", nargs="+", type=Path, metavar="RUN", help="run folder")
    parser.add_argument("--group", nargs="+", default=["head", "tail"], metavar="GROUP",
                        help="all, head, tail, many, medium, few, class:N, or classes for every one")
    add_epoch_argument(parser)
    for setting in fields(settings.SpectrumSettings):
        kind = int if setting.default is None else type(setting.default)
        parser.add_argument(f"--{setting.name}", type=kind, default=setting.default, help=TEXTS[setting.name],
                            choices=choices.get(setting.name))
    parser.add_argument("--verify", choices=("pyhessian",), help="compute the top eigenvalue and the trace with this library too")
    parser.add_argument("--overwrite", action="store_true", help="replace a stored record of other settings")
    add_place_arguments(parser)
    add_common_arguments(parser, dry_run=True)


def add_epoch_argument(parser: argparse.ArgumentParser) -> None:
    """Add `--epoch`, the checkpoints that a command works on."""
    parser.add_argument("--epoch", nargs="+", default=["last"], metavar="EPOCH", help="last, all, or numbers of stored epochs")


def add_place_arguments(parser: argparse.ArgumentParser) -> None:
    """Add where the data lie and where to compute."""
    parser.add_argument("--data_dir", type=Path, metavar="DIR",
                        help="where CIFAR lies; default: $LANDSCAPE_DATA_DIR, else ./datasets")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda or cuda:N")


def run(args: argparse.Namespace) -> int:
    """Compute the spectra that are not stored yet and print all of them."""
    from analysis.pipeline import Subject, compute_curvature
    from analysis.settings import SpectrumSettings
    from checkpoints.store import RunStore

    settings = SpectrumSettings(**{f.name: getattr(args, f.name) for f in fields(SpectrumSettings)})
    stores = [RunStore.open(path) for path in args.runs]
    plans = [(store, chosen_epochs(store, args.epoch)) for store in stores]
    shown, traces = [], {}
    for store, epochs in plans:
        known = traces.setdefault(store.config.get("arch"), {})
        subject = Subject.open(store, data_dir=args.data_dir, device=args.device, traces=known)
        groups = _groups(subject, args.group)
        each = settings.num_matvecs * settings.num_probes + settings.max_matvecs + settings.trace_probes
        say(args, f"{store.path}: {', '.join(groups)} at epoch {', '.join(map(str, epochs))}; "
                  f"at most {each} products for each of {len(groups) * len(epochs)} spectra")
        if args.dry_run:
            shown.append({"run": str(store.path), **_forecast(subject, epochs[0], groups, settings, each * len(epochs))})
            say(args, "forecast: at most {minutes:.1f} minutes and {gigabytes:.2f} GiB on {device}, engine {engine}"
                .format(**shown[-1]))
            continue
        with Progress(each * len(groups) * len(epochs), str(store.path), quiet=args.quiet or args.json, unit="product") as bar:
            for index, (epoch, group) in enumerate((e, g) for e in epochs for g in groups):
                bar.set_description(f"{group}, epoch {epoch}")
                record, fresh = compute_curvature(subject, epoch, group, settings, progress=bar.update, verify=args.verify,
                                                  overwrite=args.overwrite)
                bar.update(each * (index + 1) - bar.done)      # what converged early, or was stored before, is done too
                shown.append({"run": str(store.path), **summary(record), "stored_before": not fresh})
        for row in shown[-len(groups) * len(epochs):]:
            say(args, "\n".join(_lines(row)))
    emit_json(args, {"forecast" if args.dry_run else "spectra": shown})
    if not args.dry_run:
        say(args, f"next: landscape figures spectra {' '.join(map(str, args.runs))}")
    return 0


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
        elif word.isdigit() and int(word) in stored:
            chosen.add(int(word))
        else:
            raise RecordError(f"{store.path} holds no checkpoint of epoch {word}: expected last, all, or some of "
                              f"{', '.join(map(str, stored))}")
    return sorted(chosen)


def summary(record: Curvature) -> dict:
    """Return a record's main numbers, as JSON can hold them."""
    pairs = record.eigenpairs
    return {
        "epoch": record.epoch, "group": record.group, "num_samples": record.num_samples, "num_available": record.num_available,
        "loss": record.loss, "accuracy": record.accuracy, "test_accuracy": record.test_accuracy,
        "gradient_norm": record.gradient_norm, "engine": record.provenance.get("engine"),
        "engine_reasons": record.provenance.get("engine_reasons", {}),
        "lambda_min": _pair(pairs, 0), "lambda_max": _pair(pairs, -1), "missed_below": _estimate(pairs.missed_below),
        "trace": _estimate(record.trace), "negative_mass": _estimate(record.negative_mass) | {"threshold": record.threshold},
        "extreme_ratio": _estimate(record.extreme_ratio), "second_opinion": record.second_opinion,
        "num_matvecs": record.provenance.get("num_matvecs"), "seconds": record.provenance.get("seconds")}


def _pair(pairs, index: int) -> dict:
    return {"value": float(pairs.values[index]), "residual": float(pairs.residuals[index]),
            "converged": bool(pairs.converged[index]), "sign_verified_in_float64": bool(pairs.verified[index])}


def _estimate(estimate: Estimate) -> dict:
    return {"value": estimate.value, "low": estimate.low, "high": estimate.high, "level": estimate.level, "kind": estimate.kind}


def _lines(row: dict) -> list[str]:
    """Write one spectrum as a few readable lines."""
    used = row["num_samples"] if row["num_samples"] == row["num_available"] else f"{row['num_samples']} of {row['num_available']}"
    lines = [f"epoch {row['epoch']}, {row['group']} ({used} images): loss {row['loss']:.4g}, "
             f"test accuracy {row['test_accuracy']:.1%}, |gradient| {row['gradient_norm']:.3g}, engine {row['engine']}"]
    for name in ("lambda_min", "lambda_max"):
        pair = row[name]
        words = ["converged" if pair["converged"] else "not converged"]
        words += ["sign verified in float64"] if pair["sign_verified_in_float64"] else []
        lines.append(f"  {name:14} {pair['value']:+.6g} +- {pair['residual']:.1e} (residual; {', '.join(words)})")
    missed = row["missed_below"]
    lines.append(f"  nothing below  {missed['low']:+.6g} (missed with probability {1 - missed['level']:.0%})")
    for name in ("trace", "negative_mass", "extreme_ratio"):
        value = row[name]
        limits = f"[{value['low']:.4g}, {value['high']:.4g}]"
        lines.append(f"  {name:14} {value['value']:.5g} {limits} ({value['kind']}, {value['level']:.0%})")
    lines += [f"  {name:14} {value:.6g}" for name, value in row["second_opinion"].items()]
    return lines


def _groups(subject, wanted: list[str]) -> list[str]:
    """Return the groups asked for, each known and not empty."""
    names = [name for word in wanted
             for name in ([f"class:{c}" for c in range(subject.data.num_classes)] if word == "classes" else [word])]
    for name in names:
        subject.groups.select(name)
    return list(dict.fromkeys(names))


def _forecast(subject, epoch: int, groups: list[str], settings, products: int) -> dict:
    """Time one block of products of each group and return what all of them would take."""
    import time

    import torch

    from analysis.operators import HessianOperator
    from analysis.pipeline import group_batches
    from landscape.losses import build_loss

    subject.load(epoch)
    seconds = held = 0.0
    for group in groups:
        operator = HessianOperator(subject.model, build_loss("CE", subject.data.counts),
                                   group_batches(subject, group, settings)[0])
        block = torch.ones(settings.num_probes, operator.size, dtype=operator.dtype, device=operator.device)
        operator.matmat(block)
        started = time.perf_counter()
        operator.matmat(block)
        seconds += (time.perf_counter() - started) / settings.num_probes * products
        held += operator.held_bytes + 4 * operator.size * settings.num_probes * (settings.num_matvecs + 1)
    return {"products": products * len(groups), "minutes": seconds / 60, "gigabytes": held / 2**30,
            "device": str(operator.device), "engine": operator.engine}
