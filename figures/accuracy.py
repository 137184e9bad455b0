"""Test accuracy of class groups: curves over epochs, and tables drawn as they would be printed.

Curves are means over seeds with Student's t band; a vertical line marks SSE-SAM's second stage or deferred re-weighting
(overview figure of Lyu et al. 2025). Tables are those of `analysis.findings.summary` and `analysis.findings.outcomes`, cell
by cell: what is printed is what the CSV beside it holds. A group without classes is written "absent".
"""

from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from analysis.findings import outcomes, summary
from checkpoints.comparison import Comparison
from checkpoints.errors import RecordError
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
PERCENT_SPAN = 10.0     # the least that an axis of accuracies shows
# A choice of epoch and flips: what its row is called, and what that means.
CALLED = {outcomes.how_named("last", False): ("last", "after the last epoch"),
          outcomes.how_named("last", True): ("last, flips", "logits averaged over an image and its mirror image"),
          outcomes.how_named("test_best", False): ("best", "the epoch best on the test set, which flatters"),
          outcomes.how_named("test_best", True): ("best, flips", "both")}


def plot_accuracy(ax: Axes, table: pd.DataFrame, *, opt: str) -> dict:
    """Draw test accuracy in percent against epoch; index epoch, columns value, low, high in [0, 1]."""
    look = style.look(opt)
    percent = (100 * table[["value", "low", "high"]]).clip(0, 100).rename_axis("epoch").reset_index()
    artists = plot_over_epochs(ax, percent, color=look.color, marker=look.marker, label=look.name)
    artists["line"].set(markevery=max(1, len(table) // MARKERS_A_LINE), clip_on=False)      # markers at the edge are whole
    return artists


def set_percent_limits(ax: Axes) -> None:
    """Keep an axis of percent within 0 and 100 and over PERCENT_SPAN at least: a group at 0 % stands on an axis from 0."""
    low, high = np.clip(ax.get_ylim(), 0, 100)
    missing = max(0.0, PERCENT_SPAN - (high - low))
    low = np.clip(low - missing / 2, 0, 100 - PERCENT_SPAN) if missing else low
    ax.set_ylim(low, max(high, low + PERCENT_SPAN))


def draw_accuracy_curves(runs: Comparison, options: Options) -> Figure:
    """Draw test accuracy over epochs: a panel a class group, a line an optimizer."""
    refuse_variants(runs)
    groups = runs.present(options.groups)
    made = panels([""], groups, 2.0, share_y="none")
    for group in groups:
        for opt in runs.optimizers:
            plot_accuracy(made["", group], summary.accuracy_over_epochs(runs, opt, group, options.level), opt=opt)
            style.mark_switch(made["", group], runs.members[opt][0].switch)
        set_percent_limits(made["", group])
    made.name({}, group_names(groups))
    made.label_x("epoch")
    made.label_y("test accuracy [%]")
    style.shared_legend(made.figure, optimizer_handles(runs.optimizers) + style.switch_handles(runs),
                        style.describe(runs) + style.band_note(runs, options.level))
    return made.figure


def draw_stages(runs: Comparison, options: Options) -> Figure:
    """Draw accuracy over epochs, a panel a class group one below the other, the second stage on tinted ground."""
    refuse_variants(runs)
    groups, switches = runs.present(options.groups), {members[0].switch for members in runs.members.values()} - {None}
    if not switches:
        raise RecordError("no run has a second stage or deferred re-weighting: train one with --opt ssesam --gamma 0.7, or with "
                          "--drw_epoch; accuracy_curves draws the others")
    made = panels(groups, [""], 1.75, share_y="none")
    for group in groups:
        for opt in runs.optimizers:
            plot_accuracy(made[group, ""], summary.accuracy_over_epochs(runs, opt, group, options.level), opt=opt)
        set_percent_limits(made[group, ""])
        _mark_stages(made[group, ""], sorted(switches), max(member.config["epochs"] for member in runs.everyone))
    made.name(group_names(groups), {})
    made.label_x("epoch")
    made.label_y("test accuracy [%]")
    style.shared_legend(made.figure, optimizer_handles(runs.optimizers) + style.switch_handles(runs),
                        style.describe(runs) + style.band_note(runs, options.level))
    return made.figure


def stages_table(runs: Comparison, options: Options) -> pd.DataFrame:
    """Return what the curves of accuracy and the stages hold: index (opt, group, epoch), value, low, high in [0, 1], switch."""
    frames = [summary.accuracy_over_epochs(runs, opt, group, options.level).rename_axis("epoch").reset_index().assign(
        opt=opt, group=group, switch=runs.members[opt][0].switch) for group in runs.present(options.groups)
        for opt in runs.optimizers]
    return pd.concat(frames).set_index(["opt", "group", "epoch"])


def print_accuracy_table(runs: Comparison, options: Options) -> Printed:
    """Return Many, Medium, Few, Head, Tail and All accuracy in percent, a row an optimizer and choice of epoch and flips."""
    table, groups = outcomes.accuracy_outcomes(runs, options.epoch, level=options.level), outcomes.groups_of(runs)
    cells = tuple((row["epochs"], *(summary.cell(row, group, percent=True) for group in groups)) for _, row in table.iterrows())
    looks = [style.look(opt) for opt, _ in table.index]
    words = "".join(f"; {name}: {meaning}" for how, (name, meaning) in CALLED.items() if how in table.index.unique("how"))
    mark = "; * what the runs report as their result" if table["result"].any() else ""
    return Printed(
        heads=("epoch", *(group.capitalize() for group in groups)), cells=cells,
        names=tuple((f"{look.name}, {CALLED.get(how, (how,))[0]}{' *' if own else ''}", look.color)
                    for look, (_, how), own in zip(looks, table.index, table["result"])),
        gaps=changes([opt for opt, _ in table.index]),
        caption=f"test accuracy [%], {style.describe(runs)}{interval_note(runs, options)}{words}{mark}")


def print_curvature_table(runs: Comparison, options: Options) -> Printed:
    """Return the extreme eigenvalues, extreme ratio, negative mass and trace, a row a class group and optimizer."""
    table = summary.curvature_table(runs, options.epoch, options.groups, options.level)
    limit = summary.number_text(-table["threshold"].iloc[0])
    records = [runs.curvatures(opt, int(row["epoch"]), group)[0] for (group, opt), row in table.iterrows()]
    return Printed(
        heads=tuple(CURVATURE_COLUMNS.values()), gaps=changes([group for group, _ in table.index]),
        names=tuple((f"{style.group_name(group)}, {style.look(opt).name}", style.look(opt).color) for group, opt in table.index),
        cells=tuple(tuple(summary.cell(row, name) for name in CURVATURE_COLUMNS) for _, row in table.iterrows()),
        caption=f"eigenvalues and trace in nats / parameter$^2$, negative mass below {limit}; {style.describe(runs)}, "
                f"epoch {table['epoch'].iloc[0]}{style.describe_hessians(records)}{interval_note(runs, options)}"
                f"{_own_note(runs)}")


def optimizer_handles(optimizers: Sequence[str]) -> list[Line2D]:
    """Return legend entries that tell the optimizers apart by color and marker."""
    looks: Mapping[str, style.Look] = {opt: style.look(opt) for opt in optimizers}
    return [Line2D([], [], color=look.color, marker=look.marker, label=look.name) for look in looks.values()]


def refuse_variants(runs: Comparison) -> None:
    """Refuse pools of one optimizer where curves are told apart by the optimizer's color and marker alone."""
    for opt in dict.fromkeys(name.partition(" ")[0] for name in runs.optimizers):
        pools = [name for name in runs.optimizers if name.partition(" ")[0] == opt]
        if len(pools) > 1:
            raise RecordError(f"{' and '.join(pools)} would be curves of one color: draw them one by one, or in a table or in "
                              "panels (accuracy_table, spectra, lambda_min)")


def interval_note(runs: Comparison, options: Options) -> str:
    """Return what the ± of a table over seeds is; nothing for one seed."""
    return f", mean ± {100 * options.level:g} % t interval over seeds" if runs.num_seeds > 1 else ""


def _own_note(runs: Comparison) -> str:
    """Return which intervals are not that of Student: the mass keeps its quadrature bracket, a single run brings its own."""
    counts = {len(members) for members in runs.members.values()}
    several = "; negative mass: [low, high] of the t limits of its quadrature brackets" if max(counts) > 1 else ""
    return several + ("; one seed: ratio within residuals, mass within quadrature and probes, trace over probes"
                      if 1 in counts else "")


def _mark_stages(ax: Axes, switches: Sequence[int], last: int) -> None:
    """Tint and name what comes after a single switch; several are lines alone."""
    for switch in switches:
        style.mark_switch(ax, switch)
    if len(switches) == 1:
        ax.axvspan(switches[0], last, color="#F2F2F2", linewidth=0, zorder=0)
        for x, side, text in ((switches[0], "right", "stage I"), (switches[0], "left", "stage II")):
            ax.annotate(text, (x, 1), xycoords=("data", "axes fraction"), xytext=(-3 if side == "right" else 3, 2), ha=side,
                        va="bottom", textcoords="offset points", fontsize=style.SMALL, color=style.MUTED)
    ax.set_xlim(0, last)
