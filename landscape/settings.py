"""Settings as fields of a dataclass: each declares its text, type and range, and its value is checked by them."""

from collections.abc import Mapping
from dataclasses import Field, field
from math import isfinite
from numbers import Integral, Real
from typing import Any

from landscape.errors import InputError

LARGEST_SEED = 2**63 - 1    # that torch takes


def setting(default: Any, text: str, *, kind: type = str, choices: tuple[str, ...] = (), low: float | None = None,
            high: float | None = None, open_end: bool = False) -> Any:
    """Declare a setting: default, help text, type, and its choices or its range low <= value <= high."""
    limits = {"text": text, "kind": kind, "choices": choices, "low": low, "high": high, "open_end": open_end}
    return field(default_factory=dict, metadata=limits) if default == {} else field(default=default, metadata=limits)


def read_setting(declared: Field, value: Any) -> Any:
    """Return a value as its field's type; InputError, naming the value and what was expected, where it does not fit."""
    return READERS[declared.metadata["kind"]](declared.name, value, declared.metadata)


def check_seed(value: Any) -> None:
    """Refuse a seed that torch does not take."""
    if isinstance(value, int) and value > LARGEST_SEED:
        raise InputError(f"seed={value} is out of range: expected an integer, 0 <= seed <= {LARGEST_SEED}")


def _read_text(name: str, value: Any, limits: Mapping[str, Any]) -> str:
    if not isinstance(value, str) or (limits["choices"] and value not in limits["choices"]):
        expected = f"one of {', '.join(limits['choices'])}" if limits["choices"] else "a text"
        raise InputError(f"{name}={value!r} is unknown: expected {expected}")
    return value


def _read_number(name: str, value: Any, limits: Mapping[str, Any]) -> int | float:
    whole, low, high = limits["kind"] is int, limits["low"], limits["high"]
    fits = isinstance(value, Integral if whole else Real) and not isinstance(value, bool) and (whole or isfinite(value))
    if not fits or (low is not None and value < low) or (high is not None and _beyond(value, high, limits["open_end"])):
        raise InputError(
            f"{name}={value!r} is out of range: expected {'an integer' if whole else 'a number'}{_range(name, limits)}"
        )
    return limits["kind"](value)


def _beyond(value: float, high: float, open_end: bool) -> bool:
    return value >= high if open_end else value > high


def _range(name: str, limits: Mapping[str, Any]) -> str:
    below = "<" if limits["open_end"] else "<="
    if limits["high"] is None:
        return "" if limits["low"] is None else f" >= {limits['low']}"
    return f", {limits['low']} <= {name} {below} {limits['high']}"


def _read_switch(name: str, value: Any, limits: Mapping[str, Any]) -> bool:
    if not isinstance(value, bool):
        raise InputError(f"{name}={value!r} is out of range: expected True or False")
    return value


def _read_options(name: str, value: Any, limits: Mapping[str, Any]) -> dict[str, Any]:
    if not isinstance(value, Mapping):
        raise InputError(f"{name}={value!r} is out of range: expected option names and their values")
    return dict(value)


def _read_integers(name: str, value: Any, limits: Mapping[str, Any]) -> tuple[int, ...]:
    if not isinstance(value, (list, tuple)):
        raise InputError(f"{name}={value!r} is out of range: expected a list of integers >= 0")
    return tuple(_read_number(name, item, {**limits, "kind": int, "low": 0}) for item in value)


def _read_checkpoints(name: str, value: Any, limits: Mapping[str, Any]) -> str | tuple[int, ...]:
    if value == "last":
        return value
    every, _, count = value.partition(":") if isinstance(value, str) else ("", "", "")
    if every == "every" and count.isdecimal() and int(count):
        return f"every:{int(count)}"
    if isinstance(value, str):
        raise InputError(f"{name}={value!r} is unknown: expected last, every:K with K >= 1, or a list of epochs")
    return tuple(sorted(set(_read_integers(name, value, limits))))


READERS = {
    str: _read_text,
    int: _read_number,
    float: _read_number,
    bool: _read_switch,
    dict: _read_options,
    tuple: _read_integers,
    object: _read_checkpoints,
}
