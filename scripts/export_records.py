"""`landscape export RUN...`: stored surfaces, spectra and measurements in the formats of other programs, without torch."""

import argparse
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from checkpoints.errors import RecordError
from checkpoints.store import RunStore
from scripts.draw_figures import run_folders
from scripts.options import Progress, add_common_arguments, emit_json, say

NAME = "export"
HELP = "write stored records for ParaView, the loss-landscape project, NumPy or spreadsheets"
KINDS = ("surface", "curvature", "measurement")
WHOLE = "run"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("runs", metavar="RUN", type=Path, nargs="+", help="run folder, or a folder of run folders")
    parser.add_argument("--format", nargs="+", required=True, choices=["vtu", "vtp", "h5", "npz", "csv", "run"],
                        help="vtu, vtp: planes for ParaView; h5: surfaces with the keys of the loss-landscape project, a file a "
                        "group; npz, csv: surfaces, spectra and measurements; run: the run in small, without weights, "
                        "eigenvectors and directions, to share: figures and reports are drawn from it as from the run")
    parser.add_argument("--surface", metavar="SURFACE", help="write this line or plane alone (default: everything stored)")
    parser.add_argument("--epoch", type=int, help="write records of this epoch alone (default: every epoch)")
    parser.add_argument("--height", metavar="GROUP", help="of vtu and vtp: lift the plane by this group's loss in nats (default: "
                        "flat; every group's loss and accuracy lie at its points in either case)")
    parser.add_argument("--out", type=Path, metavar="DIR", help="folder for the files (default: export/ in each run folder; "
                        "format run needs one outside them); several runs get a folder each in it")
    add_common_arguments(parser)


def run(args: argparse.Namespace) -> int:
    """Write the files and say where they are; a format that no record has is an error, after the others are written."""
    stores = [RunStore.open(folder) for folder in dict.fromkeys(found for path in args.runs for found in run_folders(path))]
    if WHOLE in args.format and len(args.format) > 1:
        raise RecordError(f"format={' '.join(args.format)}: {WHOLE} makes run folders, where other files have no place; ask for "
                          "it alone")
    if WHOLE in args.format:
        _check_outside(args, stores)
    places = _places(args, stores)
    written = {store.path: _export(args, store, places[store.path]) for store in stores}
    missing = [name for name in args.format if not any(name in files for files in written.values())]
    for path, files in written.items():
        for name, paths in files.items():
            say(args, f"{name:4} {len(paths)} file{'s' * (len(paths) > 1)} in {places[path]}")
    if missing:
        raise RecordError(_what_is_missing(args, stores[0], missing[0]))
    emit_json(args, {"files": written})
    say(args, f"open {next(paths[0] for files in written.values() for paths in files.values())}")
    return 0


def _export(args: argparse.Namespace, store: RunStore, folder: Path) -> dict[str, list[Path]]:
    """Write the records of one run; return the paths by format."""
    from checkpoints.brief import export_run
    from checkpoints.export import FORMATS, export
    if WHOLE in args.format:
        return {WHOLE: export_run(store, folder, _records(args, store))}
    written: dict[str, list[Path]] = {}
    total = 1 if args.surface else sum(len(store.paths(kind)) for kind in KINDS)
    with Progress(total, str(store.path), quiet=args.quiet or args.json, unit="record") as progress:
        for record in _records(args, store):
            for name in args.format:
                if FORMATS[name].takes(record):
                    written.setdefault(name, []).extend(export(record, folder, name, args.height))
            progress.update()
    return written


def _records(args: argparse.Namespace, store: RunStore) -> Iterator[Any]:
    """Yield the records asked for; a surface that is named and absent is an error naming those that there are."""
    if args.surface is not None:
        yield store.read("surface", name=args.surface)
        return
    for record in (record for kind in KINDS for record in store.records(kind)):
        if args.epoch in (None, record.epoch):
            yield record


def _check_outside(args: argparse.Namespace, stores: list[RunStore]) -> None:
    """Refuse to put a run into a run, where the next command would find it as another."""
    if args.out is None:
        raise RecordError(f"out is missing: {WHOLE} makes run folders, which belong outside {stores[0].path}: give --out DIR")
    out = args.out.resolve()
    for folder in (path.resolve() for path in (*(store.path for store in stores), *args.runs)):
        if out.is_relative_to(folder):
            raise RecordError(f"out={args.out} lies in {folder}, where other commands would find the run twice: choose a folder "
                              "outside it with --out DIR")


def _places(args: argparse.Namespace, stores: list[RunStore]) -> dict[Path, Path]:
    """Return the folder of each run's files; two runs of one name would share theirs and are refused."""
    if args.out is None:
        return {store.path: store.path / "export" for store in stores}
    if (args.out / "__init__.py").exists():
        raise RecordError(f"out={args.out} is a folder of Python sources: choose another with --out DIR")
    names = [store.path.resolve().name for store in stores]
    for name in names:
        if names.count(name) > 1:
            raise RecordError(f"out={args.out}: {names.count(name)} runs are called {name}; leave out --out, or export them one "
                              "by one to a folder each")
    return {store.path: args.out / name if len(names) > 1 else args.out for store, name in zip(stores, names)}


def _what_is_missing(args: argparse.Namespace, store: RunStore, name: str) -> str:
    from checkpoints.export import FORMATS
    needs, at = FORMATS[name].needs, "" if args.epoch is None else f" at epoch {args.epoch}"
    if args.surface is not None:
        return f"{store.path}: surface {args.surface!r} is a line, and {name} is a format of {needs}; choose h5, npz or csv"
    return (f"{store.path}: no record{at} can be written as {name}, the format of {needs}; "
            f"make one with: landscape surface {store.path} --dims 2")
