"""The spectrum of all data against those of a head and a tail class: what the average hides (Rangwani et al. 2022, poster).

A panel an optimizer, a lane a group: density, smoothed and logarithmic above the floor, a bar from lambda_min to lambda_max
below it with both numbers. One axis for all.
"""

from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from analysis.findings import summary
from checkpoints.comparison import Comparison, classes_of
from checkpoints.records import Curvature
from figures import style
from figures.options import Options
from figures.panels import optimizer_names, panels
from figures.spectrum import Scale, density_grid, scale_of, set_eigenvalue_axis, smoothed

LANE = 0.64     # height of a density, of one lane


def classwise_groups(runs: Comparison, epoch: int | None = None) -> tuple[str, ...]:
    """Return all data, then of the classes with spectra the first of the head and the last of the tail; else head and tail."""
    found = {group: record for member in runs.everyone for (at, group), record in member.curvatures.items()
             if epoch in (None, at) and group.startswith("class:") and "@" not in group}
    classes = sorted(found, key=lambda name: int(name[6:]))
    sides = {side: [group for group in classes if _belongs(found[group], group, side)] for side in ("head", "tail")}
    if not (sides["head"] and sides["tail"]):
        return "all", "head", "tail"
    return "all", sides["head"][0], sides["tail"][-1]


def classwise_table(runs: Comparison, options: Options) -> pd.DataFrame:
    """Return the curvature of all data and of the groups asked for, a row a group and optimizer."""
    return summary.curvature_table(runs, options.epoch, _groups(options), options.level)


def draw_classwise(runs: Comparison, options: Options) -> Figure:
    """Draw the spectra of all data and of the groups asked for, lane by lane: a panel an optimizer."""
    groups = runs.present(_groups(options))
    epoch = runs.epoch(groups, options.epoch)
    pools = {opt: {group: runs.curvatures(opt, epoch, group) for group in groups} for opt in runs.optimizers}
    records = [record for by_group in pools.values() for pool in by_group.values() for record in pool]
    scale = scale_of(records, options.style)
    made = panels([""], runs.optimizers, 0.35 + 0.62 * len(groups))
    for (_, opt), ax in made.axes.items():
        plot_lanes(ax, pools[opt], scale, color=style.look(opt).color)
    made.name({}, optimizer_names(runs.optimizers))
    made.figure.supxlabel(style.LAMBDA_LABEL, fontsize=style.size("axes.labelsize"))
    text = f"{style.describe(runs)}, epoch {epoch}{style.describe_hessians(records)}"
    style.shared_legend(made.figure, _handles(), text)
    return made.figure


def plot_lanes(ax: Axes, pools: Mapping[str, Sequence[Curvature]], scale: Scale, *, color: str = "black") -> dict:
    """Draw one lane a group, the first on top; return {group: artists}: line, span, ends.

    Heights are logarithmic above the floor of `scale`. An end is thick where the sign of every run's is verified.
    """
    means = {group: _mean(pool, scale) for group, pool in pools.items()}
    top = max(heights.max() for _, heights in means.values()) or 1.0
    set_eigenvalue_axis(ax, scale, 1.6)
    artists = {}
    for lane, (group, (grid, heights)) in enumerate(means.items()):
        base = len(pools) - 1 - lane
        outline = base + LANE * heights / top
        ax.fill_between(grid, base, outline, color=color, alpha=0.25, linewidth=0, zorder=2)
        line, = ax.plot(grid, outline, color=color, linewidth=0.9, linestyle=style.group_line(group), zorder=3)
        artists[group] = {"line": line} | _ends(ax, pools[group], base, color)
    ax.set_ylim(-0.12, len(pools))
    ax.set_yticks(range(len(pools))[::-1], [style.group_name(group) for group in pools], va="bottom")
    ax.tick_params(axis="y", length=0)
    ax.spines["left"].set_visible(False)
    return artists


def _ends(ax: Axes, pool: Sequence[Curvature], base: float, color: str) -> dict:
    low, high = (summary.pooled(pool, name).value for name in ("lambda_min", "lambda_max"))
    span, = ax.plot([low, high], [base, base], color=color, linewidth=1.4, solid_capstyle="butt", zorder=4)
    sure = [all(record.eigenpairs.verified[end].all() for record in pool) for end in (slice(0, 1), slice(-1, None))]
    ends = [ax.plot([x], [base], marker="|", color=color, markersize=7, markeredgewidth=1.6 if known else 0.6, linestyle="",
                    zorder=5)[0] for x, known in zip((low, high), sure)]
    ax.annotate(f"{summary.number_text(low)} … {summary.number_text(high)}", (0.01, base + 0.79),
                xycoords=("axes fraction", "data"), va="center", fontsize=style.SMALL, color="black", zorder=6)
    return {"span": span, "ends": ends}


def _mean(pool: Sequence[Curvature], scale: Scale) -> tuple[np.ndarray, np.ndarray]:
    spectra = [record.spectrum for record in pool]
    grid = density_grid(spectra, scale)
    mean, _, _ = smoothed(spectra, grid, scale)
    return grid, np.log10(np.maximum(mean, scale.floor) / scale.floor)


def _handles() -> list[Line2D]:
    return [Line2D([], [], color=style.MUTED, linewidth=1.0, label="density, log height"),
            Line2D([], [], color=style.MUTED, linewidth=1.6, marker="|", markersize=7,
                   label=r"$\lambda_{\min}$ to $\lambda_{\max}$, written above; thick ends: sign verified")]


def _groups(options: Options) -> tuple[str, ...]:
    return tuple(dict.fromkeys(("all", *options.groups)))


def _belongs(record: Curvature, group: str, side: str) -> bool:
    members = record.provenance.get("inputs", {}).get("classes", {}).get(side, ())
    return int(classes_of(group).partition(":")[2]) in members
