"""`landscape report RUN...`: one self-contained page on some runs, from their stored records alone, without torch."""

import argparse
import sys
from pathlib import Path

from checkpoints.atomic import make_folder, write_text
from checkpoints.comparison import Comparison
from checkpoints.errors import RecordError
from scripts.draw_figures import check_asked, compare_folders, groups_with_spectra
from scripts.options import Progress, add_common_arguments, emit_json, say

NAME = "report"
HELP = "write one self-contained page: verdicts, figures, an interactive surface, what to trust, origin"
FILE = "report.html"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("runs", metavar="RUN", type=Path, nargs="+", help="run folder, or a folder of run folders")
    parser.add_argument("--out", type=Path, metavar="FILE.html", help=f"the page (default: {FILE} in the folder that is given, "
                        "or beside several)")
    parser.add_argument("--title", help="heading of the page (default: a question)")
    parser.add_argument("--epoch", type=int, help="epoch of verdicts, spectra, surfaces (default: the last that all runs have)")
    parser.add_argument("--group", nargs="+", metavar="GROUP", help="class groups to judge and draw (default: of head and tail "
                        "those with spectra, else all groups with spectra)")
    parser.add_argument("--surface", metavar="SURFACE", help="plane to show (default: the first that all runs have)")
    parser.add_argument("--level", type=float, default=0.95, help="coverage of intervals and bands, between 0 and 1")
    parser.add_argument("--figures", nargs="+", metavar="NAME", default=[], help="further figures of the catalogue (landscape "
                        "figures --list), or all")
    parser.add_argument("--static", action="store_true", help="leave out the interactive surface: 2 MB in place of 7, and "
                        "no plotly needed")
    add_common_arguments(parser)


def run(args: argparse.Namespace) -> int:
    """Write the page and say where it is, what to be warned of, and what could not be shown."""
    from figures.report import page_of
    _check(args)
    path, runs = args.out or _default_place(args.runs), compare_folders(args.runs)
    if path.suffix not in (".html", ".htm") or path.is_dir():
        raise RecordError(f"out={path} is no place for a page: expected a file name ending in .html")
    check_asked(runs.everyone, groups=args.group or (), epoch=args.epoch, surface=args.surface)
    title = {} if args.title is None else {"title": args.title}
    with Progress(None, "report", quiet=args.quiet or args.json, unit="part") as progress:
        page = page_of(runs, _options(args, runs), still=args.static, figures=_more(args.figures), command=_command(args, path),
                       told=lambda name: (progress.set_description(name), progress.update()), **title)
    write_page(path, page)
    _tell(args, path, page, runs)
    return 0


def write_page(path: Path, page) -> Path:
    """Write a page, its folder too, and return where it is."""
    make_folder(path.parent)
    write_text(path, page.html)
    return path


def _options(args: argparse.Namespace, runs: Comparison):
    from figures.options import Options
    groups = tuple(args.group) if args.group else groups_with_spectra(runs, args.epoch)
    return Options(epoch=args.epoch, groups=groups, surface=args.surface, level=args.level)


def _more(names: list[str]) -> list[str]:
    from figures.catalogue import CATALOGUE, entry
    if names == ["all"]:
        return list(CATALOGUE)
    for name in names:
        entry(name)
    return names


def _check(args: argparse.Namespace) -> None:
    if not 0 < args.level < 1:
        raise RecordError(f"level={args.level} is out of range: expected 0 < level < 1")


def _default_place(paths: list[Path]) -> Path:
    parents = {path.resolve().parent for path in paths}
    if len(paths) == 1:
        return paths[0] / FILE
    if len(parents) > 1:
        raise RecordError("out is missing: the runs lie in different folders; say where the page goes with --out FILE.html")
    return paths[0].parent / FILE


def _command(args: argparse.Namespace, path: Path) -> list[str]:
    """Return what makes this page again, defaults left out."""
    words = ["landscape", "report", *map(str, args.runs), "--out", str(path)]
    for name in ("title", "epoch", "surface"):
        words += [f"--{name}", str(getattr(args, name))] if getattr(args, name) is not None else []
    for name in ("group", "figures"):
        words += [f"--{name}", *getattr(args, name)] if getattr(args, name) else []
    words += ["--level", str(args.level)] if args.level != 0.95 else []
    return words + (["--static"] if args.static else [])


def _tell(args: argparse.Namespace, path: Path, page, runs: Comparison) -> None:
    for reason in dict.fromkeys(page.refused.values()):
        names = ", ".join(name for name in page.refused if page.refused[name] == reason)
        print(f"not shown: {names}: {reason}", file=sys.stderr)
    for caution in page.cautions:
        say(args, f"note: {caution.text}: {'; '.join(caution.where[:2])}" + (
            f" and {len(caution.where) - 2} more" if len(caution.where) > 2 else ""))
    say(args, f"{len(runs.everyone)} run{'s' * (len(runs.everyone) > 1)}, {path.stat().st_size / 1e6:.1f} MB, nothing to load")
    say(args, f"open {path}")
    emit_json(args, {"out": path, "runs": [member.name for member in runs.everyone], "refused": page.refused,
                     "cautions": [{"kind": c.kind, "text": c.text, "where": c.where} for c in page.cautions]})
