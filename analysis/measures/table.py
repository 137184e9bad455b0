"""What a measure returns: rows of words and numbers as columns, and what their caption states."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

LEVEL = 0.95    # coverage of the intervals over draws


@dataclass(frozen=True, eq=False)
class Table:
    """The columns of a Measurement and what it is about."""

    labels: dict[str, tuple[str, ...]]  # column -> one word a row
    numbers: dict[str, np.ndarray]      # column -> (n,) float64
    units: dict[str, str]               # of each column of numbers
    about: dict[str, Any]


def table(rows: Sequence[Mapping[str, str | float]], units: Mapping[str, str], about: Mapping[str, Any]) -> Table:
    """Return rows of the same keys as columns: words become labels, numbers float64, of unit "1" where `units` names none.

    >>> table([{"group": "tail", "value": 2}], {"value": "nats"}, {}).numbers
    {'value': array([2.])}
    """
    columns = {key: [row[key] for row in rows] for key in (rows[0] if rows else {})}
    labels = {key: tuple(values) for key, values in columns.items() if isinstance(values[0], str)}
    numbers = {key: np.array(values, dtype=float) for key, values in columns.items() if key not in labels}
    return Table(labels, numbers, {key: units.get(key, "1") for key in numbers}, dict(about))
