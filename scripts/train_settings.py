"""The settings of TrainConfig as options of a command line, each under its own name and the names of the literature."""

import argparse
import re
from collections.abc import Iterable, Mapping
from dataclasses import MISSING, fields
from types import MappingProxyType
from typing import Any

from landscape.optimizers.building import FLAGS, opt_options, options_of_the_rule, settings_read
from landscape.configuration import TrainConfig
from landscape.data import LongTailData
from landscape.errors import InputError
from landscape.family import FAMILY
from landscape.losses import LOSSES, loss_options
from landscape.recipes import departures, filled, recipe_named

# The SSE-SAM release's names.
ALIASES = {"eval_every": ("--print_freq",), "batch_size": ("-bz",), "weight_decay": ("-wd",)}

ALWAYS = ("dataset", "imb_factor", "arch", "loss", "opt", "epochs", "batch_size", "lr", "weight_decay", "seed")
OF_SOME = frozenset((*FLAGS, "weighting"))   # which some optimizers read
RARE = "gamma_rule"     # read, and shown only where it is not as usual


def add_settings(parser: argparse.ArgumentParser) -> None:
    """Add one option for each setting."""
    for setting in fields(TrainConfig):
        _add_setting(parser, setting)


def given_settings(args: argparse.Namespace, stored: Mapping[str, Any] = MappingProxyType({})) -> dict[str, Any]:
    """Return the settings that the command line gives, and below them those of the recipe that it names.

    What neither gives is absent. A run that is `stored` has its settings: a recipe is then a name and fills in nothing.
    """
    given = {f.name: getattr(args, f.name) for f in fields(TrainConfig) if hasattr(args, f.name)}
    for name in ("loss_options", "opt_options"):
        if name in given:
            given[name] = dict(given[name])
    return given if stored else filled(given)


def check_read(typed: Iterable[str], opt: str) -> None:
    """Refuse a setting of the command line that the optimizer does not read: whoever gives it expects it to matter."""
    read = settings_read(opt)
    for name in sorted(typed):
        if name in OF_SOME and name not in read:
            options = ", ".join(f"--{other}" for other in read if other in OF_SOME)
            raise InputError(f"--{name} is not read by opt={opt}: of such settings it reads {options or 'none'}; "
                             f"leave --{name} out, or choose another --opt")


def telling_settings(config: TrainConfig, data: LongTailData) -> dict[str, Any]:
    """Return of a resolved configuration what tells the run: what everyone asks first, and what departs from the rest.

    Settings depart from the recipe's where it has them, else from the defaults for these data; those that the optimizer
    does not read are left out.
    """
    plain, values = TrainConfig(dataset=config.dataset).resolved(data).as_dict(), config.as_dict()
    said = {} if config.recipe is None else recipe_named(config.recipe).values(values)
    odd = {name for name in values if name not in said and values[name] != plain[name]}
    odd |= set(departures(values)) if config.recipe else set()
    read = settings_read(config.opt)
    own, unread = set(read) - {RARE}, OF_SOME - set(read)
    return {name: value for name, value in values.items() if name in ALWAYS or name in own or name in odd - unread}


def _add_setting(parser: argparse.ArgumentParser, setting: Any) -> None:
    limits = setting.metadata
    text = limits["text"] if setting.default in (None, MISSING) else _with_default(limits["text"], setting.default)
    text += {"opt_options": _of_optimizers, "loss_options": _of_losses}.get(setting.name, str)()
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


def _of_optimizers() -> str:
    rule = options_of_the_rule()
    own = {opt: {name: value for name, value in opt_options(opt).items() if rule.get(name, MISSING) != value} for opt in FAMILY}
    return f"; for any radius: {_words(rule)}; {_by_name(own)}"


def _of_losses() -> str:
    return f"; {_by_name({name: loss_options(name) for name in LOSSES})}"


def _by_name(options: Mapping[str, Mapping[str, Any]]) -> str:
    return "; ".join(f"{name}: {_words(own)}" for name, own in options.items() if own)


def _words(options: Mapping[str, Any]) -> str:
    return " ".join(f"{name}={value}" for name, value in options.items())


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
