"""Where each kind of record lies in a run folder. File names are made from checked keys, never from a file's content.

    checkpoints/epoch-0060.h5        Checkpoint of epoch 60
    spectra/epoch-0060-class-3.h5    Curvature of the group class:3 at epoch 60
    spectra/epoch-0060-tail@test.h5  Curvature of the group tail over its test images
    spectra/epoch-0060-tail@layer1.h5    Curvature of the group tail in the parameters of layer1
    surfaces/NAME.h5                 Surface NAME
    measures/epoch-0060-NAME.h5      Measurement NAME of epoch 60
"""

import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from checkpoints.errors import RecordError
from checkpoints.records import Checkpoint, Curvature, Measurement, Surface

SAFE_NAME = re.compile(r"[A-Za-z0-9_-][A-Za-z0-9._-]{0,99}")
# No hyphen: it stands for the colon in file names, so that each file has one group.
_GROUP = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._]{0,59}(:[0-9]{1,9})?(@[A-Za-z0-9._+]{1,60})?")


@dataclass(frozen=True)
class Kind:
    """A kind of record: its class, folder, the keys that tell its files apart, and their file name."""

    cls: type
    folder: str
    keys: tuple[str, ...]
    file_name: Callable[..., str]
    pattern: re.Pattern    # its file names, so that files of others are passed over


KINDS = {
    "checkpoint": Kind(Checkpoint, "checkpoints", ("epoch",), lambda epoch: f"epoch-{epoch:04d}.h5",
                       re.compile(r"epoch-(?P<epoch>\d{4,9})\.h5")),
    "curvature": Kind(Curvature, "spectra", ("epoch", "group"),
                      lambda epoch, group: f"epoch-{epoch:04d}-{group.replace(':', '-')}.h5",
                      re.compile(r"epoch-(?P<epoch>\d{4,9})-[A-Za-z0-9._@+-]+\.h5")),
    "surface": Kind(Surface, "surfaces", ("name",), lambda name: f"{name}.h5",
                    re.compile(SAFE_NAME.pattern + r"\.h5")),
    "measurement": Kind(Measurement, "measures", ("epoch", "name"), lambda epoch, name: f"epoch-{epoch:04d}-{name}.h5",
                        re.compile(r"epoch-(?P<epoch>\d{4,9})-" + SAFE_NAME.pattern + r"\.h5")),
}


def kind_named(name: str) -> Kind:
    """Return one of KINDS; RecordError names the choices."""
    if name not in KINDS:
        raise RecordError(f"kind {name!r} is unknown: expected one of {', '.join(KINDS)}")
    return KINDS[name]


def kind_of(record: Any) -> Kind:
    """Return the kind that a record belongs to."""
    for kind in KINDS.values():
        if type(record) is kind.cls:
            return kind
    raise RecordError(f"{type(record).__name__} has no file of its own in a run: expected one of {', '.join(KINDS)}")


def keys_of(record: Any) -> dict[str, Any]:
    """Return the keys that a record is filed under."""
    return {key: getattr(record, key) for key in kind_of(record).keys}


def relative_path(kind: Kind, keys: dict[str, Any]) -> Path:
    """Return where the record of these keys lies in a run folder; RecordError where a key cannot be part of a name."""
    if set(keys) != set(kind.keys):
        raise RecordError(f"keys {', '.join(keys) or '(none)'} do not name a {kind.cls.__name__}: "
                          f"expected {', '.join(kind.keys)}")
    for name, value in keys.items():
        _CHECKS[name](value)
    return Path(kind.folder, kind.file_name(**keys))


def check_name(name: str) -> str:
    """Return a name that may become a file or folder; RecordError otherwise."""
    if not isinstance(name, str) or not SAFE_NAME.fullmatch(name):
        raise RecordError(f"name={name!r} is out of range: expected 1 to 100 letters, digits, '.', '_' or '-', "
                          "the first no '.'")
    return name


def _check_epoch(epoch: Any) -> None:
    if isinstance(epoch, bool) or not hasattr(epoch, "__index__") or not 0 <= epoch < 10**9:
        raise RecordError(f"epoch={epoch!r} is out of range: expected an integer >= 0")


def _check_group(group: Any) -> None:
    if not isinstance(group, str) or not _GROUP.fullmatch(group):
        raise RecordError(f"group={group!r} is out of range: expected letters, digits, '.', '_'; class:3 for a class, "
                          "tail@test over test images, tail@layer1 for a block of parameters")


_CHECKS = {"epoch": _check_epoch, "group": _check_group, "name": check_name}
