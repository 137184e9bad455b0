"""A record as an HDF5 group: arrays as datasets with dims and units, everything small as attributes.

The same record gives the same bytes: no times are stored.
"""

import zlib
from typing import Any
from urllib.parse import quote

import h5py
import numpy as np

from checkpoints.fields import declarations, normal_form, to_json

SCHEMA_VERSION = 1
ATTRIBUTE_BYTES = 48 * 1024     # HDF5 keeps attributes in the object header, which holds 64 KiB
SMALL_BYTES = 64 * 1024         # smaller arrays are never compressed
SAMPLE_BYTES = 32 * 1024        # a larger array is compressed where a sample of it shrinks below WORTHWHILE
WORTHWHILE = 0.8


def put_record(group: h5py.Group, record: Any) -> None:
    """Write a record and everything nested in it into an empty group."""
    group.attrs["record"] = type(record).__name__
    group.attrs["schema_version"] = SCHEMA_VERSION
    declared = declarations(type(record))
    for name, value in normal_form(record).items():
        if isinstance(value, np.ndarray):
            dims, units = declared.get(name, ((), "1"))
            _put_array(group, name, value, dims, units)
        elif isinstance(value, dict):
            _put_arrays(group, name, value)
        elif isinstance(value, str):
            _put_text(group, name, value)
        elif isinstance(value, (bool, int, float)):
            group.attrs[name] = value
        else:
            put_record(group.create_group(name), value)


def link_name(name: str) -> str:
    """Return a name that HDF5 can link: slashes, a lone dot and the like are percent-encoded, dots inside are kept."""
    return "%2E" if name == "." else quote(name, safe=" :,;=+-[]()")


def names_of(field: str) -> str:
    """Return where the names of a field's arrays are kept."""
    return f"{field}.names"


def _put_array(group: h5py.Group, name: str, array: np.ndarray, dims: tuple[str, ...], units: str) -> None:
    dataset = group.create_dataset(name, data=array, **_compression(array))
    dims = dims[:array.ndim]
    dataset.attrs.create("dims", list(dims), shape=(len(dims),), dtype=h5py.string_dtype())
    dataset.attrs["units"] = units


def _put_arrays(group: h5py.Group, field: str, arrays: dict[str, np.ndarray]) -> None:
    _put_text(group, names_of(field), to_json(field, list(arrays)))    # their order, which HDF5 does not keep
    members = group.create_group(field)
    for name, array in arrays.items():
        members.create_dataset(link_name(name), data=array, **_compression(array))


def _put_text(group: h5py.Group, name: str, text: str) -> None:
    if len(text.encode("utf-8")) <= ATTRIBUTE_BYTES:
        group.attrs[name] = str(text)
    else:
        group.create_dataset(name, data=str(text), dtype=h5py.string_dtype())


def _compression(array: np.ndarray) -> dict[str, Any]:
    if array.nbytes < SMALL_BYTES or not array.ndim:
        return {}
    sample = array.reshape(-1)[:SAMPLE_BYTES // array.itemsize]
    shuffled = sample.view(np.uint8).reshape(-1, array.itemsize).T.tobytes()    # first bytes first, as the filter does
    helps = len(zlib.compress(shuffled, 1)) < WORTHWHILE * sample.nbytes
    return {"compression": "gzip", "compression_opts": 4, "shuffle": True} if helps else {}
