"""Feature quality of class groups over training: how far class means lie apart against how widely each class spreads.

Two variants, a row each: Q = Dis - 0.5 log Var as published, and -1 / Dis - log Var as released (Chen et al. 2026, equations
17 to 19 and Fig. 2; their code). Higher is better; features that are all scaled alike move both, so compare runs of one
architecture.
"""

import pandas as pd
from matplotlib.figure import Figure

from analysis.findings import measured
from checkpoints.comparison import Comparison
from figures.options import Options
from figures.saddle import draw_over_epochs

LABELS = {"quality": "quality Q", "released": "Q as released"}


def quality_table(runs: Comparison, options: Options) -> pd.DataFrame:
    """Return Q by measure, group and epoch, means over seeds."""
    return measured.pooled(measured.rows(runs, "quality"), ["measure", "group", "epoch"], level=options.level)


def draw_quality(runs: Comparison, options: Options) -> Figure:
    """Draw both variants of Q over epochs: a row a variant, a panel an optimizer, a line a group."""
    table = quality_table(runs, options)
    table = table[table["group"].isin(measured.chosen_groups(table, options.groups))].rename(columns={"measure": "row"})
    first = next(iter(measured.records(runs, "quality").values()))
    labels = {name: LABELS.get(name, name) for name in dict.fromkeys(table["row"])}
    return draw_over_epochs(runs, table, labels, measured.interval_words(runs, first, options.level)).figure
