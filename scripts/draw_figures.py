"""`landscape figures NAME RUN...`: draw figures of the catalogue from records of one or several runs, without torch.

Runs of one optimizer with different seeds are pooled; several optimizers stand side by side.
"""

import argparse
import re
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from checkpoints.chosen_epoch import PLAIN
from checkpoints.comparison import Comparison, Member, compare
from checkpoints.errors import RecordError
from checkpoints.run_file import FILE_NAME
from checkpoints.store import RunStore
from scripts.options import Progress, add_common_arguments, emit_json, nearest, say

NAME = "figures"
HALVES = ("head", "tail")
CLASSES = "classes"      # a word for every class
MOST_GROUPS = 12    # drawn without being asked for
HELP = "draw spectra, surfaces, accuracy curves and tables from stored records"


class _List(argparse.Action):
    """Print the catalogue and stop, as --help does."""

    def __call__(self, parser: argparse.ArgumentParser, *_: Any) -> None:
        from figures.catalogue import CATALOGUE
        print(listing(CATALOGUE))
        parser.exit(0)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("name", metavar="NAME", help="a figure of the catalogue (see --list), or all")
    parser.add_argument("runs", metavar="RUN", type=Path, nargs="+", help="run folder, or a folder of run folders")
    parser.add_argument("--list", action=_List, nargs=0, help="print the catalogue and stop")
    parser.add_argument("--out", type=Path, metavar="DIR", help="folder for the files (default: figures/ in the run "
                        "folder, or beside several run folders)")
    parser.add_argument("--format", nargs="+", default=["pdf", "png"], choices=["pdf", "png", "svg"],
                        help="file formats of the pictures; numbers come as CSV besides, and tables as LaTeX (booktabs)")
    parser.add_argument("--width", default="two", choices=["one", "two"],
                        help="columns of a two-column page that the figure fills: 3.25 or 6.75 inches")
    parser.add_argument("--dpi", type=int, default=200, help="dots per inch of PNG files, 50 to 1200")
    parser.add_argument("--epoch", type=int, help="epoch of the records (default: the last that all runs have)")
    parser.add_argument("--group", nargs="+", metavar="GROUP", help="class groups to draw: all, head, tail, many, medium, few, "
                        "class:3 ..., or classes (default: of head and tail those that were analysed, else all that were)")
    parser.add_argument("--style", default="relative", choices=["relative", "published"],
                        help="of spectra: scale-free, or "
                        "with the constants of the papers")
    parser.add_argument("--vary", nargs="+", default=[], metavar="SETTING", help="settings that runs of one optimizer may differ "
                        "in, each value a pool of its own, such as lr (default: those that the figure is about)")
    parser.add_argument("--surface", metavar="SURFACE", help="plane to draw (default: the first that all runs have)")
    parser.add_argument("--level", type=float, default=0.95, help="coverage of intervals and bands, between 0 and 1")
    parser.add_argument("--rc", nargs="+", default=[], metavar="KEY=VALUE",
                        help="matplotlib settings on top of the project's, such as font.size=9")
    add_common_arguments(parser)


def run(args: argparse.Namespace) -> int:
    """Draw, and say what was written; with NAME all, say also what could not be drawn, a line for each cause.

    Records that were read and are stale get a line each on standard error: they are drawn all the same.
    """
    from figures.catalogue import CATALOGUE, entry
    from figures.cautions import stale_records
    names = list(CATALOGUE) if args.name == "all" else [args.name]
    entry(names[0])
    _check_ranges(args)
    folder = args.out or _default_folder(args.runs)
    if (folder / "__init__.py").exists():
        raise RecordError(f"out={folder} is a folder of Python sources: choose another with --out DIR")
    members = open_runs(args.runs)
    check_groups_known(members, args.group or ())
    written, refused = draw_all(names, members, folder, args)
    if not written and args.name != "all":
        raise RecordError(refused[args.name])
    stale = stale_records(members)
    for where in stale:
        print(f"stale: {where}: compute it again, then draw again", file=sys.stderr)
    _report(args, folder, written, refused, stale)
    return 0


def listing(catalogue: Mapping[str, Any]) -> str:
    """Return the catalogue in words: item, name and picture, then quantity, records, the command that makes them, source."""
    blocks = [f"{entry.item or '-':>4}  {name:17} {entry.shows}\n{'':23} quantity: {entry.quantity or 'see the picture'}\n"
              f"{'':23} records: {entry.records}, made by: {entry.command}\n{'':23} as in: {entry.source}"
              for name, entry in sorted(catalogue.items(), key=lambda pair: pair[1].item or 99)]
    head = "item  name              what it shows; items are the 18 figures and tables of the literature\n"
    return "\n".join([head, *blocks, "", "Names of quantities are those of the README, \"Which number to trust\"."])


def draw_all(names: list[str], members: list[Member], folder: Path, args: argparse.Namespace):
    """Return {name: paths} of the figures written, and {name: reason} of those whose records are absent.

    Runs are pooled for each figure: what one refuses to mix may be what another is about.
    """
    from figures.catalogue import entry, write
    written: dict[str, list[Path]] = {}
    refused: dict[str, str] = {}
    with Progress(len(names), "figures", quiet=args.quiet, unit="figure") as progress:
        for name in names:
            progress.set_description(name)
            try:
                runs = compare(members, vary=(*entry(name).vary, *args.vary))
                written[name] = write(name, runs, folder, _options(args, name, runs), args.format, args.dpi)
            except RecordError as error:
                refused[name] = str(error)
            progress.update()
    return written, refused


def compare_folders(paths: list[Path], vary: Sequence[str] = ()) -> Comparison:
    """Open every run folder among or below `paths` and pool them, settings in `vary` told apart."""
    return compare(open_runs(paths), vary)


def open_runs(paths: list[Path]) -> list[Member]:
    """Open every run folder among or below `paths`."""
    found = dict.fromkeys(folder for path in paths for folder in run_folders(path))
    return [Member(RunStore.open(folder)) for folder in found]


def run_folders(path: Path) -> list[Path]:
    """Return `path` if it is a run folder, else the run folders below it, by name."""
    if (path / FILE_NAME).is_file():
        return [path]
    found = sorted(file.parent for file in path.glob(f"**/{FILE_NAME}"))
    if not found:
        raise RecordError(f"{path}: no run folder, and none below it: expected a folder with {FILE_NAME}, "
                          "as landscape train makes it")
    return found


def groups_with_spectra(runs: Comparison, epoch: int | None = None) -> tuple[str, ...]:
    """Return of head and tail those of which any run holds a spectrum (at `epoch`), else all groups that have one.

    Where there is none, head and tail: what is drawn of them says how to make theirs.
    """
    found = dict.fromkeys(group for member in runs.everyone for at, group in member.curvatures if epoch in (None, at))
    halves = [group for group in HALVES if group in found]
    if len(found) > MOST_GROUPS and not halves:
        raise RecordError(f"{len(found)} groups have spectra ({', '.join(list(found)[:3])} ...): choose some with --group")
    return tuple(halves or found or HALVES)


def check_asked(members: Sequence[Member], *, groups: Sequence[str] = (), epoch: int | None = None,
                surface: str | None = None) -> None:
    """Refuse a group, an epoch or a surface that no run has a spectrum or surface of, naming those that there are."""
    spectra = [at_group for member in members for at_group in member.curvatures]
    if found := [group for _, group in spectra]:
        _refuse_unknown("group", [group for group in groups if group != CLASSES], found)
    else:
        check_groups_known(members, groups)
    if epoch is not None:
        _refuse_unknown("epoch", [epoch], [at for at, _ in spectra] + [s.epoch for m in members for s in m.surfaces.values()])
    if surface is not None:
        _refuse_unknown("surface", [surface], [name for member in members for name in member.surfaces])


def check_groups_known(members: Sequence[Member], groups: Sequence[str]) -> None:
    """Refuse a group of which no run has an accuracy, a spectrum, a surface or a measurement, naming those that there are.

    Where there is nothing of any group, what is drawn says how to make it. Surfaces are read last: they are large.
    """
    sources = (lambda m: [name.removeprefix(PLAIN) for name in m.metrics.columns if name.startswith(PLAIN)],
               lambda m: [group for _, group in m.curvatures],
               lambda m: [group for record in m.measurements.values() for group in record.labels.get("group", ())],
               lambda m: [group for surface in m.surfaces.values() for group in surface.groups])
    left, known = [group for group in groups if group != CLASSES], []
    for source in sources:
        if not left:
            return
        found = [group for member in members for group in source(member)]
        left, known = [group for group in left if group not in found], known + found
    if known:
        _refuse_unknown("group", left, known)


def _refuse_unknown(what: str, asked: Sequence[Any], known: Sequence[Any]) -> None:
    names = list(dict.fromkeys(known)) if what == "group" else sorted(set(known))
    for name in asked:
        if name not in names:
            more = f" and {len(names) - MOST_GROUPS} more" if len(names) > MOST_GROUPS else ""
            raise RecordError(f"{what}={name}: no stored record has it{nearest(str(name), map(str, names))}; there are: "
                              f"{', '.join(map(str, names[:MOST_GROUPS])) or 'none'}{more}")


def _named(words: list[str], runs: Comparison) -> tuple[str, ...]:
    """Return the groups that were named; the word classes stands for every class with a spectrum."""
    found = {group for member in runs.everyone for _, group in member.curvatures} if "classes" in words else set()
    classes = sorted((group for group in found if re.fullmatch(r"class:\d+", group)), key=lambda group: int(group[6:]))
    return tuple(dict.fromkeys(name for word in words for name in (classes or ["class:0"] if word == "classes" else [word])))


def _options(args: argparse.Namespace, name: str, runs: Comparison):
    from figures.catalogue import CATALOGUE
    from figures.options import Options
    rc = dict(_setting(text) for text in args.rc)
    if args.group:
        groups = _named(args.group, runs)
    elif "spectra" in CATALOGUE[name].records:
        groups = (CATALOGUE[name].groups or groups_with_spectra)(runs, args.epoch)
    else:
        groups = HALVES
    return Options(args.epoch, groups, args.style, args.surface, args.level, args.width, rc)


def _setting(text: str) -> tuple[str, str]:
    key, equals, value = text.partition("=")
    if not equals:
        raise RecordError(f"rc={text} is out of range: expected KEY=VALUE, such as font.size=9")
    return key.strip(), value.strip()


def _check_ranges(args: argparse.Namespace) -> None:
    if not 50 <= args.dpi <= 1200:
        raise RecordError(f"dpi={args.dpi} is out of range: expected 50 <= dpi <= 1200")
    if not 0 < args.level < 1:
        raise RecordError(f"level={args.level} is out of range: expected 0 < level < 1")


def _default_folder(paths: list[Path]) -> Path:
    parents = {path.resolve().parent for path in paths}
    if len(paths) == 1:
        return paths[0] / "figures"
    if len(parents) > 1:
        raise RecordError("out is missing: the runs lie in different folders; say where figures go with --out DIR")
    return paths[0].parent / "figures"


def _report(args: argparse.Namespace, folder: Path, written: dict[str, list[Path]], refused: dict[str, str],
            stale: Sequence[str]) -> None:
    for reason in dict.fromkeys(refused.values()):
        print(f"not drawn: {', '.join(name for name in refused if refused[name] == reason)}: {reason}", file=sys.stderr)
    if not written:
        raise RecordError("no figure could be drawn")
    for name, paths in written.items():
        say(args, f"{name:16} {', '.join(path.name for path in paths)}")
    first = next(iter(written.values()))
    say(args, f"open {next((path for path in first if path.suffix == '.png'), first[0])}")
    emit_json(args, {"out": folder, "figures": written, "refused": refused, "stale": stale})
