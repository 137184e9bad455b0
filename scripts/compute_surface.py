"""`landscape surface RUN`: loss and accuracy of every class group and class on a line or plane through stored checkpoints.

`torchrun --nproc_per_node N -m scripts.cli surface RUN` shares the grid among N processes; the first alone writes and prints.
"""

import argparse
from collections.abc import Iterator
from dataclasses import fields
from pathlib import Path
from typing import Any

import numpy as np

from landscape.settings import check_seed
from scripts.options import Progress, add_common_arguments, emit_json, say, tell, tell_reading
from scripts.run_arguments import add_epoch_argument, add_place_arguments, check_device, chosen_epochs

NAME = "surface"
HELP = "evaluate every group's loss on a line or plane through the checkpoints of a run"

# option group -> setting -> help
TEXTS = {
    "where to walk": {
        "directions": "one or two of: random (Gaussian); eigen (most negative and largest eigenvector of --group); tail:min, "
                      "all:max:2 (an eigenvector of a group, by rank); pca (of the run's checkpoints); epoch:10, "
                      "RUN2@epoch:last (through a checkpoint)",
        "group": "whose eigenvectors eigen are; needs its stored spectrum",
        "dims": "1: a line, 2: a plane; default: as the directions say, 2 for random, eigen and pca",
        "normalization": "of random directions: each filter or layer to its weights' norm, or none: unit length in all",
        "ignore": "what random directions leave at rest: biases and BatchNorm, or none. Filters of norm zero always rest",
        "seed": "of random directions, of subsets, and of batches whose statistics are used"},
    "the grid": {
        "points": "along each direction, odd",
        "span": "from -span to span: in filter norms for random directions, else in parameter units; "
                "default: 1, or what covers the checkpoints that directions lead through"},
    "what is evaluated": {
        "batchnorm": "statistics: fixed (the checkpoint's), recalibrated (estimated at each point from the same images), "
                     "batch (each batch's); default: fixed, recalibrated where directions lead through checkpoints",
        "split": "un-augmented training images, or test images",
        "max_samples": "images of head and of tail each; default: all",
        "batch_size": "images in a batch",
        "dtype": "of the forward passes; bfloat16 is measured against float32, and its error stored"}}
STATISTICS = {"recalibrated": "estimated anew at each point from the same images", "batch": "each batch's own"}
KINDS = {"directions": str, "dims": int, "span": float, "batchnorm": str, "max_samples": int}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    from analysis import settings
    choices = {"split": settings.SPLITS, "dtype": settings.SURFACE_DTYPES, "dims": (1, 2), "ignore": settings.IGNORED,
               "normalization": settings.NORMALIZATIONS, "batchnorm": settings.BATCHNORM}
    defaults = {setting.name: setting.default for setting in fields(settings.SurfaceSettings)}
    parser.add_argument("runs", nargs="+", type=Path, metavar="RUN", help="run folder; give it in front of the options")
    add_epoch_argument(parser)
    for title, texts in TEXTS.items():
        group = parser.add_argument_group(title)
        for name, text in texts.items():
            several = {"nargs": "+", "metavar": "DIRECTION"} if name == "directions" else {}
            group.add_argument(f"--{name}", type=KINDS.get(name) or type(defaults[name]), default=defaults[name], help=text,
                               choices=choices.get(name), **several)
    parser.add_argument("--name", help="name of the stored surface; default: made of epoch, directions and dimensions")
    parser.add_argument("--overwrite", action="store_true", help="evaluate again what is stored, and replace it")
    add_place_arguments(parser)
    add_common_arguments(parser, dry_run=True)


def run(args: argparse.Namespace) -> int:
    """Evaluate the surfaces that are not stored yet and say what they are."""
    from analysis.settings import SurfaceSettings
    check_seed(args.seed)
    settings = SurfaceSettings(**{f.name: getattr(args, f.name) for f in fields(SurfaceSettings)})
    check_device(args.device)
    from landscape.distributed import init_from_environment, is_main
    with init_from_environment():
        if not is_main():
            args.quiet, args.json = True, False
        return _run(args, settings)


def _run(args: argparse.Namespace, settings) -> int:
    from analysis.subject import Subject
    from checkpoints.store import RunStore
    from landscape.distributed import main_first

    plans = [(store, chosen_epochs(store, args.epoch)) for store in map(RunStore.open, args.runs)]
    shown = []
    for store, epochs in plans:
        tell_reading(args, str(store.config.get("dataset", "")))
        with main_first():      # where data are downloaded, once
            subject = Subject.open(store, data_dir=args.data_dir, device=args.device)
        if args.dry_run:
            shown.append({"run": str(store.path), **_forecast(args, subject, epochs, settings).document})
        else:
            shown += _compute(args, subject, epochs, settings)
    emit_json(args, {"forecast" if args.dry_run else "surfaces": shown})
    if not args.dry_run:
        say(args, f"next: landscape figures {_figure(settings)} {' '.join(map(str, args.runs))}")
    return 0


def _figure(settings) -> str:
    """Return which figure shows the surfaces."""
    if settings.dims == 1:
        return "lines"
    return "trajectory" if any(word.leads_somewhere for word in settings.words) else "surface"


def _forecast(args: argparse.Namespace, subject, epochs: list[int], settings):
    """Forecast the surfaces that are not stored yet, and say it; directions that cannot be had are an error here already."""
    from analysis.stored_surface import stored_surface
    from scripts.forecast import of_surfaces
    missing = [epoch for epoch in epochs
               if stored_surface(subject, epoch, settings, name=args.name, overwrite=args.overwrite) is None]
    forecast = of_surfaces(subject, [settings] * len(missing))
    say(args, f"{subject.store.path}: {len(missing)} surfaces of {settings.points ** settings.dims} points"
        + f", {len(epochs) - len(missing)} stored already" * (len(missing) < len(epochs)))
    say(args, forecast.line)
    return forecast


def _compute(args: argparse.Namespace, subject, epochs: list[int], settings) -> list[dict]:
    from analysis.stored_surface import compute_surface
    rows, place = [], subject.store.path
    with Progress(len(epochs) * settings.points ** settings.dims, str(place), quiet=args.quiet or args.json, unit="point") as bar:
        for epoch in epochs:
            record, fresh = compute_surface(subject, epoch, settings, name=args.name, progress=bar, overwrite=args.overwrite)
            rows.append({"run": str(place), **_summary(record), "stored_before": not fresh})
            say(args, f"{place / 'surfaces' / record.name}.h5: {_covered(record)} along {' and '.join(record.direction_names)}")
            for line in _lines(rows[-1]):
                say(args, f"  {line}")
            if "no_prediction" in record.about:
                tell(args, f"no quadratic prediction: {record.about['no_prediction']}")
    return rows


def _summary(record) -> dict[str, Any]:
    """Return what a surface says in a few numbers."""
    from analysis.findings.slices import trust_radius
    groups = _main_groups(record)
    radii = {group: trust_radius(record, group) for group in groups}
    return {"name": record.name, "epoch": record.epoch, "directions": record.direction_names,
            "coordinate_units": record.coordinate_units, "batchnorm": record.batchnorm, "precision": record.precision,
            "groups": {g: _range(record.loss[i]) for i, g in enumerate(record.groups)},
            "trust_radius": {group: {side: vars(r) for side, r in sides.items()} for group, sides in radii.items() if sides},
            "points": {name: {"coordinates": place, "off": off} for name, place, off in
                       zip(record.point_names, record.point_coordinates.tolist(), record.point_distances.tolist())},
            "about": record.about}


def _lines(row: dict[str, Any]) -> Iterator[str]:
    """Yield what the summary of a surface says beyond its file, in words."""
    for group, sides in row["trust_radius"].items():
        reach = " and ".join(_reach(sides[side], sign) for side, sign in (("minus", "-"), ("plus", "+")))
        yield f"{group}: the quadratic prediction holds to 10 % {reach} {row['coordinate_units']}"
    about = row["about"]
    if "explained_variance" in about:
        shares = " and ".join(f"{share:.1%}" for share in about["explained_variance"])
        yield f"principal components explain {shares} of the checkpoints' variance"
    if row["batchnorm"] != "fixed":
        yield f"statistics of BatchNorm: {STATISTICS[row['batchnorm']]}"
    if "distance" in about:
        yield f"distance {about['distance']:.4g} parameter units"
        for group in (name for name in about["barrier"] if ":" not in name):
            yield f"{group}: {_barrier(**about['barrier'][group])}"
    elif row["points"]:
        farthest = max(row["points"].items(), key=lambda point: point[1]["off"])
        yield f"{len(row['points'])} checkpoints shown; {farthest[0]} lies {farthest[1]['off']:.4g} off, farthest of all"
    if "precision_error" in about:
        error = about["precision_error"]
        worst = {measure: max(error[measure].values()) for measure in ("loss", "accuracy")}
        yield (f"{row['precision']}: at {error['points']} points within {worst['loss']:.2g} nats and {worst['accuracy']:.2%} of "
               f"{error['against']}")


def _barrier(height: float, above_mean: float, alpha: float) -> str:
    if height == 0:
        return f"no barrier; the higher end lies {above_mean:.4g} nats above the mean of both"
    return f"barrier {height:.4g} nats above the higher end, {above_mean:.4g} above the mean of both, at {alpha:.4g}"


def _reach(radius: dict[str, float], sign: str) -> str:
    if np.isinf(radius["high"]):
        return f"beyond {sign}{radius['low']:.4g}"
    return f"to {sign}{radius['low']:.4g}" if radius["low"] else f"to less than {sign}{radius['high']:.4g}"


def _covered(record) -> str:
    classes = sum(name.startswith("class:") for name in record.groups)
    return f"loss of {', '.join(g for g in record.groups if not g.startswith('class:'))} and {classes} classes"


def _main_groups(record) -> list[str]:
    return [group for group in ("all", "head", "tail") if group in record.groups]


def _range(loss: np.ndarray) -> dict[str, float]:
    finite = loss[np.isfinite(loss)]
    return {"lowest": float(finite.min()) if finite.size else float("nan"),
            "highest": float(finite.max()) if finite.size else float("nan"), "not_finite": int(loss.size - finite.size)}
