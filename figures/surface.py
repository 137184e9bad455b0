"""Loss surfaces around a checkpoint: contours and three-dimensional views.

Every group and optimizer is drawn on the same kind of directions and on one color scale, so that shapes can be compared.
Colors follow the logarithm of the loss where it spans more than a factor of 10. Places where the loss is not finite are left
blank. Surfaces are those of each optimizer's lowest seed: random directions have no mean over seeds. Source of the views: Li et
al. 2018. Slices: `figures.lines`.
"""

from collections.abc import Iterable, Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import LogNorm, Normalize
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, MaxNLocator, NullLocator

from checkpoints.comparison import Comparison, check_same_view
from checkpoints.errors import RecordError
from checkpoints.records import Surface
from figures import style
from figures.options import Options
from figures.panels import Panels, group_names, optimizer_names, panels

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
    loss = surface.loss[index_of(surface, group)]
    if loss.ndim != 2 or not surface.beta.size:
        raise RecordError(f"surface {surface.name!r} is a line: expected a plane; draw it with the figure lines")
    return loss


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
    style.shared_legend(made.figure, [], note_of(runs, planes))
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
    style.shared_legend(made.figure, [], rf"{note_of(runs, planes)}; $\alpha$, $\beta$ in {units}")
    return made.figure


def direction_label(name: str) -> str:
    """Return the name of a direction with its Greek letters."""
    return name.replace("lambda_min", r"$\lambda_{\min}$").replace("lambda_max", r"$\lambda_{\max}$")


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


def note_of(runs: Comparison, surfaces: dict[str, Surface], directions: bool = True) -> str:
    """Return what is drawn: runs, epoch, how points were evaluated and, unless labels say it, along which directions."""
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


def index_of(surface: Surface, group: str) -> int:
    """Return the place of a group in a surface's losses."""
    if group not in surface.groups:
        known = ", ".join(surface.groups)
        raise RecordError(f"group {group} is not in surface {surface.name!r}: expected one of {known}; "
                          "compute the surface again for more groups")
    return surface.groups.index(group)
