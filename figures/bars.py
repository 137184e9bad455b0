"""Grouped bars with intervals: one place on the axis a case, side by side a bar for each class group."""

from collections.abc import Sequence

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.patches import Patch

from figures import style

SHARE = 0.8       # of the room of a case that its bars fill
HATCHES = ("", "////", "....", "xxxx", "----", "\\\\\\\\", "oooo", "++++")


def plot_bars(ax: Axes, table: pd.DataFrame, cases: Sequence, groups: Sequence[str], *, color: str = "black") -> dict:
    """Draw value with its interval low to high: cases along x, bars of a group alike; return {group: bars}.

    Columns case, group, value, low, high. Head stays white, other groups are filled, classes hatched.
    """
    artists, width = {}, SHARE / len(groups)
    for place, group in enumerate(groups):
        rows = table[table["group"] == group].set_index("case").reindex(cases)
        x = np.arange(len(cases)) + (place - (len(groups) - 1) / 2) * width
        artists[group] = ax.bar(x, rows["value"], 0.9 * width, **bar_look(group, groups, color), zorder=2)
        ax.vlines(x, rows["low"], rows["high"], color="black", linewidth=0.8, zorder=3)
    ax.axhline(0, color="black", linewidth=0.5)
    ax.set_xlim(-0.5, len(cases) - 0.5)
    ax.set_xticks(range(len(cases)), [str(case) for case in cases])
    return artists


def bar_look(group: str, groups: Sequence[str], color: str) -> dict:
    """Return how the bars of one of several groups are filled, edged and hatched."""
    hollow = group in ("head", "many")
    others = [other for other in groups if other not in ("head", "many", "tail", "few")]
    hatch = HATCHES[(1 + others.index(group)) % len(HATCHES)] if group in others else ""
    return {"facecolor": "white" if hollow or hatch else color, "edgecolor": color, "linewidth": 0.9, "hatch": hatch}


def bar_handles(groups: Sequence[str], color: str = style.MUTED) -> list[Patch]:
    """Return the legend entries of the groups' bars."""
    return [Patch(**bar_look(group, groups, color), label=style.group_name(group)) for group in groups]
