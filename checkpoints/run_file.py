"""run.json: the configuration that makes a run this run, where it comes from, and whether it is finished."""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import MappingProxyType
from typing import Any

from checkpoints.atomic import is_temporary, write_text
from checkpoints.errors import RecordError

FILE_NAME, LOCK_NAME = "run.json", "writer.lock"
VERSION = 1
LARGEST_BYTES = 16 * 1024**2    # a real one has a few kilobytes
SHOWN_DIFFERENCES = 5


@dataclass(frozen=True)
class RunFile:
    """The content of run.json; both dictionaries hold plain JSON values."""

    config: dict[str, Any]
    provenance: dict[str, Any] = field(default_factory=dict)
    finished: bool = False


def write_run_file(folder: Path, content: RunFile) -> None:
    """Write run.json as a whole file."""
    document = {"record": "Run", "schema_version": VERSION, "config": content.config,
                "provenance": content.provenance, "finished": content.finished}
    write_text(folder / FILE_NAME, json.dumps(document, indent=2) + "\n")


def mark_finished(folder: Path) -> None:
    """Note in run.json that the run needs no more training."""
    write_run_file(folder, replace(read_run_file(folder), finished=True))


def amend(folder: Path, name: str, entries: dict[str, Any]) -> dict[str, Any]:
    """Add entries to the config or the provenance in run.json, in place of any of the same names; return the whole."""
    content = read_run_file(folder)
    whole = getattr(content, name) | plain_config(entries)
    write_run_file(folder, replace(content, **{name: whole}))
    return whole


def read_run_file(folder: Path) -> RunFile:
    """Read run.json; RecordError, naming the folder, where it is absent, damaged, or newer than this package."""
    path = folder / FILE_NAME
    if not path.is_file():
        raise RecordError(f"{folder} {_what_it_is(folder)}")
    if path.stat().st_size > LARGEST_BYTES:
        raise RecordError(f"{path} is too large to be a run's: expected at most {LARGEST_BYTES} bytes")
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise RecordError(f"{path} is damaged: {error}") from error
    if not isinstance(document, dict) or document.get("record") != "Run":
        raise RecordError(f"{path} was not written by this package")
    return _checked(path, document)


def plain_config(config: dict[str, Any]) -> dict[str, Any]:
    """Return the configuration as it reads back from JSON, so that tuples and lists compare equal."""
    try:
        return json.loads(json.dumps(config))
    except (TypeError, ValueError) as error:
        raise RecordError(f"configuration cannot be stored as JSON: {error}") from error


def differences(stored: dict[str, Any], asked: dict[str, Any], ignored: tuple[str, ...] = (),
                defaults: Mapping[str, Any] = MappingProxyType({})) -> list[str]:
    """Return one text a differing key, `key: stored, now asked`; keys of nested dictionaries are joined by dots.

    `defaults` says what a key stands for that is absent from `stored`.
    """
    flat_stored, flat_asked = _flat(plain_config(dict(defaults)) | stored), _flat(asked)
    keys = sorted(flat_stored.keys() | flat_asked.keys())
    return [f"{key}={_shown(flat_stored, key)} there, {_shown(flat_asked, key)} here" for key in keys
            if key.partition(".")[0] not in ignored and not _same(flat_stored, flat_asked, key)]


def refuse_differences(folder: Path, found: list[str]) -> None:
    """Raise RecordError naming the first few differences, if there are any."""
    if found:
        more = f", and {len(found) - SHOWN_DIFFERENCES} more" if len(found) > SHOWN_DIFFERENCES else ""
        shown = "; ".join(found[:SHOWN_DIFFERENCES]) + more
        raise RecordError(f"{folder} holds a run of another configuration ({shown}): "
                          "choose another folder, or delete this one to start over")


def refuse_foreign_content(folder: Path) -> None:
    """Raise RecordError where a path is no folder, or holds files but no run: it is somebody else's, left untouched."""
    if not folder.exists():
        return
    if not folder.is_dir():
        raise RecordError(f"{folder} is a file: expected a folder for the run")
    # What a process killed at birth leaves behind does not make a folder foreign.
    foreign = [path.name for path in folder.iterdir() if path.name != LOCK_NAME and not is_temporary(path.name)]
    if foreign:
        raise RecordError(f"{folder} {_what_it_is(folder)}, but {len(foreign)} other files (such as {min(foreign)}): "
                          "choose an empty or new folder")


def _what_it_is(folder: Path) -> str:
    if not folder.exists():
        return "does not exist"
    if not folder.is_dir():
        return "is not a run folder: it is a file"
    runs = sorted(path.parent.name for path in folder.glob(f"*/{FILE_NAME}"))
    if runs:
        shown = ", ".join(runs[:5]) + (", ..." if len(runs) > 5 else "")
        return f"is not a run folder: it holds {len(runs)} of them ({shown})"
    return f"is not a run folder: it holds no {FILE_NAME}"


def _checked(path: Path, document: dict[str, Any]) -> RunFile:
    version = document.get("schema_version")
    if version != VERSION:
        raise RecordError(f"{path} has schema version {version}, expected {VERSION}: update this package")
    config, provenance = document.get("config"), document.get("provenance")
    if not isinstance(config, dict) or not isinstance(provenance, dict):
        raise RecordError(f"{path} is damaged: it holds no configuration or provenance")
    return RunFile(config, provenance, document.get("finished") is True)


def _flat(config: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    flat = {}
    for key, value in config.items():
        if isinstance(value, dict) and value:
            flat |= _flat(value, f"{prefix}{key}.")
        else:
            flat[prefix + key] = value
    return flat


def _same(stored: dict[str, Any], asked: dict[str, Any], key: str) -> bool:
    if _shown(stored, key) == _shown(asked, key):    # as text, NaN equals NaN
        return True
    values = (stored.get(key), asked.get(key))
    return all(type(value) in (int, float) for value in values) and values[0] == values[1]


def _shown(flat: dict[str, Any], key: str) -> str:
    return json.dumps(flat[key]) if key in flat else "absent"
