"""A checksum of the whole file in front of it, so that libhdf5 never sees a damaged one.

libhdf5 crashes or hangs on some damaged files. HDF5 leaves the first 512 bytes of a file (its user block) to the
application; here they hold one line of text with the SHA-256 of all that follows. h5py reads such a file as any other.
A file without the line, written by other software, is accepted without this check.
"""

import hashlib
from pathlib import Path

from checkpoints.errors import RecordError

SEAL_BYTES = 512    # the smallest user block there is
_TITLE = b"landscape record: HDF5 behind a user block of 512 bytes; sha256 of the rest: "
_SIGNATURE = b"\x89HDF\r\n\x1a\n"


def seal(content: memoryview) -> None:
    """Fill the first 512 bytes of a file's content."""
    line = _TITLE + hashlib.sha256(content[SEAL_BYTES:]).hexdigest().encode("ascii") + b"\n"
    content[:SEAL_BYTES] = line.ljust(SEAL_BYTES, b"\0")


def way_out(path: Path) -> str:
    """Return what to do about a damaged record: what is computed can be computed again, what was trained cannot alone."""
    if path.parent.name == "checkpoints":
        return "put back a copy, or train the run again into another folder: a checkpoint that is deleted does not come again"
    if path.name == "resume.h5":
        return "put back a copy, or delete it to start over"
    return "delete it and compute it again"


def check_seal(path: Path) -> bool:
    """Return whether a file is sealed. RecordError where it is absent, no HDF5 file, or not what was sealed."""
    try:
        with open(path, "rb") as file:
            start = file.read(SEAL_BYTES)
            is_sealed = start.startswith(_TITLE)
            digest = hashlib.file_digest(file, "sha256").hexdigest().encode("ascii") if is_sealed else b""
    except FileNotFoundError as error:
        raise RecordError(f"{path} does not exist") from error
    if not is_sealed and not start.startswith(_SIGNATURE):
        raise RecordError(f"{path} is not an HDF5 file")
    if start[len(_TITLE):].rstrip(b"\n\0") != digest and is_sealed:
        raise RecordError(f"{path} is damaged or truncated: its content does not match its checksum; {way_out(path)}")
    return is_sealed
