"""`landscape measure NAME... RUN...`: measures of the mechanism at stored checkpoints, kept for figures; `--list` names them."""

import argparse
import shlex
from collections.abc import Iterator
from dataclasses import dataclass, fields
from functools import cache
from pathlib import Path
from typing import Any

from checkpoints.errors import RecordError
from landscape.errors import InputError
from landscape.settings import check_seed
from scripts.options import Progress, add_common_arguments, emit_json, nearest, say, tell
from scripts.run_arguments import (add_epoch_argument, add_place_arguments, check_device, check_groups, chosen_epochs,
                                   named_groups)

NAME = "measure"
HELP = "measure what sharpness-aware ascents, gradients and features do at the checkpoints of a run"

TEXTS = {
    "num_pairs": "most negative eigenvectors of each group; default: all that are stored",
    "batches": "mini-batches, draws of noise, starts (robustness) or rounds (cost); one gives no interval",
    "max_samples": "images of a group, drawn with --seed; default: all",
    "batch_size": "images evaluated at once", "split": "un-augmented training images, or test images",
    "rho": "radius of every ascent, in parameter units; default: the run's own", "dtype": "of gradients",
    "seed": "of subsets, mini-batches and noise"}
KINDS = {"num_pairs": int, "max_samples": int, "rho": float}    # of settings whose default is None
ROWS = 40           # of a table that are shown; the record has all


class _List(argparse.Action):
    """Print the table of measures and stop, as --help does."""

    def __call__(self, parser: argparse.ArgumentParser, *_: Any) -> None:
        from analysis.measures.catalogue import MEASURES
        for name, measure in MEASURES.items():
            print(f"{name:16} {measure.shows}\n{'':16} needs {measure.needs}; as in: {measure.source}")
        parser.exit(0)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    from analysis import settings
    parser.add_argument("name", metavar="NAME", help="a measure of the table (see --list), or all")
    parser.add_argument("more", nargs="+", metavar="RUN", help="run folders; more measures may stand in front of them")
    parser.add_argument("--list", action=_List, nargs=0, help="print the table of measures and stop")
    parser.add_argument("--group", nargs="+", default=["head", "tail"], metavar="GROUP",
                        help="all, head, tail, many, medium, few, class:N, or classes for every one")
    add_epoch_argument(parser)
    choices = {"split": settings.SPLITS, "dtype": settings.DTYPES}
    for setting in fields(settings.MeasureSettings):
        if setting.name in TEXTS:
            parser.add_argument(f"--{setting.name}", type=KINDS.get(setting.name) or type(setting.default),
                                default=setting.default, help=TEXTS[setting.name], choices=choices.get(setting.name))
    parser.add_argument("--overwrite", action="store_true", help="measure again what is stored, and replace it")
    add_place_arguments(parser)
    add_common_arguments(parser, dry_run=True)


def run(args: argparse.Namespace) -> int:
    """Measure what is not stored yet and print all of it."""
    from analysis.settings import MeasureSettings
    names, runs = split_words([args.name, *args.more])
    check_groups(args.group)
    check_device(args.device)
    check_seed(args.seed)
    chosen = {f.name: getattr(args, f.name) for f in fields(MeasureSettings) if f.name in TEXTS}
    settings = MeasureSettings(groups=tuple(args.group), **chosen)
    from checkpoints.store import RunStore
    traces: dict = {}
    jobs = [job for store in map(RunStore.open, runs) for job in _jobs(args, store, names, settings, traces)]
    if args.dry_run:
        emit_json(args, {"forecast": _forecast(args, jobs)})
        return 0
    shown, refused = _measure(args, jobs)
    emit_json(args, {"measurements": shown} | ({"refused": list(map(str, refused))} if refused else {}))
    if shown and not (args.quiet or args.json):
        say(args, f"next: landscape {next_command(shown)}")
    _refuse(refused, len(shown))
    return 0


def next_command(shown: list[dict]) -> str:
    """Return what draws the first of the measures just shown that has a figure, else what lists them, as words of a command."""
    from figures.catalogue import CATALOGUE
    runs = list(dict.fromkeys(row["run"] for row in shown))
    drawn = [row["name"] for row in shown if row["name"] in CATALOGUE]
    return shlex.join(["figures", drawn[0], *runs] if drawn else ["inspect", runs[0]])


def split_words(words: list[str]) -> tuple[list[str], list[Path]]:
    """Return the measures in front, `all` standing for every one, and the run folders behind them."""
    from analysis.measures.catalogue import MEASURES, measure_named
    count = next((i for i, word in enumerate(words) if word != "all" and word not in MEASURES), len(words))
    if not count or count < len(words) and not Path(words[count]).exists() and nearest(words[count], MEASURES):
        measure_named(words[count])
    if count == len(words):
        raise InputError("RUN is missing: expected run folders behind the measures, such as "
                         f"landscape measure {' '.join(words)} runs/digits/sgd-seed0")
    names = [name for word in words[:count] for name in (MEASURES if word == "all" else [word])]
    return list(dict.fromkeys(names)), [Path(word) for word in words[count:]]


@dataclass(frozen=True, eq=False)
class _Job:
    """One measure of one run at one epoch."""

    name: str
    case: Any       # analysis.measures.case.Case
    epoch: int      # that its record is filed under

    @property
    def words(self) -> str:
        from analysis.measures.catalogue import measure_named
        return f"{self.name}, epoch {self.epoch}" if measure_named(self.name).at_checkpoint else self.name

    def work(self) -> int:
        """Return the image gradients that it takes."""
        from analysis.measures.catalogue import work
        return work(self.name, self.case)

    def is_stored(self) -> bool:
        return self.case.store.has("measurement", epoch=self.epoch, name=self.name)


def _jobs(args: argparse.Namespace, store, names: list[str], settings, traces: dict) -> Iterator[_Job]:
    """Yield what is asked of one run, epoch by epoch; its data are read once, when something needs them. Runs share `traces`."""
    from analysis.measures.case import Case
    from analysis.measures.catalogue import MEASURES

    @cache
    def subject():
        from analysis.subject import Subject
        tell(args, f"{store.path}: reading data")
        opened = Subject.open(store, data_dir=args.data_dir, device=args.device, traces=traces)
        named_groups(opened, args.group)
        return opened
    if "classes" in settings.groups:
        settings = type(settings)(**{**vars(settings), "groups": tuple(named_groups(subject(), args.group))})
    alone = [name for name in names if not MEASURES[name].at_checkpoint]
    for name in alone:
        yield _Job(name, Case(store, subject, None, settings), 0)
    for epoch in chosen_epochs(store, args.epoch) if len(alone) < len(names) else ():
        case = Case(store, subject, epoch, settings)
        yield from (_Job(name, case, epoch) for name in names if name not in alone)


def _forecast(args: argparse.Namespace, jobs: list[_Job]) -> dict[str, Any]:
    """Forecast what is missing, and say it; a spectrum that is needed and absent is an error here already."""
    missing = [job for job in jobs if args.overwrite or not job.is_stored()]
    words = ", ".join(job.words for job in missing[:ROWS]) + (f" and {len(missing) - ROWS} more" if len(missing) > ROWS else "")
    say(args, f"{len(missing)} of {len(jobs)} measurements to make{': ' if missing else ''}{words}")
    gradients = {job: job.work() for job in missing}
    heavy = next((job for job, images in gradients.items() if images), None)
    if heavy is None:
        say(args, "forecast: a few seconds")
        return {"measurements": len(missing), "image gradients": 0}
    from scripts.forecast import of_gradients
    forecast = of_gradients(heavy.case.subject, heavy.case.settings, sum(gradients.values()))
    say(args, forecast.line)
    return {"measurements": len(missing), **forecast.document}


def _measure(args: argparse.Namespace, jobs: list[_Job]) -> tuple[list[dict], list[Exception]]:
    """Measure what is not stored; return the rows shown, and what refused to be measured."""
    from analysis.measures.catalogue import measured
    shown, refused = [], []
    expected = {job: 0 if job.is_stored() and not args.overwrite else _expected(job) for job in jobs}
    with Progress(sum(expected.values()) or None, "measure", quiet=args.quiet or args.json, unit="image gradient") as bar:
        for count, job in enumerate(jobs, 1):
            bar.set_description(job.words)
            job.case.progress = bar.update
            try:
                record, fresh = measured(job.name, job.case, overwrite=args.overwrite)
            except (RecordError, InputError) as error:
                refused.append(error)
                continue
            bar.skip(sum(expected[done] for done in jobs[:count]) - bar.done)    # what was forecast and not needed
            shown.append(_row(job, record, fresh))
            say(args, f"\n{shown[-1]['path']}{'' if fresh else ' (stored before)'}\n{digest(record)}")
    return shown, refused


def _expected(job: _Job) -> int:
    """Return the image gradients that a measure takes; none where it will be refused."""
    try:
        return job.work()
    except (RecordError, InputError):
        return 0


def _row(job: _Job, record, fresh: bool) -> dict[str, Any]:
    from checkpoints.layout import KINDS, relative_path
    store = job.case.store
    return {"run": str(store.path), "name": job.name, "epoch": record.epoch, "stored_before": not fresh,
            "path": str(store.path / relative_path(KINDS["measurement"], {"epoch": record.epoch, "name": record.name})),
            "columns": {**record.labels, **record.numbers}, "units": record.units, "about": record.about}


def digest(record) -> str:
    """Return a measurement as a table for people: the lowest pair alone, rows alike averaged, so many rows at most."""
    from checkpoints.frames import frame
    table, notes = frame(record), []
    shown = table
    if "pair" in table and (table["pair"] > 0).any():
        shown, notes = table[table["pair"] == 0], ["the most negative pair alone"]
    shown = shown.drop(columns=["pair", "draw"], errors="ignore")
    keys = [*record.labels, *(["rho"] if "rho" in table and record.labels else [])]
    if keys and shown.duplicated(keys).any():
        shown, notes = shown.groupby(keys, sort=False, as_index=False).mean(), [*notes, "means of rows alike"]
    if len(shown) > ROWS:
        shown, notes = shown.head(ROWS), [*notes, f"{ROWS} of {len(shown)} rows"]
    text = shown.to_string(index=False, float_format=lambda value: f"{value:.4g}", na_rep="")
    return text + (f"\n({'; '.join(notes)}; the record has all {len(table)} rows)" if notes else "")


def _refuse(refused: list[Exception], shown: int) -> None:
    """End with one line where something could not be measured; everything else is done."""
    if len(refused) == 1:
        raise refused[0]
    if refused:
        causes = list(dict.fromkeys(map(str, refused)))
        found = "; ".join(causes[:3]) + f"; and {len(causes) - 3} more" * (len(causes) > 3)
        raise RecordError(f"{len(refused)} of {len(refused) + shown} measurements were not made: {found}")
