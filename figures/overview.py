"""One picture for newcomers: does the loss still curve downwards, that of the frequent classes and that of the rare ones?

Left the head, right the tail. Top: the spectrum of each optimizer, negative curvature on tinted ground. Middle: how the
most negative curvature fades during training, every seed a dot. Bottom: the test accuracy reached. The sentences below
the title are written from the same records.
"""

from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd
import seaborn
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from analysis.findings import summary
from analysis.findings.verdict import SADDLE, judge
from checkpoints.comparison import Comparison
from checkpoints.records import Curvature
from figures import style
from figures.accuracy import optimizer_handles
from figures.options import Options
from figures.saddle import over_epochs, plot_over_epochs, set_lambda_min_limits
from figures.spectrum import Scale, density_grid, scale_of, set_eigenvalue_axis, smoothed

PERCENT = "\u00a0%"      # no line is broken before it
TITLE = "Does the loss curve downwards?"
MEANING = {"head": "head: the frequent classes", "tail": "tail: the rare classes"}


def plot_ridges(ax: Axes, pools: Mapping[str, Sequence[Curvature]], scale: Scale) -> dict:
    """Draw one spectrum below the other, one lane an optimizer, heights logarithmic above the floor of `scale`.

    A triangle marks the mean lambda_min of each optimizer, filled where every run's is verified. Return {opt: artists}.
    """
    densities = {opt: _ridge(pool, scale) for opt, pool in pools.items()}
    top = max(heights.max() for _, heights in densities.values())
    set_eigenvalue_axis(ax, scale)
    artists = {}
    for lane, (opt, (grid, heights)) in enumerate(densities.items()):
        base, color = len(pools) - 1 - lane, style.look(opt).color
        outline = base + 0.86 * heights / top
        fill = ax.fill_between(grid, base, outline, color=color, alpha=0.35, linewidth=0, zorder=2)
        line, = ax.plot(grid, outline, color=color, linewidth=1.0, zorder=3)
        artists[opt] = {"fill": fill, "line": line, "lambda_min": _mark_lambda_min(ax, pools[opt], base, color)}
    ax.set_ylim(-0.1, len(pools))
    ax.set_yticks([len(pools) - 1 - lane for lane in range(len(pools))], [style.look(opt).name for opt in pools],
                  va="bottom")
    for label, opt in zip(ax.get_yticklabels(), pools):
        label.set(color=style.look(opt).color, fontweight="bold")
    ax.tick_params(axis="y", length=0)
    ax.spines["left"].set_visible(False)
    return artists


def plot_seeds(ax: Axes, values: pd.DataFrame, table: pd.DataFrame, group: str) -> None:
    """Draw the accuracy of `group` in percent, one lane an optimizer: each seed a dot, the mean with its interval."""
    opts = list(table.index)
    seeds = pd.DataFrame({"opt": values["opt"], "accuracy": 100 * values[group]}).dropna()
    seaborn.stripplot(seeds, x="accuracy", y="opt", hue="opt", order=opts, hue_order=opts, jitter=False, size=3.5,
                      alpha=0.45,
                      palette=[style.look(opt).color for opt in opts], legend=False, ax=ax)
    for lane, opt in enumerate(opts):
        value, low, high = (100 * table.loc[opt, column] for column in (group, f"{group}_low", f"{group}_high"))
        color = style.look(opt).color
        ax.plot([value], [lane], marker="|", markersize=11, markeredgewidth=2, color=color, linestyle="")
        ax.plot(np.clip([low, high], 0, 100), [lane, lane], color=color, linewidth=1)
        if np.isfinite(value):
            ax.annotate(f"{value:.1f} %", (1.0, lane), xycoords=("axes fraction", "data"), xytext=(3, 0), va="center",
                        textcoords="offset points", fontsize=style.SMALL, color=color)
    ax.set(xlabel="test accuracy [%]", ylabel="", ylim=(len(opts) - 0.5, -0.5))     # whole lanes, also on shared axes
    ax.tick_params(axis="y", length=0)
    ax.spines["left"].set_visible(False)


def draw_overview(runs: Comparison, options: Options) -> Figure:
    """Draw spectra, lambda_min over epochs and final test accuracy of every class group (columns) in one picture."""
    groups = runs.present(options.groups)
    epoch = runs.epoch(groups, options.epoch)
    pools = {group: {opt: runs.curvatures(opt, epoch, group) for opt in runs.optimizers} for group in groups}
    accuracy = summary.accuracy_table(runs, groups=groups, level=options.level)
    sentences = [style.wrapped(style.new_figure(1), line) for line in findings(pools, accuracy).splitlines()]
    figure, (header, body, footer) = _parts("\n".join(sentences).count("\n") + 1, len(runs.optimizers), len(groups))
    axes = _grid(body, len(groups), [0.5 + 0.4 * len(runs.optimizers), 1.8, 0.4 + 0.22 * len(runs.optimizers)])
    _draw_top(axes[0], pools)
    _draw_middle(axes[1], runs, groups)
    _draw_bottom(axes[2], runs, accuracy, groups)
    for ax, group in zip(axes[0], groups):
        ax.annotate(MEANING.get(group, style.group_name(group)), (0, 1), xycoords="axes fraction", fontsize=9.5,
                    textcoords="offset points", fontweight="bold",
                    xytext=(0, 18 + 1.25 * style.size("axes.titlesize") * ax.get_title("left").count("\n")))
    hessians = style.describe_hessians([pool[0] for by_opt in pools.values() for pool in by_opt.values()])
    _write(header, footer, runs, "\n".join(sentences), epoch, options.level, hessians)
    return figure


def findings(pools: Mapping[str, Mapping[str, Sequence[Curvature]]], accuracy: pd.DataFrame) -> str:
    """Return one sentence a group: in how many runs downward curvature is verified, how many are strict saddles, and ranges."""
    sentences = []
    for group, by_opt in pools.items():
        depths = {opt: summary.pooled(pool, "lambda_min").value for opt, pool in by_opt.items()}
        records = [record for pool in by_opt.values() for record in pool]
        bends, saddles = sum(map(_bends_down, records)), sum(judge(record).kind == SADDLE for record in records)
        text = (f"{style.group_name(group).capitalize()}: {bends} of {len(records)} runs with verified negative curvature, "
                f"{saddles or 'none'} of them at a strict saddle, " + r"$\lambda_{\min}$ " + _range(depths))
        shares = (100 * accuracy[group]).dropna().to_dict()
        sentences.append(text + (f"; test accuracy {_range(shares, '.1f', PERCENT)}." if shares else "."))
    return "\n".join(sentences)


def _draw_top(row: Sequence[Axes], pools: Mapping[str, Mapping[str, Sequence[Curvature]]]) -> None:
    scale = scale_of([record for by_opt in pools.values() for pool in by_opt.values() for record in pool])
    for ax, by_opt in zip(row, pools.values()):
        plot_ridges(ax, by_opt, scale)
        ax.set_xlabel(style.LAMBDA_LABEL)
        for lane, (opt, pool) in enumerate(by_opt.items()):
            value = summary.number_text(summary.pooled(pool, "lambda_min").value)
            ax.annotate(rf"$\lambda_{{\min}}$ {value}", (1.0, len(by_opt) - 1 - lane),
                        xycoords=("axes fraction", "data"),
                        xytext=(3, 1), textcoords="offset points", fontsize=style.SMALL, color=style.look(opt).color)
    _entitle(row, "Curvatures of the loss (smoothed, log height). Triangle: the most negative found")


def _draw_middle(row: Sequence[Axes], runs: Comparison, groups: Sequence[str]) -> None:
    table = over_epochs(runs, groups, "lambda_min")
    seeds = summary.curvature_frame(runs)
    table[["low", "high"]] = np.nan   # four bands on each other hide more than they show: here every seed is a dot
    for ax, group in zip(row, groups):
        for opt in runs.optimizers:
            look, rows = style.look(opt), table[(table["opt"] == opt) & (table["group"] == group)]
            plot_over_epochs(ax, rows, color=look.color, marker="")
            dots = seeds[(seeds["opt"] == opt) & (seeds["group"] == group)]
            ax.plot(dots["epoch"], dots["lambda_min"], linestyle="", marker=look.marker, color=look.color, alpha=0.45,
                    markeredgewidth=0)
            style.mark_switch(ax, runs.members[opt][0].switch, look.color)
        ax.set_xlabel("epoch")
    set_lambda_min_limits(row[0], seeds[seeds["group"].isin(groups)].rename(columns={"lambda_min": "value"}))
    for ax in row if _stacked() else row[:1]:
        ax.set_ylabel("$\\lambda_{\\min}$\n[nats / parameter$^2$]")
    _entitle(row, "The most negative curvature found during training. Dots: seeds")


def _draw_bottom(row: Sequence[Axes], runs: Comparison, table: pd.DataFrame, groups: Sequence[str]) -> None:
    values = summary.last_accuracies(runs, groups)
    for ax, group in zip(row, groups):
        plot_seeds(ax, values, table, group)
    row[0].set_yticks(range(len(table)), [style.look(opt).name for opt in table.index])
    for ax in row if _stacked() else row[:1]:
        for label, opt in zip(ax.get_yticklabels(), table.index):
            label.set(color=style.look(opt).color, fontweight="bold")
    _entitle(row, "Test accuracy at the end of training. Dots: seeds; bars: mean and interval")


def _stacked() -> bool:
    """Return whether the page is so narrow that the groups stand one below the other."""
    return style.most_columns() < 3


def _parts(lines: int, lanes: int, groups: int):
    """Return the figure and its three parts, stacked: title and so many lines of findings, panels, legend."""
    body = 3.2 + 0.5 * lanes
    heights = [0.36 + 0.16 * lines, 0.8 * body * groups if _stacked() else body, 0.42 if lanes <= 4 else 0.6]   # inches
    heights[2] += 0.14 * lanes if _stacked() else 0.0
    figure = style.new_figure(sum(heights))
    return figure, figure.subfigures(3, 1, height_ratios=heights)


def _grid(body, groups: int, heights: Sequence[float]) -> np.ndarray:
    """Return axes (3, groups): side by side, or on a narrow page one group below the other; each row shares its axes."""
    if not _stacked():
        return body.subplots(3, groups, squeeze=False, sharex="row", sharey="row", height_ratios=heights)
    cells = body.add_gridspec(3 * groups, 1, height_ratios=[*heights] * groups)
    axes = np.empty((3, groups), object)
    for place in range(3 * groups):
        group, row = divmod(place, 3)
        first = axes[row, 0] if group else None
        axes[row, group] = body.add_subplot(cells[place], sharex=first, sharey=first)
    return axes


def _entitle(row: Sequence[Axes], text: str) -> None:
    """Write what a row of panels shows above its first, or above each where they are stacked."""
    figure = row[0].figure.figure       # of the part of the page
    for ax in row if _stacked() else row[:1]:
        ax.set_title(style.wrapped(figure, text, margin=40, points=style.size("axes.titlesize")), loc="left")


def _write(header, footer, runs: Comparison, sentences: str, epoch: int, level: float, hessians: str) -> None:
    header.text(0.01, 0.97, TITLE, va="top", fontsize=12, fontweight="bold")
    header.text(0.01, 0.02, sentences, va="bottom", fontsize=style.SMALL, linespacing=1.3)
    bars = f"intervals: {100 * level:g} % t over seeds"
    spread = bars if runs.num_seeds > 1 else "no interval over seeds"
    style.shared_legend(footer, optimizer_handles(runs.optimizers) + style.switch_handles(runs),
                        f"{style.describe(runs)}; spectra at epoch {epoch}{hessians}; {spread}", place="lower")


def _ridge(pool: Sequence[Curvature], scale: Scale) -> tuple[np.ndarray, np.ndarray]:
    spectra = [record.spectrum for record in pool]
    grid = density_grid(spectra, scale)
    mean, _, _ = smoothed(spectra, grid, scale)
    return grid, np.log10(np.maximum(mean, scale.floor) / scale.floor)


def _mark_lambda_min(ax: Axes, pool: Sequence[Curvature], base: float, color: str):
    sure = all(record.eigenpairs.verified[:1].all() for record in pool)
    marker, = ax.plot([summary.pooled(pool, "lambda_min").value], [base], marker="^", markersize=5, color=color,
                      markerfacecolor=color if sure else "white", linestyle="", clip_on=False, zorder=4)
    return marker


def _bends_down(record: Curvature) -> bool:
    pairs = record.eigenpairs
    return bool(pairs.values.size and pairs.values[0] < 0 and pairs.verified[0])


def _range(values: Mapping[str, float], form: str = "", unit: str = "") -> str:
    def text(opt):
        number = f"{values[opt]:{form}}" if form else summary.number_text(values[opt])
        return f"{number}{unit} ({style.look(opt).name})"

    low, high = min(values, key=values.get), max(values, key=values.get)
    return text(low) if low == high else f"{text(low)} to {text(high)}"
