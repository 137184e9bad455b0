"""Whether a stored record still speaks of what lies beside it: checkpoint and data, and what its directions were made of.

Every record states the hash of the weights and data that it was computed from; a surface also those of the checkpoints that it
leads through, a measurement those of the spectra that it read, and an eigenvector's direction is compared with the spectrum's
own. The hash of a file is read from it, not computed anew: a file that was changed cannot be read at all. What a verification
adds to a spectrum, another library's numbers, makes no record stale. Nothing is said of what cannot be compared: a spectrum that
is gone, a checkpoint of another run that is not found from here.
"""

import re
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from checkpoints.errors import RecordError
from checkpoints.layout import KINDS, relative_path
from checkpoints.records import Curvature, Surface
from checkpoints.schema import content_hash
from checkpoints.store import RunStore

OTHER_WEIGHTS, OTHER_DATA, NO_CHECKPOINT = "other weights", "other data", "weights that are no longer stored"
OTHER_WAY, OTHER_SPECTRUM = "other weights along its way", "other eigenvectors"
APART = "apart_from_weights"        # in the provenance of a record that was up to date when it was exported without its weights
ROUNDING = 1e-6                     # of a unit vector's entries in float32
_SOURCE = re.compile(r"((?P<run>.+)@)?epoch:(?P<epoch>\d+|last)")       # as analysis.surfaces.direction_words spells them
_EIGENVECTOR = re.compile(r"(?P<group>\S+) lambda_(?P<end>min|max)( (?P<rank>\d+))?")


def staleness(store: RunStore, record: Any) -> str:
    """Return of what a record is instead of what is stored: one of the words above; nothing where it is up to date.

    A record that states no inputs is not judged.
    """
    inputs = record.provenance.get("inputs", {})
    data = store.provenance.get("data_hash")
    if data is not None and inputs.get("data") not in (None, data):
        return OTHER_DATA
    if inputs.get("checkpoint") is None:
        return ""
    found = checkpoint_hash(store, record.epoch)
    if found is None:
        return "" if record.provenance.get(APART) else NO_CHECKPOINT
    if found != inputs["checkpoint"]:
        return OTHER_WEIGHTS
    return _way(store, inputs.get("sources", {})) or _spectra(store, record, inputs)


def checkpoint_hash(store: RunStore, epoch: int) -> str | None:
    """Return the hash that the checkpoint of an epoch states of its content; None where there is none.

    RecordError where the file cannot be read.
    """
    return _stated_hash(store.path / relative_path(KINDS["checkpoint"], {"epoch": epoch}))


def spectrum_hash(record: Curvature) -> str:
    """Return the hash of a spectrum as it was measured, without the second opinion that a verification adds."""
    return content_hash(replace(record, second_opinion={}))


def _stated_hash(path: Path) -> str | None:
    if not path.is_file():
        return None
    try:
        with h5py.File(path, "r", locking=False) as file:
            return str(file.attrs["content_hash"])
    except (OSError, KeyError) as error:
        raise RecordError(f"{path} is damaged: {error}") from error


def _way(store: RunStore, sources: Mapping[str, str]) -> str:
    """Judge the checkpoints that a surface leads through, by the words that named them."""
    for text, stated in sources.items():
        word = _SOURCE.fullmatch(text)
        other = _found(Path(word["run"])) if word and word["run"] else store
        if word is None or other is None:
            continue
        epoch = max(other.epochs, default=0) if word["epoch"] == "last" else int(word["epoch"])
        if (found := checkpoint_hash(other, epoch)) != stated:
            return NO_CHECKPOINT if found is None else OTHER_WAY
    return ""


def _found(path: Path) -> RunStore | None:
    """Return another run; None where there is none, as where this one was moved to another machine."""
    try:
        return RunStore.open(path)
    except RecordError:
        return None


def _spectra(store: RunStore, record: Any, inputs: Mapping[str, Any]) -> str:
    """Judge the spectra that a measurement read, and the eigenvectors that a surface walks along."""
    for group, stated in inputs.get("spectra", {}).items():
        if (_stated_hash(_spectrum_path(store, record.epoch, group)) not in (None, stated)
                and spectrum_hash(store.read("curvature", epoch=record.epoch, group=group)) != stated):
            return OTHER_SPECTRUM
    if isinstance(record, Surface) and "directions" in inputs:
        words = [_EIGENVECTOR.fullmatch(name) for name in record.direction_names]
        if any(word and _is_other(store, record, row, word) for row, word in enumerate(words)):
            return OTHER_SPECTRUM
    return ""


def _is_other(store: RunStore, surface: Surface, row: int, word: re.Match) -> bool:
    """Return whether a direction is not the eigenvector that the spectrum now holds; vectors are compared if both keep them."""
    path = _spectrum_path(store, surface.epoch, word["group"])
    if not path.is_file():
        return False
    try:
        with h5py.File(path, "r", locking=False) as file:
            values, vectors = file["eigenpairs/values"][:], file["eigenpairs/vectors"]
            rank = int(word["rank"] or 0)
            place = rank if word["end"] == "min" else len(values) - 1 - rank
            if not 0 <= place < len(values) or values[place] != surface.direction_curvatures[row]:
                return True
            vector = vectors[place].astype(float) if len(vectors) and len(surface.directions) else None
    except (OSError, KeyError) as error:
        raise RecordError(f"{path} is damaged: {error}") from error
    return vector is not None and not np.allclose(vector / np.linalg.norm(vector), surface.directions[row], 0, ROUNDING)


def _spectrum_path(store: RunStore, epoch: int, group: str) -> Path:
    return store.path / relative_path(KINDS["curvature"], {"epoch": epoch, "group": group})
