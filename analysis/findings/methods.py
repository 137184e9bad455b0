"""Methods side by side: what each does for every group's accuracy and curvature, and what its training costs.

    methods_table(runs)     one row a method (a pool of runs): accuracies, curvature of each group, alignment, cost

Means over seeds with Student's t interval, columns NAME, NAME_low, NAME_high, as in `analysis.findings.summary`:

    many, medium, few, all          test accuracy in [0, 1] after the last epoch
    GROUP_lambda_min ...            the quantities CURVATURE of a group, at one epoch; GROUP_verified counts the seeds whose
                                    lambda_min was confirmed in float64
    GROUP_alignment_sam, _imbsam    |<v_min, eps>| / ||eps|| with SAM's and ImbSAM's perturbation there, where measured
    cost                            median seconds of an epoch, over the median of the plainest method's runs of the same seeds

The cost is of whole epochs as they were trained: views, augmentation and evaluation included, other processes beside. The
seconds of steps alone, side by side, are those of `landscape measure cost`.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd

from analysis.findings import measured, summary
from checkpoints.comparison import Comparison, Member
from checkpoints.records import Estimate

ACCURACIES = ("many", "medium", "few", "all")
CURVATURE = ("lambda_min", "lambda_max", "extreme_ratio", "negative_mass", "trace")
ASCENTS = ("sam", "imbsam")


def methods_table(runs: Comparison, epoch: int | None = None, groups: Sequence[str] = ("head", "tail"),
                  level: float = 0.95) -> pd.DataFrame:
    """Return one row a method, by its pool's name; a group, measure or cost that no run holds has no columns."""
    accuracy = summary.accuracy_table(runs, groups=ACCURACIES, level=level)
    curvature = summary.curvature_table(runs, epoch, groups, level)
    parts = [accuracy.drop(columns="epoch")]
    parts += [_curvature(runs, curvature.loc[group], group) for group in curvature.index.unique("group")]
    parts += [found for found in (_alignments(runs, curvature, level), _costs(runs, level)) if found is not None]
    return pd.concat(parts, axis=1).rename_axis("opt").assign(
        epoch=curvature["epoch"].iloc[0], threshold=curvature["threshold"].iloc[0], loss=_losses(runs))


def plainest(runs: Comparison) -> str:
    """Return the method whose epochs are the unit of cost: SGD with cross-entropy, else the first."""
    plain = [opt for opt, members in runs.members.items()
             if members[0].config.get("opt") == "sgd" and members[0].config.get("loss") == "CE"]
    return (plain or list(runs.optimizers))[0]


def _losses(runs: Comparison) -> pd.Series:
    return pd.Series({opt: members[0].config.get("loss", "CE") for opt, members in runs.members.items()})


def _curvature(runs: Comparison, table: pd.DataFrame, group: str) -> pd.DataFrame:
    names = [name + end for name in CURVATURE for end in ("", "_low", "_high")]
    epoch = int(table["epoch"].iloc[0])
    verified = {opt: sum(bool(record.eigenpairs.verified[:1].all()) for record in runs.curvatures(opt, epoch, group))
                for opt in table.index}
    return table[names].add_prefix(f"{group}_").assign(**{f"{group}_verified": pd.Series(verified)})


def _alignments(runs: Comparison, curvature: pd.DataFrame, level: float) -> pd.DataFrame | None:
    """Return the alignment of v_min with each ascent along the whole group's gradient; None where a run has none measured."""
    epoch = int(curvature["epoch"].iloc[0])
    if not all((epoch, "alignment") in member.measurements for member in runs.everyone):
        return None
    rows = measured.rows(runs, "alignment", [epoch])
    rows = rows[(rows["pair"] == 0) & (rows["source"] == "group") & rows["perturbation"].isin(ASCENTS)
                & rows["group"].isin(curvature.index.unique("group"))]
    found = measured.pooled(rows, ["group", "perturbation"], level=level)
    made: dict[str, dict[str, Any]] = {}
    for row in found.to_dict("records"):
        name = f"{row['group']}_alignment_{row['perturbation']}"
        made.setdefault(row["opt"], {}).update({name: row["value"], f"{name}_low": row["low"], f"{name}_high": row["high"]})
    return pd.DataFrame.from_dict(made, orient="index")


def _costs(runs: Comparison, level: float) -> pd.DataFrame | None:
    unit = {member.config.get("seed"): _epoch_seconds(member) for member in runs.members[plainest(runs)]}
    if not np.isfinite(list(unit.values())).all():
        return None
    found = {opt: _ratio(members, unit, level) for opt, members in runs.members.items()}
    return pd.DataFrame.from_dict({opt: {"cost": e.value, "cost_low": e.low, "cost_high": e.high} for opt, e in found.items()},
                                  orient="index")


def _ratio(members: Sequence[Member], unit: dict[Any, float], level: float) -> Estimate:
    shared = [member for member in members if member.config.get("seed") in unit]
    return summary.over_seeds([_epoch_seconds(member) / unit[member.config.get("seed")] for member in shared], level)


def _epoch_seconds(member: Member) -> float:
    seconds = member.metrics.get("seconds", pd.Series(dtype=float)).dropna()
    return float(seconds.median()) if len(seconds) else float("nan")
