"""Verdicts along training: at which stored checkpoint is no negative curvature found for the first time, in which seeds?

A checkpoint tells only of itself, so that an escape lies between two of them: after the last at which negative curvature is
proved, up to the first at which none is found above the resolution (`analysis.findings.verdict`). Checkpoints that decide
nothing widen it. A run in which that never happens is censored: "not within N epochs" is all that it says, and no mean is
taken over it. The probability of having missed an eigenvalue is each checkpoint's own: over many checkpoints one such miss
is likelier.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd

from analysis.findings.summary import over_seeds
from analysis.findings.verdict import KINDS, NONE_FOUND, Verdict, judge
from checkpoints.comparison import Comparison, Member, check_same_object

EVIDENCE = ("eps_g", "eps_H", "gradient_norm", "lambda_min", "lambda_max", "resolution", "miss_probability")


def verdict_of(member: Member, epoch: int, group: str, eps_g: float | None = None, eps_H: float | None = None) -> Verdict:
    """Return the verdict on one stored checkpoint of a run, its weight decay known."""
    return judge(member.curvature(epoch, group), eps_g=eps_g, eps_H=eps_H, weight_decay=member.weight_decay)


def verdict_frame(runs: Comparison, groups: Sequence[str], epoch: int | None = None, *, eps_g: float | None = None,
                  eps_H: float | None = None) -> pd.DataFrame:
    """Return the verdict on every run at `epoch` (default: at each of its stored ones), a row a run, epoch and group."""
    places = [(opt, group, at) for opt in runs.optimizers for group in groups
              for at in (runs.curvature_epochs(opt, groups) if epoch is None else [epoch])]
    check_same_object([record for opt, group, at in places for record in runs.curvatures(opt, at, group)])
    return pd.DataFrame([_row(opt, member, verdict_of(member, at, group, eps_g, eps_H))
                         for opt, group, at in places for member in runs.members[opt]])


def verdict_table(runs: Comparison, groups: Sequence[str], epoch: int | None = None, level: float = 0.95,
                  **tolerances: float | None) -> pd.DataFrame:
    """Return one row a group and optimizer at `epoch` (default: the last that every run has): seeds by verdict, and evidence.

    Columns: the number of seeds of each of KINDS, num_seeds, and mean and t interval over seeds of gradient_norm, lambda_min,
    lambda_max, extreme_ratio, negative_mass; of tolerances and resolution the largest of all seeds.
    """
    groups = runs.present(groups)
    epoch = runs.epoch(groups, epoch)
    frame, rows = verdict_frame(runs, groups, epoch, **tolerances), []
    for group in groups:
        for opt in runs.optimizers:
            part = frame[(frame["opt"] == opt) & (frame["group"] == group)]
            rows.append({"group": group, "opt": opt, "epoch": epoch, "num_seeds": len(part)}
                        | {kind: int((part["verdict"] == kind).sum()) for kind in KINDS}
                        | {"num_samples": part["num_samples"].iloc[0], "num_available": part["num_available"].iloc[0],
                           "verified": int(part["lambda_min_verified"].sum())}
                        | {name: part[name].max() for name in ("eps_g", "eps_H", "resolution", "miss_probability")}
                        | _means(part, ("gradient_norm", "lambda_min", "lambda_max", "extreme_ratio", "negative_mass"), level))
    return pd.DataFrame(rows).set_index(["group", "opt"])


def escape_frame(runs: Comparison, groups: Sequence[str], **tolerances: float | None) -> pd.DataFrame:
    """Return one row a run and group: between which stored epochs (low, high] it left the last proved negative curvature.

    high is inf where that never happened; `last` is the last stored epoch, `again` the first one after `high` at which negative
    curvature is proved anew (NaN: none), `words` the answer in words.
    """
    rows = []
    for opt, members in runs.members.items():
        for member in members:
            for group in groups:
                found = [verdict_of(member, at, group, **tolerances) for at in runs.curvature_epochs(opt, (group,))]
                rows.append({"opt": opt, "seed": member.config.get("seed"), "group": group} | escape(found))
    return pd.DataFrame(rows)


def escape(verdicts: Sequence[Verdict]) -> dict[str, Any]:
    """Return low, high, last, again and words of one run's verdicts, in the order of their epochs."""
    last = verdicts[-1].epoch
    first = next((v.epoch for v in verdicts if v.kind == NONE_FOUND), np.inf)
    low = max((v.epoch for v in verdicts if v.bends_down and v.epoch < first), default=0)
    again = next((v.epoch for v in verdicts if v.bends_down and v.epoch > first), np.nan)
    if np.isfinite(first):
        words = f"after epoch {low}, by {first:g}" if low else f"none proved before, by epoch {first:g}"
    else:
        words = f"not within {last} epochs" if verdicts[-1].bends_down else f"undecided from epoch {_open(verdicts)} on"
    return {"low": float(low), "high": float(first), "last": last, "again": again,
            "words": words + (f", found again at {again:g}" if np.isfinite(again) else "")}


def escape_table(runs: Comparison, groups: Sequence[str], level: float = 0.95, **tolerances: float | None) -> pd.DataFrame:
    """Return one row a group and optimizer: in how many seeds no negative curvature was found, and when.

    value is the mean over seeds of the middle between checkpoints, low and high the t limits of the lower and of the upper ends:
    the distance of checkpoints is in the interval. One seed: its own ends. Where a seed is censored, value is NaN and high inf.
    """
    frame, rows = escape_frame(runs, runs.present(groups), **tolerances), []
    for (group, opt), part in frame.groupby(["group", "opt"], sort=False):
        escaped, count = int(np.isfinite(part["high"]).sum()), len(part)
        low, high = (over_seeds(list(part[side]), level) if count > 1 and escaped == count else None for side in ("low", "high"))
        rows.append({"group": group, "opt": opt, "num_seeds": count, "escaped": escaped, "last": part["last"].min(),
                     "value": float(part[["low", "high"]].mean(axis=1).mean()) if escaped == count else np.nan,
                     "low": max(0.0, low.low) if low else float(part["low"].min()),
                     "high": high.high if high else float(part["high"].max()), "words": _over_seeds(part, escaped)})
    return pd.DataFrame(rows).set_index(["group", "opt"])


def _over_seeds(part: pd.DataFrame, escaped: int) -> str:
    count, done = len(part), part[np.isfinite(part["high"])]
    if count == 1:
        return part["words"].iloc[0]
    span = f"after epoch {done['low'].min():g}, by {done['high'].max():g}" if escaped else ""
    if escaped == count:
        return f"{span} ({count} of {count} seeds)"
    rest = f"not within {part['last'].min():g} epochs in {count - escaped} of {count} seeds"
    return f"{rest}, else {span}" if escaped else rest


def _open(verdicts: Sequence[Verdict]) -> int:
    """Return the first epoch of the undecided ones at the end."""
    decided = [place for place, v in enumerate(verdicts) if v.bends_down]
    return verdicts[decided[-1] + 1 if decided else 0].epoch


def _row(opt: str, member: Member, verdict: Verdict) -> dict[str, Any]:
    record = member.curvature(verdict.epoch, verdict.group)
    return {"opt": opt, "seed": member.config.get("seed"), "epoch": verdict.epoch, "group": verdict.group,
            "verdict": verdict.kind} | {name: getattr(verdict, name) for name in EVIDENCE} | {
                "lambda_min_verified": verdict.verified_min, "extreme_ratio": verdict.extreme_ratio.value,
                "negative_mass": verdict.negative_mass.value, "threshold": verdict.threshold,
                "num_samples": record.num_samples, "num_available": record.num_available, "sentence": verdict.sentence}


def _means(part: pd.DataFrame, names: Sequence[str], level: float) -> dict[str, float]:
    estimates = {name: over_seeds(list(part[name]), level) for name in names}
    return {column: number for name, e in estimates.items()
            for column, number in ((name, e.value), (f"{name}_low", e.low), (f"{name}_high", e.high))}
