"""What the README shows is run as it stands."""

import re
import shlex
from pathlib import Path

import numpy as np
import pytest

from checkpoints.records import Curvature, EigenPairs, Estimate, Spectrum
from checkpoints.store import RunStore
from scripts import cli

README = (Path(__file__).resolve().parents[1] / "README.md").read_text(encoding="utf-8")


def blocks(language, heading=""):
    """Return the code blocks of one language, those below a heading if one is named."""
    text = README[README.index(heading):] if heading else README
    return re.findall(rf"```{language}\n(.*?)```", text, flags=re.S)


@pytest.mark.parametrize("heading, words", [("## Run it", ["-m venv", "landscape study digits --out runs/digits"]),
                                            ("## Test it", ["-m venv", "-m pytest"])])
def test_setting_up_is_one_line(heading, words):
    line = blocks("bash", heading)[0].strip()
    assert "\n" not in line and all(word in line for word in words)


@pytest.mark.parametrize("block", blocks("python")[:2], ids=["own model", "own loop"])
def test_the_examples_run(block, capsys):
    exec(compile(block, "README.md", "exec"), {})


def test_the_reader_without_this_package_reads_a_stored_spectrum(tmp_path, monkeypatch, capsys):
    store = RunStore.create(tmp_path / "runs" / "digits" / "sgd-seed0", {"opt": "sgd"})
    nodes = np.array([[-1.0, 3.0], [-2.0, 4.0]])
    spectrum = Spectrum(7, nodes, np.full((2, 2), 0.5), np.ones((2, 2)), np.ones((2, 2)), 0.0)
    estimate = Estimate(1.0, 0.5, 1.5, 0.95, "probes")
    three, yes = np.array([-2.0, 1.0, 4.0]), np.ones(3, bool)
    pairs = EigenPairs(three, three * 0, yes, three, three * 0, yes, np.zeros((0, 7)), 1e-3, 9, estimate)
    store.write(Curvature(40, "tail", 5, 5, 0.25, 1.0, 0.5, 0.1, spectrum, pairs, estimate, estimate, 0.004, estimate,
                          {}, {}, {}))
    monkeypatch.chdir(tmp_path)
    block = blocks("python", "## Read a spectrum")[0]
    assert "import h5py" in block and "checkpoints" not in block.replace("runs/", "")
    exec(compile(block, "README.md", "exec"), {})
    printed = capsys.readouterr().out
    assert "tail 0.25 0.5" in printed and "mean eigenvalue 1.0 nats / parameter^2" in printed


def commands():
    lines = [line.partition("  #")[0] for line in blocks("bash", "## Use it")[0].splitlines()]
    return [part.strip().partition(" >")[0] for line in lines for part in line.split(" ; ")]


@pytest.mark.parametrize("line", commands())
def test_the_commands_shown_are_understood(line, monkeypatch):
    words = shlex.split(line)
    assert words[0] == "landscape"
    seen = []
    command = cli.import_module(cli.COMMANDS[words[1]])
    monkeypatch.setattr(command, "run", lambda args: seen.append(args) or 0)
    assert cli.main(words[1:]) == 0 and seen


def test_the_map_names_every_source_file():
    root = Path(__file__).resolve().parents[1]
    table = README[README.index("## The map"):]
    for package in ("landscape", "checkpoints", "analysis", "figures"):
        row = next(line for line in table.splitlines() if line.startswith(f"| `{package}`"))
        named = set(re.findall(r"`(\w+)`", row)) | set(re.findall(r"(\w+)", " ".join(re.findall(r"`([\w ]+)`", row))))
        files = {path.stem for path in (root / package).glob("*.py")} - {"__init__"}
        assert files <= named, f"{package}: {sorted(files - named)} are not on the map"


def test_the_picture_is_there():
    for path in re.findall(r"!\[.*?\]\((.*?)\)", README):
        assert (Path(__file__).resolve().parents[1] / path).is_file()
