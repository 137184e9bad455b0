"""Where training went: the path of the checkpoints over contours of the loss, on a plane through them.

The plane is one of principal components of the checkpoints, or one through named ones (a tail-only optimum, a joint optimum).
Its record says where every checkpoint lies on it and how far off it; those off it are drawn at the nearest place. Under the
name of each optimizer stand the length of the way from the first checkpoint to the last as seen in the plane, and, where a line
between two checkpoints is stored, their distance and the barrier of each group on it (Chen et al. 2026, Fig. 1; Li et al. 2018,
section 7).
"""

import re
from collections.abc import Sequence

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from analysis.findings import slices
from analysis.findings.summary import number_text
from checkpoints.comparison import Comparison
from checkpoints.errors import RecordError
from checkpoints.records import Surface
from figures import style
from figures.lines import barriers_in_words
from figures.options import Options
from figures.panels import group_names, optimizer_names, panels
from figures.surface import (add_colorbar, common_norm, direction_label, dress_plane, evaluation_note, plane_of,
                             plot_surface, stretch_in_words)

DEFAULT = ("tail", "all")                   # as the paper draws them
NAMED = ("*", "P", "X", "d", "p", "h")      # markers of checkpoints of other runs
EDGE = {"markeredgecolor": "black", "markeredgewidth": 0.6}


def path_of(surface: Surface) -> tuple[np.ndarray, np.ndarray]:
    """Return the epochs (E,) of the run's own checkpoints on a plane, ascending, and their coordinates (E, 2)."""
    own = [(int(found[1]), place) for place, name in enumerate(surface.point_names)
           if (found := re.fullmatch(r"epoch (\d+)", name))]
    own.sort()
    return np.array([epoch for epoch, _ in own]), surface.point_coordinates[[place for _, place in own]].reshape(-1, 2)


def others_of(surface: Surface) -> dict[str, np.ndarray]:
    """Return the coordinates (2,) of checkpoints of other runs by name, folders left out."""
    return {name.rpartition("/")[2]: surface.point_coordinates[place] for place, name in enumerate(surface.point_names)
            if not re.fullmatch(r"epoch \d+", name)}


def trajectory_table(runs: Comparison, options: Options) -> pd.DataFrame:
    """Return the checkpoints drawn: optimizer, name, coordinates, and distance from the plane in parameter units."""
    rows = [{"opt": opt, "checkpoint": name, "alpha": place[0], "beta": place[1], "off_plane": off}
            for opt, plane in _planes(runs, options).items()
            for name, place, off in zip(plane.point_names, plane.point_coordinates, plane.point_distances)]
    return pd.DataFrame(rows).set_index("opt")


def draw_trajectory(runs: Comparison, options: Options) -> Figure:
    """Draw each optimizer's path over contours of the loss: a row a group, a column an optimizer, one color scale."""
    planes = _planes(runs, options)
    groups = _groups(next(iter(planes.values())), runs, options)
    made = panels(groups, runs.optimizers, 1.5, top=1.3, square=True, share_x="column", share_y="column")
    norm = common_norm([plane_of(plane, group) for plane in planes.values() for group in groups])
    for (group, opt), ax in made.axes.items():
        plot_surface(ax, planes[opt], group, norm=norm)["center"].set_visible(False)
        dress_plane(ax, planes[opt])
        plot_path(ax, planes[opt])
    names = planes[runs.optimizers[0]].direction_names
    made.name(group_names(groups), optimizer_names(runs.optimizers))
    made.label_x(_axis_label(planes, 0, names[0]))
    made.label_y(_axis_label(planes, 1, names[1]))      # here already, so that the layout leaves it room
    add_colorbar(made, norm)
    words = [distances_in_words(runs, opt, plane, groups) for opt, plane in planes.items()]
    what = f"{style.describe(runs, seeds=False)}, lowest seed of each optimizer{evaluation_note(planes.values())}"
    style.shared_legend(made.figure, _handles(planes), "; ".join([what, *(text for text in words if text)]))
    made.label_y(_axis_label(planes, 1, names[1]) + stretch_in_words(made))
    return made.figure


def plot_path(ax: Axes, surface: Surface) -> dict:
    """Draw the run's checkpoints in order, the first hollow and the last filled, and those of other runs by marker."""
    _, places = path_of(surface)
    line, = ax.plot(*places.T, color="white", linewidth=1.2, marker="o", markersize=2.4, zorder=4, **EDGE)
    artists = {"path": line}
    for name, place, face in (("first", places[:1], "white"), ("last", places[-1:], style.MUTED)):
        artists[name], = ax.plot(*place.T, linestyle="", marker="o", markersize=5.5, markerfacecolor=face, zorder=5, **EDGE)
    for (name, place), marker in zip(others_of(surface).items(), NAMED):
        artists[name], = ax.plot(*place, linestyle="", marker=marker, markersize=6.5, markerfacecolor="white", zorder=6, **EDGE)
    return artists


def distances_in_words(runs: Comparison, opt: str, plane: Surface, groups: Sequence[str]) -> str:
    """Return the length of the way in the plane and, of stored lines between checkpoints, their distance and barriers."""
    _, places = path_of(plane)
    way = float(np.linalg.norm(np.diff(places * slices.lengths(plane), axis=0), axis=1).sum())
    parts = [f"path {number_text(way)} long in the plane"] if len(places) > 1 and np.isfinite(way) else []
    for line in runs.members[opt][0].surfaces.values():
        if line.epoch == plane.epoch and (words := barriers_in_words(line, groups)):
            parts.append(words)
    return f"{style.look(opt).name}: {', '.join(parts)}" if parts else ""


def _planes(runs: Comparison, options: Options) -> dict[str, Surface]:
    """Return the plane that was asked for, or the first on which checkpoints lie, by optimizer."""
    if options.surface is None:
        first = runs.members[runs.optimizers[0]][0]
        names = [name for name in runs.surface_names(2, options.epoch) if len(first.surfaces[name].point_names) > 1]
        if not names:
            raise RecordError(f"{first.name}: no plane that shows checkpoints; make it with: landscape surface {first.name} "
                              "--directions pca")
    planes = {opt: runs.surface(opt, options.surface or names[0]) for opt in runs.optimizers}
    for opt, plane in planes.items():
        if not plane.beta.size or len(plane.point_names) < 2:
            raise RecordError(f"surface {plane.name!r} shows no checkpoints on a plane: choose one made with "
                              "landscape surface RUN --directions pca")
    return planes


def _groups(plane: Surface, runs: Comparison, options: Options) -> tuple[str, ...]:
    """Return tail and all, as the paper draws them, where the plane has them and no other groups were asked for."""
    if options.groups == Options().groups and set(DEFAULT) <= set(plane.groups):
        return runs.present(DEFAULT)
    return runs.present(options.groups)


def _axis_label(planes: dict[str, Surface], axis: int, name: str) -> str:
    """Return the direction's name, with the share of the variance along the path where that is known."""
    shares = [plane.about["explained_variance"][axis] for plane in planes.values() if "explained_variance" in plane.about]
    ends = dict.fromkeys(f"{100 * share:.0f}" for share in (min(shares), max(shares))) if shares else {}
    told = f", {' to '.join(ends)} %" if ends else ""
    units = next(iter(planes.values())).coordinate_units
    return f"{direction_label(name)}{told}\n[{units}]"


def _handles(planes: dict[str, Surface]) -> list[Line2D]:
    plane = next(iter(planes.values()))
    epochs, _ = path_of(plane)
    handles = [Line2D([], [], color="white", marker="o", markersize=2.4, label="checkpoints", **EDGE)]
    for epoch, face in ((epochs[0], "white"), (epochs[-1], style.MUTED)):
        handles.append(Line2D([], [], linestyle="", marker="o", markersize=5.5, markerfacecolor=face, label=f"epoch {epoch}",
                              **EDGE))
    return handles + [Line2D([], [], linestyle="", marker=marker, markersize=6.5, markerfacecolor="white", label=name, **EDGE)
                      for name, marker in zip(others_of(plane), NAMED)]
