"""`landscape surface`: what it prints of lines, planes and checkpoints, and what it says to wrong words."""

import json
import re
from pathlib import Path

import pytest

from checkpoints.store import RunStore
from scripts.cli import main
from scripts.compute_surface import _barrier
from scripts.study_plan import Study


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("surfaces") / "run"
    assert landscape("train", "--dataset", "synthetic", "--epochs", "3", "--checkpoint_epochs", "0,1,2,3", "--out", folder,
                     "--quiet") == 0
    return folder


def landscape(*words):
    try:
        return main([str(word) for word in words])
    except SystemExit as stop:
        return stop.code


def document(capsys, *words):
    assert landscape(*words, "--json") == 0
    return json.loads(capsys.readouterr().out)


def test_the_commands_of_the_document_lead_from_the_joint_optimum_to_that_of_the_tail_alone(tmp_path, monkeypatch):
    text = (Path(__file__).parents[1] / "docs" / "analysis.md").read_text(encoding="utf-8").partition("## Between optima")[2]
    code, commands = (re.search(rf"```{kind}\n(.+?)```", text, re.S)[1] for kind in ("python", "bash"))
    (tmp_path / "my_losses.py").write_text(code, encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    for line in commands.splitlines():
        program, command, *words = line.partition("#")[0].split()
        quick = {"train": ["--quiet"], "surface": ["--points", "5", "--quiet"]}.get(command, [])
        assert program == "landscape" and landscape(command, *words, *quick) == 0, line
    joint, tail = (RunStore.open(Path("runs") / name).metrics().iloc[-1] for name in ("joint", "tail"))
    assert tail["test_accuracy/head"] < 0.2 < joint["test_accuracy/head"]       # it has seen no image of the head that counts
    surfaces = list(RunStore.open(Path("runs/joint")).records("surface"))
    ways = [[name.rpartition("/")[2] for name in surface.point_names] for surface in surfaces]
    assert sorted(surface.beta.size > 0 for surface in surfaces) == [False, True] and all("tail epoch 10" in way for way in ways)


def test_a_line_to_a_checkpoint_prints_its_distance_and_barriers(run, capsys):
    assert landscape("surface", run, "--directions", "epoch:1", "--points", "11") == 0
    out = capsys.readouterr().out
    record = RunStore.open(run).read("surface", name="epoch-0003-epoch-1-1d")
    assert f"distance {record.about['distance']:.4g} parameter units" in out
    found = record.about["barrier"]["tail"]
    assert f"tail: {_barrier(**found)}" in out and f"{found['above_mean']:.4g}" in out
    assert "statistics of BatchNorm: estimated anew at each point" in out
    assert "loss of all, head, tail, many, medium, few and 4 classes along epoch 1\n" in out
    assert out.splitlines()[-1] == f"next: landscape figures lines {run}"


def test_barriers_are_told_in_words():
    assert _barrier(0.0, 0.25, 3.0) == "no barrier; the higher end lies 0.25 nats above the mean of both"
    assert _barrier(0.5, 0.75, 1.5) == "barrier 0.5 nats above the higher end, 0.75 above the mean of both, at 1.5"


def test_principal_components_print_what_they_explain_and_lead_to_their_figure(run, capsys):
    assert landscape("surface", run, "--directions", "pca", "--points", "5") == 0
    out = capsys.readouterr().out
    assert "principal components explain 9" in out and "4 checkpoints shown; " in out
    assert out.splitlines()[-1] == f"next: landscape figures trajectory {run}"
    assert landscape("figures", "trajectory", run, "--format", "png", "--dpi", "60") == 0


def test_a_slice_prints_how_far_its_prediction_holds(run, capsys):
    words = ["surface", run, "--dims", "1", "--normalization", "none", "--span", "0.5", "--points", "11"]
    row, = document(capsys, *words)["surfaces"]
    assert set(row["trust_radius"]) == {"all", "head", "tail"} and not row["stored_before"]
    low = row["trust_radius"]["all"]["plus"]["low"]
    assert landscape(*words) == 0
    out = capsys.readouterr().out
    assert "all: the quadratic prediction holds to 10 % " in out and f"+{low:.4g}" in out and "parameter units" in out


def test_a_lower_precision_prints_its_measured_error(run, capsys):
    words = ["surface", run, "--points", "3", "--dtype", "bfloat16", "--batchnorm", "batch", "--name", "low"]
    row, = document(capsys, *words)["surfaces"]
    error = row["about"]["precision_error"]
    assert row["precision"] == "bfloat16" and row["batchnorm"] == "batch" and 0 < error["loss"]["tail"] < 1
    assert landscape(*words) == 0
    assert "bfloat16: at 5 points within " in capsys.readouterr().out


def test_every_epoch_has_a_surface_and_a_forecast_counts_them(run, capsys):
    words = ["surface", run, "--epoch", "1", "2", "--points", "3"]
    forecast, = document(capsys, *words, "--dry_run")["forecast"]
    assert forecast["points"] == 18
    assert [row["epoch"] for row in document(capsys, *words)["surfaces"]] == [1, 2]


@pytest.mark.parametrize("words, told", [
    (["--directions", "nonsense"], "one or two of random, eigen, pca"), (["--directions", "epoch:9"], "epoch=9"),
    (["--directions", "tail:min"], "landscape spectrum"), (["--directions", "epoch:1", "--dims", "2"], "a second direction"),
    (["--directions", "elsewhere@epoch:1"], "elsewhere"), (["--dtype", "float16"], "invalid choice: 'float16'"),
    (["--directions", "epoch:1", "epoch:2", "epoch:0"], "expected one or two"),
    (["--seed", str(2**63)], "0 <= seed <= 9223"), (["--batchnorm", "own"], "choice: 'own'")])
def test_wrong_words_are_one_line_and_status_2(run, capsys, words, told):
    def files():
        return sorted(path for path in run.rglob("*") if path.is_file())
    before = files()
    assert landscape("surface", run, *words) == 2
    lines = capsys.readouterr().err.strip().splitlines()
    assert len(lines) == 1 and told in lines[0] and before == files()


def test_a_study_keeps_the_checkpoints_that_its_surfaces_lead_through():
    study = Study.from_dict({"name": "s", "train": {"dataset": "synthetic", "epochs": 9}, "methods": {"sgd": {"opt": "sgd"}},
                             "surfaces": [{"directions": ["epoch:2", "epoch:5"], "epoch": 7}]})
    run, = study.runs()
    assert {2, 5, 7, 9} <= set(run.config.checkpoint_epochs)
    assert run.surfaces[0][0] == "epoch-0007-epoch-2_epoch-5-2d"
