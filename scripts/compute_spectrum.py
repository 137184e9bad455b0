"""`landscape spectrum RUN`: eigenspectra of class groups at stored checkpoints, with intervals and residuals.

`torchrun --nproc_per_node N -m scripts.cli spectrum RUN` shares the images among N processes; the first alone writes and prints.
"""

import argparse
import re
import shlex
from dataclasses import fields
from pathlib import Path

from checkpoints.errors import RecordError
from landscape.settings import check_seed
from scripts.options import Progress, add_common_arguments, emit_json, say, tell
from scripts.run_arguments import (add_epoch_argument, add_place_arguments, check_device, check_groups, chosen_epochs,
                                   named_groups)
from scripts.spectrum_plan import SpectraPlan, plan_spectra
from scripts.spectrum_words import TABLE_FROM, summary, told
from scripts.verdict_options import stated_weight_decay

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


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("runs", nargs="+", type=Path, metavar="RUN", help="run folder")
    parser.add_argument("--group", nargs="+", default=["head", "tail"], metavar="GROUP",
                        help="all, head, tail, many, medium, few, class:N, or classes for every one")
    add_epoch_argument(parser)
    _add_settings(parser)
    _add_making(parser)
    parser.add_argument("--verify", choices=("pyhessian",), help="compute the top eigenvalue and the trace with this library too")
    parser.add_argument("--overwrite", action="store_true", help="compute again what is stored, and replace it")
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
    from analysis.settings import ENGINES
    parser.add_argument("--engine", default="auto", help="auto: the fastest that passes its checks; or one of "
                        f"{', '.join(ENGINES)}; differences is inexact")
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


def run(args: argparse.Namespace) -> int:
    """Compute the spectra that are not stored yet and print all of them."""
    settings, making = _asked(args)
    from landscape.distributed import init_from_environment, is_main
    with init_from_environment():
        heard = not (args.quiet or args.json)       # on every process alike: they forecast together
        if not is_main():
            args.quiet, args.json = True, False
        return _run(args, settings, making, heard)


def _asked(args: argparse.Namespace):
    """Check what can be checked without the run, before anything heavy is loaded."""
    from analysis.settings import Making, SpectrumSettings
    check_groups(args.group)
    check_device(args.device)
    check_seed(args.seed)
    settings = SpectrumSettings(**{f.name: getattr(args, f.name) for f in fields(SpectrumSettings)})
    return settings, Making(args.engine, args.microbatch, args.memory)


def _run(args: argparse.Namespace, settings, making, heard: bool) -> int:
    from checkpoints.store import RunStore
    plans = [(store, chosen_epochs(store, args.epoch)) for store in map(RunStore.open, args.runs)]
    shown, others, traces = [], [], {}
    for store, epochs in plans:
        rows, other = _of_run(args, store, epochs, settings, making, heard, traces)
        shown, others = shown + rows, others + other
    emit_json(args, {"forecast" if args.dry_run else "spectra": shown} | ({"refused": list(map(str, others))} if others else {}))
    if shown and not args.dry_run:
        say(args, f"next: landscape figures {next_figure(shown, args.group)}")
    _refuse(others, len(shown))
    return 0


def _of_run(args: argparse.Namespace, store, epochs: list[int], settings, making, heard: bool,
            traces: dict) -> tuple[list[dict], list[RecordError]]:
    """Compute, or with `--dry_run` forecast, the spectra of one run; return them and what was refused."""
    from analysis.subject import Subject
    from landscape.distributed import main_first
    tell(args, f"{store.path}: reading data")
    with main_first():      # where data are downloaded, once
        subject = Subject.open(store, data_dir=args.data_dir, device=args.device, traces=traces)
    groups = named_groups(subject, args.group)
    _say_plan(args, store, epochs, groups, settings)
    plan = plan_spectra(subject, epochs, groups, settings, making, overwrite=args.overwrite)
    for line in plan.lines:
        tell(args, line)
    if args.dry_run:
        return [{"run": str(store.path), **_forecast(args, subject, plan).document}], []
    if heard:
        _foretell(args, subject, plan)
    rows, others = _compute(args, subject, epochs, groups, settings, making)
    if rows:
        say(args, told(rows))
    return rows, others


def next_figure(shown: list[dict], asked: list[str]) -> str:
    """Return which figure shows the spectra just made, as words of a command line: many in a table, all classes as a word."""
    groups, runs = (list(dict.fromkeys(row[name] for row in shown)) for name in ("group", "run"))
    if len(groups) < TABLE_FROM:
        return shlex.join(["spectra", *runs, "--group", *groups])
    return shlex.join(["curvature_table", *runs, "--group", *(groups if any("@" in group for group in groups) else asked)])


def _refuse(others: list, shown: int) -> None:
    """End with one line where stored records are of other settings or engines; everything else is done."""
    if len(others) == 1:
        raise others[0]
    if others:
        found = "; ".join(other.found for other in others[:3]) + f"; and {len(others) - 3} more" * (len(others) > 3)
        raise RecordError(f"{len(others)} of {len(others) + shown} spectra were left as they are: {found}; replace them with "
                          "--overwrite, or keep them and ask for the same")


def _say_plan(args: argparse.Namespace, store, epochs: list[int], groups: list[str], settings) -> None:
    names = ", ".join(groups) if len(groups) < TABLE_FROM else f"{len(groups)} groups ({groups[0]} ... {groups[-1]})"
    times = ", ".join(map(str, epochs)) if len(epochs) < TABLE_FROM else f"{len(epochs)} of {epochs[0]} ... {epochs[-1]}"
    say(args, f"{store.path}: {names} at epoch {times}; at most {settings.products} products for each of "
              f"{len(groups) * len(epochs)} spectra")


def _foretell(args: argparse.Namespace, subject, plan: SpectraPlan) -> None:
    """Forecast what is missing; where an earlier process began with it, go on at once with what that one chose."""
    if plan.interrupted(subject):
        tell(args, "going on with an interrupted spectrum: no forecast; preparing its products as they were made")
    elif plan.missing:
        _forecast(args, subject, plan)


def _forecast(args: argparse.Namespace, subject, plan: SpectraPlan):
    """Forecast the spectra that are missing, and say it."""
    forecast = plan.forecast(subject, lambda text: tell(args, text))
    say(args, forecast.line)
    return forecast


def _compute(args: argparse.Namespace, subject, epochs: list[int], groups: list[str], settings,
             making) -> tuple[list[dict], list[RecordError]]:
    """Compute what is not stored; return the spectra, and the refusals of records that were computed otherwise."""
    from analysis.pipeline import compute_curvature
    from analysis.stored import OtherRecord
    rows, others, each, place = [], [], settings.products, str(subject.store.path)
    todo = [(epoch, group) for epoch in epochs for group in groups]
    with Progress(each * len(todo), place, quiet=args.quiet or args.json, unit="product") as bar:
        for count, (epoch, group) in enumerate(todo, 1):
            bar.set_description(f"{group}, epoch {epoch}")
            fresh = False
            try:
                record, fresh = compute_curvature(subject, epoch, group, settings, making=making, progress=bar.update,
                                                  recalled=bar.recalled, verify=args.verify, overwrite=args.overwrite)
                rows.append({"run": place, **summary(record, stated_weight_decay(subject.store)), "stored_before": not fresh})
            except OtherRecord as other:
                others.append(other)
            if not fresh:
                bar.recalled(each)
            bar.update(each * count - bar.done)      # what converged early, or was stored before, is done too
    return rows, others
