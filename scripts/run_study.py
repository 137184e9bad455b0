"""`landscape study NAME|FILE.toml`: train every method with every seed, compute spectra and surfaces, draw, print the answer."""

import argparse
import json
import os
import sys
import time
from importlib.util import find_spec
from pathlib import Path

from scripts.options import Progress, add_common_arguments, emit_json, say, tell, tell_reading

NAME = "study"
HELP = "run a whole study: training, spectra, surfaces, measures, figures, tables and a report"
MECHANISM = ("alignment", "amplification", "toy", "ablation", "similarity", "quality")     # on the report where they are drawn


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("study", metavar="STUDY", help="digits, family, or the TOML file of a study (--print_config writes one)")
    parser.add_argument("--out", type=Path, metavar="DIR", help="folder of the study; default: runs/NAME")
    parser.add_argument("--print_config", action="store_true", help="print the study as TOML, to start one of your own, and stop")
    parser.add_argument("--workers", type=int, metavar="N", help="processes, or 0: one for each core, one on a GPU; default: "
                        "the study's")
    parser.add_argument("--data_dir", type=Path, metavar="DIR",
                        help="where CIFAR lies; default: $LANDSCAPE_DATA_DIR, else ./datasets")
    add_common_arguments(parser, dry_run=True)


def run(args: argparse.Namespace) -> int:
    """Compute what is not stored yet, draw everything, print the tables and name the page to open."""
    from scripts.study_plan import Study
    study = Study.read(args.study)
    if args.print_config:
        print(study.as_toml(), end="")
        return 0
    folder = args.out or Path("runs") / study.name
    runs, started = study.runs(), time.perf_counter()
    say(args, _outline(study, runs))
    tell_reading(args, runs[0].config.dataset)
    data = _data(runs[0].config, args.data_dir)
    if args.dry_run:
        return _forecast(args, study, runs, data)
    _claim(folder, study)
    if (status := _compute(args, study, runs, folder, len(data.train))) is not None:
        return status
    pictures = _draw(args, study, runs, folder)
    page = _write_page(args, study, runs, folder)
    document = _summarize(args, folder, study, runs, time.perf_counter() - started)
    emit_json(args, document)
    say(args, f"\nopen {page or pictures[0]}")
    return 0


def _data(config, data_dir: Path | None):
    from landscape.training import training_data
    return training_data(config, data_dir)


def _outline(study, runs) -> str:
    spectra = sum(len(run.spectrum_epochs) * len(run.groups) for run in runs)
    products = sum(len(run.spectrum_epochs) * len(run.groups) * run.spectrum.products for run in runs)
    return (f"{study.name}: {len(study.methods)} methods ({', '.join(study.methods)}) x {len(study.seeds)} seeds, "
            f"{spectra} spectra (at most {products} products), {sum(len(run.surfaces) for run in runs)} surfaces")


def _forecast(args: argparse.Namespace, study, runs, data) -> int:
    """Time a few steps of each method, and products and points of the network as it starts; nothing is written."""
    from analysis.settings import Making
    from analysis.subject import Subject
    from scripts.forecast import of_spectra, of_surfaces, of_training
    first, methods, workers = runs[0], runs[:len(study.methods)], min(_workers(args, study), len(runs))
    tell(args, f"timing a few steps of each of {len(methods)} methods, a few products and points")
    subject = Subject.of(first.config, data, device=first.config.device)
    total = of_spectra(subject, first.groups * len(first.spectrum_epochs), first.spectrum, Making()).times(len(runs))
    total += of_surfaces(subject, [settings for run in runs for _, _, settings in run.surfaces])
    for run in methods:
        total += of_training(run.config.resolved(data), data).times(len(study.seeds))
    forecast = total.shared(workers)
    say(args, forecast.line + f", {workers} processes")
    emit_json(args, {"study": study.name, "runs": [run.name for run in runs], "outline": _outline(study, runs),
                     "forecast": forecast.document})
    return 0


def _claim(folder: Path, study) -> None:
    """Write the study into its folder; refuse a folder of another study or of somebody else's files."""
    from checkpoints.atomic import make_folder, write_text
    from checkpoints.errors import RecordError
    path, text = folder / "study.toml", study.as_toml()
    if path.is_file() and path.read_text(encoding="utf-8") != text:
        raise RecordError(f"{folder} holds a study of other settings ({path}): choose another folder with --out")
    if not path.is_file() and folder.is_dir() and any(folder.iterdir()):
        raise RecordError(f"{folder} is no study folder and not empty: choose another with --out")
    make_folder(folder)
    write_text(path, text)


def _compute(args: argparse.Namespace, study, runs, folder: Path, images: int) -> int | None:
    """Compute what is not stored; return the exit status where a signal ended it, which loses nothing."""
    from scripts.interruptions import Interruption
    from scripts.study_work import Work
    from scripts.study_worker import Stopped, perform
    workers, quiet = min(_workers(args, study), len(runs)), args.quiet or args.json
    total = sum(Work(run, images).units for run in runs)
    with Interruption(quiet=quiet) as asked, Progress(total, study.name, quiet=quiet) as bar:
        try:
            perform(runs, folder, args.data_dir, workers, lambda n, worked: (bar.update if worked else bar.skip)(n), asked)
        except Stopped:
            print(f"{folder}: stopped by {asked.name}, nothing is lost; the same command goes on", file=sys.stderr)
            return asked.status
    return None


def _workers(args: argparse.Namespace, study) -> int:
    from landscape.errors import InputError
    if args.workers is not None and args.workers < 0:
        raise InputError(f"workers={args.workers} is out of range: expected processes, or 0 for one for each core")
    import torch
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return (study.workers if args.workers is None else args.workers) or (1 if torch.cuda.is_available() else cores)


def _draw(args: argparse.Namespace, study, runs, folder: Path) -> list[Path]:
    """Draw the figures that the study asks for and the records allow; return the pictures."""
    from checkpoints.atomic import make_folder
    from checkpoints.errors import RecordError
    from figures.catalogue import write
    from figures.options import Options
    from scripts.study_presets import FIGURES
    names = study.figures.get("names", FIGURES)
    pooled = _pooled(study, runs, folder)
    target, pictures, reasons = folder / "figures", [], []
    make_folder(target)
    with Progress(len(names), "figures", quiet=args.quiet or args.json, unit="figure") as bar:
        for name in names:
            try:
                pictures += write(name, pooled, target, Options(groups=runs[0].groups),
                                  study.figures.get("format", ("png", "pdf")), study.figures.get("dpi", 200))
            except RecordError as reason:
                reasons.append(f"{name}: {reason}")
                say(args, f"not drawn: {reasons[-1]}")
            bar.update()
    if not pictures:
        raise RecordError(f"{folder}: no figure could be drawn; {'; '.join(reasons[:1])}")
    return sorted(pictures, key=lambda path: path.suffix != ".png")


def _pooled(study, runs, folder: Path):
    from scripts.draw_figures import compare_folders
    return compare_folders([folder / run.name for run in runs], study.vary)


def _write_page(args: argparse.Namespace, study, runs, folder: Path) -> Path | None:
    """Write the report of all runs beside them, its surface interactive where plotly is installed."""
    if not study.figures.get("page", True):
        return None
    from figures.options import Options
    from figures.report import page_of
    from scripts.write_report import FILE, write_page
    still = find_spec("plotly") is None
    with Progress(None, "report", quiet=args.quiet or args.json, unit="part") as bar:
        page = page_of(_pooled(study, runs, folder), Options(groups=runs[0].groups), still=still,
                       figures=[name for name in study.figures.get("names", ()) if name in MECHANISM],
                       command=["landscape", "report", str(folder)], told=lambda name: bar.update())
    return write_page(folder / FILE, page)


def _summarize(args: argparse.Namespace, folder: Path, study, runs, seconds: float) -> dict:
    """Print the tables of the study; return them, stored as summary.json."""
    import pandas as pd

    from analysis.findings import summary
    from analysis.findings.methods import methods_table
    from checkpoints.atomic import write_text
    from checkpoints.provenance import provenance
    from scripts.published_table import departure_lines, published_table
    pooled = _pooled(study, runs, folder)
    accuracy = summary.accuracy_table(pooled)
    epochs = runs[0].spectrum_epochs
    curvature = [summary.curvature_table(pooled, epoch, runs[0].groups) for epoch in epochs]
    _print_accuracy(args, accuracy, len(study.seeds))
    _print_curvature(args, curvature[-1], epochs[-1])
    beside, departing = published_table(pooled), departure_lines(pooled)
    _print_published(args, beside, departing)
    document = {"study": study.name, "seeds": list(study.seeds), "seconds_of_this_call": seconds,
                "accuracy": summary.as_json(accuracy), "curvature": summary.as_json(pd.concat(curvature)),
                "published": [] if beside is None else summary.as_json(beside.rename_axis(["opt", "how"])),
                "departures_from_the_recipe": departing, "provenance": provenance()}
    if "methods_table" in study.figures.get("names", ()):
        document["methods"] = summary.as_json(methods_table(pooled, epochs[-1], runs[0].groups))
    write_text(folder / "summary.json", json.dumps(document, indent=1) + "\n")
    return document


def _print_accuracy(args: argparse.Namespace, table, num_seeds: int) -> None:
    from analysis.findings import summary
    groups = [name for name in summary.ACCURACY_GROUPS if name in table]
    say(args, f"\ntest accuracy in % after the last epoch, mean ± 95 % interval over {num_seeds} seeds")
    say(args, summary.as_text(table, groups, percent=True))


def _print_published(args: argparse.Namespace, table, departures: list[str]) -> None:
    if table is None:
        return
    say(args, "\ntest accuracy in % beside the published one (see the recipe's traps: landscape inspect RUN)")
    say(args, table.to_string(float_format=lambda value: f"{value:.1f}"))
    if departures:
        say(args, "no reproduction, for these runs depart from the recipe: " + "; ".join(departures))


def _print_curvature(args: argparse.Namespace, table, epoch: int) -> None:
    from analysis.findings import summary
    say(args, f"\ncurvature after epoch {epoch}: extreme eigenvalues of each group's Hessian; negative mass below "
              f"−{table['threshold'].iloc[0]:.3g}")
    names = ["lambda_min", "lambda_max", "extreme_ratio", "negative_mass", "trace", "loss", "gradient_norm"]
    say(args, summary.as_text(table, names))
