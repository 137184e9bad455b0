"""Toy saddles: how many steps gradient descent and sharpness-aware ascent take to leave f = (a x^2 - b y^2) / 2."""

from math import ceil, inf, log

from analysis.table import Table, table


def toy(case) -> Table:
    """Return escape steps of gradient descent, beside the closed form."""
    steps = escape_steps(1.1, 0.01, 1.0)
    row = {"toy": "single", "method": "gd", "rho": 0.0, "value": steps, "low": float("nan"), "high": float("nan"),
           "closed_form": steps}
    return table([row], {"rho": "parameter units", "value": "steps", "low": "steps", "high": "steps", "closed_form": "steps"},
                 {"a": 1.0, "b": 1.0})


def escape_steps(factor: float, start: float, radius: float) -> float:
    """Return the first t with |factor|^t start >= radius; infinity where there is none."""
    return ceil(log(radius / start) / log(abs(factor))) if abs(factor) > 1 else inf
