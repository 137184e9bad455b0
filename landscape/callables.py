"""What a researcher names as "module:callable" on the command line, found and called.

Nothing is imported before it is asked for. A module is also looked for in the working folder, after all installed ones:
a console script does not have that folder on its path, and last in line it cannot take the place of this project's
packages. Only a command line or a call gives such names; none is ever read from a file.
"""

import inspect
import os
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from importlib import import_module
from typing import Any

from landscape.errors import InputError


def call_named(target: str, arguments: Mapping[str, Any], offered: Mapping[str, Any] | None = None) -> Any:
    """Call what "module:callable" names with `arguments`, and with those of `offered` that its signature names.

    A target that does not resolve or does not take the arguments is an InputError; errors raised inside it pass through.
    """
    with _working_folder_importable():
        found = _resolve(target)
        given = {**arguments, **_wanted(found, offered or {})}
        _check_call(target, found, given)
        return found(**given)


def find_named(target: str) -> Callable:
    """Return what "module:callable" names, not called; one that does not resolve is an InputError."""
    with _working_folder_importable():
        return _resolve(target)


def import_named(module: str, target: str, remedy: str) -> Any:
    """Import a module on behalf of `target`; InputError with the remedy where it cannot be."""
    try:
        return import_module(module)
    except ImportError as error:
        raise InputError(f"{target!r} cannot be imported ({error}): {remedy}") from error


@contextmanager
def _working_folder_importable() -> Iterator[None]:
    folder = os.getcwd()
    sys.path.append(folder)
    try:
        yield
    finally:
        # From the end: the same folder may have been on the path before.
        del sys.path[len(sys.path) - 1 - sys.path[::-1].index(folder)]


def _resolve(target: str) -> Callable:
    """Import what the target names; dots after the colon reach into classes."""
    module, _, path = target.partition(":")
    if not module or not path:
        raise InputError(f"{target!r} is no module:callable: expected the form package.module:function")
    found = import_named(module, target, "expected module:callable, the module installed or in the working folder")
    for attribute in path.split("."):
        if not hasattr(found, attribute):
            raise InputError(f"{target!r} does not exist: {module} has no {path!r}")
        found = getattr(found, attribute)
    if not callable(found):
        raise InputError(f"{target!r} is of type {type(found).__name__}: expected something to call")
    return found


def _wanted(found: Callable, offered: Mapping[str, Any]) -> dict[str, Any]:
    signature = _signature(found)
    return {name: value for name, value in offered.items() if signature and name in signature.parameters}


def _check_call(target: str, found: Callable, given: Mapping[str, Any]) -> None:
    try:
        if signature := _signature(found):
            signature.bind(**given)
    except TypeError as error:
        words = f"with {', '.join(given)}" if given else "without arguments"
        raise InputError(f"{target!r} cannot be called {words} ({error})") from None


def _signature(found: Callable) -> inspect.Signature | None:
    try:
        return inspect.signature(found)
    except ValueError:      # some built-in callables have none to show
        return None
