"""The settings of TrainConfig as options of a command line, each under its own name and the names of the literature."""

import argparse
import re
from collections.abc import Mapping
from dataclasses import MISSING, fields
from types import MappingProxyType
from typing import Any

from landscape.configuration import TrainConfig
from landscape.recipes import filled

# The SSE-SAM release's names.
ALIASES = {"eval_every": ("--print_freq",), "batch_size": ("-bz",), "weight_decay": ("-wd",)}


def add_settings(parser: argparse.ArgumentParser) -> None:
    """Add one option for each setting."""
    for setting in fields(TrainConfig):
        _add_setting(parser, setting)


def given_settings(args: argparse.Namespace, stored: Mapping[str, Any] = MappingProxyType({})) -> dict[str, Any]:
    """Return the settings that the command line gives, and below them those of the recipe that it names.

    What neither gives is absent. A run that is `stored` has its settings: a recipe is then a name and fills in nothing.
    """
    given = {f.name: getattr(args, f.name) for f in fields(TrainConfig) if hasattr(args, f.name)}
    if "loss_options" in given:
        given["loss_options"] = dict(given["loss_options"])
    return given if stored else filled(given)


def _add_setting(parser: argparse.ArgumentParser, setting: Any) -> None:
    limits = setting.metadata
    text = limits["text"] if setting.default in (None, MISSING) else _with_default(limits["text"], setting.default)
    names = (f"--{setting.name}", *ALIASES.get(setting.name, ()))
    # SUPPRESS: only what was given lands in the namespace, so that a stored configuration can fill in the rest.
    common = {"dest": setting.name, "default": argparse.SUPPRESS, "help": text.replace("%", "%%")}
    if limits["kind"] is bool:
        parser.add_argument(*names, action=argparse.BooleanOptionalAction, **common)
    elif limits["kind"] is dict:
        parser.add_argument(*names, nargs="+", metavar="NAME=VALUE", type=_option, **common)
    else:
        reader = {int: int, float: float, tuple: _epochs, object: _checkpoint_epochs}.get(limits["kind"], str)
        metavar = {int: "N", float: "X", tuple: "E,E", object: "WHICH"}.get(limits["kind"], "NAME")
        metavar = "{%s}" % ",".join(limits["choices"]) if limits["choices"] else metavar
        parser.add_argument(*names, type=reader, metavar=metavar, **common)


def _with_default(text: str, default: Any) -> str:
    return f"{text}; default: {','.join(map(str, default)) if isinstance(default, tuple) else default}"


def _option(text: str) -> tuple[str, Any]:
    name, equals, value = text.partition("=")
    if not (name and equals):
        raise argparse.ArgumentTypeError(f"{text!r} is no option: expected NAME=VALUE")
    for reader in (int, float):
        try:
            return name, reader(value)
        except ValueError:
            continue
    return name, value


def _epochs(text: str) -> tuple[int, ...]:
    try:
        return tuple(int(epoch) for epoch in text.split(",") if epoch.strip())
    except ValueError as error:
        raise argparse.ArgumentTypeError(
            f"{text!r} is no list of epochs: expected integers with commas between"
        ) from error


def _checkpoint_epochs(text: str) -> str | tuple[int, ...]:
    return _epochs(text) if re.fullmatch(r"[\d, ]+", text) else text
