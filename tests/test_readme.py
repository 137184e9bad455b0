"""What the README shows is run as it stands."""

import re
import shlex
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from checkpoints.records import Curvature, EigenPairs, Estimate, Spectrum
from checkpoints.store import RunStore
from landscape.family import FAMILY
from landscape.losses import LOSSES
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


def executed(block):
    torch.manual_seed(0)
    names = {}
    exec(compile(block, "README.md", "exec"), names)
    return names


OWN = "### Your own model, loss and data"


@pytest.mark.parametrize("block", blocks("python", OWN)[:2], ids=["own data", "batches of another form"])
def test_an_analysis_of_ones_own_takes_less_than_fifteen_lines(block):
    assert len([line for line in block.splitlines() if line.strip() and not line.strip().startswith("#")]) < 15


def test_the_example_of_own_data_finds_the_ends_of_the_dense_hessian(capsys):
    names = executed(blocks("python", OWN)[0])
    inputs, targets = names["data"].tensors
    values = dense_eigenvalues(names["model"], ["0.weight", "0.bias", "2.weight", "2.bias"], (inputs,), targets)
    expected = np.concatenate([values[:3], values[-3:]])
    np.testing.assert_allclose(names["pairs"].values, expected, rtol=1e-3, atol=1e-5)
    assert capsys.readouterr().out.startswith("[")


def test_the_example_with_dictionaries_finds_the_ends_of_its_blocks_dense_hessian(capsys):
    names = executed(blocks("python", OWN)[1])
    ids, labels = (torch.cat([batch[key] for batch in names["batches"]]) for key in ("input_ids", "labels"))
    values = dense_eigenvalues(names["model"], ["2.weight", "2.bias"], (ids,), labels)
    printed = np.array(capsys.readouterr().out.strip().strip("[]").split(), float)
    np.testing.assert_allclose(printed, np.concatenate([values[:2], values[-2:]]), rtol=1e-3, atol=1e-5)


def dense_eigenvalues(model, names, inputs, targets):
    """Return the eigenvalues, ascending, of the Hessian of the mean cross-entropy in the named parameters."""
    state = {name: value.detach().double() for name, value in model.named_parameters()}
    inputs = tuple(x.double() if x.is_floating_point() else x for x in inputs)

    def loss(*chosen):
        answer = torch.func.functional_call(model, state | dict(zip(names, chosen)), inputs)
        return torch.nn.functional.cross_entropy(answer["logits"] if isinstance(answer, dict) else answer, targets)
    chosen = tuple(state[name] for name in names)
    blocks = torch.autograd.functional.hessian(loss, chosen)
    rows = [torch.cat([b.reshape(p.numel(), -1) for b in row], dim=1) for p, row in zip(chosen, blocks)]
    return torch.linalg.eigvalsh(torch.cat(rows)).numpy()


def test_the_example_of_the_optimizers_runs():
    executed(blocks("python", "### The optimizers in your own loop")[0])


def test_the_example_of_ones_own_optimizer_and_loss_takes_fifteen_lines_and_trains(monkeypatch, capsys):
    monkeypatch.setattr("landscape.family.FAMILY", dict(FAMILY))
    monkeypatch.setattr("landscape.losses.table.LOSSES", dict(LOSSES))
    block = blocks("python", "### An optimizer and a loss of your own")[0]
    assert len(block.strip().splitlines()) <= 15
    names = executed(block)
    assert 0 < float(capsys.readouterr().out) <= 1 and names["config"].stored()["opt_options"] == {"tail_radius": 0.2}


def test_the_example_of_own_weights_makes_a_run(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "my_code.py").write_text(
        "import numpy as np\nfrom torch import nn\n"
        "def build(num_classes): return nn.Sequential(nn.Flatten(), nn.Linear(16, num_classes))\n"
        "def load():\n    x = np.arange(96, dtype=np.uint8).reshape(6, 4, 4)\n    y = np.array([0, 0, 0, 0, 1, 1])\n"
        "    return x, y, x, y\n")
    for name in ("e100.pth", "e200.pth"):
        torch.save({"1.weight": torch.randn(2, 16), "1.bias": torch.zeros(2)}, name)
    try:
        assert cli.main(shlex.split(blocks("bash", "### Weights trained elsewhere")[0].splitlines()[1])[1:]) == 0
    finally:
        sys.modules.pop("my_code", None)
    assert RunStore.open("runs/mine").epochs == [100, 200]


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
    shown = blocks("bash", "## Use it")[0] + blocks("bash", "### Weights trained elsewhere")[0]
    lines = [line.partition("  #")[0] for line in shown.splitlines()]
    return [part.strip().partition(" >")[0] for line in lines for part in line.split(" ; ")]


@pytest.mark.parametrize("line", commands())
def test_the_commands_shown_are_understood(line, monkeypatch):
    words = shlex.split(line)
    assert words[0] == "landscape"
    seen = []
    command = cli.import_module(cli.COMMANDS[words[1]])
    monkeypatch.setattr(command, "run", lambda args: seen.append(args) or 0)
    assert cli.main(words[1:]) == 0 and seen


def test_every_run_that_a_command_shown_reads_was_made_by_one_above():
    made = set()
    for words in map(shlex.split, commands()):
        out = {words[i + 1] for i, word in enumerate(words) if word == "--out"}
        assert {word for word in words if word.startswith("runs/")} <= made | out, words
        made |= out


def map_rows():
    """Return folder -> names of the files that the map's row lists."""
    rows = re.findall(r"^\| `([\w/]+)` \|.*?\| (.*) \|$", README[README.index("## The map"):], re.M)
    return {folder: set(re.findall(r"`(\w+)`", files)) for folder, files in rows}


def test_the_map_names_every_folder_and_every_source_file_and_no_other():
    root = Path(__file__).resolve().parents[1]
    packages, files = ("landscape", "checkpoints", "analysis", "figures"), {}
    for path in (path for package in packages for path in (root / package).rglob("*.py")):
        files.setdefault(path.parent.relative_to(root).as_posix(), set()).add(path.stem)
    listed = map_rows()
    assert set(listed) == {*files, "scripts"}
    assert {folder: files[folder] - {"__init__"} for folder in files} == {folder: listed[folder] for folder in files}


def test_the_picture_is_there():
    for path in re.findall(r"!\[.*?\]\((.*?)\)", README):
        assert (Path(__file__).resolve().parents[1] / path).is_file()
