"""The cost of a training step: forwards, backwards, and seconds beside a step of SGD, a row an optimizer and stage.

Counts are those of the implementation here, which shares one clean forward among the groups; seconds were measured side by
side in one process.
"""

import numpy as np
import pandas as pd

from analysis.findings import measured
from analysis.findings.summary import interval_text, number_text
from checkpoints.comparison import Comparison
from checkpoints.frames import frame
from checkpoints.records import Measurement
from figures import style
from figures.options import Options
from figures.tables import Printed

HEADS = ("passes", "ms a step", "SGD steps")


def cost_table(runs: Comparison, options: Options) -> pd.DataFrame:
    """Return the record's rows: opt and stage, forwards, backwards, seconds a step with their interval, ratio to SGD."""
    return frame(measured.any_record(runs, "cost")).set_index("opt")


def print_cost_table(runs: Comparison, options: Options) -> Printed:
    """Return the cost of a step as text."""
    record = measured.any_record(runs, "cost")
    rows = frame(record).to_dict("records")
    return Printed(heads=HEADS, names=tuple(_name(row) for row in rows), cells=tuple(_cells(row) for row in rows),
                   caption=f"cost of a training step, passes: forwards / backwards of the network{_words(record)}")


def _name(row: dict) -> tuple[str, str]:
    look = style.look(row["opt"])
    return (f"{look.name}, {row['stage']}" if row.get("stage") else look.name), look.color


def _cells(row: dict) -> tuple[str, ...]:
    milliseconds = interval_text(*(1e3 * row.get(key, np.nan) for key in ("value", "low", "high")))
    return f"{row['forwards']:g} / {row['backwards']:g}", milliseconds, number_text(row.get("ratio", np.nan), 2)


def _words(record: Measurement) -> str:
    """Return the facts that a time depends on, as the record states them."""
    facts = [f"{key.replace('_', ' ')} {value}" for key, value in record.about.items() if isinstance(value, (str, int, float))]
    return "".join(f", {fact}" for fact in facts)
