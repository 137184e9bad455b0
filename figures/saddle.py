"""Saddle measures over training: extreme ratio, negative mass and lambda_min of each class group, by optimizer.

extreme_ratio   |lambda_min| / |lambda_max| (Rangwani et al. 2022, figure of non-convexity dynamics; their code logs the
                inverse). Near 1: as much negative as positive curvature. Near 0: little of it that is negative.
negative_mass   fraction of eigenvalues below -threshold, by Lanczos quadrature; one threshold for all panels.
lambda_min      the most negative eigenvalue itself.

Several seeds: mean and Student's t interval over seeds. One run: the record's own interval (residual, or quadrature and
probes). A vertical line marks where SSE-SAM's second stage or deferred re-weighting begins.
"""

from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator

from analysis.findings import summary
from checkpoints.comparison import Comparison
from checkpoints.records import Curvature
from figures import style
from figures.options import Options
from figures.panels import Panels, optimizer_names, panels

LABELS = {
    "extreme_ratio": r"extreme ratio $|\lambda_{\min}| \,/\, |\lambda_{\max}|$",
    "negative_mass": "negative mass [%]",
    "lambda_min": r"$\lambda_{\min}$ [nats / parameter$^2$]",
}

BANDS = {   # of several seeds, and of one: which interval it is
    "extreme_ratio": ("t interval over seeds", "from the residuals"),
    "negative_mass": ("t limits over seeds of the quadrature brackets", "quadrature and probes"),
    "lambda_min": ("t interval over seeds", "residual"),
}


def over_epochs(runs: Comparison, groups: Sequence[str], quantity: str, level: float = 0.95) -> pd.DataFrame:
    """Return opt, group, epoch, value, low, high of one quantity at every epoch that any seed of the optimizer has of the group.

    A seed without a record that another seed has is an error. Negative mass is taken below one threshold for all.
    """
    pools = {(opt, group, epoch): runs.curvatures(opt, epoch, group)
             for opt in runs.optimizers for group in groups for epoch in runs.curvature_epochs(opt, (group,))}
    pools = summary.with_shared_threshold(pools, level)
    rows = []
    for (opt, group, epoch), records in pools.items():
        estimate = summary.pooled(records, quantity, level)
        rows.append({"opt": opt, "group": group, "epoch": epoch, "value": estimate.value, "low": estimate.low,
                     "high": estimate.high, "threshold": records[0].threshold})
    return pd.DataFrame(rows)


def plot_over_epochs(ax: Axes, table: pd.DataFrame, *, color: str = "black", marker: str = "o", linestyle: str = "-",
                     filled: bool = True, label: str | None = None) -> dict:
    """Draw value against epoch with its interval low to high, a band and a bar at each epoch; return the artists by name.

    Columns epoch, value, low, high. Where no interval is known (NaN) there is none.
    """
    line, = ax.plot(table["epoch"], table["value"], color=color, marker=marker, linestyle=linestyle, label=label,
                    zorder=3,
                    markerfacecolor=color if filled else "white", markeredgewidth=0.9)
    band = ax.fill_between(table["epoch"], table["low"], table["high"], color=color, alpha=0.16, linewidth=0, zorder=2)
    ax.vlines(table["epoch"], table["low"], table["high"], color=color, alpha=0.5, linewidth=0.9, linestyle=linestyle, zorder=2)
    ax.xaxis.set_major_locator(MaxNLocator(nbins=5, integer=True, steps=[1, 2, 5, 10], min_n_ticks=1))
    return {"line": line, "band": band}


def draw_extreme_ratio(runs: Comparison, options: Options) -> Figure:
    """Draw |lambda_min| / |lambda_max| over epochs: one panel an optimizer, one line a class group."""
    figure, axes, table = _draw_quantity(runs, options, "extreme_ratio")
    axes[0].set_ylim(0, _top(table))
    return figure


def draw_negative_mass(runs: Comparison, options: Options) -> Figure:
    """Draw the fraction of eigenvalues below -threshold over epochs: one panel an optimizer, one line a class group."""
    figure, axes, table = _draw_quantity(runs, options, "negative_mass")
    # The whole interval: quadrature with few steps may leave most of the axis open, and that is what there is to see.
    axes[0].set_ylim(0, min(1.0, 1.05 * np.nanmax(table[["value", "high"]])) or 1.0)
    axes[0].yaxis.set_major_formatter(lambda value, _: f"{100 * value:g}")
    return figure


def draw_lambda_min(runs: Comparison, options: Options) -> Figure:
    """Draw the most negative eigenvalue over epochs: one panel an optimizer, one line a class group."""
    figure, axes, table = _draw_quantity(runs, options, "lambda_min")
    set_lambda_min_limits(axes[0], table)
    return figure


def set_lambda_min_limits(ax: Axes, table: pd.DataFrame) -> None:
    """Show every mean and, where they stay within a factor of its depth, the bands; zero is always in view."""
    deepest, lowest = min(0.0, table["value"].min()), np.nanmin(table.filter(["value", "low"]))
    bottom = max(1.05 * lowest, 1.6 * deepest) if deepest < 0 else 0.0
    ax.set_ylim(bottom, max(0.0, 1.1 * table["value"].max()) + 0.03 * abs(bottom))


def _top(table: pd.DataFrame) -> float:
    """Return the upper end of an axis from zero that shows every mean and, up to a factor, the bands."""
    highest = table["value"].max()
    return float(min(1.05 * np.nanmax(table[["value", "high"]]), 1.6 * highest)) if highest > 0 else 1.0


def _first_records(runs: Comparison, groups: Sequence[str]) -> list[Curvature]:
    """Return one record a group; those of other runs and epochs are of the same kind of Hessian."""
    opt = runs.optimizers[0]
    epoch = runs.curvature_epochs(opt, groups)[-1]
    return [runs.curvatures(opt, epoch, group)[0] for group in groups]


def _draw_quantity(runs: Comparison, options: Options, quantity: str):
    groups = runs.present(options.groups)
    table = over_epochs(runs, groups, quantity, options.level)
    note = style.band_note(runs, options.level, *BANDS[quantity])
    note += f", below −{table['threshold'].iloc[0]:.2g} nats / parameter$^2$" if quantity == "negative_mass" else ""
    made = draw_over_epochs(runs, table, LABELS[quantity], note + style.describe_hessians(_first_records(runs, groups)))
    return made.figure, list(made), table


def draw_over_epochs(runs: Comparison, table: pd.DataFrame, label: str | Mapping[str, str], note: str = "") -> Panels:
    """Draw one panel an optimizer, one line a class group, of a table with opt, group, epoch, value, low, high.

    A column `row` makes a row of panels of each of its words, each with an axis of its own; `label` then has one for each.
    """
    table = table if "row" in table else table.assign(row="")
    rows, groups = list(dict.fromkeys(table["row"])), list(dict.fromkeys(table["group"]))
    made = panels(rows, runs.optimizers, 1.75, share_y="row")
    for (row, opt), ax in made.axes.items():
        _draw_panel(ax, table[(table["opt"] == opt) & (table["row"] == row)])
        style.mark_switch(ax, runs.members[opt][0].switch)
    made.name({}, optimizer_names(runs.optimizers))
    made.label_x("epoch")
    made.label_y(label)
    style.shared_legend(made.figure, group_handles(groups) + style.switch_handles(runs), style.describe(runs) + note)
    return made


def _draw_panel(ax: Axes, table: pd.DataFrame) -> None:
    for (opt, group), rows in table.groupby(["opt", "group"], sort=False):
        plot_over_epochs(ax, rows, color=style.look(opt).color, linestyle=style.group_line(group),
                         marker=style.group_marker(group), filled=group != "head")


def group_handles(groups: Sequence[str], color: str = style.MUTED, marked: bool = True) -> list[Line2D]:
    """Return legend entries that tell the class groups apart by line style and, if `marked`, by marker."""
    return [Line2D([], [], color=color, linestyle=style.group_line(group), label=style.group_name(group),
                   marker=style.group_marker(group) if marked else "",
                   markerfacecolor="white" if group == "head" else color)
            for group in groups]
