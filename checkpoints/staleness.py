"""Whether a stored record still speaks of what lies beside it: of the checkpoint of its epoch, and of the run's data.

Every record states the hash of the weights and data that it was computed from. The hash of a checkpoint is read from its
file, not computed anew: a file that was changed cannot be read at all.
"""

from typing import Any

import h5py

from checkpoints.errors import RecordError
from checkpoints.layout import KINDS, relative_path
from checkpoints.store import RunStore

OTHER_WEIGHTS, OTHER_DATA, NO_CHECKPOINT = "other weights", "other data", "weights that are no longer stored"
APART = "apart_from_weights"        # in the provenance of a record that was up to date when it was exported without its weights


def staleness(store: RunStore, record: Any) -> str:
    """Return of what a record is instead of what is stored: one of the words above; nothing where it is up to date.

    A record that states no inputs is not judged.
    """
    inputs = record.provenance.get("inputs", {})
    data = store.provenance.get("data_hash")
    if data is not None and inputs.get("data", data) != data:
        return OTHER_DATA
    if "checkpoint" not in inputs:
        return ""
    found = checkpoint_hash(store, record.epoch)
    if found is None:
        return "" if record.provenance.get(APART) else NO_CHECKPOINT
    return "" if found == inputs["checkpoint"] else OTHER_WEIGHTS


def checkpoint_hash(store: RunStore, epoch: int) -> str | None:
    """Return the hash that the checkpoint of an epoch states of its content; None where there is none.

    RecordError where the file cannot be read.
    """
    path = store.path / relative_path(KINDS["checkpoint"], {"epoch": epoch})
    if not path.is_file():
        return None
    try:
        with h5py.File(path, "r", locking=False) as file:
            return str(file.attrs["content_hash"])
    except (OSError, KeyError) as error:
        raise RecordError(f"{path} is damaged: {error}") from error
