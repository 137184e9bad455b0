"""Test accuracy by every choice in use: after the last epoch or the one best on the test set, flips averaged or not.

Published tables choose the epoch on the test set, which flatters every number; some average logits over an image and its mirror
image besides. Both are shown here beside the last epoch without either, and named. See `checkpoints.chosen_epoch`.

For CIFAR-10-LT the head, mid and tail of Rangwani et al. (2022) come besides: classes 0-2, 3-6 and 7-9, each class counted alike,
which on a balanced test set is each image. Theirs of CIFAR-100 are not recorded.
"""

from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd

from analysis.findings.summary import ACCURACY_GROUPS, over_seeds
from checkpoints.chosen_epoch import CHOSEN_BY, FLIP, PLAIN, WORDS, choose
from checkpoints.comparison import Comparison, Member, classes_of
from checkpoints.errors import RecordError

CHOICES = tuple((selection, flip) for selection in WORDS for flip in (False, True))
THIRDS = {"cifar10": {"head 0-2": range(0, 3), "mid 3-6": range(3, 7), "tail 7-9": range(7, 10)}}
NAMES = {"last": "last epoch", "test_best": "best on the test set"}


def groups_of(runs: Comparison) -> tuple[str, ...]:
    """Return the groups of an accuracy table, in the order the papers print them: the thirds of Rangwani et al. before all."""
    *parts, everyone = ACCURACY_GROUPS
    return (*parts, *THIRDS.get(runs.config.get("dataset"), {}), everyone)


def accuracy_outcomes(runs: Comparison, epoch: int | None = None, groups: Sequence[str] | None = None,
                      level: float = 0.95) -> pd.DataFrame:
    """Return test accuracy in [0, 1] over seeds, a row an optimizer and choice: index (opt, how), t intervals.

    `epochs` names the epochs taken, one a seed; `result` is True where the choice is the runs' own (`selection` and
    `flip_average` of their training). A choice that not every seed allows is left out. With `epoch` there is no selection.
    """
    rows, groups = [], groups_of(runs) if groups is None else groups
    for opt, members in runs.members.items():
        for how, flip, found in _choices(members, epoch):
            estimates = {group: over_seeds([row[classes_of(group)] for _, row in found if classes_of(group) in row], level)
                         for group in groups}
            rows.append({"opt": opt, "how": how, "epochs": ", ".join(map(str, sorted({at for at, _ in found}))),
                         "result": _is_result(members[0], how, flip), "num_seeds": len(found)}
                        | {column: number for name, e in estimates.items()
                           for column, number in ((name, e.value), (f"{name}_low", e.low), (f"{name}_high", e.high))})
    return pd.DataFrame(rows).set_index(["opt", "how"])


def accuracies(member: Member, selection: str = "last", flip: bool = False,
               epoch: int | None = None) -> Mapping[str, float] | None:
    """Return one run's accuracy by group, and its epoch under the key "epoch"; None where that was not measured."""
    if epoch is not None:
        return _at(member, epoch, FLIP if flip else PLAIN)
    outcome = choose(member.metrics, selection, flip)
    if outcome is None:
        raise RecordError(f"{member.name}: metrics.csv has no evaluated epoch; train it with: "
                          f"landscape train --out {member.name}")
    return _with_thirds(member, outcome.accuracy) | {"epoch": outcome.epoch} if outcome.flip_average == flip else None


def how_named(selection: str, flip: bool) -> str:
    """Return a choice as a row of a table calls it."""
    return NAMES.get(selection, selection) + (", flips averaged" if flip else "")


def _choices(members: Sequence[Member], epoch: int | None):
    """Yield (how, flip, [(epoch, accuracies), one a seed]) for each choice that all seeds allow."""
    choices = CHOICES if epoch is None else ((f"epoch {epoch}", False), (f"epoch {epoch}", True))
    for selection, flip in choices:
        found = [accuracies(member, selection, flip, epoch) for member in members]
        if all(row is not None for row in found):
            yield how_named(selection, flip), flip, [(int(row["epoch"]), row) for row in found]


def _at(member: Member, epoch: int, prefix: str) -> Mapping[str, float] | None:
    table = member.metrics.set_index("epoch") if "epoch" in member.metrics else pd.DataFrame()
    evaluated = [] if CHOSEN_BY not in table else [int(at) for at in table.index[table[CHOSEN_BY].notna()]]
    if epoch not in evaluated:
        raise RecordError(f"epoch={epoch} was not evaluated in {member.name}: expected one of "
                          + (", ".join(map(str, evaluated)) or "none"))
    row = table.loc[epoch].dropna()
    found = {name.removeprefix(prefix): float(row[name]) for name in row.index if name.startswith(prefix)}
    return _with_thirds(member, found) | {"epoch": epoch} if found else None


def _with_thirds(member: Member, row: Mapping[str, float]) -> dict[str, float]:
    thirds = THIRDS.get(member.config.get("dataset"), {})
    return dict(row) | {name: float(np.mean([row[f"class:{c}"] for c in classes])) for name, classes in thirds.items()
                        if all(f"class:{c}" in row for c in classes)}


def _is_result(member: Member, how: str, flip: bool) -> bool:
    config = member.config
    wanted = config.get("selection", "last"), bool(config.get("flip_average", False))
    stored = any(name.startswith(FLIP) and np.isfinite(member.metrics[name]).any() for name in member.metrics)
    return how == how_named(wanted[0], flip) and flip == (wanted[1] and stored)
