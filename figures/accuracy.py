"""Test accuracy of class groups: curves over epochs, and tables drawn as they would be printed.

Curves are means over seeds with Student's t band; a vertical line marks SSE-SAM's second stage or deferred re-weighting
(overview figure of Lyu et al. 2025). Tables are `analysis.summary` tables, cell by cell: what is drawn is what the CSV
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
from figures.saddle import plot_over_epochs

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
    figure = style.new_figure(2.7, min(style.WIDTH, 0.6 + 3.2 * len(groups)))
    axes = style.grid(figure, 1, len(groups), sharex=True)[0]
    for ax, group in zip(axes, groups):
        for opt in runs.optimizers:
            plot_accuracy(ax, summary.accuracy_over_epochs(runs, opt, group, options.level), opt=opt)
            style.mark_switch(ax, runs.members[opt][0].switch)
        ax.set_title(style.group_name(group), loc="left", fontweight="bold", fontsize=9)
        ax.set_xlabel("epoch")
    axes[0].set_ylabel("test accuracy [%]")
    style.shared_legend(figure, optimizer_handles(runs.optimizers) + style.switch_handles(runs), style.describe(runs))
    return figure


def draw_accuracy_table(runs: Comparison, options: Options) -> Figure:
    """Draw Many, Medium, Few, Head, Tail and All accuracy in percent, a row an optimizer."""
    table = summary.accuracy_table(runs, options.epoch, level=options.level)
    cells = [[summary.cell(row, group, percent=True) for group in summary.ACCURACY_GROUPS] for _,
             row in table.iterrows()]
    rows = [(style.look(opt).name, style.look(opt).color) for opt in table.index]
    figure = style.new_figure(0.75 + 0.24 * len(rows))
    plot_table(figure.subplots(), [group.capitalize() for group in summary.ACCURACY_GROUPS], rows, cells)
    epochs = ", ".join(str(epoch) for epoch in dict.fromkeys(table["epoch"]))
    text = f"test accuracy [%], {style.describe(runs)}, epoch {epochs}{_interval_note(runs, options)}"
    style.shared_legend(figure, [], text)
    return figure


def draw_curvature_table(runs: Comparison, options: Options) -> Figure:
    """Draw the extreme eigenvalues, extreme ratio, negative mass and trace, a row a class group and optimizer."""
    table = summary.curvature_table(runs, options.epoch, options.groups, options.level)
    cells = [[summary.cell(row, name) for name in CURVATURE_COLUMNS] for _, row in table.iterrows()]
    rows = [(f"{style.group_name(group)}, {style.look(opt).name}", style.look(opt).color) for group, opt in table.index]
    figure = style.new_figure(0.85 + 0.24 * len(rows))
    plot_table(figure.subplots(), list(CURVATURE_COLUMNS.values()), rows, cells, gaps=_changes(list(table.index)))
    limit = summary.number_text(-table["threshold"].iloc[0])
    text = (f"eigenvalues and trace in nats / parameter$^2$, negative mass below {limit}; "
            f"{style.describe(runs)}, epoch {table['epoch'].iloc[0]}{_inexact_note(runs, table)}{_interval_note(runs, options)}")
    style.shared_legend(figure, [], text)
    return figure


def plot_table(ax: Axes, columns: Sequence[str], rows: Sequence[tuple[str, str]], cells: Sequence[Sequence[str]],
               gaps: Sequence[int] = ()) -> list:
    """Write a table with rules above, below and under the head; return its texts.

    rows: (name, color) pairs; cells: one text a row and column; gaps: rows with a thin rule above them.
    """
    ax.set_axis_off()
    ax.set_xlim(0, len(columns) + 1.2)
    ax.set_ylim(len(rows) + 0.1, -1.1)
    for y, width in ((-1.1, 1.0), (-0.1, 0.6), (len(rows) + 0.1, 1.0), *((gap, 0.3) for gap in gaps)):
        ax.plot(ax.get_xlim(), [y, y], color="black", linewidth=width, clip_on=False)
    texts = [ax.text(column + 1.7, -0.6, name, ha="center", va="center", fontsize=8) for column,
             name in enumerate(columns)]
    for y, ((name, color), row) in enumerate(zip(rows, cells)):
        texts.append(ax.text(0.05, y + 0.5, name, color=color, fontweight="bold", va="center", fontsize=8))
        texts += [ax.text(column + 1.7, y + 0.5, cell, ha="center", va="center", fontsize=7.5,
                          color=style.MUTED if cell == "absent" else "black") for column, cell in enumerate(row)]
    return texts


def optimizer_handles(optimizers: Sequence[str]) -> list[Line2D]:
    """Return legend entries that tell the optimizers apart by color and marker."""
    looks: Mapping[str, style.Look] = {opt: style.look(opt) for opt in optimizers}
    return [Line2D([], [], color=look.color, marker=look.marker, label=look.name) for look in looks.values()]


def _changes(index: Sequence[tuple[str, str]]) -> list[int]:
    return [row for row in range(1, len(index)) if index[row][0] != index[row - 1][0]]


def _inexact_note(runs: Comparison, table: pd.DataFrame) -> str:
    group, opt = table.index[0]
    word = inexact(runs.curvatures(opt, int(table["epoch"].iloc[0]), group)[0])      # as are all others of one table
    return f", INEXACT ({word.partition(' ')[2]})" if word else ""


def _interval_note(runs: Comparison, options: Options) -> str:
    return f", mean ± {100 * options.level:g} % t interval over seeds" if runs.num_seeds > 1 else ""
