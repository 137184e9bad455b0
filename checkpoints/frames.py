"""Measurements as pandas tables: the columns as they are stored, labels first.

    frame(measurement)               one record: label columns, then number columns
    frames(measurements)             several, with the epoch of each in front
"""

from collections.abc import Iterable

import pandas as pd

from checkpoints.records import Measurement


def frame(measurement: Measurement) -> pd.DataFrame:
    """Return all columns of a measurement, a row for each of its rows."""
    return pd.DataFrame({name: list(words) for name, words in measurement.labels.items()} | measurement.numbers)


def frames(measurements: Iterable[Measurement]) -> pd.DataFrame:
    """Return measurements one below the other, in the order given, each with its epoch in the first column."""
    tables = [(record.epoch, frame(record)) for record in measurements]
    for epoch, table in tables:
        table.insert(0, "epoch", epoch)
    return pd.concat([table for _, table in tables], ignore_index=True) if tables else pd.DataFrame()
