"""Methods side by side, as a table: accuracy by class group, curvature of each group, alignment, and cost of training."""

import pandas as pd

from analysis.findings import summary
from analysis.findings.methods import ACCURACIES, ASCENTS, CURVATURE, methods_table, plainest
from checkpoints.comparison import Comparison
from figures import style
from figures.accuracy import interval_note
from figures.options import Options
from figures.tables import Printed

HEADS = {"lambda_min": r"$\lambda_{\min}$", "lambda_max": r"$\lambda_{\max}$",
         "extreme_ratio": r"$|\lambda_{\min}|/|\lambda_{\max}|$", "negative_mass": "negative mass",
         "trace": "trace"}


def numbers(runs: Comparison, options: Options) -> pd.DataFrame:
    """Return the numbers of the table, for its CSV."""
    return methods_table(runs, options.epoch, options.groups, options.level)


def print_methods(runs: Comparison, options: Options) -> Printed:
    """Return one row a method; columns that do not fit stand below, rows named again. Alignments are those of the last group."""
    table, groups = numbers(runs, options), runs.present(options.groups)
    columns = {name.capitalize(): [summary.cell(row, name, percent=True) for _, row in table.iterrows()] for name in ACCURACIES}
    columns |= {"cost": _cells(table, "cost")} if "cost" in table else {}
    for group in groups:
        columns |= {f"{style.group_name(group)} {HEADS[name]}": _cells(table, f"{group}_{name}") for name in CURVATURE}
        _mark_unverified(columns[f"{style.group_name(group)} {HEADS['lambda_min']}"], table, group)
    columns |= {f"{style.group_name(groups[-1])} $\\cdot\\,\\epsilon_\\mathrm{{{style.look(ascent).name}}}$": _cells(table, name)
                for ascent in ASCENTS if (name := f"{groups[-1]}_alignment_{ascent}") in table}
    looks = [style.look(opt) for opt in table.index]
    return Printed(heads=tuple(columns), cells=tuple(zip(*columns.values())),
                   names=tuple((_name(look.name, loss), look.color) for look, loss in zip(looks, table["loss"])),
                   caption=_caption(runs, options, table, groups))


def _mark_unverified(cells: list[str], table: pd.DataFrame, group: str) -> None:
    """Say, where a lambda_min is not confirmed in every seed, in how many it is."""
    for row, (confirmed, seeds) in enumerate(zip(table[f"{group}_verified"], table["num_seeds"])):
        cells[row] += "" if confirmed == seeds else f" ({int(confirmed)}/{int(seeds)})"


def _cells(table: pd.DataFrame, name: str) -> list[str]:
    return [summary.cell(row, name) for _, row in table.iterrows()]


def _name(name: str, loss: str) -> str:
    """Return a method's name with its loss, where that is not cross-entropy and not said."""
    return name if loss == "CE" or loss in name else f"{name}, {loss}"


def _caption(runs: Comparison, options: Options, table: pd.DataFrame, groups: tuple[str, ...]) -> str:
    unit = style.look(plainest(runs)).name
    cost = f"; cost: seconds of an epoch, relative to {unit}" if "cost" in table else ""
    aligned = (r"; $\cdot\,\epsilon$: alignment of $v_{\min}$ with that ascent's perturbation"
               if f"{groups[-1]}_alignment_{ASCENTS[0]}" in table else "")
    limit = summary.number_text(-table["threshold"].iloc[0])
    return (f"test accuracy [%] after the last epoch{cost}; curvature of cross-entropy at epoch {table['epoch'].iloc[0]} in "
            r"nats / parameter$^2$, $\lambda_{\min}$ below zero in float64 too (else, in parentheses, in how many seeds), "
            f"negative mass below {limit}{aligned}; {style.describe(runs)}{interval_note(runs, options)}; mass: limits of its "
            "quadrature brackets")
