"""What the fields of a record may hold, and how each is brought into the one form that is hashed and written.

int, float, str, bool and arrays stay what they are; tuples and dictionaries of plain values become JSON text;
dictionaries of arrays and nested records stay nested. Integers of a record count something, so they are >= 0.
"""

import dataclasses
import functools
import json
import typing
from pathlib import PurePath
from typing import Any

import numpy as np

from checkpoints.errors import RecordError

ARRAYS = dict[str, np.ndarray]
STORABLE_KINDS = "biuf"    # bool, integers, floating point


class JsonText(str):
    """The JSON text of a tuple or dictionary."""


@functools.cache
def kinds(cls: type) -> dict[str, Any]:
    """Return the type that each field of a record class is declared with."""
    hints = typing.get_type_hints(cls)
    return {field.name: hints[field.name] for field in dataclasses.fields(cls)}


@functools.cache
def declarations(cls: type) -> dict[str, tuple[tuple[str, ...], str]]:
    """Return dimension names and unit of each field that has them: the arrays, and tuples that name one entry each."""
    return {field.name: (field.metadata["dims"], field.metadata["units"])
            for field in dataclasses.fields(cls) if "dims" in field.metadata}


@functools.cache
def added_later(cls: type) -> dict[str, Any]:
    """Return the fields that older records lack, those with a default, and what they are then read with, in normal form."""
    found = {}
    for field in dataclasses.fields(cls):
        default = field.default if field.default_factory is dataclasses.MISSING else field.default_factory()
        if default is not dataclasses.MISSING:
            found[field.name] = _normal(f"{cls.__name__}.{field.name}", kinds(cls)[field.name], default)
    return found


def told(record: Any) -> dict[str, Any]:
    """Return what a record says, in normal form: without provenance, and without what an older one would be read with.

    So a record keeps its hash when its class gains a field.
    """
    values, later = normal_form(record), added_later(type(record))
    return {name: value for name, value in values.items()
            if name != "provenance" and not (name in later and _is_default(value, later[name]))}


def _is_default(value: Any, default: Any) -> bool:
    if not dataclasses.is_dataclass(value):
        return np.array_equal(value, default)
    own, absent = normal_form(value), normal_form(default)
    return all(np.array_equal(own[name], value) or (own[name] != own[name] and value != value)      # NaN equals NaN here
               for name, value in absent.items())


def is_json(kind: Any) -> bool:
    """Tell whether a field of this type is kept as JSON text: tuples and dictionaries, but not of arrays."""
    return typing.get_origin(kind) in (tuple, dict) and kind != ARRAYS


def normal_form(record: Any) -> dict[str, Any]:
    """Return the fields of a record in the form that is written: checked types, arrays in C order, JSON text.

    Raises RecordError naming the field that does not fit its declaration, or the arrays that disagree on a dimension.
    """
    cls = type(record)
    values = {name: _normal(f"{cls.__name__}.{name}", kind, getattr(record, name)) for name, kind in kinds(cls).items()}
    sized = {name: getattr(record, name) if is_json(kinds(cls)[name]) else values[name] for name in declarations(cls)}
    check_shapes(cls, {name: shape_of(value) for name, value in sized.items()})
    return values


def shape_of(value: Any) -> tuple[int, ...]:
    """Return the shape of an array or dataset, or the length of a tuple as one dimension."""
    return (len(value),) if isinstance(value, tuple) else value.shape


def check_shapes(cls: type, shapes: dict[str, tuple[int, ...]]) -> None:
    """Check that arrays have their declared dimensions and agree on the size of each.

    Two ways of leaving something out are allowed: an array may drop its last dimension where another one shows that its
    size is 0 (a surface on a line), and a leading size 0 in two or more dimensions (vectors not kept, a field that older
    records lack) binds nothing where the other sizes are 0 too.
    """
    sizes: dict[str, tuple[int, str]] = {}
    for name, (dims, _) in sorted(declarations(cls).items(), key=lambda item: len(item[1][0])):
        shape = shapes[name]
        if len(shape) == len(dims) - 1 and sizes.get(dims[-1], (1, ""))[0] == 0:
            dims = dims[:-1]
        if len(shape) != len(dims):
            raise RecordError(f"{cls.__name__}.{name} has shape {shape}: expected dimensions {', '.join(dims)}")
        left_out = 0 if len(shape) < 2 or shape[0] else len(shape) if not any(shape) else 1
        for dim, size in list(zip(dims, shape))[left_out:]:
            known, origin = sizes.setdefault(dim, (size, name))
            if size != known:
                raise RecordError(f"{cls.__name__}.{name} has shape {shape}: expected {dim}={known} as in {origin}")


def checked_array(name: str, value: Any) -> np.ndarray:
    """Return a NumPy array of bool, integers or floating point, little-endian, in C order."""
    if not isinstance(value, (np.ndarray, np.generic, bool, int, float)):
        raise RecordError(f"{name} is a {type(value).__name__}: expected a NumPy array")
    array = np.asarray(value)
    if array.dtype.kind not in STORABLE_KINDS or array.dtype.itemsize > 8:
        raise RecordError(f"{name} has dtype {array.dtype}: expected bool, integers or floating point up to 64 bits")
    return array.astype(array.dtype.newbyteorder("<"), order="C", copy=False)


def to_json(name: str, value: Any) -> JsonText:
    """Return JSON text; NumPy scalars and arrays become numbers and lists, paths become text."""
    try:
        return JsonText(json.dumps(value, default=_json_default))
    except (TypeError, ValueError) as error:
        raise RecordError(f"{name} cannot be stored as JSON: {error}") from error


def checked_items(name: str, kind: Any, value: Any) -> Any:
    """Check the items of a tuple or dictionary against its declaration, and return it with those types."""
    origin, item = typing.get_origin(kind), typing.get_args(kind)[0 if typing.get_origin(kind) is tuple else 1]
    if not isinstance(value, origin):
        raise RecordError(f"{name} is a {type(value).__name__}: expected {origin.__name__}")
    if origin is tuple:
        return tuple(checked_scalar(f"{name}[{i}]", item, entry) for i, entry in enumerate(value))
    if not all(isinstance(key, str) for key in value):
        raise RecordError(f"{name} has keys that are no text")
    if item is Any:
        return value
    check = checked_items if typing.get_origin(item) is tuple else checked_scalar
    return {key: check(f"{name}[{key!r}]", item, entry) for key, entry in value.items()}


def checked_scalar(name: str, kind: type, value: Any) -> Any:
    """Return an int, float, bool or str of the declared type; a NumPy scalar of that type is accepted."""
    return _SCALARS[kind](name, value)


def _normal(name: str, kind: Any, value: Any) -> Any:
    if kind in _SCALARS:
        return checked_scalar(name, kind, value)
    if kind is np.ndarray:
        return checked_array(name, value)
    if kind == ARRAYS:
        return {key: checked_array(f"{name}[{key!r}]", item) for key, item in _named_arrays(name, value).items()}
    if is_json(kind):
        return to_json(name, checked_items(name, kind, value))
    if not (dataclasses.is_dataclass(kind) and isinstance(value, kind)):
        raise RecordError(f"{name} is a {type(value).__name__}: expected {getattr(kind, '__name__', kind)}")
    return value


def _named_arrays(name: str, value: Any) -> dict[str, Any]:
    if not isinstance(value, dict) or not all(isinstance(key, str) and key for key in value):
        raise RecordError(f"{name} is out of range: expected a dictionary from names to arrays")
    return value


def _integer(name: str, value: Any) -> int:
    if not isinstance(value, (int, np.integer)) or isinstance(value, bool):
        raise RecordError(f"{name}={value!r} is out of range: expected an integer")
    if not 0 <= value < 2**63:
        raise RecordError(f"{name}={value} is out of range: expected an integer >= 0 of at most 63 bits")
    return int(value)


def _number(name: str, value: Any) -> float:
    if not isinstance(value, (int, float, np.integer, np.floating)) or isinstance(value, bool):
        raise RecordError(f"{name}={value!r} is out of range: expected a number")
    return float(value)


def _truth(name: str, value: Any) -> bool:
    if not isinstance(value, (bool, np.bool_)):
        raise RecordError(f"{name}={value!r} is out of range: expected True or False")
    return bool(value)


def _text(name: str, value: Any) -> str:
    if not isinstance(value, str):
        raise RecordError(f"{name}={value!r} is out of range: expected text")
    if "\0" in value or not _is_encodable(value):
        raise RecordError(f"{name}={value!r} is out of range: expected text that UTF-8 can hold, without NUL")
    return str(value)


def _is_encodable(text: str) -> bool:
    return not any(0xD800 <= ord(character) <= 0xDFFF for character in text)


def _json_default(value: Any) -> Any:
    if isinstance(value, (np.generic, np.ndarray)):
        return value.tolist()
    if isinstance(value, PurePath):
        return str(value)
    raise TypeError(f"{type(value).__name__} {value!r} is neither text, number, list nor dictionary")


_SCALARS = {int: _integer, float: _number, bool: _truth, str: _text}
