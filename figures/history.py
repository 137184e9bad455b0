"""Verdicts of class groups: as a table with their evidence, as the epochs of an escape, and the directions behind them.

verdicts         seeds by verdict, and the numbers it was read off (analysis.findings.verdict)
escape_epochs    between which checkpoints each seed left the last proved negative curvature; an arrow where it never did
tracking         overlap of the most negative eigenvectors from one checkpoint to the next, and of v_min alone
overlap_matrix   |<v_i(t), v_j(t+1)>| of the lowest seed, a square a pair of checkpoints
"""

from collections.abc import Sequence

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator

from analysis.findings import history, summary
from analysis.findings.tracking import tracked
from analysis.findings.verdict import KINDS, NONE_FOUND, SLOPE
from checkpoints.comparison import Comparison
from figures import style
from figures.options import Options
from figures.panels import group_names, optimizer_names, panels
from figures.saddle import draw_over_epochs
from figures.tables import Printed, changes

PAIRS = 5           # most negative directions that are followed
SQUARES = 4         # pairs of checkpoints shown side by side
SUBSPACE, FIRST = "subspace", "v_min"
SHORT = {NONE_FOUND: "none found", SLOPE: "slope"}


def verdicts_table(runs: Comparison, options: Options, **tolerances: float | None) -> pd.DataFrame:
    """Return the verdicts at one epoch, a row a group and optimizer."""
    return history.verdict_table(runs, options.groups, options.epoch, options.level, **tolerances)


def verdicts_with_table(runs: Comparison, options: Options, **tolerances: float | None) -> tuple[pd.DataFrame, Printed]:
    """Return the verdicts at one epoch as numbers and as text."""
    return verdicts_table(runs, options, **tolerances), print_verdicts(runs, options, **tolerances)


def print_verdicts(runs: Comparison, options: Options, **tolerances: float | None) -> Printed:
    """Return the verdicts at one epoch with their evidence; tolerances eps_g and eps_H as `verdict.judge` has them."""
    table = verdicts_table(runs, options, **tolerances)
    heads = ("verdict", r"$\|\nabla L\|$", r"$\epsilon_g$", r"$\lambda_{\min}$", r"$\epsilon_H$", "resolution",
             r"$\lambda_{\max}$", "extreme ratio")
    cells = tuple((verdict_cell(row), summary.cell(row, "gradient_norm"), summary.number_text(row["eps_g"]),
                   summary.cell(row, "lambda_min"), summary.number_text(row["eps_H"]), _resolution(row["resolution"]),
                   summary.cell(row, "lambda_max"), summary.cell(row, "extreme_ratio")) for _, row in table.iterrows())
    miss = summary.number_text(table["miss_probability"].max(), 2)
    records = [runs.curvatures(opt, int(row["epoch"]), group)[0] for (group, opt), row in table.iterrows()]
    interval = f"; means ± {100 * options.level:g} % t over seeds" if runs.num_seeds > 1 else ""
    return Printed(
        heads=heads, cells=cells, gaps=changes([group for group, _ in table.index]),
        names=tuple((f"{style.group_name(group)}, {style.look(opt).name}", style.look(opt).color)
                    for group, opt in table.index),
        caption=f"{style.describe(runs)}, epoch {table['epoch'].iloc[0]}{style.describe_hessians(records)}; strict saddle: the "
                "gradient at most $\\epsilon_g$ and $\\lambda_{\\min} \\leq -\\epsilon_H$ by a float64 product; slope that bends "
                f"down: the gradient larger; none found: nothing below $-$resolution, missed with probability {miss} at most, no "
                f"proof; weight decay is no part of it; largest tolerances and resolution of the seeds{interval}")


def verdict_cell(row: pd.Series) -> str:
    """Return the verdicts of a row's seeds: the words alone where they agree, else how many of each."""
    found, count = {kind: int(row[kind]) for kind in KINDS if row[kind]}, int(row["num_seeds"])
    if len(found) == 1:
        kind = next(iter(found))
        return SHORT.get(kind, kind) + (f" ({count} of {count})" if count > 1 else "")
    return ", ".join(f"{count} {SHORT.get(kind, kind)}" for kind, count in found.items())


def escape_epochs_table(runs: Comparison, options: Options) -> pd.DataFrame:
    """Return one row a run and group: low, high, last, again, words; of all seeds over_seeds, its low and high, and escaped.

    The last four are those of `analysis.findings.history.escape_table`, the same in the row of every seed.
    """
    groups = runs.present(options.groups)
    pooled = history.escape_table(runs, groups, options.level)[["value", "low", "high", "escaped", "num_seeds"]]
    named = pooled.rename(columns={"value": "over_seeds", "low": "over_seeds_low", "high": "over_seeds_high"})
    return history.escape_frame(runs, groups).join(named, on=["group", "opt"]).set_index(["group", "opt", "seed"])


def draw_escape_epochs(runs: Comparison, options: Options) -> Figure:
    """Draw when no negative curvature was found any more: a panel a group, a lane an optimizer, a line a seed."""
    groups = runs.present(options.groups)
    frame, table = history.escape_frame(runs, groups), history.escape_table(runs, groups, options.level)
    across = ([""], groups) if style.most_columns() > 2 else (groups, [""])     # words want a narrow page's width
    made = panels(*across, 0.5 + 0.32 * len(runs.optimizers), top=1.0, share_y="all")
    for key, ax in made.axes.items():
        group = "".join(key)
        for lane, opt in enumerate(reversed(runs.optimizers)):
            plot_escape(ax, frame[(frame["opt"] == opt) & (frame["group"] == group)], lane, style.look(opt).color)
            ax.annotate(_escape_words(table.loc[(group, opt)]), (0, lane + 0.34), xycoords=("axes fraction", "data"), va="center",
                        xytext=(3, 0), textcoords="offset points", fontsize=style.SMALL, color=style.MUTED)
        ax.set_xlim(0, 1.06 * frame["last"].max())
        ax.xaxis.set_major_locator(MaxNLocator(nbins=5, integer=True, steps=[1, 2, 5, 10], min_n_ticks=1))
        ax.set_ylim(-0.5, len(runs.optimizers) - 0.4)
        ax.set_yticks(range(len(runs.optimizers)), [style.look(opt).name for opt in reversed(runs.optimizers)])
        ax.tick_params(axis="y", length=0)
        for label, opt in zip(ax.get_yticklabels(), reversed(runs.optimizers)):
            label.set_color(style.look(opt).color)
    made.name(group_names(groups), group_names(groups))
    made.label_x("epoch")
    spread = f"; mean of the middle between checkpoints [{100 * options.level:g} % t interval over seeds, of their ends]"
    text = (f"first checkpoint at which no negative curvature is found above resolution; {style.describe(runs)}; each line a "
            f"seed{spread if _pooled(table).any() else ''}")
    style.shared_legend(made.figure, _escape_handles(), text)
    return made.figure


def plot_escape(ax: Axes, table: pd.DataFrame, lane: float, color: str) -> list:
    """Draw one line a seed within a lane of height 0.5; columns low, high, last. Return the artists, seed by seed.

    Thick between two checkpoints where it happened; an arrow where negative curvature is proved at the last checkpoint, a
    question mark where the last ones decide nothing.
    """
    artists, count = [], len(table)
    for place, (_, row) in enumerate(table.iterrows()):
        y, done, proved = lane + 0.08 - 0.3 * (place + 0.5) / count, np.isfinite(row["high"]), row["low"] == row["last"]
        line, = ax.plot([row["low"], row["high"] if done else row["last"]], [y, y], color=color, linewidth=2.2 if done else 0.8,
                        linestyle="-" if done else (0, (2, 1.5)), solid_capstyle="butt", zorder=2)
        end, = ax.plot([row["high"] if done else row["last"]], [y], marker="|" if done else ">" if proved else "$?$", color=color,
                       linestyle="", markersize=5, markerfacecolor=color if done else "white", clip_on=False, zorder=3)
        artists.append({"line": line, "end": end})
    return artists


def tracking_table(runs: Comparison, options: Options) -> pd.DataFrame:
    """Return every overlap: opt, seed, group, epoch, next_epoch, i, j, values, overlap, subspace, null."""
    found = [tracked(runs, group, PAIRS) for group in runs.present(options.groups)]
    return pd.concat(found).set_index(["opt", "seed", "group", "epoch", "next_epoch"])


def draw_tracking(runs: Comparison, options: Options) -> Figure:
    """Draw the overlap of the most negative directions with those of the checkpoint before: a panel an optimizer."""
    table = tracking_table(runs, options).reset_index()
    firsts = table[(table["i"] == 0) & (table["j"] == 0)]
    labels = {SUBSPACE: f"overlap of the {table['num_pairs'].max()}\nmost negative", FIRST: "overlap of\nthe first"}
    both = [_over_seeds(firsts, column, row, options.level) for column, row in (("subspace", SUBSPACE), ("overlap", FIRST))]
    made = draw_over_epochs(runs, pd.concat(both), labels, _null_note(table))
    for (row, opt), ax in made.axes.items():
        own = table[table["opt"] == opt]
        null = own["null"].max() if row == SUBSPACE else np.sqrt(2 * own["null"] / own["num_pairs"] / np.pi).max()
        ax.axhline(null, color=style.MUTED, linestyle=(0, (4, 2)), linewidth=0.8, zorder=1)
        ax.set_ylim(0, 1.02)
    return made.figure


def draw_overlap_matrix(runs: Comparison, options: Options) -> Figure:
    """Draw |<v_i(t), v_j(t+1)>| of one group (the last that is named), a row an optimizer, a square a pair of checkpoints."""
    group = runs.present(options.groups)[-1]
    table = tracked(runs, group, PAIRS)
    steps = {opt: _some(list(dict.fromkeys(zip(part["epoch"], part["next_epoch"])))) for opt, part in table.groupby("opt")}
    columns = [f"{a} to {b}" for a, b in dict.fromkeys(step for found in steps.values() for step in found)]
    opts = [opt for opt in runs.optimizers if opt in steps]
    made = panels(opts, columns, 1.05, top=0.9, square=True, share_x="all", share_y="all")
    for opt in opts:
        seed = runs.members[opt][0].config.get("seed")
        for a, b in steps[opt]:
            part = table[(table["opt"] == opt) & (table["seed"] == seed) & (table["epoch"] == a) & (table["next_epoch"] == b)]
            image = plot_overlaps(made[opt, f"{a} to {b}"], part)
    made.name(optimizer_names(opts), {column: column for column in columns})
    made.label_x("j, later")
    made.label_y("i, earlier")
    made.figure.colorbar(image, ax=list(made), shrink=0.6, aspect=30, label=r"$|\langle v_i, v_j \rangle|$", pad=0.01)
    style.shared_legend(made.figure, [], f"most negative eigenvectors of {style.group_name(group)}, counted from 0, between "
                        f"checkpoints; lowest seed; {style.describe(runs, seeds=False)}")
    return made.figure


def plot_overlaps(ax: Axes, table: pd.DataFrame):
    """Draw one matrix of overlaps; columns i, j, overlap. Return the image."""
    matrix = table.pivot(index="i", columns="j", values="overlap").to_numpy()
    ax.set_xticks(range(0, PAIRS, 2))
    ax.set_yticks(range(0, PAIRS, 2))
    return ax.imshow(matrix, cmap="Greys", vmin=0, vmax=1, interpolation="nearest")


def _over_seeds(table: pd.DataFrame, column: str, row: str, level: float) -> pd.DataFrame:
    found = []
    for (opt, group, epoch), part in table.groupby(["opt", "group", "next_epoch"], sort=False):
        estimate = summary.over_seeds(list(part[column]), level)
        found.append({"row": row, "opt": opt, "group": group, "epoch": epoch, "value": estimate.value,
                      "low": np.clip(estimate.low, 0, 1), "high": np.clip(estimate.high, 0, 1)})      # NaN stays NaN
    return pd.DataFrame(found)


def _null_note(table: pd.DataFrame) -> str:
    return ("; with the checkpoint before; above: mean squared cosine of the subspaces, below: |cosine| of the most negative "
            f"directions; dashed: random directions of {round(table['num_pairs'].iloc[0] / table['null'].iloc[0]):,} dimensions")


def _some(steps: Sequence[tuple[int, int]]) -> list[tuple[int, int]]:
    """Return at most SQUARES of the steps, evenly spaced, the last among them."""
    if len(steps) <= SQUARES:
        return list(steps)
    return [steps[i] for i in np.unique(np.linspace(0, len(steps) - 1, SQUARES).round().astype(int))]


def _escape_handles() -> list[Line2D]:
    return [Line2D([], [], color=style.MUTED, linewidth=2.2, label="between these checkpoints"),
            Line2D([], [], color=style.MUTED, marker=">", linestyle="", markerfacecolor="white", label="not by the last"),
            Line2D([], [], color=style.MUTED, marker="$?$", linestyle="", label="last ones undecided")]


def _escape_words(row: pd.Series) -> str:
    """Return in how many seeds it happened and when: by which epoch in the only one, on average where all of several did."""
    by = f" by epoch {row['high']:g}" if row["escaped"] == row["num_seeds"] == 1 else ""
    mean = f": {row['value']:.1f} [{row['low']:.1f}, {row['high']:.1f}]" if _pooled(row) else ""
    return f"{int(row['escaped'])} of {int(row['num_seeds'])} within {row['last']:g} epochs{by}{mean}"


def _pooled(table: pd.DataFrame | pd.Series) -> pd.Series | bool:
    """Return of which rows the mean over seeds is known: every one of several seeds escaped."""
    return (table["num_seeds"] > 1) & (table["escaped"] == table["num_seeds"])


def _resolution(value: float) -> str:
    return summary.number_text(value) if np.isfinite(value) else "none"
