"""Runs side by side: those that differ in the seed alone are one pool, and pools are called A, B, C in the order given.

Nothing is refused for being different: `settings_table` says what differs, `difference_table` what that goes with, by shared
seeds and with an interval where seeds allow one. Where data or groups differ, accuracies and curvatures are of other things,
and no difference is taken: `other_data` names the settings.
"""

from collections.abc import Iterable, Sequence
from typing import Any

import pandas as pd

from analysis.findings.differences import difference
from analysis.findings.outcomes import accuracies
from analysis.findings.summary import ACCURACY_GROUPS, CURVATURES
from checkpoints.comparison import NO_MATTER, Comparison, Member
from checkpoints.errors import RecordError
from checkpoints.variants import plain

DATA = ("dataset", "imb_factor", "profile", "subset", "data_seed", "eta", "many", "few")
HIDDEN = ("seed", "device", "threads", "workers", "checkpoint_epochs", "eval_every")
ENDS = ("lambda_min", "lambda_max", "extreme_ratio", "trace", "loss", "gradient_norm")


def side_by_side(runs: Iterable[Any]) -> Comparison:
    """Pool runs that differ in the seed alone, as A, B, ...; a seed that repeats starts another pool."""
    members = [run if isinstance(run, Member) else Member(run) for run in runs]
    if not members:
        raise RecordError("RUN is missing: expected at least one run folder")
    pools: list[list[Member]] = []
    for member in members:
        fitting = (pool for pool in pools if _identity(pool[0]) == _identity(member)
                   and member.config.get("seed") not in [other.config.get("seed") for other in pool])
        pool = next(fitting, None)
        pools.append([member]) if pool is None else pool.append(member)
    return Comparison({_letter(place): tuple(sorted(pool, key=lambda member: member.config.get("seed", 0)))
                       for place, pool in enumerate(pools)})


def settings_table(runs: Comparison) -> pd.DataFrame:
    """Return the settings in which pools differ, as texts: a row a setting, a column a pool; "-" where a pool has none."""
    firsts = {name: members[0].config for name, members in runs.members.items()}
    keys = dict.fromkeys(key for config in firsts.values() for key in config if key not in HIDDEN)
    rows = {key: {name: plain(config[key]) if key in config else "-" for name, config in firsts.items()} for key in keys}
    table = pd.DataFrame.from_dict({key: row for key, row in rows.items() if len(set(row.values())) > 1}, orient="index",
                                   columns=list(firsts))
    return table.rename_axis("setting")


def other_data(runs: Comparison) -> list[str]:
    """Return the settings of data and groups in which pools differ."""
    return [key for key in DATA if len({repr(member.config.get(key)) for member in runs.everyone}) > 1]


def difference_table(runs: Comparison, groups: Sequence[str], epoch: int | None = None, level: float = 0.95) -> pd.DataFrame:
    """Return each pool less the first: index (pool, quantity, group), value, low, high, kind (paired | unpaired | single).

    Test accuracy (in [0, 1], after the last epoch) and, with `epoch`, what the spectra of `groups` hold there; None leaves these
    out. A quantity that a pool does not have is left out.
    """
    values = {name: _values(members, groups, epoch) for name, members in runs.members.items()}
    first, *others = values
    base = values[first]
    rows = [{"pool": pool, "quantity": key[0], "group": key[1]} | _columns(difference(ours, base[key], level))
            for pool in others for key, ours in values[pool].items() if ours and base.get(key)]
    return pd.DataFrame(rows, columns=["pool", "quantity", "group", "value", "low", "high", "kind"]).set_index(
        ["pool", "quantity", "group"])


def _values(members: Sequence[Member], groups: Sequence[str], epoch: int | None) -> dict[tuple[str, str], dict[Any, float]]:
    """Return values by seed of each (quantity, group)."""
    found: dict[tuple[str, str], dict[Any, float]] = {}
    for member in members:
        seed, row = member.config.get("seed"), _accuracies(member)
        for group in ACCURACY_GROUPS:
            if group in row:
                found.setdefault(("test_accuracy", group), {})[seed] = row[group]
        for group in groups if epoch is not None else ():
            record = member.curvature(epoch, group)
            for name in ENDS:
                found.setdefault((name, group), {})[seed] = CURVATURES[name](record)
    return found


def _accuracies(member: Member) -> dict[str, float]:
    try:
        return dict(accuracies(member))
    except RecordError:     # never evaluated: nothing to compare, and no reason to compare nothing else
        return {}


def _columns(estimate) -> dict[str, Any]:
    return {"value": estimate.value, "low": estimate.low, "high": estimate.high, "kind": estimate.kind}


def _identity(member: Member) -> dict[str, str]:
    return {key: repr(value) for key, value in member.config.items() if key not in NO_MATTER}


def _letter(place: int) -> str:
    return chr(ord("A") + place % 26) + (str(place // 26) if place >= 26 else "")
