"""Loss surfaces around a checkpoint: contours, three-dimensional views, and slices with their quadratic prediction.

Every group is drawn on the same directions, and every optimizer of a row on the same color scale, so that shapes can be
compared. Colors follow the logarithm of the loss where it spans more than a factor of 10. Places where the loss is not
finite are left blank. A slice along a unit eigenvector of a group's Hessian is drawn with the parabola that the
eigenvalue predicts for that group, L(0) + lambda alpha^2 |d|^2 / 2. Surfaces are those of each optimizer's lowest seed:
random directions have no mean over seeds. Source of the views: Li et al. 2018.
"""

from collections.abc import Iterable, Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import LogNorm, Normalize
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import LogLocator, MaxNLocator, NullLocator

from checkpoints.comparison import Comparison, check_same_view
from checkpoints.errors import RecordError
from checkpoints.records import Surface
from figures import style
from figures.options import Options
from figures.saddle import group_handles

CMAP = "cividis"         # even steps of lightness, also for color-blind readers
LEVELS = 14
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
    """Draw the loss of `group` along a line, with the quadratic prediction where it is known."""
    loss = line_of(surface, group)
    line, = ax.plot(surface.alpha, np.where(np.isfinite(loss), loss, np.nan), color=color, linestyle=linestyle,
                    label=label)
    predicted = quadratic_prediction(surface, group)
    if predicted is None:
        return {"line": line}
    parabola, = ax.plot(surface.alpha, predicted, color=style.MUTED, linestyle=(0, (1, 1)), linewidth=1.1, zorder=3)
    return {"line": line, "prediction": parabola}


def quadratic_prediction(surface: Surface, group: str) -> np.ndarray | None:
    """Return L(0) + lambda alpha^2 |d|^2 / 2 on the line (A,), or None where lambda is unknown or another group's."""
    curvature, name = surface.direction_curvatures[0], surface.direction_names[0]
    if not np.isfinite(curvature) or name.split()[0] != group:
        return None
    length = float(np.linalg.norm(surface.directions[0].astype(float)))
    start = np.interp(0.0, surface.alpha, line_of(surface, group))
    return start + 0.5 * curvature * (length * surface.alpha) ** 2


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
    """Draw contours of one plane: a row a class group, a column an optimizer, one color scale a row."""
    planes, groups = _planes(runs, options), runs.present(options.groups)
    figure = style.new_figure(0.7 + 1.5 * len(groups), style.panel_width(len(planes), 1.2, 1.7))
    axes = style.grid(figure, len(groups), len(planes), sharex=True, sharey=True)
    for row, group in zip(axes, groups):
        norm = common_norm([plane_of(plane, group) for plane in planes.values()])
        for ax, plane in zip(row, planes.values()):
            plot_surface(ax, plane, group, norm=norm)
        _dress_planes(row, next(iter(planes.values())))
        _add_colorbar(figure, list(row), norm)
        style.name_row(row[0], style.group_name(group))
    _title_columns(axes[0], planes)
    figure.supxlabel(rf"$\alpha$ [{next(iter(planes.values())).coordinate_units}]", fontsize=8)
    style.shared_legend(figure, [], _note(runs, planes))
    return figure


def draw_surface_3d(runs: Comparison, options: Options) -> Figure:
    """Draw one plane as surfaces in three dimensions: a row a class group, a column an optimizer, one scale a row."""
    planes, groups = _planes(runs, options), runs.present(options.groups)
    figure = style.new_figure(0.6 + 1.65 * len(groups), style.panel_width(len(planes), 1.2, 1.7))
    figure.get_layout_engine().set(h_pad=0.12)   # the layout does not see the labels of 3-D axes
    axes = style.grid(figure, len(groups), len(planes), subplot_kw={"projection": "3d"})
    for row, group in zip(axes, groups):
        norm = common_norm([plane_of(plane, group) for plane in planes.values()])
        for ax, plane in zip(row, planes.values()):
            plot_surface_3d(ax, plane, group, norm=norm)
            _dress_3d(ax, norm)
        _add_colorbar(figure, list(row), norm)
        row[0].text2D(-0.04, 0.5, style.group_name(group), transform=row[0].transAxes, rotation=90, ha="right",
                      va="center",
                      fontsize=9, fontweight="bold")
    _title_columns(axes[0], planes)
    units = next(iter(planes.values())).coordinate_units
    style.shared_legend(figure, [], rf"{_note(runs, planes)}; $\alpha$, $\beta$ in {units}")
    return figure


def draw_lines(runs: Comparison, options: Options) -> Figure:
    """Draw slices: a row a direction, a column an optimizer, a line a class group, dotted where lambda predicts."""
    names = runs.surface_names(1, options.epoch)
    groups = runs.present(options.groups)
    figure = style.new_figure(0.7 + 1.55 * len(names), style.panel_width(len(runs.optimizers), 1.2, 2.0))
    axes = style.grid(figure, len(names), len(runs.optimizers), sharex="row", sharey="row")
    for row, name in zip(axes, names):
        lines = {opt: runs.surface(opt, name) for opt in runs.optimizers}
        check_same_view(lines.values())
        for ax, (opt, line) in zip(row, lines.items()):
            _draw_slice(ax, line, groups, style.look(opt).color)
        _limit_to_measured(row[0], [line_of(line, group) for line in lines.values() for group in groups])
        row[0].set_ylabel("loss [nats]")
    _title_columns(axes[0], dict.fromkeys(runs.optimizers))
    predicted = Line2D([], [], color=style.MUTED, linestyle=(0, (1, 1)),
                       label=r"curvature alone, without the slope: $L(0)+\lambda\alpha^2/2$")
    style.shared_legend(figure, group_handles(groups, marked=False) + [predicted], _note(runs, lines, directions=False))
    return figure


def _draw_slice(ax: Axes, surface: Surface, groups: Sequence[str], color: str) -> None:
    for group in groups:
        plot_line(ax, surface, group, color=color, linestyle=style.group_line(group))
    name = direction_label(surface.direction_names[0])
    ax.set_xlabel(rf"$\alpha$ along {name}" f"\n[{surface.coordinate_units}]", fontsize=style.SMALL)


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


def _planes(runs: Comparison, options: Options) -> dict[str, Surface]:
    name = options.surface or runs.surface_names(2, options.epoch)[0]
    planes = {opt: runs.surface(opt, name) for opt in runs.optimizers}
    check_same_view(planes.values())
    return planes


def _dress_planes(row: Sequence[Axes], surface: Surface) -> None:
    width, height = np.ptp(surface.alpha), np.ptp(surface.beta)
    for ax in row:
        for axis in (ax.xaxis, ax.yaxis):
            axis.set_major_locator(MaxNLocator(4, prune="both"))
        if max(width, height) < 3 * min(width, height):
            ax.set_aspect("equal")
    row[0].set_ylabel(rf"$\beta$ [{surface.coordinate_units}]")


def _title_columns(axes: Sequence[Axes], opts: Iterable[str]) -> None:
    for ax, opt in zip(axes, opts):
        look = style.look(opt)
        ax.set_title(look.name, loc="left", color=look.color, fontweight="bold", fontsize=9)


def _add_colorbar(figure: Figure, axes: list, norm: Normalize) -> None:
    ticks = LogLocator(subs=(1, 2, 5)) if isinstance(norm, LogNorm) else MaxNLocator(5)
    bar = figure.colorbar(ScalarMappable(norm, CMAP), ax=axes, shrink=0.85, aspect=16, pad=0.02, ticks=ticks,
                          format="%g")
    bar.ax.yaxis.set_minor_locator(NullLocator())
    bar.set_label("loss [nats]")
    bar.outline.set_visible(False)


def _dress_3d(ax, norm: Normalize) -> None:
    ax.view_init(elev=28, azim=-55)
    ax.set_box_aspect(None, zoom=1.12)
    ax.set_zlim(norm.vmin, norm.vmax)
    ax.set_xlabel(r"$\alpha$", labelpad=-7)
    ax.set_ylabel(r"$\beta$", labelpad=-7)
    ax.tick_params(labelsize=style.SMALL, pad=-3.5)
    for axis in (ax.xaxis, ax.yaxis, ax.zaxis):
        axis.set_major_locator(MaxNLocator(3))


def _note(runs: Comparison, surfaces: dict[str, Surface], directions: bool = True) -> str:
    surface = next(iter(surfaces.values()))
    names = [direction_label(name) for name in surface.direction_names]
    along = f"two {names[0]} directions" if len(set(names)) == 1 else " and ".join(names)
    text = f"{style.describe(runs, seeds=False)}, epoch {surface.epoch}, lowest seed of each optimizer"
    return f"{text}; along {along}" if directions else text


def _index(surface: Surface, group: str) -> int:
    if group not in surface.groups:
        known = ", ".join(surface.groups)
        raise RecordError(f"group {group} is not in surface {surface.name!r}: expected one of {known}; "
                          "compute the surface again for more groups")
    return surface.groups.index(group)
