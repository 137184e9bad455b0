"""The mechanism of sharpness-aware escape, as measured: alignment, amplification, ablation, similarity of gradients.

alignment      |<v, eps>| / ||eps|| of SAM's, ImbSAM's and SSE-SAM's ascents, v the most negative eigenvector of head and tail
amplification  <v, grad L(theta + eps)> / <v, grad L(theta)> measured, against 1 + lambda <v, eps> / <v, grad L(theta)>
ablation       group gradients as they are, projected on the global gradient, and with it removed (Chen et al. 2026, Table 5)
similarity     mean cosine of class or group gradients with those of mini-batches (Chen et al. 2026, Fig. 6)

A perturbation has the color of its optimizer and the line style of the group whose gradient it follows. ImbSAM and the tail
of SSE-SAM climb the same gradient: their directions, and so their lines, are one.
"""

from collections.abc import Collection, Sequence

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.ticker import MaxNLocator, NullLocator

from analysis.findings import measured
from checkpoints.comparison import Comparison
from checkpoints.errors import RecordError
from checkpoints.records import Measurement
from figures import style
from figures.bars import bar_handles, plot_bars
from figures.options import Options
from figures.panels import group_names, optimizer_names, panels

FOLLOWS = {"sam": "all", "imbsam": "tail", "ssesam_head": "head", "ssesam_tail": "tail"}   # the gradient that eps climbs
WIDE = {"imbsam": 2.4}    # points: a line that another covers is seen beneath it
TOLERANCE = 0.1          # of a predicted amplification that an eigenvector's residual may make up
NULL_LINE = (0, (5, 2))
REGIONS = {"shrinks": ("o", r"$\rho'|\lambda|$ below 1: shrinks"),      # the record's word -> marker, its legend
           "shrinks, sign flipped": ("^", "1 to 2: shrinks, flips sign"),
           "amplifies, sign flipped": ("s", "above 2: amplifies, flips sign"),
           "none": ("d", r"no region: another loss climbed, or $\lambda \geq 0$")}
DIRECTIONS = {"full": "full", "projected": "along\nglobal", "removed": "without\nglobal"}
ABLATED = {"share": r"$\Vert \hat g_g \Vert / \Vert g_g \Vert$", "alignment": r"$|\cos(\hat g_g, v_{\min})|$",
           "rise": "rise of loss\n[nats]"}


def alignment_table(runs: Comparison, options: Options) -> pd.DataFrame:
    """Return alignment by group, perturbation, source, pair and epoch, means over seeds."""
    return measured.pooled(measured.rows(runs, "alignment"), ["group", "perturbation", "source", "pair", "epoch"],
                           level=options.level)


def draw_alignment(runs: Comparison, options: Options) -> Figure:
    """Draw alignment over epochs: a row a group, a column an optimizer, a line a perturbation, on a logarithmic axis."""
    table, first = alignment_table(runs, options), next(iter(measured.records(runs, "alignment").values()))
    groups = measured.chosen_groups(table, options.groups)
    made = panels(groups, runs.optimizers, 1.6, top=0.95)
    for (group, opt), ax in made.axes.items():
        plot_alignment(ax, table[(table["group"] == group) & (table["opt"] == opt)], null=first.about.get("null"))
        style.mark_switch(ax, runs.members[opt][0].switch)
    lowest = min([first.about.get("null", np.inf), *table["value"][(table["value"] > 0) & table["group"].isin(groups)]])
    for ax in made:
        ax.set_yscale("log")
        ax.set_ylim(0.6 * lowest, 1.2)      # intervals over few seeds reach below zero: they are cut
        ax.yaxis.set_minor_locator(NullLocator())
    made.name(group_names(groups), optimizer_names(runs.optimizers))
    made.label_x("epoch")
    made.label_y(r"$|\langle v, \epsilon \rangle| \,/\, \Vert \epsilon \Vert$")
    used = [name for name in FOLLOWS if (table["perturbation"] == name).any()]
    style.shared_legend(made.figure, _alignment_handles(used, table) + style.switch_handles(runs),
                        f"{style.describe(runs)}{measured.interval_words(runs, first, options.level)}{_size(first)}", columns=4)
    return made.figure


def plot_alignment(ax: Axes, table: pd.DataFrame, *, null: float | None = None) -> dict:
    """Draw |cos(v, eps)| against epoch, a line a perturbation; return its artists by (perturbation, source).

    Columns perturbation, source (group | batch), pair, epoch, value, low, high. Lines and intervals are those of pair 0, v_min;
    dots are the other pairs. The whole group's gradient has filled markers on lines, mini-batches hollow ones without.
    """
    artists = {}
    for (name, source), rows in table[table["pair"] == 0].groupby(["perturbation", "source"], sort=False):
        look, whole = perturbation_look(name), source == "group"
        line, = ax.plot(rows["epoch"], rows["value"], color=look["color"], marker=look["marker"], zorder=4 if whole else 3,
                        linestyle=look["linestyle"] if whole else "", linewidth=WIDE.get(name, 1.2),
                        markerfacecolor=look["color"] if whole else "white", markersize=3.5, markeredgewidth=0.8)
        bars = ax.vlines(rows["epoch"], rows["low"].clip(lower=0), rows["high"], color=look["color"], alpha=0.5, linewidth=0.8)
        artists[name, source] = {"line": line, "bars": bars}
    for name, rows in table[(table["pair"] > 0) & (table["source"] == "group")].groupby("perturbation", sort=False):
        ax.plot(rows["epoch"], rows["value"], linestyle="", marker=".", markersize=2.5, alpha=0.5,
                color=perturbation_look(name)["color"], zorder=2)
    if null:
        artists["null"] = ax.axhline(null, color=style.MUTED, linestyle=NULL_LINE, linewidth=0.9, zorder=1)
    ax.xaxis.set_major_locator(MaxNLocator(nbins=5, integer=True, steps=[1, 2, 5, 10], min_n_ticks=1))
    return artists


def perturbation_look(name: str) -> dict[str, str]:
    """Return color, marker and line style of a perturbation, such as ssesam_head."""
    look = style.look(name.partition("_")[0])
    return {"color": look.color, "marker": look.marker, "linestyle": style.group_line(FOLLOWS.get(name, "all"))}


def perturbation_name(name: str) -> str:
    """Return a perturbation as a reader knows it: ssesam_head is SSE-SAM, head."""
    opt, _, part = name.partition("_")
    return style.look(opt).name + (f", {part}" if part else "")


def amplification_table(runs: Comparison, options: Options) -> pd.DataFrame:
    """Return every point: opt, seed, epoch, group, perturbation, pair, predicted, measured, region, strength, reliable.

    region is the record's: the law has regions of strength, rho'|lambda|, only where an ascent climbs the group's own loss and
    lambda < 0; elsewhere, and in records from before regions were stored, it is "none". Not reliable is a point whose component
    is within rounding, or whose eigenvector was not found well enough to predict it.
    """
    table = measured.rows(runs, "amplification", None if options.epoch is None else [options.epoch])
    strength = table["effective_rho"] * table["eigenvalue"].abs()
    sure = (table["reliable"] > 0) & (table.get("predicted_error", 0.0) <= TOLERANCE * table["predicted"].abs().clip(lower=1.0))
    region = table["region"].fillna("none") if "region" in table else "none"
    return table.assign(region=region, strength=strength, reliable=sure.astype(float))


def draw_amplification(runs: Comparison, options: Options) -> Figure:
    """Draw measured against predicted amplification: a row a group, a column an optimizer, with the line y = x."""
    table = amplification_table(runs, options)
    groups = measured.chosen_groups(table, options.groups)
    made = panels(groups, runs.optimizers, 1.7, top=1.1)
    for (group, opt), ax in made.axes.items():
        plot_amplification(ax, table[(table["group"] == group) & (table["opt"] == opt)])
    _limit_alike(list(made), table[table["group"].isin(groups)])
    made.name(group_names(groups), optimizer_names(runs.optimizers))
    made.label_x("predicted")
    made.label_y("measured")
    used = [name for name in FOLLOWS if (table["perturbation"] == name).any()]
    epochs = ", ".join(str(epoch) for epoch in dict.fromkeys(table["epoch"]))
    text = (r"amplification of $\langle v, \nabla L \rangle$ by $\epsilon$, predicted $1 + \lambda \langle v, \epsilon \rangle / "
            r"\langle v, \nabla L \rangle$, $\rho' = \rho / \Vert \nabla L \Vert$; "
            f"{style.describe(runs)}, epochs {epochs}, every seed a point; unreliable: component within rounding or eigenvector "
            "not quite found")
    style.shared_legend(made.figure, _amplification_handles(used, set(table["region"])), text, columns=4)
    return made.figure


def plot_amplification(ax: Axes, table: pd.DataFrame) -> dict:
    """Draw measured against predicted on axes that are linear within one and logarithmic beyond; return the artists.

    Columns perturbation, predicted, measured, region, reliable. The shape of a marker is its region of REGIONS; those not
    reliable are hollow. Crosses are amplifications by an infinitesimal ascent, column tangent: they tell a wrong prediction
    from a radius beyond the law. The ground where the factor shrinks is gray.
    """
    for axis in (ax.set_xscale, ax.set_yscale):
        axis("asinh", linear_width=1.0)
    shrinks = ax.axvspan(-1, 1, color="#EEEEEE", linewidth=0, zorder=0)
    diagonal = _diagonal(ax)
    points = []
    for name, part in table.groupby("perturbation", sort=False):
        color = perturbation_look(name)["color"]
        if "tangent" in part:
            ax.plot(part["predicted"], part["tangent"], linestyle="", marker="x", markersize=3, color=color, markeredgewidth=0.6,
                    zorder=2)
        for (region, sure), rows in part.groupby(["region", part["reliable"] > 0]):
            points += ax.plot(rows["predicted"], rows["measured"], linestyle="", marker=REGIONS[region][0], markersize=3.2,
                              color=color, markerfacecolor=color if sure else "white", markeredgewidth=0.7, alpha=0.8, zorder=3)
    return {"points": points, "diagonal": diagonal, "shrinks": shrinks}


def ablation_table(runs: Comparison, options: Options) -> pd.DataFrame:
    """Return share, alignment and rise of each direction and group at one epoch, means over seeds: a row a quantity."""
    epoch = measured.last_epoch(runs, "ablation", options.epoch)
    table = measured.rows(runs, "ablation", [epoch])
    parts = [measured.pooled(table, ["group", "direction"], quantity, options.level).assign(quantity=quantity, epoch=epoch)
             for quantity in ABLATED if quantity in table]
    return pd.concat(parts, ignore_index=True)


def draw_ablation(runs: Comparison, options: Options) -> Figure:
    """Draw what is left of group gradients: a row a quantity, a column an optimizer, bars a direction and group."""
    table = ablation_table(runs, options)
    first = runs.everyone[0].measurement("ablation", int(table["epoch"].iloc[0]))
    groups = measured.chosen_groups(table, options.groups)
    cases, quantities = [name for name in DIRECTIONS if name in set(table["direction"])], list(dict.fromkeys(table["quantity"]))
    made = panels(quantities, runs.optimizers, 1.15, share_y="row")
    for (quantity, opt), ax in made.axes.items():
        rows = table[(table["quantity"] == quantity) & (table["opt"] == opt)].rename(columns={"direction": "case"})
        plot_bars(ax, rows, cases, groups, color=style.look(opt).color)
        ax.set_xticks(range(len(cases)), [DIRECTIONS[case] for case in cases])
    made.name({}, optimizer_names(runs.optimizers))
    made.label_y({quantity: ABLATED[quantity] for quantity in quantities})
    text = (f"group gradient $g_g$ in full, projected on the global gradient, and with it removed; {style.describe(runs)}, "
            f"epoch {first.epoch}{measured.interval_words(runs, first, options.level)}{_degenerate(first)}")
    style.shared_legend(made.figure, bar_handles(groups), text)
    return made.figure


def similarity_table(runs: Comparison, options: Options) -> pd.DataFrame:
    """Return the mean cosine with mini-batch gradients by group, part and epoch, means over seeds."""
    table = measured.rows(runs, "similarity")
    keys = ["group", "epoch"] + (["part"] if "part" in table else [])
    return measured.pooled(table, keys, level=options.level)


def draw_similarity(runs: Comparison, options: Options) -> Figure:
    """Draw the mean cosine of group gradients with those of mini-batches: clusters of bars along the epochs."""
    table = similarity_table(runs, options)
    table = table if "part" in table else table.assign(part="")
    groups, parts = measured.chosen_groups(table, options.groups), list(dict.fromkeys(table["part"]))
    first = next(iter(measured.records(runs, "similarity").values()))
    made = panels(parts, runs.optimizers, 1.6, share_x="column")
    for (part, opt), ax in made.axes.items():
        rows = table[(table["part"] == part) & (table["opt"] == opt)].rename(columns={"epoch": "case"})
        plot_bars(ax, rows, sorted(rows["case"].unique()), groups, color=style.look(opt).color)
    made.name({part: part for part in parts if part}, optimizer_names(runs.optimizers))
    made.label_x("epoch")
    made.label_y(r"mean $\cos(\nabla L_g, \nabla L_B)$")
    style.shared_legend(made.figure, bar_handles(groups),
                        f"{style.describe(runs)}{measured.interval_words(runs, first, options.level)}")
    return made.figure


def _diagonal(ax: Axes) -> Line2D:
    """Draw y = x, bent by no scale: both axes have the same one."""
    ends = np.sinh(np.linspace(-14, 14, 201))
    line, = ax.plot(ends, ends, color="black", linewidth=0.7, zorder=1, scalex=False, scaley=False)
    return line


def _limit_alike(axes: Sequence[Axes], table: pd.DataFrame) -> None:
    """Give both axes of all panels one range, wide enough for every finite point; ticks are signed powers of ten."""
    values = table[[name for name in ("predicted", "measured") if name in table]].to_numpy().ravel()
    values = values[np.isfinite(values)]
    if not values.size:
        raise RecordError("no amplification is finite: there is nothing to draw")
    ends = np.arcsinh([min(values.min(), -1.2), max(values.max(), 1.2)])
    low, high = np.sinh(ends + np.array([-0.06, 0.06]) * np.ptp(ends))
    ticks = _signed_powers(low, high)
    for ax in axes:
        ax.set(xlim=(low, high), ylim=(low, high), xticks=ticks, yticks=ticks)
        for axis in (ax.xaxis, ax.yaxis):
            axis.set_minor_locator(NullLocator())
            axis.set_major_formatter(lambda value, _: f"{value:g}".replace("-", "\N{MINUS SIGN}"))


def _signed_powers(low: float, high: float) -> list[float]:
    """Return zero and at most three signed powers of ten on each side of it."""
    top = int(np.floor(np.log10(max(high, -low, 1.0))))
    stride = max(1, int(np.ceil((top + 1) / 3)))
    powers = [10.0 ** power for power in range(0, top + 1, stride)]
    return sorted([0.0, *(p for p in powers if p <= high), *(-p for p in powers if -p >= low)])


def _alignment_handles(names: Sequence[str], table: pd.DataFrame) -> list[Line2D]:
    handles = [Line2D([], [], **perturbation_look(name), linewidth=WIDE.get(name, 1.2), label=perturbation_name(name))
               for name in names]
    if (table["source"] == "batch").any():
        handles.append(Line2D([], [], color=style.MUTED, marker="o", markerfacecolor="white", linestyle="", label="mini-batches"))
    if (table["pair"] > 0).any():
        handles.append(Line2D([], [], color=style.MUTED, marker=".", linestyle="", label="next pairs"))
    return [*handles, Line2D([], [], color=style.MUTED, linestyle=NULL_LINE, label="random direction")]


def _amplification_handles(names: Sequence[str], regions: Collection[str]) -> list:
    opts = dict.fromkeys(name.partition("_")[0] for name in names)
    handles = [Line2D([], [], color=style.look(opt).color, linestyle="", marker="o", label=style.look(opt).name) for opt in opts]
    handles += [Line2D([], [], color=style.MUTED, linestyle="", marker="o", markerfacecolor="white", label="unreliable"),
                Line2D([], [], color=style.MUTED, linestyle="", marker="x", markersize=3.5, label=r"$\rho \to 0$"),
                Patch(color="#EEEEEE", label="|predicted| < 1")]
    handles += [Line2D([], [], color=style.MUTED, linestyle="", marker=marker, label=text)
                for region, (marker, text) in REGIONS.items() if region in regions]
    return [*handles, Line2D([], [], color="black", linewidth=0.7, label="measured = predicted")]


def _size(record: Measurement) -> str:
    return f"; d = {record.about['d']} parameters" if "d" in record.about else ""


def _degenerate(record: Measurement) -> str:
    note = record.about.get("degenerate")
    return f"; {note}" if isinstance(note, str) and note else ""
