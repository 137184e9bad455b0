"""Models from elsewhere: "timm:NAME", "torchvision:NAME", or a researcher's own "module:callable".

Nothing here is imported before it is asked for. A module is also looked for in the current folder, after all installed
ones, so that a local `analysis.py` cannot take the place of this project's packages.
"""

import inspect
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib import import_module

from torch import nn

from landscape.errors import InputError


def build_foreign(arch: str, num_classes: int, in_channels: int, image_size: int) -> nn.Module:
    """Build the model that `arch` names, untrained.

    A callable gets num_classes, and in_channels and image_size too where its signature names them. An arch that does
    not resolve, or gives no nn.Module, is an InputError; errors raised inside the callable pass through.
    """
    source, _, name = arch.partition(":")
    if source in _LIBRARIES:
        return _LIBRARIES[source](name, num_classes, in_channels)
    with _current_folder_importable():
        build = resolve(arch)
        offered = {"in_channels": in_channels, "image_size": image_size}
        arguments = {"num_classes": num_classes, **_wanted(build, offered)}
        try:
            inspect.signature(build).bind(**arguments)
        except TypeError as error:
            raise InputError(f"arch={arch!r} cannot be called with {', '.join(arguments)} ({error})") from None
        model = build(**arguments)
    if not isinstance(model, nn.Module):
        raise InputError(f"arch={arch!r} returned {type(model).__name__}: expected a torch.nn.Module")
    return model


def resolve(target: str) -> Callable:
    """Import what "module:callable" names; dots after the colon reach into classes."""
    module_name, _, path = target.partition(":")
    if not module_name or not path:
        raise InputError(f"{target!r} is no module:callable: expected the form package.module:function")
    found = _import(module_name, target, "put the file into the current folder or install it")
    for attribute in path.split("."):
        if not hasattr(found, attribute):
            raise InputError(f"{target!r} does not resolve: {module_name} has no {path!r}")
        found = getattr(found, attribute)
    if not callable(found):
        raise InputError(f"{target!r} is {type(found).__name__}: expected something to call with num_classes=...")
    return found


@contextmanager
def _current_folder_importable() -> Iterator[None]:
    here = os.getcwd()
    sys.path.append(here)
    try:
        yield
    finally:
        # From the end: the same folder may have been on the path before.
        del sys.path[len(sys.path) - 1 - sys.path[::-1].index(here)]


def _wanted(build: Callable, offered: dict[str, int]) -> dict[str, int]:
    named = inspect.signature(build).parameters
    return {name: value for name, value in offered.items() if name in named}


def _torchvision(name: str, num_classes: int, in_channels: int) -> nn.Module:
    if in_channels != 3:
        raise InputError(f"in_channels={in_channels} is out of range for arch='torchvision:{name}': its models take 3; "
                         "use timm:NAME or module:callable")
    models = _import("torchvision.models", f"torchvision:{name}", "pip install torchvision")
    if name not in models.list_models():
        raise _unknown("torchvision", name)
    return models.get_model(name, weights=None, num_classes=num_classes)


def _timm(name: str, num_classes: int, in_channels: int) -> nn.Module:
    timm = _import("timm", f"timm:{name}", "pip install timm")
    if not timm.is_model(name):
        raise _unknown("timm", name)
    return timm.create_model(name, pretrained=False, num_classes=num_classes, in_chans=in_channels)


_LIBRARIES = {"timm": _timm, "torchvision": _torchvision}


def _unknown(library: str, name: str) -> InputError:
    return InputError(f"arch='{library}:{name}' is unknown: expected a name that {library}'s list_models() gives")


def _import(module_name: str, target: str, remedy: str):
    try:
        return import_module(module_name)
    except ImportError as error:
        raise InputError(f"{target!r} cannot be imported ({error}): {remedy}") from error
