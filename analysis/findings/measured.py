"""Measurements of several runs as one table, and their means over seeds with the interval that goes with them.

    rows(runs, name)         every stored row: opt, seed, epoch, then the record's own columns
    pooled(table, keys)      opt, keys, value, low, high, num_seeds: one row for each optimizer and case

Several seeds: the mean of the seeds' values with Student's t interval over them. One seed: the interval that the record
brings, or the t interval over its draws where it holds one row a draw. `interval_words` says which it is.
"""

from collections.abc import Sequence

import pandas as pd

from analysis.findings import summary
from analysis.spectra.intervals import t_interval
from checkpoints.comparison import Comparison, Member
from checkpoints.errors import RecordError
from checkpoints.frames import frame
from checkpoints.records import Measurement


def records(runs: Comparison, name: str, epochs: Sequence[int] | None = None) -> dict[tuple[str, int, int], Measurement]:
    """Return the measurements `name` by optimizer, seed and epoch, by default all that any seed of the optimizer has.

    A seed without one that another has, none at all, and measurements of other data or settings are RecordErrors.
    """
    found = {(opt, member.config.get("seed"), epoch): member.measurement(name, epoch)
             for opt, members in runs.members.items() for epoch in (epochs or _epochs(members, name)) for member in members}
    _check_alike(name, list(found.values()))
    return found


def rows(runs: Comparison, name: str, epochs: Sequence[int] | None = None) -> pd.DataFrame:
    """Return every row of the measurements `name`: opt, seed, epoch, then the columns of the records."""
    tables = [frame(record).assign(opt=opt, seed=seed, epoch=epoch)
              for (opt, seed, epoch), record in records(runs, name, epochs).items()]
    table = pd.concat(tables, ignore_index=True)
    return table[["opt", "seed", "epoch", *(column for column in table if column not in ("opt", "seed", "epoch"))]]


def last_epoch(runs: Comparison, name: str, epoch: int | None = None) -> int:
    """Return `epoch`, or by default the last at which every run holds the measurement `name`."""
    if epoch is not None:
        return epoch
    held = [{at for at, kind in member.measurements if kind == name} for member in runs.everyone]
    common = set.intersection(*held)
    return max(common) if common else max(set.union(*held), default=_last(runs.everyone[0]))


def any_record(runs: Comparison, name: str) -> Measurement:
    """Return a measurement that is of no checkpoint, from the first run that holds it."""
    for member in runs.everyone:
        if (0, name) in member.measurements:
            return member.measurements[0, name]
    raise RecordError(f"{runs.everyone[0].name}: no measurement of {name}; make it with: landscape measure {name} "
                      f"{runs.everyone[0].name}")


def pooled(table: pd.DataFrame, keys: Sequence[str], column: str = "value", level: float = 0.95) -> pd.DataFrame:
    """Return the mean over seeds of a column for each optimizer and combination of `keys`, in the order found.

    Rows that agree in optimizer, seed and keys are draws, averaged first.
    """
    made = [dict(zip(["opt", *keys], case)) | _estimate(part, column, level)
            for case, part in table.groupby(["opt", *keys], sort=False)]
    return pd.DataFrame(made, columns=["opt", *keys, "value", "low", "high", "num_seeds"])


def chosen_groups(table: pd.DataFrame, groups: Sequence[str]) -> list[str]:
    """Return those of `groups` that the table holds, all of the table's where it holds none of the default two.

    Other groups that were asked for and are not there are a RecordError naming those that are.
    """
    held = list(dict.fromkeys(table["group"]))
    chosen = [group for group in groups if group in held]
    if not chosen and tuple(groups) != ("head", "tail"):
        raise RecordError(f"groups={','.join(groups)}: none of them was measured: expected some of {', '.join(held)}")
    return chosen or held


def interval_words(runs: Comparison, measurement: Measurement, level: float = 0.95) -> str:
    """Return what the bars and bands of a figure are, in words that follow those on the runs; none where there are no bars."""
    if runs.num_seeds > 1:
        return f"; mean and {100 * level:g} % t interval over seeds"
    about = measurement.about
    over = about.get("interval", about.get("kind", ""))
    if over:
        return f"; {100 * about.get('level', level):g} % interval over {over}"
    return f"; bars: {about['bars']}" if "bars" in about else ""


def _estimate(part: pd.DataFrame, column: str, level: float) -> dict[str, float]:
    seeds = part.groupby("seed", sort=False)[column].mean()
    if len(seeds) > 1:
        spread = summary.over_seeds(seeds.to_numpy(), level)
    elif len(part) > 1:
        spread = t_interval(part[column].to_numpy(), level, "draws")
    else:
        own = part.iloc[0] if column == "value" else {}
        return {"value": float(part.iloc[0][column]), "low": float(own.get("low", float("nan"))),
                "high": float(own.get("high", float("nan"))), "num_seeds": 1}
    return {"value": spread.value, "low": spread.low, "high": spread.high, "num_seeds": len(seeds)}


def _epochs(members: Sequence[Member], name: str) -> list[int]:
    found = {epoch for member in members for epoch, kind in member.measurements if kind == name}
    if not found:
        members[0].measurement(name, _last(members[0]))
    return sorted(found)


def _last(member: Member) -> int:
    return int(member.config.get("epochs", 0))


def _check_alike(name: str, found: Sequence[Measurement]) -> None:
    """Refuse a figure of measurements that were made of other data or with other settings."""
    for other in found[1:]:
        for (key, ours), theirs in zip(_made_from(found[0]).items(), _made_from(other).values()):
            if ours != theirs:
                raise RecordError(f"{key}={theirs} and {key}={ours}: measurements of {name} that were made differently cannot "
                                  "share a figure; make them alike with --overwrite")


def _made_from(record: Measurement) -> dict:
    inputs = record.provenance.get("inputs", {})
    return {"data": inputs.get("data"), "settings": inputs.get("settings")}
