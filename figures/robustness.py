"""How far lambda_min depends on how it is measured: one choice varied at a time, beside the reference.

Probes, Lanczos steps, augmentation, loss, split, subset and BatchNorm statistics are lanes, optimizers are colors, and each
optimizer's reference is a line through all lanes. One seed: bars are residuals; several: t intervals over them.
"""

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from analysis.findings import measured
from checkpoints.comparison import Comparison
from figures import style
from figures.accuracy import optimizer_handles
from figures.options import Options
from figures.panels import group_names, panels

LANE = 0.19      # inches


def robustness_table(runs: Comparison, options: Options) -> pd.DataFrame:
    """Return lambda_min by group, axis and setting at one epoch, means over seeds."""
    epoch = measured.last_epoch(runs, "robustness", options.epoch)
    table = measured.rows(runs, "robustness", [epoch])
    return measured.pooled(table, ["group", "axis", "setting"], level=options.level).assign(epoch=epoch)


def draw_robustness(runs: Comparison, options: Options) -> Figure:
    """Draw lambda_min under each choice: a panel a group, a lane a choice, a color an optimizer."""
    table = robustness_table(runs, options)
    epoch = int(table["epoch"].iloc[0])
    first = runs.everyone[0].measurement("robustness", epoch)
    groups, lanes = measured.chosen_groups(table, options.groups), list(dict.fromkeys(zip(table["axis"], table["setting"])))
    made = panels([""], groups, 0.5 + LANE * len(lanes), share_x="none")
    for group in groups:
        plot_variations(made["", group], table[table["group"] == group], lanes, runs.optimizers)
        made["", group].set_xlim(*_view(table["value"][table["group"] == group]))
        made["", group].set_xlabel(r"$\lambda_{\min}$")
    made.name({}, group_names(groups))
    style.shared_legend(made.figure, optimizer_handles(runs.optimizers),
                        rf"$\lambda_{{\min}}$ in nats / parameter$^2$, one choice changed at a time, lines: reference; "
                        f"{style.describe(runs)}, epoch {epoch}{measured.interval_words(runs, first, options.level)}")
    return made.figure


def plot_variations(ax: Axes, table: pd.DataFrame, lanes: list[tuple[str, str]], opts: tuple[str, ...]) -> dict:
    """Draw one lane a choice, from the top, the optimizers of a lane one below the other; return {optimizer: points}."""
    artists = {}
    for number, opt in enumerate(opts):
        look, rows = style.look(opt), table[table["opt"] == opt]
        place = {(axis, setting): lane for lane, (axis, setting) in enumerate(lanes)}
        y = np.array([place[key] for key in zip(rows["axis"], rows["setting"])]) + 0.7 * ((number + 0.5) / len(opts) - 0.5)
        artists[opt], = ax.plot(rows["value"], y, linestyle="", marker=look.marker, color=look.color, zorder=3)
        ax.hlines(y, rows["low"], rows["high"], color=look.color, linewidth=0.9, zorder=2)
        for value in rows["value"][rows["axis"] == "reference"]:
            ax.axvline(value, color=look.color, linewidth=0.7, linestyle=style.SWITCH_LINE, zorder=1)
    ax.set_yticks(range(len(lanes)), [lane_name(axis, setting) for axis, setting in lanes])
    ax.set_ylim(len(lanes) - 0.5, -0.5)
    ax.tick_params(axis="y", length=0)
    ax.xaxis.set_major_locator(MaxNLocator(max(2, int(ax.figure.get_figwidth() / 1.6))))
    for lane in range(1, len(lanes)):
        if lanes[lane][0] != lanes[lane - 1][0]:
            ax.axhline(lane - 0.5, color="#DDDDDD", linewidth=0.6, zorder=0)
    return artists


def _view(values: pd.Series) -> tuple[float, float]:
    """Return a range that shows every value and zero; intervals over few seeds may leave it and are cut."""
    low, high = min(values.min(), 0.0), max(values.max(), 0.0)
    margin = 0.15 * (high - low) or 1.0
    return low - margin, high + margin


def lane_name(axis: str, setting: str) -> str:
    """Return what a lane is called: its axis and its setting, once where they are one.

    >>> lane_name("probes", "5"), lane_name("reference", "reference")
    ('probes 5', 'reference')
    """
    axis, setting = ("BatchNorm" if word == "batchnorm" else word for word in (axis, setting))
    return setting if axis == setting or axis in setting else f"{axis} {setting}"
