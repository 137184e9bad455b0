"""Toy saddles: how many steps each method takes to leave, against its radius rho, with the closed forms as lines.

Left the single quadratic saddle f = (a x^2 - b y^2) / 2, right the two-group toy whose gradient the head dominates. Points
are simulated, with their interval where noise is drawn; a triangle at the upper edge never left. The record is of no run's
weights: any run may hold it.
"""

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import LogLocator, NullLocator

from analysis.findings import measured
from checkpoints.comparison import Comparison
from checkpoints.frames import frame
from checkpoints.records import Measurement
from figures import style
from figures.options import Options
from figures.panels import panels

TITLES = {"single": "one saddle", "two_group": "head and tail"}
METHODS = {"gd": style.Look("GD", "#000000", "o"), "sgd": style.Look("noisy GD", "#CC79A7", "v"),
           "sam_unnormalized": style.Look("SAM, ρ times gradient", "#D55E00", "x"),
           "noisy_sam": style.Look("noisy SAM", "#56B4E9", "v"), "noisy_imbsam": style.Look("noisy ImbSAM", "#E69F00", "v"),
           "noisy_ssesam": style.Look("noisy SSE-SAM", "#009E73", "v")}   # of no network; others look as optimizers do


def toy_table(runs: Comparison, options: Options) -> pd.DataFrame:
    """Return escape steps by toy, method and rho, with their closed form where there is one."""
    return frame(measured.any_record(runs, "toy")).set_index("toy")


def draw_toy(runs: Comparison, options: Options) -> Figure:
    """Draw escape steps against rho: a panel a toy, a color a method, on a logarithmic axis of steps."""
    record = measured.any_record(runs, "toy")
    table = frame(record)
    toys = list(dict.fromkeys(table["toy"]))
    made = panels([""], toys, 2.1)
    finite = table[["value", "closed_form"]].to_numpy()
    finite = finite[np.isfinite(finite) & (finite > 0)]
    for toy in toys:
        made["", toy].set_yscale("log")
        if finite.size:
            made["", toy].set_ylim(0.6 * finite.min(), 3.0 * finite.max())
        made["", toy].yaxis.set(major_locator=LogLocator(subs=(1, 3)), major_formatter="{x:g}", minor_locator=NullLocator())
        plot_escape(made["", toy], table[table["toy"] == toy])
    made.name({}, {toy: TITLES.get(toy, toy.replace("_", " ")) for toy in toys})
    made.label_x(r"radius $\rho$")
    made.label_y("steps to escape")
    style.shared_legend(made.figure, _handles(table), _words(record))
    return made.figure


def plot_escape(ax: Axes, table: pd.DataFrame) -> dict:
    """Draw steps against rho, a color a method; return {method: artists}. Columns method, rho, value, low, high, closed_form."""
    artists = {}
    for method, rows in table.groupby("method", sort=False):
        look, rows = method_look(method), rows.sort_values("rho")
        left = np.isfinite(rows["value"])
        line, = ax.plot(rows["rho"], rows["closed_form"].replace(np.inf, np.nan), color=look.color, zorder=2)
        points, = ax.plot(rows["rho"][left], rows["value"][left], color=look.color, marker=look.marker, linestyle="", zorder=3)
        ax.vlines(rows["rho"], rows["low"], rows["high"], color=look.color, linewidth=0.9, zorder=2)
        stuck, = ax.plot(rows["rho"][np.isinf(rows["value"])], np.full(np.isinf(rows["value"]).sum(), 0.97), color=look.color,
                         marker="^", markerfacecolor="white", linestyle="", transform=ax.get_xaxis_transform(), zorder=3)
        artists[method] = {"line": line, "points": points, "stuck": stuck}
    return artists


def method_look(method: str) -> style.Look:
    """Return how a method of the toys is drawn: an optimizer's own look where it is one."""
    return METHODS.get(method) or style.look(method)


def _handles(table: pd.DataFrame) -> list[Line2D]:
    looks = [method_look(method) for method in dict.fromkeys(table["method"])]
    handles = [Line2D([], [], color=look.color, marker=look.marker, label=look.name) for look in looks]
    if np.isinf(table["value"]).any():
        handles.append(Line2D([], [], color=style.MUTED, marker="^", markerfacecolor="white", linestyle="",
                              label="did not escape"))
    return handles


def _words(record: Measurement) -> str:
    """Return the settings of the toys in words, as the record states them."""
    facts = [f"{key} {value:g}" for key, value in record.about.items() if isinstance(value, (int, float)) and key != "level"]
    return "; ".join([r"$\rho$ in parameter units", "lines: closed forms", "points: simulated", *facts]).replace("_", " ")
