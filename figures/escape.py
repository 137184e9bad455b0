"""Escape along the most negative curvature, as measured: the group's loss on the line of v_min beside its quadratic prediction.

A panel shows by how much the group's loss changes over the distance walked, the other groups' on the same weights, and the
lowest point; the ground is gray as far as the prediction holds (to a tenth of what it predicts, `analysis.findings.slices`).
The distance is linear up to a hundredth and logarithmic beyond. An eigenvector has no sign and each seed its own: a line is
that of the optimizer's lowest seed. The table has every seed's drop, predicted and measured, at both ends of the spectrum.
"""

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.ticker import FixedLocator, MaxNLocator, NullFormatter

from analysis.findings import measured
from checkpoints.comparison import Comparison
from checkpoints.frames import frame
from checkpoints.records import Measurement
from figures import style
from figures.options import Options
from figures.panels import group_names, optimizer_names, panels

LINEAR = 0.01                   # parameter units up to which the axis is linear
TICKS = (0.01, 0.1)             # without numbers, between 0 and 1
PREDICTED, OTHERS = (0, (1, 1)), "--"
TRUSTED = "#EBEBEB"
ROOM = 0.8                      # of the largest drop, that a panel shows above its checkpoint


def escape_table(runs: Comparison, options: Options) -> pd.DataFrame:
    """Return a row a run, group and end: the lowest point, the drop there, predicted and measured, and the others' changes."""
    epoch = measured.last_epoch(runs, "escape", options.epoch)
    rows = [_facts(case) | {"opt": opt, "seed": seed, "epoch": at}
            for (opt, seed, at), record in measured.records(runs, "escape", [epoch]).items() for case in record.about["escapes"]]
    table = pd.DataFrame(rows)
    return table[["opt", "seed", "epoch", *(name for name in table if name not in ("opt", "seed", "epoch"))]]


def draw_escape(runs: Comparison, options: Options) -> Figure:
    """Draw the loss along v_min of every group: a row a group, a column an optimizer."""
    epoch = measured.last_epoch(runs, "escape", options.epoch)
    records = {opt: members[0].measurement("escape", epoch) for opt, members in runs.members.items()}
    first = next(iter(records.values()))
    groups = measured.chosen_groups(frame(first), options.groups)
    made = panels(groups, runs.optimizers, 1.6, top=1.0, share_y="none", share_x="none")
    for (group, opt), ax in made.axes.items():
        plot_escape(ax, records[opt], group, color=style.look(opt).color)
    made.name(group_names(groups), optimizer_names(runs.optimizers))
    made.label_x(r"$\alpha$ along $v_{\min}$")
    made.label_y("change of loss\n[nats]")
    seeds = " of each lowest seed" if runs.num_seeds > 1 else ""
    text = (f"loss along the most negative eigenvector{seeds}, both ways, by the distance $\\alpha$ in parameter units (small "
            f"ticks: 0.01, 0.1); {style.describe(runs)}, epoch {epoch}")
    style.shared_legend(made.figure, _handles(), text, columns=3)
    return made.figure


def plot_escape(ax: Axes, record: Measurement, group: str, *, end: str = "lower", color: str = "black") -> dict:
    """Draw the change of a group's loss along an extreme eigenvector, measured and predicted, and that of the other groups."""
    rows = frame(record)
    rows = rows[(rows["group"] == group) & (rows["end"] == end)]
    facts = next(case for case in record.about["escapes"] if (case["group"], case["end"]) == (group, end))
    change, alpha = rows["loss"] - facts["loss"], rows["alpha"]
    ax.set_xscale("asinh", linear_width=LINEAR)
    artists = {"trust": _mark_trust(ax, facts), "others": [
        ax.plot(alpha, rows[name] - rows.loc[alpha == 0, name].iloc[0], color=style.MUTED, linestyle=OTHERS, linewidth=0.9)[0]
        for name in rows if name.startswith("loss_") and name != f"loss_{group}"]}
    artists["prediction"], = ax.plot(alpha, rows["predicted"] - facts["loss"], color=color, linestyle=PREDICTED, zorder=3)
    artists["line"], = ax.plot(alpha, change, color=color, zorder=4)
    artists["lowest"], = ax.plot([facts["alpha"]], [-facts["drop"]], marker="v", linestyle="", color=color,
                                 markerfacecolor=color if facts["bounded"] else "white", zorder=5)
    depth = max(facts["drop"], 1e-12)
    ax.set_ylim(-1.25 * depth, ROOM * depth)
    reach = float(np.abs(alpha).max())
    ax.set_xlim(-reach, reach)
    ax.xaxis.set_major_locator(FixedLocator([-1, 0, 1]))
    ax.xaxis.set_major_formatter(lambda value, _: f"{value:g}".replace("-", "\N{MINUS SIGN}"))
    ax.xaxis.set_minor_locator(FixedLocator([sign * tick for sign in (-1, 1) for tick in TICKS]))
    ax.xaxis.set_minor_formatter(NullFormatter())
    ax.tick_params(axis="x", which="minor", length=2, width=0.8)
    ax.yaxis.set_major_locator(MaxNLocator(4))
    return artists


def _mark_trust(ax: Axes, facts: dict):
    """Shade the walk as far as the prediction holds on each side; nothing where it is not known."""
    radii = facts.get("trust_radius") or {}
    ends = [radii[side][0] for side in ("minus", "plus") if side in radii]
    return ax.axvspan(-ends[0], ends[1], color=TRUSTED, linewidth=0, zorder=0) if len(ends) == 2 else None


def _facts(case: dict) -> dict:
    """Return what a record says of one walk, flat: the radius as the last point within on each side, changes by group."""
    plain = {name: value for name, value in case.items() if not isinstance(value, dict)}
    radii = {f"trust_{side}": pair[0] for side, pair in (case.get("trust_radius") or {}).items()}
    return plain | radii | {f"change_{group}": change for group, change in case["changes"].items()}


def _handles() -> list:
    return [Line2D([], [], color="black", label="measured"),
            Line2D([], [], color="black", linestyle=PREDICTED, label=r"predicted, $\alpha g'v + \alpha^2 \lambda / 2$"),
            Line2D([], [], color=style.MUTED, linewidth=0.9, linestyle=OTHERS, label="other groups"),
            Line2D([], [], color="black", marker="v", linestyle="", label="lowest point"),
            Line2D([], [], color="black", marker="v", markerfacecolor="white", linestyle="", label="lowest, at the walk's end"),
            Patch(color=TRUSTED, label="prediction holds to 10 %")]
