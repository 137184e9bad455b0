"""The `landscape` command: one table of subcommands, and the one place where a user's mistake becomes one line.

A subcommand is a module with NAME, HELP (a literal string), add_arguments(parser) and run(args). Only the module asked
for is imported, so that `landscape --help` does not wait for torch: its help lines are read from the sources.
Exit status: 0, or 2 with one line on standard error for bad usage or bad input, 130 after an interrupt. Training that
SIGTERM or SIGUSR1 ends has kept all it did, and counts as 0.
"""

import ast
import errno
import os
import sys
from collections.abc import Callable, Sequence
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path

from checkpoints.errors import RecordError
from landscape.errors import InputError
from scripts.options import Parser, add_common_arguments, nearest

COMMANDS = {
    "train": "scripts.train",
    "spectrum": "scripts.compute_spectrum",
    "surface": "scripts.compute_surface",
    "measure": "scripts.measure_mechanism",
    "figures": "scripts.draw_figures",
    "report": "scripts.write_report",
    "export": "scripts.export_records",
    "study": "scripts.run_study",
    "import": "scripts.import_weights",
    "inspect": "scripts.show_run",
    "compare": "scripts.compare_runs",
    "doctor": "scripts.check_setup",
}
ABOUT = "Loss landscapes and saddle points of networks trained on long-tailed data, class group by class group."
PACKAGES = ("analysis", "checkpoints", "figures", "landscape", "scripts")
USERS_ERRNOS = (errno.ENOSPC, errno.EACCES, errno.ENOENT, errno.ENOTDIR, errno.EISDIR, errno.EROFS,
                errno.EEXIST, errno.ENAMETOOLONG, errno.ELOOP, errno.EDQUOT, errno.EFBIG, errno.EPERM, errno.EIO)
USAGE_ERROR, INTERRUPTED, BROKEN_PIPE = 2, 130, 141


def main(argv: Sequence[str] | None = None) -> int:
    """Run one subcommand and return its exit status."""
    words = list(sys.argv[1:] if argv is None else argv)
    prog = f"landscape {words[0]}" if words and words[0] in COMMANDS else "landscape"
    return reported(prog, lambda: _run(words))


def reported(prog: str, action: Callable[[], int | None]) -> int:
    """Run `action`; turn a user's mistake into one line on standard error. Anything else is a bug and propagates."""
    try:
        status = action() or 0
        sys.stdout.flush()
        return status
    except SystemExit as stop:          # argparse: --help and usage errors
        return stop.code or 0
    except (InputError, RecordError) as error:
        return _complain(prog, f"error: {error}", USAGE_ERROR)
    except KeyboardInterrupt:
        return _complain(prog, "interrupted", INTERRUPTED)
    except BrokenPipeError:             # the reader, `head` for one, has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return BROKEN_PIPE
    except OSError as error:
        if error.errno not in USERS_ERRNOS:
            raise
        return _complain(prog, f"error: {error.filename or 'file system'}: {error.strerror}", USAGE_ERROR)


def check_packages(root: Path = Path(__file__).resolve().parents[1]) -> None:
    """Refuse to start where one of our packages is shadowed by another of its name; the error names the culprit."""
    for name in PACKAGES:
        found = _location(name)
        if found != root / name:
            raise InputError(f"package {name!r} is found at {found or 'no place'}, expected {root / name}: rename or "
                             "uninstall the other one, or start the installed `landscape` command from another folder")


def _location(name: str) -> Path | None:
    spec = find_spec(name)
    if spec is None:
        return None
    if spec.submodule_search_locations:
        return Path(next(iter(spec.submodule_search_locations))).resolve()
    return Path(spec.origin) if spec.origin else None


def _run(words: list[str]) -> int | None:
    check_packages()
    if not words or words[0].startswith("-"):
        return _run_without_command(words)
    name, *rest = words
    if name not in COMMANDS:
        raise InputError(f"command {name!r} is unknown{nearest(name, COMMANDS)}: expected one of {', '.join(COMMANDS)}")
    command = import_module(COMMANDS[name])
    parser = Parser(prog=f"landscape {name}", description=command.HELP)
    command.add_arguments(parser)
    add_common_arguments(parser)
    return command.run(parser.parse_args(rest))


def _run_without_command(words: list[str]) -> int:
    parser = Parser(prog="landscape", epilog="landscape COMMAND --help tells more", description=ABOUT)
    parser.add_argument("--version", action="store_true", help="print the version and stop")
    commands = parser.add_subparsers(title="commands", metavar="COMMAND")
    for name, module in COMMANDS.items():
        commands.add_parser(name, help=_help_line(module))
    if words and parser.parse_args(words).version:
        print(f"landscape {_version()}")
        return 0
    parser.print_help(sys.stderr)
    return USAGE_ERROR


def _help_line(module: str) -> str:
    """Read HELP from a module's source, without importing it."""
    for statement in ast.parse(_source(module)).body:
        if isinstance(statement, ast.Assign) and getattr(statement.targets[0], "id", "") == "HELP":
            return str(ast.literal_eval(statement.value)).replace("%", "%%")
    return ""


def _summary(module: str) -> str:
    return (ast.get_docstring(ast.parse(_source(module))) or "").partition("\n")[0]


def _source(module: str) -> str:
    return Path(find_spec(module).origin).read_text(encoding="utf-8")


def _version() -> str:
    from importlib.metadata import PackageNotFoundError, version
    try:
        return version("saddle-landscape")
    except PackageNotFoundError:
        return "(not installed)"


def _complain(prog: str, text: str, status: int) -> int:
    line = " ".join(text.split())
    shown = "".join(c if c.isprintable() else "?" for c in line)    # it may quote a stranger's file
    print(f"{prog}: {shown}", file=sys.stderr)
    return status


if __name__ == "__main__":
    sys.exit(main())
