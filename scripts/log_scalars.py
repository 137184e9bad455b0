"""The rows of metrics.csv as scalars for TensorBoard, under RUN/tensorboard.

metrics.csv is the truth: whoever begins to write starts the folder's event files anew from it, so that each epoch is
there once, however often the run was stopped, killed or continued.
"""

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from landscape.errors import InputError

FOLDER, OURS = "tensorboard", "events.out.tfevents.*"


def writer_class() -> type:
    """Return torch's SummaryWriter; InputError where TensorBoard is not installed."""
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError as error:
        raise InputError(f"--tensorboard needs the tensorboard package ({error}): "
                         "pip install 'saddle-landscape[tensorboard]'") from None
    return SummaryWriter


class Scalars:
    """Write rows of metrics while a run is trained; use it in a `with` statement."""

    def __init__(self, run: Path, rows: Iterable[Mapping[str, Any]]):
        self.folder = run / FOLDER
        self._rows = list(rows)

    def __enter__(self) -> "Scalars":
        for path in self.folder.glob(OURS):
            path.unlink()
        self._writer = writer_class()(log_dir=str(self.folder))
        for row in self._rows:
            self._add(row)
        self._writer.flush()
        return self

    def __exit__(self, *exception: object) -> None:
        self._writer.close()

    def row(self, row: Mapping[str, Any]) -> None:
        """Add one epoch's row; whoever watches sees it at once."""
        self._add(row)
        self._writer.flush()

    def _add(self, row: Mapping[str, Any]) -> None:
        epoch = int(row["epoch"])
        for name, value in row.items():
            if name != "epoch" and value not in (None, ""):
                self._writer.add_scalar(name, float(value), epoch)
