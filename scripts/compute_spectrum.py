"""`landscape spectrum RUN`: eigenspectra of class groups at stored checkpoints, with intervals and residuals.

`torchrun --nproc_per_node N -m scripts.cli spectrum RUN` shares the images among N processes; the first alone writes and prints.
"""

import argparse
import re
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
    "trace_error": "in place of --trace_probes: as many products as this standard error of the trace needs, relative to it",
    "max_samples": "images of a group, drawn with --seed; default: all", "batch_size": "images in a batch",
    "split": "un-augmented training images, or test images", "loss": "cross-entropy, or the run's training loss",
    "dtype": "of the products; pairs are verified in float64 all the same", "seed": "of probes and subsets",
    "operator": "the Hessian, or its positive semi-definite part",
    "params": "parameters that form theta, by name patterns such as 'layer1.*'; stored as GROUP@layer1; default: all"}
KINDS = {"max_samples": int, "trace_error": float, "params": str}      # of settings whose default is None
UNITS = {"": 1, "k": 10**3, "m": 10**6, "g": 10**9, "t": 10**12, "ki": 2**10, "mi": 2**20, "gi": 2**30, "ti": 2**40}
TABLE_FROM = 7      # spectra; fewer are printed at length


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("runs", nargs="+", type=Path, metavar="RUN", help="run folder")
    parser.add_argument("--group", nargs="+", default=["head", "tail"], metavar="GROUP",
                        help="all, head, tail, many, medium, few, class:N, or classes for every one")
    add_epoch_argument(parser)
    _add_settings(parser)
    _add_making(parser)
    parser.add_argument("--verify", choices=("pyhessian",), help="compute the top eigenvalue and the trace with this library too")
    parser.add_argument("--overwrite", action="store_true", help="replace a stored record of other settings")
    add_place_arguments(parser)
    add_common_arguments(parser, dry_run=True)


def _add_settings(parser: argparse.ArgumentParser) -> None:
    from analysis import settings
    choices = {"split": settings.SPLITS, "loss": settings.LOSSES, "dtype": settings.DTYPES, "operator": settings.OPERATORS}
    either = parser.add_mutually_exclusive_group()
    for setting in fields(settings.SpectrumSettings):
        several = {"nargs": "+", "metavar": "PATTERN"} if setting.name == "params" else {}
        place = either if setting.name in ("trace_probes", "trace_error") else parser
        place.add_argument(f"--{setting.name}", type=KINDS.get(setting.name) or type(setting.default), default=setting.default,
                           help=TEXTS[setting.name], choices=choices.get(setting.name), **several)


def _add_making(parser: argparse.ArgumentParser) -> None:
    """Add how products are made: the record does not depend on it, but for rounding."""
    parser.add_argument("--engine", default="auto", help="auto: the fastest that passes its checks; or linearized, jvp, reverse, "
                        "differences (inexact), each but the last also with -compiled")
    parser.add_argument("--microbatch", type=_microbatch, default="auto", metavar="N",
                        help="images evaluated at once, whatever the batch size; auto: by timing")
    parser.add_argument("--memory", type=memory_size, default="auto", metavar="BYTES",
                        help="that microbatches kept between products may take, such as 4GiB; auto: a share of what is free")


def _microbatch(text: str) -> int | str:
    if text == "auto" or text.isdecimal() and int(text) > 0:
        return text if text == "auto" else int(text)
    raise argparse.ArgumentTypeError(f"microbatch={text} is out of range: expected auto or an integer >= 1")


def memory_size(text: str) -> float | str:
    """Read a number of bytes: 4GiB, 500MB, 2e9, 0; or auto."""
    if text == "auto":
        return text
    found = re.fullmatch(r"([0-9]+(?:\.[0-9]*)?(?:e[0-9]+)?)\s*((?:[kmgt]i?)?)b?", text.strip().lower())
    if found is None:
        raise argparse.ArgumentTypeError(f"memory={text} is out of range: expected auto, or bytes such as 4GiB, 500MB or 0")
    return float(found[1]) * UNITS[found[2]]


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
    from landscape.distributed import init_from_environment, is_main
    with init_from_environment():
        heard = not (args.quiet or args.json)       # on every process alike: they forecast together
        if not is_main():
            args.quiet, args.json = True, False
        return _run(args, heard)


def _run(args: argparse.Namespace, heard: bool) -> int:
    from landscape.distributed import main_first
    from analysis.settings import Making, SpectrumSettings
    from analysis.subject import Subject
    from checkpoints.store import RunStore

    settings = SpectrumSettings(**{f.name: getattr(args, f.name) for f in fields(SpectrumSettings)})
    making = Making(args.engine, args.microbatch, args.memory)
    plans = [(store, chosen_epochs(store, args.epoch)) for store in map(RunStore.open, args.runs)]
    shown, traces = [], {}
    for store, epochs in plans:
        with main_first():      # where data are downloaded, once
            subject = Subject.open(store, data_dir=args.data_dir, device=args.device, traces=traces)
        groups = _groups(subject, args.group)
        _say_plan(args, store, epochs, groups, settings)
        if args.dry_run:
            shown.append({"run": str(store.path), **_forecast(args, subject, epochs, groups, settings, making).document})
        else:
            if heard:
                _forecast(args, subject, epochs, groups, settings, making)
            rows = _compute(args, subject, epochs, groups, settings, making)
            shown += rows
            say(args, "\n".join(_table(rows) if len(rows) >= TABLE_FROM else [line for row in rows for line in _lines(row)]))
    emit_json(args, {"forecast" if args.dry_run else "spectra": shown})
    if not args.dry_run:
        say(args, f"next: landscape figures spectra {' '.join(map(str, args.runs))}")
    return 0


def _say_plan(args: argparse.Namespace, store, epochs: list[int], groups: list[str], settings) -> None:
    names = ", ".join(groups) if len(groups) < TABLE_FROM else f"{len(groups)} groups ({groups[0]} ... {groups[-1]})"
    times = ", ".join(map(str, epochs)) if len(epochs) < TABLE_FROM else f"{len(epochs)} of {epochs[0]} ... {epochs[-1]}"
    say(args, f"{store.path}: {names} at epoch {times}; at most {settings.products} products for each of "
              f"{len(groups) * len(epochs)} spectra")


def _forecast(args: argparse.Namespace, subject, epochs: list[int], groups: list[str], settings, making):
    """Forecast the spectra that are not stored yet, and say it; None where there is none."""
    from analysis.settings import stored_group
    from scripts.forecast import of_spectra
    missing = [(epoch, group) for epoch in epochs for group in groups if args.dry_run or args.overwrite or
               not subject.store.has("curvature", epoch=epoch, group=stored_group(group, settings))]
    if not missing:
        return None
    subject.load(missing[0][0])
    names = list(dict.fromkeys(group for _, group in missing))
    forecast = of_spectra(subject, names, len(dict.fromkeys(epoch for epoch, _ in missing)), settings, making)
    say(args, forecast.line)
    return forecast


def _compute(args: argparse.Namespace, subject, epochs: list[int], groups: list[str], settings, making) -> list[dict]:
    from analysis.pipeline import compute_curvature
    rows, each, place = [], settings.products, str(subject.store.path)
    with Progress(each * len(groups) * len(epochs), place, quiet=args.quiet or args.json, unit="product") as bar:
        for epoch, group in ((epoch, group) for epoch in epochs for group in groups):
            bar.set_description(f"{group}, epoch {epoch}")
            record, fresh = compute_curvature(subject, epoch, group, settings, making=making, progress=bar.update,
                                              verify=args.verify, overwrite=args.overwrite)
            rows.append({"run": place, **summary(record), "stored_before": not fresh})
            bar.update(each * len(rows) - bar.done)      # what converged early, or was stored before, is done too
    return rows


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
        "choice": record.provenance.get("choice", {}), "engine_reasons": record.provenance.get("engine_reasons", {}),
        "lambda_min": _pair(pairs, 0), "lambda_max": _pair(pairs, -1), "missed_below": _estimate(pairs.missed_below),
        "trace": _estimate(record.trace) | record.provenance.get("trace", {}),
        "negative_mass": _estimate(record.negative_mass) | {"threshold": record.threshold},
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
             f"test accuracy {row['test_accuracy']:.1%}, |gradient| {row['gradient_norm']:.3g}",
             f"  {'engine':14} {_engine(row)}"]
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
        short = "" if value.get("reached", True) else f"; {value['num_matvecs']} products did not reach the error asked for"
        lines.append(f"  {name:14} {value['value']:.5g} {limits} ({value['kind']}, {value['level']:.0%}{short})")
    lines += [f"  {name:14} {value:.6g}" for name, value in row["second_opinion"].items()]
    return lines


def _engine(row: dict) -> str:
    """Write the engine that made the products, how, and why others were not taken."""
    how = ", ".join(f"{name} {value}" for name, value in row["choice"].items() if name != "engine")
    why = "; ".join(f"not {name}: {reason}" for name, reason in row["engine_reasons"].items())
    return f"{row['engine']}{f' ({how})' if how else ''}{f'; {why}' if why else ''}"


def _table(rows: list[dict]) -> list[str]:
    """Write many spectra as a table, a line each; the intervals are in the records and in `--json`."""
    lines = [f"{'epoch':>5} {'group':16} {'images':>11} {'loss':>9} {'lambda_min':>22} {'lambda_max':>22} {'trace':>11} "
             f"{'negative mass':>13}"]
    for row in rows:
        low, high = (f"{row[name]['value']:+.4g} +- {row[name]['residual']:.0e}" for name in ("lambda_min", "lambda_max"))
        used = f"{row['num_samples']} / {row['num_available']}"
        lines.append(f"{row['epoch']:5} {row['group']:16} {used:>11} {row['loss']:9.4g} {low:>22} {high:>22} "
                     f"{row['trace']['value']:11.4g} {row['negative_mass']['value']:13.3g}")
    return [*lines, f"+- is the residual; engine {', '.join(sorted({row['engine'] for row in rows}))}, why: --json"]


def _groups(subject, wanted: list[str]) -> list[str]:
    """Return the groups asked for, each known and not empty."""
    names = [name for word in wanted
             for name in ([f"class:{c}" for c in range(subject.data.num_classes)] if word == "classes" else [word])]
    for name in names:
        subject.groups.select(name)
    return list(dict.fromkeys(names))
