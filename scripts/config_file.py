"""Options from a TOML file: keys are option names, hyphens or underscores, and the command line is on top.

    epochs = 60
    opt = "ssesam"
    groups = ["head", "tail"]
    [loss_options]              # becomes --loss_options name=value ...
    max_m = 0.5

Every entry becomes words of a command line that argparse then checks, so types and choices hold here as they do there.
"""

import argparse
import tomllib
from pathlib import Path
from typing import Any

from landscape.errors import InputError
from scripts.spelling import nearest


def with_config_file(parser: argparse.ArgumentParser, tokens: list[str]) -> list[str]:
    """Return the command line followed by the options of its `--config` file, less those that it gives itself."""
    path = _config_path(tokens)
    if path is None or "--config" not in parser._option_string_actions:
        return tokens
    given = {_action(parser, token) for token in tokens}
    words, document = [], _read_toml(path)
    if "methods" in document:       # no command has such an option
        raise InputError(f"{path} is a study, not a file of options: run it by landscape study {path}")
    for key, value in document.items():
        action = _named_action(parser, key, path)
        if action not in given:
            words += _words(action, key, value, path)
    # Behind the rest: an option of several values in front of a positional would swallow it.
    end = tokens.index("--") if "--" in tokens else len(tokens)
    return tokens[:end] + words + tokens[end:]


def _config_path(tokens: list[str]) -> Path | None:
    for position, token in enumerate(tokens):
        if token.startswith("--config="):
            return Path(token.partition("=")[2])
        if token == "--config" and position + 1 < len(tokens):
            return Path(tokens[position + 1])
    return None


def _read_toml(path: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:    # TOMLDecodeError and UnicodeDecodeError
        raise InputError(f"{path} is not a TOML file: {error}") from error


def _action(parser: argparse.ArgumentParser, token: str) -> argparse.Action | None:
    return parser._option_string_actions.get(token.partition("=")[0])


def _named_action(parser: argparse.ArgumentParser, key: str, path: Path) -> argparse.Action:
    name = key.replace("-", "_")
    known = {action.dest: action for action in parser._actions if action.option_strings}
    for option, action in parser._option_string_actions.items():
        known.setdefault(option.lstrip("-").replace("-", "_"), action)
    for unusable in ("help", "config", "version", "h"):
        known.pop(unusable, None)
    if name not in known:
        raise InputError(f"{path}: key {key!r} is unknown{nearest(name, known)}: expected an option of {parser.prog}")
    return known[name]


def _words(action: argparse.Action, key: str, value: Any, path: Path) -> list[str]:
    option = next((name for name in action.option_strings if name.startswith("--")), action.option_strings[0])
    if isinstance(action, argparse.BooleanOptionalAction) and isinstance(value, bool):
        return [option if value else action.option_strings[-1]]
    if action.nargs == 0:
        return _switch(action, key, value, path)
    if isinstance(value, dict):
        value = [f"{name}={_text(item)}" for name, item in value.items()]
    if action.nargs in ("*", "+") or isinstance(action.nargs, int):
        return [option, *map(_text, value if isinstance(value, list) else [value])]
    if isinstance(value, list):
        value = ",".join(map(_text, value))
    return [f"{option}={_text(value)}"]


def _switch(action: argparse.Action, key: str, value: Any, path: Path) -> list[str]:
    if not isinstance(value, bool):
        raise InputError(f"{path}: {key}={value!r} is out of range: expected true or false")
    return [action.option_strings[0]] if value == action.const else []


def _text(value: Any) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)
