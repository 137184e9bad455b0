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
    """Return one row a method; columns that do not fit stand below, rows named again."""
    table = numbers(runs, options)
    columns = [(name.capitalize(), [summary.cell(row, name, percent=True) for _, row in table.iterrows()]) for name in ACCURACIES]
    for group in runs.present(options.groups):
        columns += _curvature_columns(table, group)
    columns += [(f"{style.group_name(group)} $\\cdot\\,\\epsilon_\\mathrm{{{style.look(ascent).name}}}$", _cells(table, name))
                for group in runs.present(options.groups) for ascent in ASCENTS
                if (name := f"{group}_alignment_{ascent}") in table]
    columns += [("cost", _cells(table, "cost"))] if "cost" in table else []
    looks = [style.look(opt) for opt in table.index]
    return Printed(heads=tuple(head for head, _ in columns), cells=tuple(zip(*(cells for _, cells in columns))),
                   names=tuple((_name(look.name, loss), look.color) for look, loss in zip(looks, table["loss"])),
                   caption=_caption(runs, options, table))


def _curvature_columns(table: pd.DataFrame, group: str) -> list[tuple[str, list[str]]]:
    found = [(f"{style.group_name(group)} {HEADS[name]}", _cells(table, f"{group}_{name}")) for name in CURVATURE]
    verified = [f" ({int(count)}/{int(seeds)})" for count, seeds in zip(table[f"{group}_verified"], table["num_seeds"])]
    found[0] = (found[0][0], [cell + mark for cell, mark in zip(found[0][1], verified)])
    return found


def _cells(table: pd.DataFrame, name: str) -> list[str]:
    return [summary.cell(row, name) for _, row in table.iterrows()]


def _name(name: str, loss: str) -> str:
    """Return a method's name with its loss, where that is not cross-entropy and not said."""
    return name if loss == "CE" or loss in name else f"{name}, {loss}"


def _caption(runs: Comparison, options: Options, table: pd.DataFrame) -> str:
    aligned = (r"; $\cdot\,\epsilon$: alignment of $v_{\min}$ with that ascent's perturbation" if "tail_alignment_sam" in table
               or "head_alignment_sam" in table else "")
    cost = f"; cost: seconds of an epoch, relative to {style.look(plainest(runs)).name}" if "cost" in table else ""
    limit = summary.number_text(-table["threshold"].iloc[0])
    return (f"test accuracy [%] after the last epoch; curvature of cross-entropy at epoch {table['epoch'].iloc[0]} in nats / "
            f"parameter$^2$, in parentheses the seeds whose $\\lambda_{{\\min}}$ float64 confirms, negative mass below {limit}"
            f"{aligned}{cost}; {style.describe(runs)}{interval_note(runs, options)}; mass: limits of its quadrature brackets")
