"""Our test accuracies beside those that a recipe is published with, chosen and averaged in every way that is in use.

A run of another length, network or seed is no reproduction: what departs from the recipe stands under the table.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import pandas as pd

from checkpoints.chosen_epoch import WORDS, every_choice
from checkpoints.comparison import Comparison, Member
from landscape.recipes import departures, published, recipe_named

GROUPS = ("many", "medium", "few", "all")
NO_DEPARTURE = ("seed", "opt", "eval_every")    # a seed of one's own, and what the table itself varies


def published_table(runs: Comparison) -> pd.DataFrame | None:
    """Return accuracies in percent: rows (opt, how), columns many, medium, few, all; means over seeds.

    None where no run's recipe has published numbers for its optimizer.
    """
    rows = {(opt, how): row for opt, members in runs.members.items() if published(members[0].config)
            for how, row in _rows(members).items()}
    if not rows:
        return None
    return pd.DataFrame.from_dict(rows, orient="index", columns=list(GROUPS))


def _rows(members: Sequence[Member]) -> dict[str, dict[str, float]]:
    found: dict[str, list[dict[str, float]]] = {}
    for member in members:
        for outcome in every_choice(member.metrics):
            words = outcome.words.partition(", ")[2]
            found.setdefault(words, []).append({group: 100 * outcome.accuracy.get(group, float("nan")) for group in GROUPS})
    means = {words: dict(pd.DataFrame(rows).mean()) for words, rows in found.items()}
    return means | {published_words(members[0].config): published(members[0].config)}


def published_words(config: Mapping[str, Any]) -> str:
    """Return how the published accuracies of a run's recipe were chosen and averaged, in the words used for ours."""
    said = recipe_named(config["recipe"]).values(config)
    return f"published: {WORDS[said['selection']]}{', flips averaged' if said['flip_average'] else ''}"


def departure_lines(runs: Comparison) -> list[str]:
    """Return what the runs change of their recipe, each change once."""
    found = {f"{name}: {ours} instead of {said}" for member in runs.everyone if member.config.get("recipe")
             for name, (said, ours) in departures(member.config).items() if name not in NO_DEPARTURE}
    return sorted(found)
