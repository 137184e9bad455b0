import errno
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from checkpoints.errors import RecordError
from landscape.errors import DivergedError, InputError
from scripts import cli

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture
def command(monkeypatch):
    """Replace the command `inspect` by one that does what a test says."""
    def becomes(run):
        module = SimpleNamespace(NAME="inspect", HELP="try", add_arguments=lambda parser: None, run=run)
        monkeypatch.setattr(cli, "import_module", lambda name: module)
    return becomes


def raising(error):
    def run(args):
        raise error
    return run


def landscape(*words, cwd=ROOT, **options):
    code = "import sys; from scripts.cli import main; sys.exit(main())"
    return subprocess.run([sys.executable, "-P", "-c", code, *words], capture_output=True, text=True, cwd=cwd,
                          env=os.environ | {"PYTHONPATH": str(ROOT)}, **options)


@pytest.mark.parametrize("error, line", [
    (InputError("eta=-1 is out of range:\n  expected more"), "eta=-1 is out of range: expected more"),
    (DivergedError("loss is nan"), "loss is nan"),
    (InputError("\x1b[2Jgone"), "?[2Jgone"),
    (RecordError("x.h5 is damaged"), "x.h5 is damaged"),
    (FileNotFoundError(errno.ENOENT, "No such file or directory", "a.toml"), "a.toml: No such file or directory"),
    (PermissionError(errno.EACCES, "Permission denied", "/root/x"), "/root/x: Permission denied"),
    (OSError(errno.ENOSPC, "No space left on device"), "file system: No space left on device"),
    (OSError(errno.EROFS, "Read-only file system", "run"), "run: Read-only file system"),
    (NotADirectoryError(errno.ENOTDIR, "Not a directory", "f/x"), "f/x: Not a directory"),
    (IsADirectoryError(errno.EISDIR, "Is a directory", "d"), "d: Is a directory"),
])
def test_a_users_mistake_is_one_line_and_exit_status_2(command, capsys, error, line):
    command(raising(error))
    assert cli.main(["inspect"]) == 2
    assert capsys.readouterr() == ("", f"landscape inspect: error: {line}\n")


@pytest.mark.parametrize("error", [ValueError("ours"), KeyError("k"), OSError(errno.EBADF, "Bad file"), AssertionError(),
                                   OSError("h5py")])
def test_anything_else_is_a_bug_and_propagates(command, error):
    command(raising(error))
    with pytest.raises(type(error)):
        cli.main(["inspect"])


def test_an_interrupt_is_one_line_and_exit_status_130(command, capsys):
    command(raising(KeyboardInterrupt()))
    assert cli.main(["inspect"]) == 130
    assert capsys.readouterr().err == "landscape inspect: interrupted\n"


@pytest.mark.parametrize("returned, status", [(None, 0), (0, 0), (2, 2)])
def test_what_a_command_returns_is_the_exit_status(command, returned, status):
    command(lambda args: returned)
    assert cli.main(["inspect"]) == status


def test_every_command_knows_the_common_options(command):
    seen = []
    command(lambda args: seen.append((args.quiet, args.json, args.config)))
    assert cli.main(["inspect", "--quiet", "--json"]) == 0
    assert seen == [(True, True, None)]


@pytest.mark.parametrize("words, message", [
    (["inspct"], "landscape: error: command 'inspct' is unknown (did you mean inspect?): expected one of train, "),
    (["inspect"], "landscape inspect: error: the following arguments are required: RUN"),
    (["inspect", "--jsn"], "landscape inspect: error: option --jsn is unknown (did you mean --json?)"),
    (["--verson"], "landscape: error: option --verson is unknown (did you mean --version?)"),
    (["inspect", "nowhere"], "landscape inspect: error: nowhere does not exist"),
    (["inspect", "r", "--config", "absent.toml"], "landscape inspect: error: absent.toml: No such file or directory"),
])
def test_bad_usage_is_one_line_and_exit_status_2(capsys, words, message):
    assert cli.main(words) == 2
    out, err = capsys.readouterr()
    assert err.startswith(message) and err.count("\n") == 1 and out == ""


@pytest.mark.parametrize("name", cli.COMMANDS)
def test_every_command_of_the_table_explains_itself(capsys, name):
    assert cli.main([name, "--help"]) == 0
    assert f"usage: landscape {name}" in capsys.readouterr().out


def test_names_and_help_lines_of_the_table_are_those_of_the_modules():
    for name, module in cli.COMMANDS.items():
        loaded = cli.import_module(module)
        assert loaded.NAME == name and loaded.HELP == cli._help_line(module)


def test_help_lists_every_command_with_its_line(capsys):
    assert cli.main(["--help"]) == 0
    text = " ".join(capsys.readouterr().out.split())
    for name, module in cli.COMMANDS.items():
        assert f"{name} {cli._help_line(module)}" in text


def test_without_a_command_the_help_goes_to_standard_error(capsys):
    assert cli.main([]) == 2
    out, err = capsys.readouterr()
    assert out == "" and "usage: landscape" in err


def test_the_version_is_told(capsys):
    assert cli.main(["--version"]) == 0
    assert capsys.readouterr().out.startswith("landscape ")


@pytest.mark.parametrize("words, absent", [
    (["--help"], {"torch", "numpy", "h5py"}), (["inspect", "--help"], {"torch", "pandas"})])
def test_help_does_not_wait_for_libraries_it_needs_not(words, absent):
    code = (f"import sys; from scripts.cli import main; main({words})\n"
            f"loaded = {absent} & set(sys.modules); assert not loaded, loaded")
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_a_closed_pipe_is_silent():
    code = ("import sys, types; from scripts import cli\n"
            "text = lambda args: print('x' * 100000, *range(100000))\n"
            "module = types.SimpleNamespace(HELP='', add_arguments=lambda parser: None, run=text)\n"
            "cli.import_module = lambda name: module\n"
            "sys.exit(cli.main(['inspect']))")
    process = subprocess.Popen([sys.executable, "-c", code], cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    process.stdout.read(10)
    process.stdout.close()
    errors = process.stderr.read()
    process.stderr.close()
    assert (process.wait(), errors) == (141, b"")


@pytest.mark.parametrize("culprit", ["figures.py", "analysis/__init__.py", "checkpoints/nothing.txt"])
def test_a_shadowed_package_is_named_at_the_start(tmp_path, monkeypatch, culprit):
    name = Path(culprit).parts[0].removesuffix(".py")
    (tmp_path / culprit).parent.mkdir(exist_ok=True)
    (tmp_path / culprit).write_text("")
    found = tmp_path / Path(culprit).parts[0]
    monkeypatch.setattr(cli, "_location", lambda package: found if package == name else ROOT / package)
    with pytest.raises(InputError, match=f"package '{name}' is found at {found}, expected {ROOT / name}: rename"):
        cli.check_packages()


def test_the_users_own_modules_in_the_current_folder_are_noticed(tmp_path):
    (tmp_path / "figures.py").write_text("raise SystemExit('the wrong figures')")
    code = f"import sys; sys.path.append({str(ROOT)!r}); from scripts.cli import main; sys.exit(main(['--help']))"
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True,
                          env={name: value for name, value in os.environ.items() if name != "PYTHONPATH"})
    assert done.returncode == 2
    assert done.stderr.startswith(f"landscape: error: package 'figures' is found at {tmp_path / 'figures.py'}, exp")


def test_the_installed_command_is_immune_to_the_current_folder(tmp_path):
    for name in ("figures.py", "analysis.py", "checkpoints.py"):
        (tmp_path / name).write_text("raise SystemExit('the wrong one')")
    done = landscape("inspect", "nowhere", cwd=tmp_path)
    assert (done.returncode, done.stderr) == (2, "landscape inspect: error: nowhere does not exist\n")
