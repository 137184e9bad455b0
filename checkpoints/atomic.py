"""Whole files or none: write under a temporary name in the same folder, flush to the disk, rename, flush the folder.

A reader, and a process that starts after a kill at any instant, sees the old file or the new one, never a part. What a
killed process leaves behind is a temporary file that nobody reads; `remove_leftovers` deletes those of dead processes.
"""

import os
import re
import secrets
import sys
import time
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import count
from pathlib import Path

_HOST = f"{zlib.crc32(os.uname().nodename.encode() if hasattr(os, 'uname') else b'host'):08x}"
_LIFE = secrets.token_hex(4)    # tells this process from an earlier one of the same number, common in containers
_COUNTER = count()
_TEMPORARY = re.compile(r"\..+\.([0-9a-f]{8})-(\d{1,10})-([0-9a-f]{8})-\d+\.tmp")
_FORGOTTEN_SECONDS = 24 * 3600.0


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Yield a temporary path to write; on leaving it becomes `path` at once, after an exception it is removed."""
    temporary = path.with_name(f".{path.name}.{_HOST}-{os.getpid()}-{_LIFE}-{next(_COUNTER)}.tmp")
    try:
        yield temporary
        _flush_file(temporary)
        os.replace(temporary, path)
    except BaseException as error:
        temporary.unlink(missing_ok=True)
        if isinstance(error, OSError) and (error.filename is None or str(error.filename) == str(temporary)):
            error.filename = str(path)      # a full disk names no file, and our own name means nothing to a reader
        raise
    _flush_folder(path.parent)


def write_bytes(path: Path, content: bytes | memoryview) -> None:
    """Write a whole file at once."""
    with replacing(path) as temporary:
        temporary.write_bytes(content)


def write_text(path: Path, text: str) -> None:
    """Write a whole UTF-8 text file at once."""
    write_bytes(path, text.encode("utf-8"))


def make_folder(path: Path) -> None:
    """Create a folder and its parents where they are absent, and flush the entries to the disk."""
    missing = [folder for folder in (path, *path.parents) if not folder.exists()]
    path.mkdir(parents=True, exist_ok=True)
    for folder in reversed(missing):
        _flush_folder(folder.parent)


def append_line(path: Path, line: str) -> None:
    """Append a line of UTF-8 text, whole or not at all."""
    content = (line + "\n").encode("utf-8")
    file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o666)
    before = os.fstat(file).st_size
    try:
        while content:
            content = content[os.write(file, content):]
    except OSError as error:
        os.ftruncate(file, before)
        error.filename = str(path)
        raise
    finally:
        os.close(file)


def is_temporary(name: str) -> bool:
    """Tell whether a file name is one of ours that has not become a whole file yet."""
    return _TEMPORARY.fullmatch(name) is not None


def remove_leftovers(folder: Path) -> None:
    """Delete, in this one folder, temporary files whose process is dead; those of other machines after a day."""
    for path in folder.glob(".*.tmp"):
        owner = _TEMPORARY.fullmatch(path.name)
        if owner and not path.is_symlink() and _is_dead(path, *owner.groups()):
            path.unlink(missing_ok=True)


def _is_dead(path: Path, host: str, process: str, life: str) -> bool:
    if host != _HOST or sys.platform == "win32":
        return _age(path) > _FORGOTTEN_SECONDS
    if int(process) == os.getpid():
        return life != _LIFE
    return not is_running(int(process))


def is_running(process: int) -> bool:
    """Tell whether a process of this number lives on this machine."""
    try:
        os.kill(process, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except PermissionError:
        return True
    return True


def _age(path: Path) -> float:
    try:
        return time.time() - path.stat().st_mtime
    except FileNotFoundError:
        return 0.0


def _flush_file(path: Path) -> None:
    with open(path, "rb+") as file:
        os.fsync(file.fileno())


def _flush_folder(path: Path) -> None:
    if os.name == "nt":    # no such thing there
        return
    folder = os.open(path, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)
