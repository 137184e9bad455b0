"""Test accuracy of class groups: curves over epochs, and tables drawn as they would be printed.

Curves are means over seeds with Student's t band; a vertical line marks SSE-SAM's second stage or deferred re-weighting
(overview figure of Lyu et al. 2025). Tables are `analysis.summary` tables, cell by cell: what is printed is what the CSV
beside it holds. A group without classes is written "absent".
"""

from collections.abc import Mapping, Sequence

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from analysis import summary
from checkpoints.comparison import Comparison
from checkpoints.exactness import inexact
from figures import style
from figures.options import Options
from figures.panels import group_names, panels
from figures.saddle import plot_over_epochs
from figures.tables import Printed, changes

CURVATURE_COLUMNS = {
    "lambda_min": r"$\lambda_{\min}$", "lambda_max": r"$\lambda_{\max}$", "extreme_ratio": "extreme ratio",
    "negative_mass": "negative mass", "trace": "trace",
}
MARKERS_A_LINE = 6


def plot_accuracy(ax: Axes, table: pd.DataFrame, *, opt: str) -> dict:
    """Draw test accuracy in percent against epoch; index epoch, columns value, low, high in [0, 1]."""
    look = style.look(opt)
    percent = (100 * table[["value", "low", "high"]]).clip(0, 100).rename_axis("epoch").reset_index()
    artists = plot_over_epochs(ax, percent, color=look.color, marker=look.marker, label=look.name)
    artists["line"].set_markevery(max(1, len(table) // MARKERS_A_LINE))
    return artists


def draw_accuracy_curves(runs: Comparison, options: Options) -> Figure:
    """Draw test accuracy over epochs: a panel a class group, a line an optimizer."""
    groups = runs.present(options.groups)
    made = panels([""], groups, 2.0, first=0.6, each=3.2, share_y="none")
    for group in groups:
        for opt in runs.optimizers:
            plot_accuracy(made["", group], summary.accuracy_over_epochs(runs, opt, group, options.level), opt=opt)
            style.mark_switch(made["", group], runs.members[opt][0].switch)
    made.name({}, group_names(groups))
    made.label_x("epoch")
    made.label_y("test accuracy [%]")
    style.shared_legend(made.figure, optimizer_handles(runs.optimizers) + style.switch_handles(runs), style.describe(runs))
    return made.figure


def print_accuracy_table(runs: Comparison, options: Options) -> Printed:
    """Return Many, Medium, Few, Head, Tail and All accuracy in percent, a row an optimizer."""
    table = summary.accuracy_table(runs, options.epoch, level=options.level)
    cells = tuple(tuple(summary.cell(row, group, percent=True) for group in summary.ACCURACY_GROUPS)
                  for _, row in table.iterrows())
    epochs = ", ".join(str(epoch) for epoch in dict.fromkeys(table["epoch"]))
    return Printed(
        heads=tuple(group.capitalize() for group in summary.ACCURACY_GROUPS), cells=cells,
        names=tuple((style.look(opt).name, style.look(opt).color) for opt in table.index),
        caption=f"test accuracy [%], {style.describe(runs)}, epoch {epochs}{interval_note(runs, options)}")


def print_curvature_table(runs: Comparison, options: Options) -> Printed:
    """Return the extreme eigenvalues, extreme ratio, negative mass and trace, a row a class group and optimizer."""
    table = summary.curvature_table(runs, options.epoch, options.groups, options.level)
    limit = summary.number_text(-table["threshold"].iloc[0])
    return Printed(
        heads=tuple(CURVATURE_COLUMNS.values()), gaps=changes([group for group, _ in table.index]),
        names=tuple((f"{style.group_name(group)}, {style.look(opt).name}", style.look(opt).color) for group, opt in table.index),
        cells=tuple(tuple(summary.cell(row, name) for name in CURVATURE_COLUMNS) for _, row in table.iterrows()),
        caption=f"eigenvalues and trace in nats / parameter$^2$, negative mass below {limit}; {style.describe(runs)}, "
                f"epoch {table['epoch'].iloc[0]}{_inexact_note(runs, table)}{interval_note(runs, options)}")


def optimizer_handles(optimizers: Sequence[str]) -> list[Line2D]:
    """Return legend entries that tell the optimizers apart by color and marker."""
    looks: Mapping[str, style.Look] = {opt: style.look(opt) for opt in optimizers}
    return [Line2D([], [], color=look.color, marker=look.marker, label=look.name) for look in looks.values()]


def _inexact_note(runs: Comparison, table: pd.DataFrame) -> str:
    group, opt = table.index[0]
    word = inexact(runs.curvatures(opt, int(table["epoch"].iloc[0]), group)[0])      # as are all others of one table
    return f", INEXACT ({word.partition(' ')[2]})" if word else ""


def interval_note(runs: Comparison, options: Options) -> str:
    """Return what the ± of a table over seeds is; nothing for one seed."""
    return f", mean ± {100 * options.level:g} % t interval over seeds" if runs.num_seeds > 1 else ""
