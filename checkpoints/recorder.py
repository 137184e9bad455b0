"""What a trainer calls while it trains, so that a kill at any instant costs at most the epoch that was running.

After each epoch, in this order: `checkpoint` where one is wanted, `epoch`, `resume`. Each writes one whole file. After
a kill, training continues from the last `resume`; metrics rows behind that point are dropped and come again, as do
checkpoints, so the finished run is the one that an undisturbed training would have left.
"""

import csv
import io
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from checkpoints.atomic import write_text
from checkpoints.errors import RecordError
from checkpoints.records import Checkpoint
from checkpoints.schema import read_record, write_record

METRICS, RESUME = "metrics.csv", "resume.h5"


def read_rows(path: Path) -> list[dict[str, str]]:
    """Read metrics.csv as text, so that rows kept are written back as they were; an empty cell is an absent key."""
    if not path.exists():
        return []
    try:
        text = path.read_text(encoding="utf-8")
        rows = list(csv.DictReader(io.StringIO(text), strict=True))
        if any(None in row or not row["epoch"].isdecimal() for row in rows):
            raise ValueError("a row has no epoch, or more cells than there are columns")
        if text and not text.endswith("\n") or any(None in row.values() for row in rows):
            raise ValueError("a row is cut off")
    except (ValueError, KeyError, AttributeError, csv.Error) as error:
        raise RecordError(f"{path} is damaged: {error!r}; put back a copy, or train the run again into another folder") from error
    return [{key: cell for key, cell in row.items() if cell} for row in rows]


class Recorder:
    """Write checkpoints, metrics and the resume point of one training into a run folder.

    Made by `RunStore.recorder()` while this process is the run's writer.
    """

    def __init__(self, store: Any):
        self._store = store
        self._point = _read_point(store.path / RESUME)
        self._rows = read_rows(store.path / METRICS)
        self._drop_rows_from(self._point.epoch + 1 if self._point else 0)
        self._check_agreement()

    @property
    def rows(self) -> list[dict[str, str]]:
        """The rows of metrics.csv up to now, as text; of those behind the resume point, which come again, none."""
        return [dict(row) for row in self._rows]

    def checkpoint(self, epoch: int, arrays: dict[str, np.ndarray]) -> None:
        """Store parameters and buffers by their state_dict names, after `epoch` epochs."""
        self._store.write(Checkpoint(epoch, arrays, self._store.origin))

    def epoch(self, metrics: Mapping[str, Any]) -> None:
        """Add one row to metrics.csv: `epoch` and any numbers; a value of None leaves its cell empty."""
        row = {key: text for key, value in metrics.items() if (text := _cell(value)) != ""}
        self._drop_rows_from(int(row["epoch"]))
        self._rows.append(row)
        self._write_rows()

    def resume(self, arrays: dict[str, Any]) -> None:
        """Replace the resume point: everything that training needs to go on behind the last row of metrics.csv."""
        write_record(self._store.path / RESUME, Checkpoint(_last_epoch(self._rows), arrays, {}))

    def resumed(self) -> dict[str, np.ndarray] | None:
        """Return the arrays last given to `resume` (numbers as arrays without dimensions), or None in a fresh run."""
        return self._point.arrays if self._point else None

    def _drop_rows_from(self, epoch: int) -> None:
        self._rows = [row for row in self._rows if int(row["epoch"]) < epoch]

    def _write_rows(self) -> None:
        columns = list(dict.fromkeys(key for row in self._rows for key in row))
        text = io.StringIO()
        table = csv.DictWriter(text, columns, restval="", lineterminator="\n")
        table.writeheader()
        table.writerows(self._rows)
        write_text(self._store.path / METRICS, text.getvalue())

    def _check_agreement(self) -> None:
        if self._point and self._point.epoch != _last_epoch(self._rows):
            raise RecordError(f"{self._store.path}: {RESUME} is at epoch {self._point.epoch} but {METRICS} ends at "
                              f"{_last_epoch(self._rows)}: put the file back, or delete {RESUME} to start over")


def _read_point(path: Path) -> Checkpoint | None:
    return read_record(path, Checkpoint) if path.exists() else None


def _last_epoch(rows: list[dict[str, str]]) -> int:
    return int(rows[-1]["epoch"]) if rows else 0


def _cell(value: Any) -> str:
    value = value.item() if isinstance(value, np.generic) else value
    return "" if value is None else repr(value) if isinstance(value, float) else str(value)
