"""A run in small, to keep beside a paper or to share: all that was measured, without what is as long as the network.

Weights, eigenvectors and directions are left out; figures, tables and the report are drawn from the rest as from the run. Of
absolute paths in the commands that made it the last part is kept: the others speak of a machine, and perhaps of a person.
"""

import re
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from checkpoints.atomic import make_folder, write_text
from checkpoints.errors import RecordError
from checkpoints.layout import KINDS, keys_of, kind_of, relative_path
from checkpoints.recorder import METRICS
from checkpoints.records import Curvature, Surface
from checkpoints.run_file import FILE_NAME
from checkpoints.schema import write_record
from checkpoints.staleness import APART, staleness
from checkpoints.store import RunStore

LONG = ("directions", "vectors")    # fields that are left out
_FOLDERS = re.compile(r"(?<![\w.~])/(?:[^\s\"'/]+/)+(?=[^\s\"'/])")
_QUOTED = re.compile(r"""(?<=['"])/(?:[^'"/]+/)+(?=[^'"/])""")       # these may hold spaces
_COMMAND = re.compile(r'("command": ")((?:[^"\\]|\\.)*)')


def brief(record: Any) -> Any:
    """Return a record whose eigenvectors or directions are left out, (0, d); any other as it is."""
    if isinstance(record, Curvature):
        return replace(record, eigenpairs=replace(record.eigenpairs, vectors=_none(record.eigenpairs.vectors)))
    return replace(record, directions=_none(record.directions)) if isinstance(record, Surface) else record


def export_run(store: RunStore, folder: Path, records: Iterable[Any]) -> list[Path]:
    """Write configuration, metrics and some records of a run as a run folder without weights; return the paths.

    Records that are up to date say that they are kept apart from their weights. RecordError where the folder holds a run with
    weights, as this one itself: its eigenvectors would be lost.
    """
    _refuse_taken(store, folder)
    make_folder(folder)
    held = [name for name in (FILE_NAME, METRICS) if (store.path / name).is_file()]
    for name in held:
        text = (store.path / name).read_text(encoding="utf-8")
        write_text(folder / name, _COMMAND.sub(lambda found: found[1] + portable(found[2]), text) if name == FILE_NAME else text)
    return [folder / name for name in held] + [_write(store, folder, record) for record in records]


def _refuse_taken(store: RunStore, folder: Path) -> None:
    if any((folder / KINDS["checkpoint"].folder).glob("*.h5")) or folder.resolve() == store.path.resolve():
        raise RecordError(f"{folder} holds a run with its weights, whose records would be written over: choose another folder")
    if (folder / FILE_NAME).is_file() and RunStore.open(folder).config != store.config:
        raise RecordError(f"{folder} holds a run of other settings, with whose records these would mix: choose another folder")


def portable(command: str) -> str:
    """Return a command line in which absolute paths are cut to their last part."""
    return _FOLDERS.sub("", _QUOTED.sub("", command))


def _write(store: RunStore, folder: Path, record: Any) -> Path:
    path = folder / relative_path(kind_of(record), keys_of(record))
    make_folder(path.parent)
    mark = {} if staleness(store, record) else {APART: True}
    if "command" in record.provenance:
        mark["command"] = portable(record.provenance["command"])
    return write_record(path, replace(brief(record), provenance={**record.provenance, **mark}))


def _none(rows: np.ndarray) -> np.ndarray:
    return np.zeros((0, *rows.shape[1:]), rows.dtype)
