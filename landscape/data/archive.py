"""Fetch an archive, check it, and unpack it inside its folder, leaving either all of it or nothing.

A download goes to a temporary file in the target's folder and takes its name only when length and MD5 are right; an
archive is unpacked in a temporary folder that is renamed at the end. MD5 is what the CIFAR page publishes: it tells a
damaged file, not a forged one, so the contents are still read with suspicion (`pickles`).
"""

import hashlib
import http.client
import os
import sys
import tarfile
import tempfile
import urllib.error
import urllib.request
import zlib
from contextlib import contextmanager
from pathlib import Path

from tqdm import tqdm

from landscape.errors import InputError

CHUNK = 1 << 20
TIMEOUT = 30  # seconds without a byte
LARGEST = 1 << 31  # bytes that an archive may unpack to; CIFAR needs 190 million
UNREADABLE = (tarfile.TarError, EOFError, zlib.error, OSError)


def md5_of(path: Path) -> str:
    """Return the MD5 of a file as 32 hexadecimal digits."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, lambda: hashlib.md5(usedforsecurity=False)).hexdigest()


def download(url: str, path: Path, md5: str, progress: bool = True) -> None:
    """Fetch `url` into `path`; a failure of any kind leaves nothing there and is an error that names its cause."""
    try:
        with urllib.request.urlopen(url, timeout=TIMEOUT) as response:
            path.parent.mkdir(parents=True, exist_ok=True)
            with _temporary_file(path) as part:
                _copy(response, part, path.name, progress)
                _check_md5(Path(part.name), url, md5)
                os.replace(part.name, path)
    except (OSError, http.client.HTTPException) as error:
        if isinstance(error, urllib.error.HTTPError):
            error.close()
        cause = error.reason if type(error) is urllib.error.URLError else error  # without the library's wrapping
        raise InputError(f"{url} cannot be downloaded ({cause})") from None


def unpack(archive: Path, member: str, md5: str) -> Path:
    """Unpack the folder `member` of a tar archive beside the archive and return it.

    The MD5 is checked first. A link, or a name that leads out of the folder, is an error, and then nothing is unpacked.
    """
    _check_md5(archive, str(archive), md5)
    try:
        with tempfile.TemporaryDirectory(prefix=".unpacking-", dir=archive.parent) as workplace:
            with tarfile.open(archive) as tar:
                _extract(tar, Path(workplace), archive)
            return _put(Path(workplace) / member, archive.parent / member, archive)
    except UNREADABLE as error:
        raise InputError(f"{archive} cannot be unpacked ({error}): expected a whole archive in a folder that can be "
                         "written to") from None


@contextmanager
def _temporary_file(path: Path):
    with tempfile.NamedTemporaryFile(prefix=f".{path.name}-", dir=path.parent, delete=False) as part:
        try:
            yield part
        finally:
            Path(part.name).unlink(missing_ok=True)  # gone already where it took its final name


def _copy(response, part, name: str, progress: bool) -> None:
    expected = int(response.headers.get("Content-Length") or 0)
    terminal = sys.stderr.isatty()
    if progress and not terminal:
        print(f"downloading {name} ({expected / 1e6:.0f} MB)", file=sys.stderr)
    with tqdm(total=expected or None, unit="B", unit_scale=True, desc=name, disable=not (progress and terminal)) as bar:
        while chunk := response.read(CHUNK):
            part.write(chunk)
            bar.update(len(chunk))
    part.flush()
    os.fsync(part.fileno())
    if expected and part.tell() != expected:
        raise OSError(f"{part.tell()} of {expected} bytes came")


def _check_md5(path: Path, name: str, expected: str) -> None:
    found = md5_of(path)
    if found != expected:
        raise InputError(f"{name} has MD5 {found}, expected {expected}: it is damaged or another file; fetch it again")


def _extract(tar: tarfile.TarFile, folder: Path, archive: Path) -> None:
    members = tar.getmembers()
    for member in members:
        # Checked here as well: the filter came with Python 3.11.4 and lets links inside the folder pass.
        if not (member.isfile() or member.isdir()) or not _inside(folder, member.name):
            raise InputError(f"{archive} holds {member.name!r}, a link or a name that leads out of its folder: "
                             "delete the archive and fetch the official one")
    if sum(member.size for member in members) > LARGEST:
        raise InputError(f"{archive} unpacks to more than {LARGEST} bytes: expected the official python archive")
    safely = {"filter": "data"} if hasattr(tarfile, "data_filter") else {}
    tar.extractall(folder, members, **safely)


def _put(unpacked: Path, target: Path, archive: Path) -> Path:
    if not unpacked.is_dir():
        raise InputError(f"{archive} holds no folder {target.name}: expected the official python archive")
    if not target.is_dir():  # another process may have been faster
        os.replace(unpacked, target)
    return target


def _inside(folder: Path, name: str) -> bool:
    return (folder / name).resolve().is_relative_to(folder.resolve()) and not Path(name).is_absolute()
