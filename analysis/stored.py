"""What a stored record was computed from, and whether it may be given back in place of a new one.

Every record stores its inputs: weights, data, class groups and settings. One whose inputs are the same is kept unless it is to
be overwritten; one of other weights or data is stale, and computed anew; one of other settings is neither given back nor
replaced, since it is as good as what is asked for and somebody may have waited for it.
"""

import hashlib
import json
from collections.abc import Callable, Mapping
from dataclasses import asdict
from typing import Any, TypeVar

from analysis.subject import Subject
from checkpoints.errors import RecordError
from checkpoints.store import RunStore
from landscape.distributed import Processes, is_main

Record = TypeVar("Record")
DECISIVE = ("checkpoint", "data", "classes", "spectra")     # inputs that must be equal, where a record has them; else it is stale


class OtherRecord(RecordError):
    """What is stored was computed otherwise than is asked for: it is neither given back nor replaced."""

    def __init__(self, found: str):
        super().__init__(f"{found}; replace it with --overwrite, or keep it and ask for the same")
        self.found = found


def inputs_of(subject: Subject, settings: Any, **more: Any) -> dict[str, Any]:
    """Return what decides a record's content: the weights now loaded, data, class groups, settings (a dataclass) and `more`."""
    classes = {name: list(subject.groups.classes[name]) for name in ("head", "tail")}
    inputs = {"checkpoint": subject.checkpoint_hash, "data": subject.data.hash, "settings": asdict(settings),
              "classes": classes, **more}
    return json.loads(json.dumps(inputs))


def stored_or_computed(store: RunStore, kind: str, inputs: dict[str, Any], compute: Callable[[], Record], *,
                       defaults: Mapping[str, Any] | None = None, overwrite: bool = False,
                       **keys: Any) -> tuple[Record, bool]:
    """Return the stored record of these inputs, or compute and store one; and whether it was computed now.

    `keys` are those that the record is filed under, and `compute()` must give it under the same ones, with
    `provenance["inputs"] = inputs`. `defaults`: the value that each setting had before records knew it. Raises OtherRecord where
    what is stored is of the same weights and data and of other settings.
    """
    if (record := known(store, kind, inputs, defaults=defaults, overwrite=overwrite, **keys)) is not None:
        return record, False
    record = compute()
    if is_main():
        store.write(record)
    return record, True


def known(store: RunStore, kind: str, inputs: dict[str, Any], *, defaults: Mapping[str, Any] | None = None,
          overwrite: bool = False, **keys: Any) -> Any:
    """Return the stored record of these inputs, or None; refuse to replace one that is as good but of other settings.

    Of several processes the first looks, and the others follow: somebody else may store a record between two looks.
    """
    here, found, refusal = Processes.present(), None, None
    if here.rank == 0:
        try:
            found = _found(store, kind, inputs, defaults, overwrite, keys)
        except OtherRecord as other:
            refusal = other.found
    is_known, refusal = here.first((found is not None, refusal))
    if refusal is not None:
        raise OtherRecord(refusal)
    return store.read(kind, **keys) if is_known and found is None else found


def _found(store: RunStore, kind: str, inputs: dict[str, Any], defaults: Mapping[str, Any] | None, overwrite: bool,
           keys: dict[str, Any]) -> Any:
    if overwrite or not store.has(kind, **keys):
        return None
    record = store.read(kind, **keys)
    stored = record.provenance.get("inputs", {})
    stored = stored | {"settings": {**json.loads(json.dumps(dict(defaults or {}))), **stored.get("settings", {})}}
    if stored == inputs:
        return record
    if all(stored.get(key) == inputs.get(key) for key in DECISIVE):
        raise OtherRecord(f"{store.path} holds another {called(kind, **keys)}: {_difference(stored, inputs)}")
    return None


def called(kind: str, **keys: Any) -> str:
    """Return what a record is called in a message."""
    if kind == "curvature":
        return f"spectrum of {keys['group']} at epoch {keys['epoch']}"
    return f"{kind} {keys['name']}" + (f" at epoch {keys['epoch']}" if "epoch" in keys else "")


def digest(document: Any) -> str:
    """Return a short hash of a document, for the name of a journal."""
    return hashlib.sha256(json.dumps(document, sort_keys=True).encode()).hexdigest()[:16]


def _difference(stored: dict, wanted: dict) -> str:
    old, new = stored["settings"], wanted["settings"]
    names = [name for name in new if old.get(name) != new[name]]
    if names:
        return ", ".join(f"{name}={old.get(name)} there, {new[name]} here" for name in names)
    if changed := [name for name, made_of in wanted.get("sources", {}).items() if stored.get("sources", {}).get(name) != made_of]:
        return f"{', '.join(changed)} {'has' if len(changed) == 1 else 'have'} changed since"
    if stored.get("directions") != wanted.get("directions"):
        return "its directions are others now: the spectrum that they come from has changed since"
    return f"other {' and '.join(name for name in wanted if stored.get(name) != wanted[name]) or 'settings'}"
