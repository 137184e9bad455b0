"""`landscape surface RUN`: loss and accuracy of every class group on a line or plane through stored checkpoints."""

import argparse
from dataclasses import fields
from pathlib import Path

import numpy as np

from scripts.compute_spectrum import add_epoch_argument, add_place_arguments, check_device, chosen_epochs
from scripts.options import Progress, add_common_arguments, emit_json, say

NAME = "surface"
HELP = "evaluate every group's loss on a line or plane through the checkpoints of a run"

TEXTS = {
    "directions": "random: Gaussian, filter-normalised; eigen: the most negative and the largest eigenvector of --group",
    "group": "whose eigenvectors; needs its stored spectrum", "dims": "1: a line, 2: a plane",
    "points": "along each direction, odd",
    "span": "from -span to span: filter norms for random directions, parameter units for eigenvectors",
    "max_samples": "images of head and of tail each; default: all", "batch_size": "images evaluated at once",
    "split": "un-augmented training images, or test images", "dtype": "of the forward passes",
    "seed": "of directions and subsets"}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    from analysis import settings
    choices = {"directions": settings.DIRECTIONS, "split": settings.SPLITS, "dtype": settings.DTYPES, "dims": (1, 2)}
    parser.add_argument("runs", nargs="+", type=Path, metavar="RUN", help="run folder")
    add_epoch_argument(parser)
    for setting in fields(settings.SurfaceSettings):
        kind = int if setting.default is None else type(setting.default)
        parser.add_argument(f"--{setting.name}", type=kind, default=setting.default, help=TEXTS[setting.name],
                            choices=choices.get(setting.name))
    parser.add_argument("--name", help="name of the stored surface; default: made of epoch, directions and dimensions")
    parser.add_argument("--overwrite", action="store_true", help="evaluate again what is stored, and replace it")
    add_place_arguments(parser)
    add_common_arguments(parser, dry_run=True)


def run(args: argparse.Namespace) -> int:
    """Evaluate the surfaces that are not stored yet and say where they are."""
    from analysis.settings import SurfaceSettings
    settings = SurfaceSettings(**{f.name: getattr(args, f.name) for f in fields(SurfaceSettings)})
    check_device(args.device)
    from analysis.subject import Subject
    from checkpoints.store import RunStore

    plans = [(store, chosen_epochs(store, args.epoch)) for store in map(RunStore.open, args.runs)]
    shown = []
    for store, epochs in plans:
        subject = Subject.open(store, data_dir=args.data_dir, device=args.device)
        if args.dry_run:
            shown.append({"run": str(store.path), **_forecast(args, subject, epochs, settings).document})
        else:
            shown += _compute(args, subject, epochs, settings)
    emit_json(args, {"forecast" if args.dry_run else "surfaces": shown})
    if not args.dry_run:
        say(args, f"next: landscape figures {'surface' if settings.dims == 2 else 'lines'} {' '.join(map(str, args.runs))}")
    return 0


def _forecast(args: argparse.Namespace, subject, epochs: list[int], settings):
    """Forecast the surfaces, and say it; directions that cannot be had are an error here already."""
    from analysis.stored_surface import surface_directions
    from scripts.forecast import of_surfaces
    for epoch in epochs:
        subject.load(epoch)
        surface_directions(subject, epoch, settings)
    forecast = of_surfaces(subject, [settings] * len(epochs))
    say(args, f"{subject.store.path}: {len(epochs)} surfaces of {settings.points ** settings.dims} points")
    say(args, forecast.line)
    return forecast


def _compute(args: argparse.Namespace, subject, epochs: list[int], settings) -> list[dict]:
    from analysis.stored_surface import compute_surface
    rows, place = [], subject.store.path
    with Progress(len(epochs) * settings.points ** settings.dims, str(place), quiet=args.quiet or args.json, unit="point") as bar:
        for epoch in epochs:
            record, fresh = compute_surface(subject, epoch, settings, name=args.name, progress=bar, overwrite=args.overwrite)
            rows.append({"run": str(place), "name": record.name, "epoch": epoch, "directions": record.direction_names,
                         "groups": {g: _range(record.loss[i]) for i, g in enumerate(record.groups)}, "stored_before": not fresh})
            say(args, f"{place / 'surfaces' / record.name}.h5: loss of {', '.join(record.groups)} along "
                      f"{' and '.join(record.direction_names)}")
    return rows


def _range(loss: np.ndarray) -> dict[str, float]:
    finite = loss[np.isfinite(loss)]
    return {"lowest": float(finite.min()) if finite.size else float("nan"),
            "highest": float(finite.max()) if finite.size else float("nan"), "not_finite": int(loss.size - finite.size)}
