"""Tables over seeds: accuracy by class group and curvature by class group, each a mean with Student's t interval.

A table is a pandas DataFrame with one row per optimizer (and group), and per quantity the columns `NAME`, `NAME_low`,
`NAME_high`; `num_seeds` says how many runs stand behind a row. One run gives a NaN interval, never zero width. A group
that no class falls into has NaN accuracy and prints as "absent": it is never a zero. Everything is computed from a
`checkpoints.comparison.Comparison`; nothing here needs torch.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pandas as pd

from analysis.spectra.intervals import t_interval
from analysis.spectra.quadrature import negative_mass, threshold
from checkpoints.comparison import Comparison, Member, check_same_object, classes_of
from checkpoints.errors import RecordError
from checkpoints.records import Curvature, Estimate

ACCURACY_GROUPS = ("many", "medium", "few", "head", "tail", "all")   # in the order the papers print them

# What a curvature table holds, each a number of one record. Names as in the glossary; "negative ratio" is none of them.
CURVATURES: Mapping[str, Callable[[Curvature], float]] = {
    "lambda_min": lambda record: _end(record, 0),
    "lambda_max": lambda record: _end(record, -1),
    "extreme_ratio": lambda record: record.extreme_ratio.value,
    "negative_mass": lambda record: record.negative_mass.value,
    "trace": lambda record: record.trace.value,
    "loss": lambda record: record.loss,
    "gradient_norm": lambda record: record.gradient_norm,
    "accuracy": lambda record: record.accuracy,
    "test_accuracy": lambda record: record.test_accuracy,
}
# The interval that a single record brings along; an extreme eigenvalue's residual is no interval for lambda_min itself.
_OWN: Mapping[str, Callable[[Curvature], Estimate]] = {
    "extreme_ratio": lambda record: record.extreme_ratio,
    "negative_mass": lambda record: record.negative_mass,
    "trace": lambda record: record.trace,
}


def over_seeds(values: Sequence[float], level: float = 0.95) -> Estimate:
    """Return the mean over runs with Student's t interval of kind "seeds"; NaN limits for one run, NaN for no run."""
    if not len(values):
        return Estimate(np.nan, np.nan, np.nan, level, "seeds")
    return t_interval(values, level, "seeds")


def pooled(records: Sequence[Curvature], quantity: str, level: float = 0.95) -> Estimate:
    """Return one quantity of CURVATURES over seeds; for a single record the interval that the record itself brings.

    The kind of the estimate says which of the two it is. Negative mass keeps its quadrature bracket over seeds, since all runs
    share the same number of Lanczos steps and err alike: from the lower t limit of the runs' own lower limits to the upper
    t limit of their upper ones.
    """
    values = [CURVATURES[quantity](record) for record in records]
    if len(records) == 1 and quantity in _OWN:
        return _OWN[quantity](records[0])
    if quantity == "negative_mass" and len(records) > 1:
        own = [record.negative_mass for record in records]
        low, high = (over_seeds([getattr(e, side) for e in own], level) for side in ("low", "high"))
        return Estimate(float(np.mean(values)), max(low.low, 0.0), min(high.high, 1.0), level, "quadrature+probes+seeds")
    return over_seeds(values, level)


def curvature_frame(runs: Comparison) -> pd.DataFrame:
    """Return every curvature record as one row: opt, seed, epoch, group, then the quantities of CURVATURES."""
    rows = [_curvature_row(opt, member, record)
            for opt, members in runs.members.items() for member in members
            for record in sorted(member.curvatures.values(), key=lambda record: (record.epoch, record.group))]
    return pd.DataFrame(rows)


def curvature_table(runs: Comparison, epoch: int | None = None, groups: Sequence[str] = ("head", "tail"),
                    level: float = 0.95) -> pd.DataFrame:
    """Return one row per optimizer and group at `epoch` (default: the last that every run has), with t intervals.

    Negative mass is taken below one threshold for the whole table, stated in the column `threshold`. A missing record
    is an error naming the command that makes it.
    """
    groups = runs.present(groups)
    epoch = runs.epoch(groups, epoch)
    pools = {(opt, group): runs.curvatures(opt, epoch, group) for group in groups for opt in runs.optimizers}
    pools = with_shared_threshold(pools, level)
    rows = [{"group": group, "opt": opt, "epoch": epoch, "num_seeds": len(pool), "num_samples": pool[0].num_samples,
             "threshold": pool[0].threshold} | _spread({name: pooled(pool, name, level) for name in CURVATURES})
            for (opt, group), pool in pools.items()]
    return pd.DataFrame(rows).set_index(["group", "opt"])


def with_shared_threshold(pools: Mapping[Any, Sequence[Curvature]], level: float = 0.95) -> dict[Any, list[Curvature]]:
    """Return the records with negative mass taken anew below one threshold, 1e-3 of the largest |lambda| of them all.

    Stored records carry the threshold of their own making; masses below different thresholds must not be compared.
    Records of different Hessians are refused.
    """
    everything = [record for pool in pools.values() for record in pool]
    check_same_object(everything)
    shared = threshold([record.spectrum for record in everything])
    return {key: [_at_threshold(record, shared, level) for record in pool] for key, pool in pools.items()}


def accuracy_over_epochs(runs: Comparison, opt: str, group: str, level: float = 0.95) -> pd.DataFrame:
    """Return test accuracy of `group` after each evaluated epoch: index epoch, columns value, low, high, num_seeds.

    Runs of one optimizer that were evaluated at different epochs are an error: the mean would jump with its members.
    """
    column, members = f"test_accuracy/{classes_of(group)}", runs.members[opt]
    series = [_series(member, column) for member in members]
    for member, other in zip(members[1:], series[1:]):
        if not other.index.equals(series[0].index):
            raise RecordError(f"{member.name}: evaluated after other epochs than {members[0].name}; "
                              f"finish it with: landscape train --out {member.name} --resume")
    estimates = [over_seeds([one.loc[epoch] for one in series], level) for epoch in series[0].index]
    rows = [{"value": e.value, "low": e.low, "high": e.high, "num_seeds": len(series)} for e in estimates]
    return pd.DataFrame(rows, index=series[0].index)


def accuracy_table(runs: Comparison, epoch: int | None = None, groups: Sequence[str] = ACCURACY_GROUPS,
                   level: float = 0.95) -> pd.DataFrame:
    """Return test accuracy in [0, 1], one row per optimizer, after `epoch` (default: each run's last evaluated one).

    The last epoch, not the best on the test set: the papers select on the test set, which flatters every number.
    """
    rows = []
    for opt, members in runs.members.items():
        found = [_accuracies(member, epoch, groups) for member in members]
        estimates = {group: over_seeds([row[group] for row in found if group in row], level) for group in groups}
        rows.append({"opt": opt, "epoch": found[0]["epoch"], "num_seeds": len(members)} | _spread(estimates))
    return pd.DataFrame(rows).set_index("opt")


def last_accuracies(runs: Comparison, groups: Sequence[str] = ACCURACY_GROUPS,
                    epoch: int | None = None) -> pd.DataFrame:
    """Return one row a run: opt, seed, epoch and the test accuracy of each group, behind `accuracy_table`."""
    rows = [{"opt": opt, "seed": member.config.get("seed")} | _accuracies(member, epoch, groups)
            for opt, members in runs.members.items() for member in members]
    return pd.DataFrame(rows, columns=["opt", "seed", "epoch", *groups])


def as_text(table: pd.DataFrame, names: Sequence[str], percent: bool = False) -> str:
    """Return a table as aligned plain text, each cell `mean ± half width` (or the mean alone), NaN as "absent"."""
    cells = {name: [cell(row, name, percent) for _, row in table.iterrows()] for name in names}
    return pd.DataFrame(cells, table.index).to_string()


def cell(row: Mapping[str, Any], name: str, percent: bool = False) -> str:
    """Return one quantity of a row as `mean ± half width`: three significant digits, or percent with one decimal."""
    numbers = (float(row[column]) for column in (name, f"{name}_low", f"{name}_high"))
    return interval_text(*((100 * number for number in numbers) if percent else numbers),
                         decimals=1 if percent else None)


def interval_text(value: float, low: float, high: float, decimals: int | None = None) -> str:
    """Return `value ± half width` with as many decimals for both (default: three significant digits of the value).

    An interval that is not centered on its value is printed as `value [low, high]`; a half width that these decimals would
    show as zero by its power of ten.

    >>> interval_text(-59.01, -62.21, -55.81), interval_text(0.5, float("nan"), float("nan")), interval_text(2.0, 1.9998, 2.0002)
    ('−59.0 ± 3.2', '0.500', '2.00 ± 2e−04')
    """
    if np.isnan(value):
        return "absent"
    below, above = value - low, high - value
    if np.isnan(below + above):
        return number_text(value, decimals)
    if decimals is None and _is_extreme(value):   # one exponent for all three
        power = int(np.floor(np.log10(abs(value))))
        body = interval_text(*(number / 10.0 ** power for number in (value, low, high)), decimals=2)
        return f"({body})e{power}".replace("-", "\N{MINUS SIGN}")
    fixed = decimals is not None
    decimals = decimals if fixed else _decimals(value)
    if abs(above - below) <= 0.02 * (above + below):
        half = (below + above) / 2
        shown = number_text(half, decimals) if fixed or not 0 < half < 0.5 / 10**decimals else _power_of_ten(half)
        return f"{number_text(value, decimals)} ± {shown}"
    decimals = decimals if fixed else max(0, decimals - 1)      # three numbers in one cell: two digits each are enough
    return f"{number_text(value, decimals)} [{number_text(low, decimals)}, {number_text(high, decimals)}]"


def number_text(value: float, decimals: int | None = None) -> str:
    """Return a number with so many decimals (default: three significant digits) and a true minus sign.

    >>> number_text(12345.6), number_text(-0.0123456), number_text(2.5e-7)
    ('12346', '−0.0123', '2.50e−07')
    """
    if decimals is None and _is_extreme(value):
        text = f"{value:.2e}"
    else:
        text = f"{value:.{_decimals(value) if decimals is None else decimals}f}"
    return text.replace("-", "\N{MINUS SIGN}")


def _power_of_ten(value: float) -> str:
    return f"{value:.0e}".replace("-", "\N{MINUS SIGN}")


def _is_extreme(value: float) -> bool:
    return value != 0 and not 1e-4 <= abs(value) < 1e6


def _decimals(value: float) -> int:
    """Return the decimals that show three significant digits."""
    magnitude = int(np.floor(np.log10(abs(value)))) if value and np.isfinite(value) else 0
    return max(0, 2 - magnitude)


def as_json(table: pd.DataFrame) -> list[dict[str, Any]]:
    """Return a table as a list of flat objects that `json.dumps` accepts: NaN becomes None (JSON has no NaN)."""
    return [{str(key): _plain(value) for key, value in row.items()} for row in table.reset_index().to_dict("records")]


def _end(record: Curvature, place: int) -> float:
    values = record.eigenpairs.values
    return float(values[place]) if values.size else np.nan


def _at_threshold(record: Curvature, shared: float, level: float) -> Curvature:
    return replace(record, threshold=shared, negative_mass=negative_mass(record.spectrum, shared, level))


def _curvature_row(opt: str, member: Member, record: Curvature) -> dict[str, Any]:
    row = {"opt": opt, "seed": member.config.get("seed"), "epoch": record.epoch, "group": record.group}
    row |= {name: of(record) for name, of in CURVATURES.items()}
    return row | {"lambda_min_verified": bool(record.eigenpairs.verified[:1].all() and record.eigenpairs.values.size),
                  "threshold": record.threshold,
                  "num_samples": record.num_samples, "num_available": record.num_available,
                  **_spread({"group_curvature": record.group_curvature, "group_trace": record.group_trace})}


def _spread(estimates: Mapping[str, Estimate]) -> dict[str, float]:
    return {column: number for name, e in estimates.items()
            for column, number in ((name, e.value), (f"{name}_low", e.low), (f"{name}_high", e.high))}


def _evaluated_rows(member: Member) -> pd.DataFrame:
    columns = [name for name in member.metrics.columns if name.startswith("test_accuracy/")]
    rows = member.metrics[["epoch", *columns]].dropna(how="all", subset=columns) if columns else member.metrics
    if not len(rows):
        raise RecordError(f"{member.name}: metrics.csv has no evaluated epoch; train it with: "
                          f"landscape train --out {member.name}")
    return rows


def _series(member: Member, column: str) -> pd.Series:
    rows = _evaluated_rows(member).set_index("epoch")
    if column not in rows:
        raise RecordError(f"{member.name}: metrics.csv has no column {column}; known groups: "
                          + ", ".join(name.partition("/")[2] for name in rows.columns))
    return rows[column].dropna()


def _accuracies(member: Member, epoch: int | None, groups: Sequence[str]) -> dict[str, float]:
    """Return {group: accuracy} and the epoch; a group without an evaluated value is left out."""
    rows = _evaluated_rows(member).set_index("epoch")
    epoch = int(rows.index[-1]) if epoch is None else epoch
    if epoch not in rows.index:
        raise RecordError(f"epoch={epoch} was not evaluated in {member.name}: expected one of "
                          + ", ".join(str(known) for known in rows.index))
    row = rows.loc[epoch].dropna().rename(lambda name: name.partition("/")[2])
    return {"epoch": epoch} | {group: float(row[classes_of(group)]) for group in groups if classes_of(group) in row}


def _plain(value: Any) -> Any:
    value = value.item() if isinstance(value, np.generic) else value
    return None if isinstance(value, float) and not np.isfinite(value) else value
