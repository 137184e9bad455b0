"""An HDF5 group as a record, with everything checked before memory is taken for it.

A file may come from a stranger or be damaged: only plain datasets inside the file are read (no external or virtual
storage, no links, no filters but gzip and shuffle), and what a dataset claims to hold must fit what it stores.
Nothing in a file chooses a path, a class or code.
"""

import dataclasses
import json
import math
import typing
from typing import Any

import h5py
import numpy as np

from checkpoints.encode import SCHEMA_VERSION, link_name, names_of
from checkpoints.errors import RecordError
from checkpoints.fields import (ARRAYS, STORABLE_KINDS, added_later, check_shapes, checked_items, checked_scalar,
                                declarations, is_json, kinds, shape_of)
from checkpoints.records import RECORDS

DEFLATE_RATIO = 1032    # no gzip stream expands by more (zlib's technical notes)
_FILTERS = (h5py.h5z.FILTER_DEFLATE, h5py.h5z.FILTER_SHUFFLE)


def record_class(group: h5py.Group) -> type:
    """Return the record class that a group says it holds; RecordError where it is unknown or of another schema."""
    name, version = group.attrs.get("record"), group.attrs.get("schema_version")
    if not isinstance(name, str) or version is None:
        raise RecordError("holds no record: the attributes record and schema_version are absent")
    if not isinstance(version, np.integer):
        raise RecordError(f"schema_version={version!r} is out of range: expected {SCHEMA_VERSION}")
    if version > SCHEMA_VERSION:
        raise RecordError(f"was written with schema version {version}, newer than the {SCHEMA_VERSION} known here: "
                          "update this package")
    if version != SCHEMA_VERSION:
        raise RecordError(f"schema_version={version} is out of range: expected {SCHEMA_VERSION}")
    if name not in RECORDS:
        raise RecordError(f"record {name!r} is unknown: expected one of {', '.join(RECORDS)}")
    return RECORDS[name]


def get_record(group: h5py.Group, cls: type) -> Any:
    """Read a record of the given class."""
    if record_class(group) is not cls:
        raise RecordError(f"holds the record {group.attrs['record']}: expected {cls.__name__}")
    expected = {name: kind for name, kind in kinds(cls).items() if name not in added_later(cls) or _is_there(group, name)}
    datasets = {name: _dataset(group, name) for name, kind in expected.items() if kind is np.ndarray}
    for name, dataset in datasets.items():
        _check_declaration(dataset, *declarations(cls).get(name, ((), "1")))
    values = {name: _value(group, name, kind) for name, kind in expected.items() if name not in datasets}
    sized = added_later(cls) | datasets | values
    check_shapes(cls, {name: shape_of(sized[name]) for name in declarations(cls)})
    return cls(**values, **{name: _read(dataset) for name, dataset in datasets.items()})


def _is_there(group: h5py.Group, name: str) -> bool:
    return name in group.attrs or names_of(name) in group.attrs or name in group


def get_text(group: h5py.Group, name: str) -> str:
    """Read text kept as an attribute or, where it is long, as a dataset."""
    value = group.attrs[name] if name in group.attrs else _long_text(group, name)
    if not isinstance(value, str):
        raise RecordError(f"{_where(group, name)} is a {type(value).__name__}: expected text")
    return value


def _value(group: h5py.Group, name: str, kind: Any) -> Any:
    if kind is str:
        return get_text(group, name)
    if kind == ARRAYS:
        return _arrays(group, name)
    if is_json(kind):
        return checked_items(_where(group, name), kind, _tuples(kind, json.loads(get_text(group, name))))
    if dataclasses.is_dataclass(kind):
        return get_record(_group(group, name), kind)
    if name not in group.attrs:
        raise RecordError(f"{_where(group, name)} is absent")
    return checked_scalar(_where(group, name), kind, group.attrs[name])


def _tuples(kind: Any, value: Any) -> Any:
    """Return what JSON gave with tuples for its lists, where the field is declared so."""
    if isinstance(value, dict) and typing.get_origin(kind) is dict:
        return {key: _tuples(typing.get_args(kind)[1], item) for key, item in value.items()}
    return tuple(value) if isinstance(value, list) and kind is not Any else value


def _arrays(group: h5py.Group, field: str) -> dict[str, np.ndarray]:
    names = checked_items(_where(group, field), tuple[str, ...], tuple(json.loads(get_text(group, names_of(field)))))
    members = _group(group, field)
    if sorted(map(link_name, names)) != sorted(members):
        raise RecordError(f"{members.name} holds other arrays than {names_of(field)} says")
    return {name: _read(_dataset(members, link_name(name))) for name in names}


def _dataset(group: h5py.Group, name: str) -> h5py.Dataset:
    dataset = _member(group, name, h5py.Dataset)
    if dataset.shape is None or dataset.dtype.kind not in STORABLE_KINDS:
        raise RecordError(f"{dataset.name} has dtype {dataset.dtype}: expected bool, integers or floating point")
    if not _is_plain(dataset) or not _is_whole(dataset):
        raise RecordError(f"{dataset.name} claims shape {dataset.shape}, which this file does not hold")
    return dataset


def _read(dataset: h5py.Dataset) -> np.ndarray:
    return np.asarray(dataset[()])    # h5py gives a scalar, not an array, where there are no dimensions


def _member(group: h5py.Group, name: str, kind: type) -> Any:
    link = group.get(name, getlink=True)
    if link is None:
        raise RecordError(f"{_where(group, name)} is absent")
    if not isinstance(link, h5py.HardLink) or not isinstance(group[name], kind):
        raise RecordError(f"{_where(group, name)} is not a {kind.__name__.lower()} of this file")
    return group[name]


def _group(group: h5py.Group, name: str) -> h5py.Group:
    return _member(group, name, h5py.Group)


def _is_plain(dataset: h5py.Dataset) -> bool:
    plist = dataset.id.get_create_plist()
    filters = (plist.get_filter(position)[0] for position in range(plist.get_nfilters()))
    return dataset.external is None and not dataset.is_virtual and all(code in _FILTERS for code in filters)


def _is_whole(dataset: h5py.Dataset) -> bool:
    """Tell whether the stored bytes can make up the claimed shape: a part never written would read as zeros."""
    claimed, stored = math.prod(dataset.shape) * dataset.dtype.itemsize, dataset.id.get_storage_size()
    if dataset.chunks is None:
        return claimed == stored
    num_chunks = math.prod(-(-size // chunk) for size, chunk in zip(dataset.shape, dataset.chunks))
    return dataset.id.get_num_chunks() == num_chunks and claimed <= DEFLATE_RATIO * stored


def _check_declaration(dataset: h5py.Dataset, dims: tuple[str, ...], units: str) -> None:
    stored = tuple(np.atleast_1d(dataset.attrs.get("dims", ())).tolist())
    if stored != dims[:len(dataset.shape)]:
        raise RecordError(f"{dataset.name} has dims {stored}: expected {dims}")
    if dataset.attrs.get("units") != units:
        raise RecordError(f"{dataset.name} has units {dataset.attrs.get('units')!r}: expected {units!r}")


def _long_text(group: h5py.Group, name: str) -> Any:
    dataset = _member(group, name, h5py.Dataset)
    if dataset.shape != () or h5py.check_string_dtype(dataset.dtype) is None or not _is_plain(dataset):
        raise RecordError(f"{dataset.name} has dtype {dataset.dtype}: expected text")
    return dataset.asstr()[()]


def _where(group: h5py.Group, name: str) -> str:
    return f"{group.name.rstrip('/')}/{name}"
