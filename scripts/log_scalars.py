"""The rows of metrics.csv as scalars for TensorBoard, under RUN/tensorboard.

metrics.csv is the truth: whoever begins to write starts the folder's event files anew from it, so that each epoch is
there once, however often the run was stopped, killed or continued.
"""

import threading
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, nullcontext, suppress
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
        self._hook, threading.excepthook = threading.excepthook, self._thread_failed
        with self._named():
            for path in self.folder.glob(OURS):
                path.unlink()
            self._writer = writer_class()(log_dir=str(self.folder))
        self._write(self._rows)
        return self

    def __exit__(self, kind: type | None, *rest: object) -> None:
        try:
            with self._named(), suppress(OSError) if kind else nullcontext():     # what went wrong first is told
                self._writer.close()
        finally:
            threading.excepthook = self._hook

    def row(self, row: Mapping[str, Any]) -> None:
        """Add one epoch's row; whoever watches sees it at once."""
        self._write([row])

    def _write(self, rows: Iterable[Mapping[str, Any]]) -> None:
        with self._named():
            for row in rows:
                for name, value in row.items():
                    if name != "epoch" and value is not None:
                        self._writer.add_scalar(name, float(value), int(row["epoch"]))
            self._writer.flush()

    @contextmanager
    def _named(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:    # of a full disk names no file
            error.filename = error.filename or str(self.folder)
            raise

    def _thread_failed(self, failure: Any) -> None:
        # TensorBoard writes in a thread, and hands its error to the next call: it need not be shown twice.
        if not isinstance(failure.exc_value, OSError):
            self._hook(failure)
