"""`landscape compare RUN RUN...`: settings, accuracy, curvature and verdicts side by side, and the differences that go with them.

Runs that differ in the seed alone are pooled. Nothing is trained and no torch is loaded: everything is read from records.
"""

import argparse
import re
import textwrap
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from checkpoints.comparison import Comparison
from checkpoints.errors import RecordError
from scripts.draw_figures import check_asked, groups_with_spectra, open_runs
from scripts.options import add_common_arguments, emit_json, say
from scripts.verdict_options import add_tolerance_arguments

NAME = "compare"
HELP = "put runs side by side: settings, accuracy, curvature, verdicts, differences"
PLAIN = (("\\|\\nabla L\\|", "|gradient|"), ("\\epsilon", "eps"), ("\\lambda", "lambda"), ("_{\\min}", "_min"),
         ("_{\\max}", "_max"), ("\\leq", "<="), ("$", ""))
WIDE = 110      # letters a line of a caption
LABELS = {"test_accuracy": "test accuracy [%]"}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("runs", metavar="RUN", type=Path, nargs="+", help="run folder, or a folder of run folders")
    parser.add_argument("--epoch", type=int, help="epoch of the spectra (default: the last that all runs have)")
    parser.add_argument("--group", nargs="+", metavar="GROUP", help="class groups of the spectra (default: of head and tail "
                        "those with spectra, else all groups with spectra)")
    parser.add_argument("--level", type=float, default=0.95, help="coverage of intervals, between 0 and 1")
    add_tolerance_arguments(parser)
    parser.add_argument("--out", type=Path, metavar="DIR", help="write every table there too, as CSV and LaTeX")
    add_common_arguments(parser)


def run(args: argparse.Namespace) -> int:
    """Print the tables that the runs allow; what they do not is named with the reason."""
    from analysis.findings.side_by_side import side_by_side
    if not 0 < args.level < 1:
        raise RecordError(f"level={args.level} is out of range: expected 0 < level < 1")
    if args.out and (args.out / "__init__.py").exists():
        raise RecordError(f"out={args.out} is a folder of Python sources: choose another with --out DIR")
    runs = side_by_side(open_runs(args.runs))
    check_asked(runs.everyone, groups=args.group or (), epoch=args.epoch)
    groups = tuple(args.group or groups_with_spectra(runs, args.epoch))
    tables, notes = _tables(args, runs, groups)
    for line in _lines(runs, tables, notes):
        say(args, line)
    files = _write(args.out, tables) if args.out else []
    emit_json(args, _document(runs, tables, notes, files))
    say(args, f"\nopen {files[0]}" if files else "\nnext: landscape figures all " + " ".join(map(str, args.runs)))
    return 0


def _tables(args: argparse.Namespace, runs: Comparison, groups: tuple[str, ...]) -> tuple[dict[str, tuple], list[str]]:
    """Return {name: (frame, printed)} of what can be compared, and why the rest cannot."""
    from analysis.findings import side_by_side as numbers
    from figures import accuracy, history
    from figures.options import Options
    tables, refused = {"settings": _settings(numbers.settings_table(runs))}, {}
    options = Options(args.epoch, groups, level=args.level)
    tolerances = {"eps_g": args.eps_g, "eps_H": args.eps_H}
    epoch = None
    for name, make in (("accuracy", lambda: _accuracy(runs, args.level, accuracy, options)),
                       ("curvature", lambda: _curvature(runs, args, groups, accuracy, options)),
                       ("verdicts", lambda: history.verdicts_with_table(runs, options, **tolerances))):
        try:
            tables[name] = make()
            epoch = int(tables[name][0]["epoch"].iloc[0]) if name == "curvature" else epoch
        except RecordError as error:
            refused.setdefault(str(error), []).append(name)
    notes = [f"{', '.join(names)}: {reason}" for reason, names in refused.items()]
    if keys := numbers.other_data(runs):
        notes.append(f"differences: none taken, for {', '.join(keys)} differ: accuracies and spectra are of other data or groups")
    elif len(runs.members) > 1:
        tables["differences"] = _differences(numbers.difference_table(runs, groups, epoch, args.level), runs, args.level)
    return tables, notes


def _accuracy(runs: Comparison, level: float, accuracy, options) -> tuple:
    from dataclasses import replace

    from analysis.findings.outcomes import accuracy_outcomes
    return accuracy_outcomes(runs, level=level), accuracy.print_accuracy_table(runs, replace(options, epoch=None))


def _curvature(runs: Comparison, args: argparse.Namespace, groups: tuple[str, ...], accuracy, options) -> tuple:
    from analysis.findings.summary import curvature_table
    return curvature_table(runs, args.epoch, groups, args.level), accuracy.print_curvature_table(runs, options)


def _settings(frame) -> tuple:
    from figures.tables import Printed
    names = tuple((setting, "black") for setting in frame.index)
    cells = tuple(tuple(row) for row in frame.to_numpy())
    return frame, Printed(tuple(frame.columns), names, cells, "settings in which the runs differ")


def _differences(frame, runs: Comparison, level: float) -> tuple:
    """Return the differences as a table of text: a row a quantity and group, a column a pool."""
    from analysis.findings.summary import interval_text
    from figures.tables import Printed, changes
    first, *others = runs.members
    keys = list(dict.fromkeys((quantity, group) for _, quantity, group in frame.index))
    cells = []
    for quantity, group in keys:
        factor, decimals = (100, 1) if quantity == "test_accuracy" else (1, None)
        row = []
        for pool in others:
            found = frame.loc[[(pool, quantity, group)]] if (pool, quantity, group) in frame.index else frame.iloc[:0]
            numbers = [factor * float(found[name].iloc[0]) for name in ("value", "low", "high")] if len(found) else None
            row.append("absent" if numbers is None else _signed(interval_text(*numbers, decimals)))
        cells.append(tuple(row))
    alone = (frame["kind"] == "single").any()
    single = "; without an interval: one seed on a side, whose spread is not known" if alone else ""
    kinds = " and ".join(sorted(set(frame["kind"]) - {"single"}))
    interval = f"; {100 * level:g} % t interval, {kinds} by seed" if kinds else ""
    return frame, Printed(tuple(f"{pool} less {first}" for pool in others),
                          tuple((f"{group}, {LABELS.get(quantity, quantity)}", "black") for quantity, group in keys),
                          tuple(cells), f"differences{interval}{single}", changes([quantity for quantity, _ in keys]))


def _signed(text: str) -> str:
    return text if text[0] in "\N{MINUS SIGN}(a" else f"+{text}"


def _lines(runs: Comparison, tables: dict[str, tuple], notes: list[str]) -> Iterator[str]:
    for name, members in runs.members.items():
        yield f"{name}  {', '.join(member.name for member in members)} ({members[0].opt})"
    for name, (frame, printed) in tables.items():
        if not len(frame):
            yield "\nno setting differs" if name == "settings" else f"\n{name}: nothing to compare"
            continue
        yield "\n" + textwrap.fill(readable(printed.caption), WIDE)
        yield _text(printed)
    yield from (f"\nnot compared: {note}" for note in notes)


def _text(printed) -> str:
    """Return a printed table as aligned plain text."""
    rows = [("", *map(readable, printed.heads)), *((name, *row) for (name, _), row in zip(printed.names, printed.cells))]
    widths = [max(len(row[place]) for row in rows) for place in range(len(rows[0]))]
    return "\n".join("  " + row[0].ljust(widths[0]) + "".join(f"  {cell:>{width}}" for cell, width in zip(row[1:], widths[1:]))
                     for row in rows)


def readable(text: str) -> str:
    """Return a head or caption as plain text.

    >>> readable(r"$\\lambda_{\\min} \\leq -\\epsilon_H$ in nats / parameter$^2$")
    'lambda_min <= -eps_H in nats / parameter^2'
    """
    for mathematics, word in PLAIN:
        text = text.replace(mathematics, word)
    return re.sub(r"\\(\w+)", r"\1", text)


def _write(folder: Path, tables: dict[str, tuple]) -> list[Path]:
    """Write each table as CSV and LaTeX; return the paths."""
    from checkpoints.atomic import make_folder, write_text
    from figures import latex
    make_folder(folder)
    files = []
    for name, (frame, printed) in tables.items():
        if len(frame):
            write_text(folder / f"{name}.csv", frame.to_csv())
            write_text(folder / f"{name}.tex", latex.table(printed, name))
            files += [folder / f"{name}.csv", folder / f"{name}.tex"]
    return files


def _document(runs: Comparison, tables: dict[str, tuple], notes: list[str], files: list[Path]) -> dict[str, Any]:
    from analysis.findings.summary import as_json
    pools = {name: {"runs": [member.name for member in members], "seeds": [member.config.get("seed") for member in members],
                    "opt": members[0].opt} for name, members in runs.members.items()}
    return {"pools": pools, "not_compared": notes, "files": files} | {name: as_json(frame) for name, (frame, _) in tables.items()}
