"""Loss surfaces around a checkpoint: contours, three-dimensional views, and slices with their quadratic prediction.

Every group and optimizer is drawn on the same kind of directions and on one color scale, so that shapes can be compared.
Colors follow the logarithm of the loss where it spans more than a factor of 10. Places where the loss is not finite are left
blank. A slice is drawn with what the group's slope and curvature at the checkpoint predict, and marks where the prediction
ceases to hold; without stored derivatives, the eigenvalue alone predicts for its own group. Surfaces are those of each
optimizer's lowest seed: random directions have no mean over seeds. Source of the views: Li et al. 2018.
"""

from collections.abc import Iterable, Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import LogNorm, Normalize
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import LogLocator, MaxNLocator, NullLocator

from analysis.findings import slices, summary
from checkpoints.comparison import Comparison, check_same_view
from checkpoints.errors import RecordError
from checkpoints.records import Surface
from figures import style
from figures.options import Options
from figures.panels import Panels, group_names, optimizer_names, panels
from figures.saddle import group_handles

PREDICTED = (0, (1, 1))
BARRIER = "^"
CMAP = "cividis"         # even steps of lightness, also for color-blind readers
LEVELS = 14
STATISTICS = {"recalibrated": "BatchNorm statistics estimated anew at every point", "batch": "BatchNorm statistics of each batch"}
LOG_FACTOR = 10.0        # a span of losses beyond which colors are logarithmic


def plot_surface(ax: Axes, surface: Surface, group: str, *, norm: Normalize | None = None) -> dict:
    """Draw the loss of `group` on a plane as filled contours, the checkpoint marked; return the artists by name.

    alpha runs to the right, beta upwards. A surface that is a line, or without the group, is a RecordError.
    """
    loss = plane_of(surface, group)
    norm = norm or common_norm([loss])
    levels = contour_levels(norm)
    clipped = np.ma.masked_invalid(np.clip(loss, levels[0], levels[-1]).T)   # (B, A): rows are y for contourf
    filled = ax.contourf(surface.alpha, surface.beta, clipped, levels, norm=norm, cmap=CMAP)
    lines = ax.contour(surface.alpha, surface.beta, clipped, levels, colors="white", linewidths=0.4, alpha=0.6)
    center, = ax.plot([0], [0], marker="+", color="white", markersize=6, markeredgewidth=1.2, linestyle="")
    return {"filled": filled, "lines": lines, "center": center}


def plot_surface_3d(ax, surface: Surface, group: str, *, norm: Normalize | None = None) -> dict:
    """Draw the loss of `group` on a plane as a surface in three dimensions on 3-D axes; return the artists by name."""
    loss = plane_of(surface, group)
    norm = norm or common_norm([loss])
    inside = np.where(np.isfinite(loss), np.clip(loss, norm.vmin, norm.vmax), np.nan)   # (A, B)
    alpha, beta = np.meshgrid(surface.alpha, surface.beta, indexing="ij")
    sheet = ax.plot_surface(alpha, beta, inside, cmap=CMAP, norm=norm, linewidth=0.1, edgecolor="white", rcount=40,
                            ccount=40,
                            antialiased=True)
    return {"sheet": sheet}


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


def common_norm(losses: Sequence[np.ndarray]) -> Normalize:
    """Return the color scale that several planes share, from the lowest loss to the highest 98 % quantile."""
    finite = [loss[np.isfinite(loss)] for loss in losses]
    if not all(values.size for values in finite):
        raise RecordError("the loss is nowhere finite on this surface: there is nothing to draw; use a smaller range")
    low, high = min(v.min() for v in finite), max(np.quantile(v, 0.98) for v in finite)
    if high <= low:
        high = low + max(abs(low), 1.0) * 1e-6
    return LogNorm(low, high) if low > 0 and high / low > LOG_FACTOR else Normalize(low, high)


def contour_levels(norm: Normalize) -> np.ndarray:
    """Return contour levels evenly spaced in color."""
    return np.asarray(norm.inverse(np.linspace(0, 1, LEVELS)), dtype=float)


def plane_of(surface: Surface, group: str) -> np.ndarray:
    """Return the loss of `group` on the plane, (A, B)."""
    loss = surface.loss[_index(surface, group)]
    if loss.ndim != 2 or not surface.beta.size:
        raise RecordError(f"surface {surface.name!r} is a line: expected a plane; draw it with the figure lines")
    return loss


def line_of(surface: Surface, group: str) -> np.ndarray:
    """Return the loss of `group` along the line, (A,)."""
    loss = surface.loss[_index(surface, group)]
    if surface.beta.size:
        raise RecordError(f"surface {surface.name!r} is a plane: expected a line; draw it with the figure surface")
    return loss.reshape(len(surface.alpha))


def draw_surface(runs: Comparison, options: Options) -> Figure:
    """Draw contours of one plane: a row a class group, a column an optimizer, one color scale for all."""
    planes, groups = planes_of(runs, options), runs.present(options.groups)
    made = panels(groups, runs.optimizers, 1.5, square=True)
    norm = common_norm([plane_of(plane, group) for plane in planes.values() for group in groups])
    for (group, opt), ax in made.axes.items():
        plot_surface(ax, planes[opt], group, norm=norm)
        dress_plane(ax, planes[opt])
    units = next(iter(planes.values())).coordinate_units
    made.name(group_names(groups), optimizer_names(runs.optimizers))
    made.label_x(rf"$\alpha$ [{units}]")
    made.label_y(rf"$\beta$ [{units}]")
    add_colorbar(made, norm)
    style.shared_legend(made.figure, [], _note(runs, planes))
    made.label_y(rf"$\beta$ [{units}]{stretch_in_words(made)}")
    return made.figure


def draw_surface_3d(runs: Comparison, options: Options) -> Figure:
    """Draw one plane as surfaces in three dimensions: a row a class group, a column an optimizer, one scale for all."""
    planes, groups = planes_of(runs, options), runs.present(options.groups)
    made = panels(groups, runs.optimizers, 1.65, top=0.6, square=True, share_x="none", share_y="none", projection="3d")
    made.figure.get_layout_engine().set(h_pad=0.12)   # the layout does not see the labels of 3-D axes
    norm = common_norm([plane_of(plane, group) for plane in planes.values() for group in groups])
    for (group, opt), ax in made.axes.items():
        plot_surface_3d(ax, planes[opt], group, norm=norm)
        _dress_3d(ax, norm)
    for ax, side, text, color in made.names(group_names(groups), optimizer_names(runs.optimizers)):
        where = {"above": (0.0, 1.02, 0, "left", "bottom"), "beside": (-0.04, 0.5, 90, "right", "center")}[side]
        ax.text2D(*where[:2], text, transform=ax.transAxes, rotation=where[2], ha=where[3], va=where[4], color=color,
                  fontsize=style.size("axes.titlesize"), fontweight="bold")
    add_colorbar(made, norm)
    units = next(iter(planes.values())).coordinate_units
    style.shared_legend(made.figure, [], rf"{_note(runs, planes)}; $\alpha$, $\beta$ in {units}")
    return made.figure


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
                        "; ".join([_note(runs, lines, directions=False), *words]))
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


def direction_label(name: str) -> str:
    """Return the name of a direction with its Greek letters."""
    return name.replace("lambda_min", r"$\lambda_{\min}$").replace("lambda_max", r"$\lambda_{\max}$")


def _limit_to_measured(ax: Axes, losses: Sequence[np.ndarray]) -> None:
    """Let the measured losses set the view: a parabola that leaves it is cut."""
    values = np.concatenate([loss[np.isfinite(loss)] for loss in losses])
    if not values.size:
        raise RecordError("the loss is nowhere finite on this line: there is nothing to draw; use a smaller range")
    low, high = float(values.min()), float(values.max())
    margin = 0.06 * (high - low) or 1e-6 * max(abs(low), 1.0)
    ax.set_ylim(low - margin, high + margin)


def planes_of(runs: Comparison, options: Options) -> dict[str, Surface]:
    """Return the plane called `plane_name` by optimizer; RecordError if they differ."""
    name = plane_name(runs, options)
    planes = {opt: runs.surface(opt, name) for opt in runs.optimizers}
    check_same_view(planes.values())
    return planes


def plane_name(runs: Comparison, options: Options) -> str:
    """Return the plane that was asked for, or the first that every optimizer has: picture, table and page show the same one."""
    return options.surface or min(runs.surface_names(2, options.epoch), key=lambda name: _shows_path(runs, name))


def _shows_path(runs: Comparison, name: str) -> bool:
    """Return whether a plane is one through checkpoints: those come after others, and have a figure of their own."""
    return len(runs.surface(runs.optimizers[0], name).point_names) > 1


def dress_plane(ax: Axes, surface: Surface) -> None:
    """Give a plane few ticks, and both axes one scale where that fits."""
    width, height = np.ptp(surface.alpha), np.ptp(surface.beta)
    for axis in (ax.xaxis, ax.yaxis):
        axis.set_major_locator(MaxNLocator(4, prune="both"))
    if max(width, height) < 3 * min(width, height):
        ax.set_aspect("equal")


def stretch_in_words(made: Panels) -> str:
    """Return by how much the axes of some panel are stretched against each other, for a label; nothing where both have one scale.

    Both show the same units, so that shapes are true only on one scale. Lays the figure out, which must be complete.
    """
    made.figure.get_layout_engine().execute(made.figure)
    free = [ax for ax in made if ax.get_aspect() == "auto"]
    factors = [ax.bbox.height / np.ptp(ax.get_ylim()) * np.ptp(ax.get_xlim()) / ax.bbox.width for ax in free]
    furthest = max(factors, key=lambda factor: abs(np.log(factor)), default=1.0)
    if 0.95 < furthest < 1.05:
        return ""
    return f"\nstretched {furthest:.2g}-fold" if furthest > 1 else f"\nsqueezed {1 / furthest:.2g}-fold"


def add_colorbar(made: Panels, norm: Normalize) -> None:
    """Draw one color bar of losses for all panels: at the right, or below them on a narrow page."""
    ticks = LogLocator(subs=(1, 2, 5)) if isinstance(norm, LogNorm) else MaxNLocator(5)
    narrow = style.page_width() < 2 * style.WIDTHS["one"] - 1
    place = {"location": "bottom", "aspect": 30} if narrow else {"location": "right", "aspect": 30}
    pad = 0.08 if narrow and any(ax.name == "3d" for ax in made) else 0.02      # the layout does not see the labels of 3-D axes
    bar = made.figure.colorbar(ScalarMappable(norm, CMAP), ax=list(made), shrink=0.85, pad=pad, ticks=ticks, format="%g", **place)
    (bar.ax.xaxis if narrow else bar.ax.yaxis).set_minor_locator(NullLocator())
    bar.set_label("loss [nats]")
    bar.outline.set_visible(False)


def _dress_3d(ax, norm: Normalize) -> None:
    ax.view_init(elev=28, azim=-55)
    ax.set_box_aspect(None, zoom=1.12)
    ax.set_zlim(norm.vmin, norm.vmax)
    ax.set_xlabel(r"$\alpha$", labelpad=-7)
    ax.set_ylabel(r"$\beta$", labelpad=-7)
    ax.tick_params(labelsize=style.SMALL, pad=-3.5)
    for axis in (ax.xaxis, ax.yaxis):       # none near a corner, where those of two axes meet
        low, high = axis.get_data_interval()
        half = float(f"{0.5 * min(-low, high) if low < 0 < high else 0.25 * (high - low):.1g}")
        axis.set_ticks([-half, half] if low < 0 < high else [low + half, high - half])
    ax.zaxis.set_major_locator(MaxNLocator(3))


def _note(runs: Comparison, surfaces: dict[str, Surface], directions: bool = True) -> str:
    surface = next(iter(surfaces.values()))
    names = [direction_label(name) for name in surface.direction_names]
    along = f"two {names[0]} directions" if len(set(names)) == 1 else " and ".join(names)
    text = (f"{style.describe(runs, seeds=False)}, epoch {surface.epoch}, lowest seed of each optimizer"
            f"{evaluation_note(surfaces.values())}")
    return f"{text}; along {along}" if directions else text


def evaluation_note(surfaces: Iterable[Surface]) -> str:
    """Return what is not the default of how points were evaluated: images, BatchNorm's statistics, and the precision."""
    surfaces = list(surfaces)
    settings = [surface.provenance.get("inputs", {}).get("settings", {}) for surface in surfaces]
    splits = dict.fromkeys("loss over test images" for own in settings if own.get("split") == "test")
    limits = dict.fromkeys(f"at most {own['max_samples']} images of head and of tail" for own in settings
                           if own.get("max_samples"))
    statistics = dict.fromkeys(STATISTICS[surface.batchnorm] for surface in surfaces if surface.batchnorm != "fixed")
    precisions = dict.fromkeys(surface.precision for surface in surfaces if surface.precision != "float32")
    return "".join(f", {word}" for word in (*splits, *limits, *statistics, *precisions))


def _index(surface: Surface, group: str) -> int:
    if group not in surface.groups:
        known = ", ".join(surface.groups)
        raise RecordError(f"group {group} is not in surface {surface.name!r}: expected one of {known}; "
                          "compute the surface again for more groups")
    return surface.groups.index(group)
