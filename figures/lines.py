"""Slices of the loss along a line, with their quadratic prediction and how far it holds.

A slice is drawn with what the group's slope and curvature at the checkpoint predict, and marks where the prediction ceases to
hold; without stored derivatives, the eigenvalue alone predicts for its own group. A line through two checkpoints marks both, and
the top of each group's barrier between them.
"""

from collections.abc import Iterable, Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator

from analysis.findings import slices, summary
from checkpoints.comparison import Comparison, check_same_view
from checkpoints.errors import RecordError
from checkpoints.records import Surface
from figures import style
from figures.options import Options
from figures.panels import optimizer_names, panels
from figures.saddle import group_handles
from figures.surface import direction_label, index_of, note_of

PREDICTED = (0, (1, 1))
BARRIER = "^"


def plot_line(ax: Axes, surface: Surface, group: str, *, color: str = "black", linestyle: str = "-",
              label: str | None = None) -> dict:
    """Draw the loss of `group` along a line, with the quadratic prediction where it is known and how far that holds.

    A bar across the line stands where the prediction leaves it by a tenth of what it predicts (`analysis.findings.slices`),
    on each side.
    """
    loss = line_of(surface, group)
    line, = ax.plot(surface.alpha, np.where(np.isfinite(loss), loss, np.nan), color=color, linestyle=linestyle,
                    label=label)
    predicted = quadratic_prediction(surface, group)
    if predicted is None:
        return {"line": line}
    parabola, = ax.plot(surface.alpha, predicted, color=style.MUTED, linestyle=PREDICTED, linewidth=1.1, zorder=3)
    return {"line": line, "prediction": parabola, "trust": _mark_trust(ax, surface, group, color)}


def quadratic_prediction(surface: Surface, group: str) -> np.ndarray | None:
    """Return the quadratic prediction of a group's loss on the line (A,), or None where it is not known.

    With the stored slope and curvature L(0) + alpha g'd + alpha^2 d'Hd / 2 of every group; without them, of an eigenvector's own
    group alone, L(0) + lambda alpha^2 |d|^2 / 2.
    """
    predicted = slices.predicted(surface, group)
    curvature, name = surface.direction_curvatures[0], surface.direction_names[0]
    if predicted is not None or not np.isfinite(curvature) or name.split()[0] != group:
        return predicted
    length = slices.lengths(surface)[0]
    if np.isnan(length):
        return None
    start = np.interp(0.0, surface.alpha, line_of(surface, group))
    return start + 0.5 * curvature * (length * surface.alpha) ** 2


def _mark_trust(ax: Axes, surface: Surface, group: str, color: str):
    """Mark the first place on each side where the prediction does not hold; nothing where the line ends before."""
    radii = slices.trust_radius(surface, group) or {}
    ends = [sign * radii[side].high for side, sign in (("minus", -1), ("plus", 1)) if side in radii]
    ends = [end for end in ends if np.isfinite(end)]
    losses = np.interp(ends, surface.alpha, line_of(surface, group))
    marks, = ax.plot(ends, losses, linestyle="", marker="|", markersize=8, markeredgewidth=1.4, color=color, zorder=4)
    return marks


def line_of(surface: Surface, group: str) -> np.ndarray:
    """Return the loss of `group` along the line, (A,)."""
    loss = surface.loss[index_of(surface, group)]
    if surface.beta.size:
        raise RecordError(f"surface {surface.name!r} is a plane: expected a line; draw it with the figure surface")
    return loss.reshape(len(surface.alpha))


def draw_lines(runs: Comparison, options: Options) -> Figure:
    """Draw slices: a row a direction, a column an optimizer, a line a class group, dotted what its derivatives predict."""
    names, groups = runs.surface_names(1, options.epoch), runs.present(options.groups)
    lines = {(name, opt): runs.surface(opt, name) for name in names for opt in runs.optimizers}
    made = panels(names, runs.optimizers, 1.55, share_x="row", share_y="row")
    for name in names:
        check_same_view([lines[name, opt] for opt in runs.optimizers])
        for opt in runs.optimizers:
            _draw_slice(made[name, opt], lines[name, opt], groups, style.look(opt).color)
        _limit_to_measured(made[name, runs.optimizers[0]], [line_of(lines[name, opt], group) for opt in runs.optimizers
                                                            for group in groups])
    made.name({}, optimizer_names(runs.optimizers))
    made.label_x({name: _along(lines[name, runs.optimizers[0]]) for name in names})
    made.label_y("loss [nats]")
    marked = any(len(mark.get_xdata()) for ax in made for mark in ax.lines if mark.get_marker() == "|")
    handles = group_handles(groups, marked=False) + _prediction_handles(lines.values(), groups, marked)
    words = [f"{style.look(opt).name}: {text}" for (_, opt), line in lines.items() if (text := barriers_in_words(line, groups))]
    style.shared_legend(made.figure, handles + _barrier_handles(lines.values(), groups),
                        "; ".join([note_of(runs, lines, directions=False), *words]))
    return made.figure


def _draw_slice(ax: Axes, surface: Surface, groups: Sequence[str], color: str) -> None:
    for group in groups:
        plot_line(ax, surface, group, color=color, linestyle=style.group_line(group))
    if slices.barriers(surface, groups):
        mark_barriers(ax, surface, groups, color)
    ax.xaxis.set_major_locator(MaxNLocator(4))


def mark_barriers(ax: Axes, surface: Surface, groups: Sequence[str], color: str = "black") -> dict:
    """Mark the two checkpoints that a line leads through by vertical lines, and the top of each group's barrier on its curve.

    A barrier of height 0 has no top.
    """
    places = dict(zip(surface.point_names[:2], surface.point_coordinates[:2, 0]))
    ends = [ax.axvline(place, color=style.MUTED, linewidth=0.8, zorder=0.5) for place in places.values()]
    tops = {group: found for group, found in slices.barriers(surface, groups).items() if found["height"] > 0}
    alphas = [found["alpha"] for found in tops.values()]
    losses = [np.interp(found["alpha"], surface.alpha, line_of(surface, group)) for group, found in tops.items()]
    marks, = ax.plot(alphas, losses, linestyle="", marker=BARRIER, markersize=5, color=color, markerfacecolor="white", zorder=5)
    return {"ends": ends, "barriers": marks}


def barriers_in_words(line: Surface, groups: Sequence[str]) -> str:
    """Return how far apart the two checkpoints of a line are, and the barriers between them; names of folders are left out.

    Nothing for a line that does not hold two checkpoints.
    """
    found = slices.barriers(line, groups)
    if not found:
        return ""
    one, other = (name.rpartition("/")[2] for name in line.point_names[:2])
    length = slices.lengths(line)[0] * abs(np.diff(line.point_coordinates[:2, 0])[0])
    apart = f" {summary.number_text(float(length))} apart" if np.isfinite(length) else ""
    heights = [f"{style.group_name(group)} {summary.number_text(each['height'])}" for group, each in found.items()]
    return f"{one} and {other}{apart}, barrier of {', '.join(heights)}"


def _along(surface: Surface) -> str:
    return rf"$\alpha$ along {direction_label(surface.direction_names[0])}" f"\n[{surface.coordinate_units}]"


def _prediction_handles(surfaces: Iterable[Surface], groups: Sequence[str], marked: bool) -> list[Line2D]:
    """Return the legend entries of the dotted lines, as far as there are any, and of the marks on them."""
    sloped = [surface for surface in surfaces if surface.derivatives.size]
    known = any(quadratic_prediction(surface, group) is not None for surface in surfaces for group in groups)
    text = "quadratic prediction" if sloped else r"curvature alone: $L(0)+\lambda\alpha^2/2$"
    handles = [Line2D([], [], color=style.MUTED, linestyle=PREDICTED, label=text)] if known else []
    return handles + ([Line2D([], [], color=style.MUTED, linestyle="", marker="|", markersize=8, markeredgewidth=1.4,
                              label="off by 10 %")] if marked else [])


def _barrier_handles(surfaces: Iterable[Surface], groups: Sequence[str]) -> list[Line2D]:
    """Return the legend entries of what `mark_barriers` draws, as far as it draws it."""
    heights = [found["height"] for surface in surfaces for found in slices.barriers(surface, groups).values()]
    ends = [Line2D([], [], color=style.MUTED, linewidth=0.8, label="the two checkpoints")] if heights else []
    return ends + ([Line2D([], [], color=style.MUTED, linestyle="", marker=BARRIER, markersize=5, markerfacecolor="white",
                           label="top of a barrier")] if any(height > 0 for height in heights) else [])


def _limit_to_measured(ax: Axes, losses: Sequence[np.ndarray]) -> None:
    """Let the measured losses set the view: a parabola that leaves it is cut."""
    values = np.concatenate([loss[np.isfinite(loss)] for loss in losses])
    if not values.size:
        raise RecordError("the loss is nowhere finite on this line: there is nothing to draw; use a smaller range")
    low, high = float(values.min()), float(values.max())
    margin = 0.06 * (high - low) or 1e-6 * max(abs(low), 1.0)
    ax.set_ylim(low - margin, high + margin)
