"""Steps of a long computation, each a whole file, so that it resumes in the middle after a kill.

    journal = store.journal("tail-0060")
    for arrays in journal: ...             # what an earlier process finished, read one at a time
    journal.append({"vector": v})          # one step more
    journal.clear()                        # the result is stored elsewhere
"""

from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import numpy as np

from checkpoints.atomic import make_folder, remove_leftovers
from checkpoints.errors import RecordError
from checkpoints.records import Checkpoint
from checkpoints.schema import read_record, write_record


class Journal:
    """An append-only list of dictionaries of arrays in one folder."""

    def __init__(self, folder: Path):
        self.folder = folder
        self._length: int | None = None    # unknown until the files have been read
        self._swept = False                # whether what lies behind the last step has been removed

    def __iter__(self) -> Iterator[dict[str, np.ndarray]]:
        """Yield the finished steps in order, up to the first that is absent or damaged."""
        length = 0
        while (arrays := self._read(length)) is not None:
            yield arrays
            length += 1
        self._length = length

    def steps(self) -> list[dict[str, np.ndarray]]:
        """Return the finished steps together."""
        return list(self)

    def append(self, arrays: dict[str, np.ndarray]) -> None:
        """Write the next step."""
        if self._length is None:
            self.steps()
        if not self._swept:
            self._drop_from(self._length)
            self._swept = True
        make_folder(self.folder)
        write_record(self._path(self._length), Checkpoint(self._length, arrays, {}))
        self._length += 1

    def clear(self) -> None:
        """Delete every step, and the folder where nothing else is in it."""
        self._drop_from(0)
        remove_leftovers(self.folder)
        self._length = 0
        with suppress(OSError):    # absent, or not empty
            self.folder.rmdir()
            self.folder.parent.rmdir()

    def _read(self, step: int) -> dict[str, np.ndarray] | None:
        try:
            record = read_record(self._path(step), Checkpoint)
        except RecordError:
            return None
        return record.arrays if record.epoch == step else None

    def _drop_from(self, first: int) -> None:
        # Steps behind a gap belong to an earlier life.
        for path in self.folder.glob("step-*.h5"):
            number = path.stem.removeprefix("step-")
            if number.isdecimal() and int(number) >= first:
                path.unlink(missing_ok=True)

    def _path(self, step: int) -> Path:
        return self.folder / f"step-{step:06d}.h5"
