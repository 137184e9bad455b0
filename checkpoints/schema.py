"""One record, one HDF5 file: written whole, checked when read, and the same content always hashes the same.

The file's root group is the record: attributes `record`, `schema_version` and `content_hash`, one dataset or attribute
a field, one subgroup for a nested record. h5py alone reads it: `h5py.File(path)["spectrum/nodes"][:]`.
"""

import hashlib
import io
import json
import struct
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from checkpoints.atomic import write_bytes
from checkpoints.decode import get_record, record_class
from checkpoints.encode import SCHEMA_VERSION, put_record
from checkpoints.errors import RecordError
from checkpoints.fields import JsonText, told
from checkpoints.records import RECORDS
from checkpoints.seal import SEAL_BYTES, check_seal, seal, way_out

__all__ = ["SCHEMA_VERSION", "RecordError", "content_hash", "read_record", "write_record"]
# What h5py and json raise where the bytes of a file make no sense.
_DAMAGE = (OSError, RuntimeError, KeyError, ValueError, TypeError, OverflowError, MemoryError, AttributeError)


def write_record(path: Path | str, record: Any) -> Path:
    """Write a record as a whole file, replacing an earlier one at once. RecordError where a field does not fit."""
    if type(record) not in RECORDS.values():
        raise RecordError(f"{type(record).__name__} cannot be stored: expected one of {', '.join(RECORDS)}")
    # Built in memory: on a full disk HDF5 fails while it closes the file and takes the process down with it.
    buffer = io.BytesIO()
    with h5py.File(buffer, "w", userblock_size=SEAL_BYTES) as file:
        put_record(file, record)
        file.attrs["content_hash"] = content_hash(record)
    with buffer.getbuffer() as content:
        seal(content)
        write_bytes(Path(path), content)
    return Path(path)


def read_record(path: Path | str, cls: type | None = None) -> Any:
    """Read a record. RecordError, naming the file, where it is absent, foreign, damaged, or not a `cls`."""
    path = Path(path)
    is_sealed = check_seal(path)
    try:
        with h5py.File(path, "r", locking=False) as file:
            record = get_record(file, cls or record_class(file))
            expected = file.attrs.get("content_hash")
    except RecordError as error:
        raise RecordError(f"{path}: {error}") from error
    except _DAMAGE as error:
        raise RecordError(f"{path} is damaged: {error}") from error
    if not is_sealed and expected not in (None, content_hash(record)):
        raise RecordError(f"{path} is damaged: its content does not match its hash; {way_out(path)}")
    return record


def content_hash(record: Any) -> str:
    """Return the SHA-256 of all a record holds but its provenance: equal content, equal hash, on every machine."""
    digest = hashlib.sha256()
    _feed(digest, record)
    return digest.hexdigest()


def _feed(digest: Any, value: Any) -> None:
    if isinstance(value, np.ndarray):
        _feed(digest, f"{value.dtype.str}{value.shape}")
        digest.update(value.tobytes() if value.nbytes < 1 << 16 else value.reshape(-1).view(np.uint8))
    elif isinstance(value, dict):
        _feed(digest, f"dict {len(value)}")
        for name in sorted(value):
            _feed(digest, name)
            _feed(digest, value[name])
    elif isinstance(value, JsonText):
        _feed(digest, json.dumps(json.loads(value), sort_keys=True))
    elif isinstance(value, str):
        encoded = value.encode("utf-8")
        digest.update(struct.pack("<cQ", b"s", len(encoded)) + encoded)
    elif isinstance(value, (bool, int)):
        digest.update(struct.pack("<cq", b"i", value))
    elif isinstance(value, float):
        digest.update(struct.pack("<cd", b"f", value))
    else:
        _feed(digest, type(value).__name__)
        _feed(digest, told(value))
