"""What a setting does: accuracy and lambda_min against the radius, and the effect of switches that published codes set otherwise.

rho_sweep   test accuracy of all and of tail after the last epoch, and the tail's lambda_min, against rho (rho of the optimizer;
            the tail's of SSE-SAM). An optimizer without a radius is a level line.
switches    runs that differ from a common baseline in one setting each: the difference it makes, by shared seeds.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import NullLocator

from analysis.findings import summary
from analysis.findings.differences import difference
from analysis.findings.outcomes import accuracies
from checkpoints.comparison import Comparison, Member
from checkpoints.errors import RecordError
from checkpoints.variants import FIDELITY, RADII, plain
from figures import style
from figures.accuracy import optimizer_handles, set_percent_limits
from figures.options import Options
from figures.panels import panels
from figures.tables import Printed, changes

WITHOUT_RADIUS = ("sgd", "pgd", "lpfsgd")       # they move at random, or not at all, before the gradient is taken
LEVEL = (0, (4, 2))     # line of what has no radius
EFFECTS = ("all", "tail", "lambda_min", "lambda_max")
EFFECT_HEADS = ("all [%]", "tail [%]", r"tail $\lambda_{\min}$", r"tail $\lambda_{\max}$")


def radius(config: Mapping[str, Any]) -> float | None:
    """Return the radius of a run's optimizer: SSE-SAM's is the tail's; None where it has none, or the run does not say."""
    if config["opt"] in WITHOUT_RADIUS:
        return None
    name = "tail_rho" if config["opt"] == "ssesam" else "rho"
    value = (config.get("opt_options") or {}).get(name, config.get(name))
    return None if value is None else float(value)


def rho_sweep_table(runs: Comparison, options: Options) -> pd.DataFrame:
    """Return one row an optimizer, radius and quantity: value, low, high, num_seeds; index (quantity, opt, rho)."""
    group = options.groups[-1]
    epoch, rows = runs.epoch((group,), options.epoch), []
    for pool, members in runs.members.items():
        config = members[0].config
        found = [accuracies(member) for member in members]
        values = {"all": [row["all"] for row in found], group: [row[group] for row in found if group in row],
                  "lambda_min": [summary.CURVATURES["lambda_min"](record) for record in runs.curvatures(pool, epoch, group)]}
        for quantity, seeds in values.items():
            e = summary.over_seeds(seeds, options.level)
            rows.append({"quantity": quantity, "opt": config["opt"], "rho": radius(config), "epoch": epoch, "group": group,
                         "value": e.value, "low": e.low, "high": e.high, "num_seeds": len(seeds)})
    table = pd.DataFrame(rows)
    _check_sweep(runs, table)
    return table.set_index(["quantity", "opt", "rho"])


def draw_rho_sweep(runs: Comparison, options: Options) -> Figure:
    """Draw overall accuracy, the tail's accuracy and the tail's lambda_min against rho, a line an optimizer."""
    group = options.groups[-1]
    table = rho_sweep_table(runs, options).reset_index()
    names = {"all": "accuracy, all [%]", group: f"accuracy, {style.group_name(group)} [%]",
             "lambda_min": rf"{style.group_name(group)} $\lambda_{{\min}}$"}
    opts = list(dict.fromkeys(table["opt"]))
    made = panels([""], list(names), 1.9, share_y="none")
    for (_, quantity), ax in made.axes.items():
        for opt in opts:
            plot_against_rho(ax, _scaled(table[(table["quantity"] == quantity) & (table["opt"] == opt)]), opt=opt)
        _set_rho_axis(ax, table["rho"].dropna().unique())
    made.name({}, names)
    made.label_x(r"$\rho$")
    for quantity in ("all", group):
        set_percent_limits(made["", quantity])
    _show_from_zero(made["", "lambda_min"])
    band = f"; bars: {100 * options.level:g} % t over seeds" if runs.num_seeds > 1 else ""
    text = (f"{style.describe(runs, seeds=False)}; {_seeds(table)}; accuracy after the last epoch, "
            f"$\\lambda_{{\\min}}$ at epoch {table['epoch'].iloc[0]}{band}")
    style.shared_legend(made.figure, _handles(opts, table), text)
    return made.figure


def plot_against_rho(ax: Axes, table: pd.DataFrame, *, opt: str) -> dict:
    """Draw value with its interval against rho; columns rho, value, low, high. One row without rho is a level line."""
    look = style.look(opt)
    if table["rho"].isna().all():
        row = table.iloc[0]
        line = ax.axhline(row["value"], color=look.color, linewidth=1.0, linestyle=LEVEL, zorder=2)
        return {"line": line, "band": ax.axhspan(row["low"], row["high"], color=look.color, alpha=0.1, linewidth=0, zorder=1)
                if np.isfinite(row["low"]) else None}
    table = table.sort_values("rho")
    line, = ax.plot(table["rho"], table["value"], color=look.color, marker=look.marker, zorder=3, clip_on=False)
    bars = ax.vlines(table["rho"], table["low"], table["high"], color=look.color, alpha=0.6, linewidth=1.0, zorder=2)
    return {"line": line, "band": bars}


def switches_table(runs: Comparison, options: Options) -> pd.DataFrame:
    """Return one row an optimizer and setting: how it differs from the baseline, num_seeds, and the differences it makes.

    Columns all, tail, lambda_min, lambda_max with _low, _high and _kind (paired | unpaired | single). The baseline of an
    optimizer is the pool from which most others differ in one setting alone; pools that differ from it in several are left out.
    """
    group, rows = options.groups[-1], []
    epoch = runs.epoch((group,), options.epoch)
    for opt in dict.fromkeys(member.config["opt"] for member in runs.everyone):
        pools = [members for members in runs.members.values() if members[0].config["opt"] == opt]
        base = _baseline(pools)
        measured = {id(pool): _effects(pool, group, epoch) for pool in pools}
        for pool in pools:
            changed = _changed(base, pool)
            if len(changed) == 1:
                rows.append({"opt": opt, "setting": changed[0], "baseline": plain(base[0].config.get(changed[0])),
                             "value": plain(pool[0].config.get(changed[0])), "num_seeds": len(pool), "epoch": epoch}
                            | _differences(measured[id(pool)], measured[id(base)], options.level))
    if not rows:
        raise RecordError("no two runs of one optimizer differ in one switch alone: train one more with another "
                          f"{', '.join(FIDELITY[:5])} ...")
    return pd.DataFrame(rows).set_index(["opt", "setting", "baseline", "value"])


def print_switches(runs: Comparison, options: Options) -> Printed:
    """Return the effect of each switch, a row an optimizer and setting."""
    table = switches_table(runs, options)
    cells = tuple((base, value, *(_effect_cell(row, name) for name in EFFECTS)) for (_, _, base, value), row in table.iterrows())
    looks = [style.look(index[0]) for index in table.index]
    seeds = _counts(table["num_seeds"])
    single = "; without ±: one seed, whose spread is not known" if (table.filter(like="_kind") == "single").any(axis=None) else ""
    return Printed(
        heads=("baseline", "changed to", *EFFECT_HEADS), cells=cells, gaps=changes([index[0] for index in table.index]),
        names=tuple((f"{look.name}, {index[1].replace('_', ' ')}", look.color) for look, index in zip(looks, table.index)),
        caption=f"test accuracy and ends of the spectrum, changed minus baseline; {style.describe(runs, seeds=False)}, {seeds}, "
                f"epoch {table['epoch'].iloc[0]}; ± {100 * options.level:g} % t over the seeds that both share{single}")


def _effects(members: Sequence[Member], group: str, epoch: int) -> dict[str, dict[Any, float]]:
    """Return each quantity by seed: accuracy after the last epoch, and the ends of the group's spectrum."""
    found: dict[str, dict[Any, float]] = {name: {} for name in EFFECTS}
    for member in members:
        seed, row, record = member.config.get("seed"), accuracies(member), member.curvature(epoch, group)
        found["all"][seed] = row["all"]
        if group in row:
            found["tail"][seed] = row[group]
        for name in ("lambda_min", "lambda_max"):
            found[name][seed] = summary.CURVATURES[name](record)
    return found


def _differences(ours: Mapping[str, Mapping], base: Mapping[str, Mapping], level: float) -> dict[str, Any]:
    found = {name: difference(ours[name], base[name], level) for name in EFFECTS}
    return {key: value for name, e in found.items()
            for key, value in ((name, e.value), (f"{name}_low", e.low), (f"{name}_high", e.high), (f"{name}_kind", e.kind))}


def _effect_cell(row: pd.Series, name: str) -> str:
    text = summary.cell(row, name, percent=name in ("all", "tail"))
    return text if text == "absent" or text.startswith("\N{MINUS SIGN}") else f"+{text}"


def _baseline(pools: Sequence[Sequence[Member]]) -> Sequence[Member]:
    counts = [Counter(len(_changed(pool, other)) for other in pools)[1] for pool in pools]
    return pools[int(np.argmax(counts))]


def _changed(base: Sequence[Member], other: Sequence[Member]) -> list[str]:
    ours, theirs = base[0].config, other[0].config
    return [key for key in FIDELITY if ours.get(key) != theirs.get(key)]


def _check_sweep(runs: Comparison, table: pd.DataFrame) -> None:
    radii = table[table["quantity"] == "all"].dropna(subset="rho")
    if radii["rho"].nunique() < 2:
        known = ", ".join(f"{rho:g}" for rho in radii["rho"].unique()) or "none"
        raise RecordError(f"rho={known}: a sweep needs two radii at least; train another run with --rho (--tail_rho for ssesam)")
    if radii.duplicated(["opt", "rho"]).any():
        opt = radii[radii.duplicated(["opt", "rho"])].iloc[0]
        pools = [name for name, members in runs.members.items() if members[0].config["opt"] == opt["opt"]]
        raise RecordError(f"rho={opt['rho']:g} has two pools ({', '.join(pools)}): choose runs that differ in one of "
                          f"{', '.join(RADII[:3])}")


def _scaled(table: pd.DataFrame) -> pd.DataFrame:
    if (table["quantity"] == "lambda_min").all():
        return table
    return table.assign(**{name: 100 * table[name].clip(0, 1) for name in ("value", "low", "high")})


def _set_rho_axis(ax: Axes, radii: np.ndarray) -> None:
    radii = np.sort(radii)
    if radii[0] > 0 and radii[-1] > 3 * radii[0]:
        ax.set_xscale("log")
    ax.set_xticks(radii, [f"{rho:g}" for rho in radii])
    ax.xaxis.set_minor_locator(NullLocator())


def _show_from_zero(ax: Axes) -> None:
    """Let an axis of eigenvalues reach up to zero, and leave room for a marker below the lowest."""
    low, high = ax.get_ylim()
    high = max(0.0, high)
    ax.set_ylim(low - 0.04 * (high - low), high)


def _handles(opts: Sequence[str], table: pd.DataFrame) -> list[Line2D]:
    handles = optimizer_handles(opts)
    for opt, handle in zip(opts, handles):
        if table.loc[table["opt"] == opt, "rho"].isna().all():
            handle.set(marker="", linestyle=LEVEL, label=f"{handle.get_label()}, without a radius")
    return handles


def _seeds(table: pd.DataFrame) -> str:
    return _counts(table["num_seeds"])


def _counts(counts: pd.Series) -> str:
    low, high = int(counts.min()), int(counts.max())
    return ("one seed" if high == 1 else f"{high} seeds") if low == high else f"{low} to {high} seeds"
