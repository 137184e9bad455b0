"""What every command shares: how options are spelled, files of options, what is printed, progress.

Standard output carries results only: `say` for people, `emit_json` for programs (then nothing else is printed there).
Progress and errors go to standard error.
"""

import argparse
import json
import math
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NoReturn

from scripts.config_file import with_config_file
from scripts.progress import Progress
from scripts.spelling import nearest

__all__ = ["Parser", "Progress", "add_common_arguments", "emit_json", "nearest", "say", "tell", "tell_reading"]

SLOW = ("cifar", "imagenet-lt", "inaturalist18", "list:", "folder:")     # data that take a while to read


class Parser(argparse.ArgumentParser):
    """Parse options spelled with hyphens or underscores, on top of a `--config` file; a mistake is one line."""

    def __init__(self, **options: Any):
        super().__init__(allow_abbrev=False, formatter_class=_Formatter, **options)
        self._swallows = False      # whether the command line holds an option that takes several words

    def parse_args(self, args: Sequence[str] | None = None, namespace: argparse.Namespace | None = None):
        """Parse the command line; options read from its `--config` file come first, so the command line wins.

        `typed` holds the names of the options on the command line itself.
        """
        tokens = [self.spelled(token) for token in (sys.argv[1:] if args is None else args)]
        self._check_known(tokens)
        self._swallows = any(self._takes_several(token) for token in tokens)
        parsed = super().parse_args(with_config_file(self, tokens), namespace)
        parsed.typed = self._typed(tokens)
        return parsed

    def spelled(self, token: str) -> str:
        """Return the token with its option name as it was declared: `--imb-factor=3` becomes `--imb_factor=3`."""
        name, equals, value = token.partition("=")
        long = (option for option in self._option_string_actions if option.startswith("--"))
        declared = {option.replace("-", "_"): option for option in long}
        return declared.get(name.replace("-", "_"), name) + equals + value

    def error(self, message: str) -> NoReturn:
        missing = message.partition("arguments are required: ")[2]
        if missing and not missing.startswith("-") and self._swallows:
            message += f": put {missing} before the options, which take every word that follows"
        self.exit(2, f"{self.prog}: error: {' '.join(message.split())}\n")

    def _typed(self, tokens: list[str]) -> frozenset[str]:
        actions = (self._option_string_actions.get(token.partition("=")[0]) for token in tokens)
        return frozenset(action.dest for action in actions if action)

    def _takes_several(self, token: str) -> bool:
        """Tell whether a word is an option that takes all words up to the next option."""
        action = self._option_string_actions.get(token.partition("=")[0])
        return action is not None and action.nargs in ("+", "*")

    def _check_known(self, tokens: list[str]) -> None:
        # argparse would take the value of an unknown option for a positional and complain about something else.
        options = list(self._option_string_actions)
        for token in tokens[:tokens.index("--") if "--" in tokens else None]:
            name = token.partition("=")[0]
            if name.startswith("--") and name not in options:
                self.error(f"option {name} is unknown{nearest(name, options)}; see {self.prog} --help")


class _Formatter(argparse.HelpFormatter):
    def _get_help_string(self, action: argparse.Action) -> str:
        text = action.help or ""
        told = "%(default)" in text or "default" in text
        if told or not action.option_strings or action.default in (None, False, argparse.SUPPRESS, [], ()):
            return text
        return f"{text} (default: %(default)s)"


def add_common_arguments(parser: argparse.ArgumentParser, *, dry_run: bool = False) -> None:
    """Add `--quiet`, `--json` and `--config`, and with `dry_run` also `--dry_run`; calling it twice changes nothing."""
    switches = {"--quiet": "print no progress and no summary", "--json": "print one JSON document and nothing else"}
    if dry_run:
        switches["--dry_run"] = "say what would be computed, how long it takes and how much memory, then stop"
    for option, text in switches.items():
        if option not in parser._option_string_actions:
            parser.add_argument(option, action="store_true", help=text)
    if "--config" not in parser._option_string_actions:
        parser.add_argument("--config", type=Path, metavar="FILE.toml", help="read options from a TOML file; "
                            "those on the command line win")


def say(args: argparse.Namespace, text: str = "") -> None:
    """Print a line of the result for people; silent with `--json` or `--quiet`."""
    if not (args.json or args.quiet):
        print(text, flush=True)     # at once, also into a pipe


def tell(args: argparse.Namespace, text: str) -> None:
    """Say on standard error what is going on, before something that takes a while."""
    if not (args.json or args.quiet):
        print(text, file=sys.stderr, flush=True)


def tell_reading(args: argparse.Namespace, dataset: str) -> None:
    """Say that data are being read, where that is more than a moment."""
    if dataset.startswith(SLOW):
        tell(args, f"reading {dataset}")


def emit_json(args: argparse.Namespace, document: Any) -> None:
    """Print the result as one JSON document where `--json` asks for it. Numbers that are not finite become null."""
    if args.json:
        print(json.dumps(plain(document), indent=2, allow_nan=False))


def plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(item) for item in value]
    if hasattr(value, "tolist"):    # NumPy arrays and scalars
        return plain(value.tolist())
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    return value if isinstance(value, (str, int, bool, type(None))) else str(value)
