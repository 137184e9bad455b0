"""A run as a folder: configuration, metrics, checkpoints, spectra, surfaces; every file whole or absent.

    run.json  metrics.csv  train.log  resume.h5  checkpoints/  spectra/  surfaces/  figures/  partial/

One process at a time may train in it (`writer`). Any number may add records side by side: a record is one file, and it
appears at once under its final name. Readers take no lock.
"""

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import datetime, timezone
from pathlib import Path
from typing import TYPE_CHECKING, Any

from filelock import FileLock, Timeout

from checkpoints import run_file
from checkpoints.atomic import append_line, make_folder, remove_leftovers, write_text
from checkpoints.errors import RecordError
from checkpoints.fields import to_json
from checkpoints.journal import Journal
from checkpoints.layout import KINDS, check_name, keys_of, kind_named, kind_of, relative_path
from checkpoints.recorder import METRICS, Recorder, read_rows
from checkpoints.run_file import FILE_NAME, LOCK_NAME, RunFile
from checkpoints.schema import read_record, write_record

if TYPE_CHECKING:
    import pandas as pd

HOLDER, LOG, PARTIAL, FIGURES = "writer.pid", "train.log", "partial", "figures"
BIRTH_SECONDS = 10.0    # how long to wait for another process that is just creating the same run


class RunStore:
    """The records of one run. Make it with `create` or `open`."""

    def __init__(self, path: Path, content: RunFile, origin: dict[str, Any]):
        self.path = path
        self.config = content.config
        self.provenance = content.provenance    # of the process that created the run
        self.origin = origin                    # of this process: stored with each checkpoint
        self._is_writer = False

    @classmethod
    def create(cls, path: Path | str, config: dict[str, Any], *, provenance: dict[str, Any] | None = None,
               ignored: tuple[str, ...] = ("device", "threads"), defaults: dict[str, Any] | None = None) -> "RunStore":
        """Make a run folder, or open the one that is there with the same configuration to continue it.

        Keys in `ignored` may differ: they do not make another run. `defaults` says what a key stands for that is absent
        from the configuration there, as one that was added since. Raises RecordError naming the differing keys where
        the folder holds another run, and where it holds somebody else's files; neither is touched.
        """
        path, config = Path(path), run_file.plain_config(config)
        origin = json.loads(to_json("provenance", provenance or {}))
        if not (path / FILE_NAME).is_file():
            run_file.refuse_foreign_content(path)
            make_folder(path)
            with _locked(path, BIRTH_SECONDS):
                if not (path / FILE_NAME).is_file():
                    run_file.write_run_file(path, RunFile(config, origin))
        store = cls(path, run_file.read_run_file(path), origin)
        run_file.refuse_differences(path, run_file.differences(store.config, config, ignored, defaults or {}))
        return store

    @classmethod
    def open(cls, path: Path | str) -> "RunStore":
        """Open an existing run. RecordError where the path is none."""
        content = run_file.read_run_file(Path(path))
        return cls(Path(path), content, content.provenance)

    @property
    def epochs(self) -> list[int]:
        """The epochs that have a checkpoint, ascending."""
        return [int(KINDS["checkpoint"].pattern.fullmatch(path.name)["epoch"]) for path in self.paths("checkpoint")]

    @property
    def finished(self) -> bool:
        """Whether training has reached its end."""
        return run_file.read_run_file(self.path).finished

    @property
    def figures(self) -> Path:
        """The folder for figures, made on first use."""
        make_folder(self.path / FIGURES)
        return self.path / FIGURES

    def mark_finished(self) -> None:
        """Note that training has reached its end."""
        run_file.mark_finished(self.path)

    def amend_provenance(self, **entries: Any) -> None:
        """Add to what run.json says of where the run comes from. Only inside `with store.writer():`."""
        self._require_writer("amend_provenance")
        self.provenance = run_file.amend(self.path, "provenance", entries)

    def amend_config(self, **entries: Any) -> None:
        """Replace settings in run.json that describe more of the same run. Only inside `with store.writer():`."""
        self._require_writer("amend_config")
        self.config = run_file.amend(self.path, "config", entries)

    def metrics(self) -> "pd.DataFrame":
        """Return metrics.csv, one row a finished epoch; NaN where a row has no value. Empty before the first epoch."""
        import pandas as pd  # slow to load, and no trainer needs it
        rows = read_rows(self.path / METRICS)
        columns = dict.fromkeys(key for row in rows for key in row)
        # Not pandas' own reader: its default rounds the last bit of some numbers.
        return pd.DataFrame({name: [_number(row.get(name)) for row in rows] for name in columns})

    def write(self, record: Any) -> Path:
        """Store a record under its own keys, replacing an earlier one at once; return its path."""
        path = self.path / relative_path(kind_of(record), keys_of(record))
        make_folder(path.parent)
        return write_record(path, record)

    def read(self, kind: str, **keys: Any) -> Any:
        """Return one record: `read("checkpoint", epoch=60)`, `read("curvature", epoch=60, group="tail")`."""
        path = self.path / relative_path(kind_named(kind), keys)
        if not path.is_file():
            asked = ", ".join(f"{key}={value}" for key, value in keys.items())
            raise RecordError(f"{self.path} holds no {kind} of {asked}: it has {self._listed(kind)}")
        return self._read_file(kind, path)

    def has(self, kind: str, **keys: Any) -> bool:
        """Return whether a record of these keys is stored."""
        return (self.path / relative_path(kind_named(kind), keys)).is_file()

    def paths(self, kind: str) -> list[Path]:
        """Return the files of one kind, by epoch and name."""
        files = [(kind_named(kind).pattern.fullmatch(path.name), path)
                 for path in (self.path / kind_named(kind).folder).glob("*.h5")]
        found = [(int(match.groupdict().get("epoch", 0)), path) for match, path in files if match]
        return [path for _, path in sorted(found)]

    def records(self, kind: str | None = None) -> Iterator[Any]:
        """Yield every record of one kind, or of all, one at a time."""
        for name in KINDS if kind is None else (kind,):
            for path in self.paths(name):
                yield self._read_file(name, path)

    @contextmanager
    def writer(self) -> Iterator["RunStore"]:
        """Be the one process that trains in this run. RecordError, naming the process, where another one is."""
        with _locked(self.path, 0.0):
            write_text(self.path / HOLDER, f"{os.getpid()}\n")
            for folder in (self.path, *self.path.glob("*/"), *self.path.glob(f"{PARTIAL}/*/")):
                remove_leftovers(folder)
            self._is_writer = True
            try:
                yield self
            finally:
                self._is_writer = False
                with suppress(OSError):    # what was wrong inside matters more than this note
                    (self.path / HOLDER).unlink()

    def recorder(self) -> Recorder:
        """Return what the trainer records to. Only inside `with store.writer():`."""
        self._require_writer("recorder")
        return Recorder(self)

    def journal(self, name: str) -> Journal:
        """Return the finished steps of a long computation, kept under partial/NAME/ until it clears them."""
        return Journal(self.path / PARTIAL / check_name(name))

    def log(self, text: str) -> None:
        """Append a line to train.log, behind the time (UTC)."""
        time = datetime.now(timezone.utc).isoformat(timespec="seconds")
        append_line(self.path / LOG, f"{time}  {' '.join(text.splitlines())}")

    def _require_writer(self, name: str) -> None:
        if not self._is_writer:
            raise RuntimeError(f"{self.path}: {name}() needs this process to be the writer: use it inside "
                               "`with store.writer():`")

    def _read_file(self, kind: str, path: Path) -> Any:
        record = read_record(path, KINDS[kind].cls)
        keys = keys_of(record)
        try:
            expected = relative_path(KINDS[kind], keys).name
        except RecordError as error:
            raise RecordError(f"{path}: {error}") from error
        if path.name != expected:
            raise RecordError(f"{path} holds the record {', '.join(f'{key}={keys[key]}' for key in keys)}, "
                              f"whose file is {expected}: it was renamed")
        return record

    def _listed(self, kind: str) -> str:
        names = [path.stem for path in self.paths(kind)]
        return ", ".join(names[:10]) + (f" and {len(names) - 10} more" if len(names) > 10 else "") or "none"


@contextmanager
def _locked(path: Path, seconds: float) -> Iterator[None]:
    lock = FileLock(path / LOCK_NAME)
    try:
        lock.acquire(timeout=seconds)
    except Timeout as error:
        raise RecordError(f"{path} is being written by {_holder(path)}: wait until it ends, or stop it") from error
    try:
        yield
    finally:
        lock.release()


def _holder(path: Path) -> str:
    with suppress(OSError, ValueError):
        return f"process {int((path / HOLDER).read_text(encoding='utf-8')[:20])}"
    return "another process"


def _number(cell: str | None) -> int | float | str | None:
    for kind in (int, float):
        with suppress(ValueError, TypeError):
            return kind(cell)
    return cell
