"""`landscape spectrum` and `surface`: options, tables, forecasts, several processes, and what a newcomer gets wrong."""

import json
import os
import shutil
import subprocess
import sys
from argparse import ArgumentTypeError
from pathlib import Path

import numpy as np
import pytest

from checkpoints.store import RunStore
from scripts.cli import main
from scripts.compute_spectrum import memory_size
from scripts.forecast import Forecast, in_words

ROOT = Path(__file__).resolve().parents[1]
QUICK = ["--num_probes", "2", "--num_matvecs", "6", "--num_pairs", "1", "--max_matvecs", "4", "--trace_probes", "2"]


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    path = tmp_path_factory.mktemp("spectrum") / "run"
    assert main(["train", "--dataset", "synthetic", "--epochs", "2", "--checkpoint_epochs", "1,2", "--lr", "0.05", "--quiet",
                 "--out", str(path)]) == 0
    return path


def landscape(*words):
    return main([str(word) for word in words])


def document(capsys, *words):
    assert landscape(*words, "--json") == 0
    return json.loads(capsys.readouterr().out)


def files(run):
    return {path: path.stat().st_mtime_ns for path in run.rglob("*") if path.is_file()}


def test_all_classes_come_in_one_command_with_one_bar_a_forecast_and_a_table(run, capsys):
    words = ["spectrum", run, "--group", "classes", "--epoch", "all", *QUICK]
    assert landscape(*words) == 0
    out, err = capsys.readouterr()
    spectra = 2 * len(RunStore.open(run).provenance["class_counts"])
    assert f"at most 18 products for each of {spectra} spectra" in out
    assert f"forecast: at most {18 * spectra} products, " in out and "engine linearized" in out
    assert f"{18 * spectra}/{18 * spectra} (100%)" in err
    table = out[out.index("epoch group"):].splitlines()
    assert len(table) == spectra + 3 and sum("class:0 " in line for line in table) == 2
    assert landscape(*words) == 0
    assert "forecast" not in capsys.readouterr().out        # all of them are stored


def test_a_spectrum_says_its_engine_and_why_not_another(run, capsys):
    words = ["spectrum", run, "--group", "few", *QUICK, "--engine", "reverse", "--microbatch", "4", "--memory", "0"]
    row, = document(capsys, *words)["spectra"]
    assert (row["engine"], row["choice"]["microbatch"]) == ("reverse", 4) and not row["stored_before"]
    assert landscape(*words) == 0
    assert "  engine         reverse (microbatch 4)" in capsys.readouterr().out


def test_a_block_of_parameters_is_stored_beside_the_whole_and_shown(run, capsys):
    assert landscape("spectrum", run, "--group", "tail", *QUICK, "--quiet") == 0
    row, = document(capsys, "spectrum", run, "--group", "tail", *QUICK, "--params", "*.weight")["spectra"]
    assert row["group"] == "tail@weight"
    assert landscape("inspect", run) == 0
    assert "group tail@weight" in capsys.readouterr().out
    assert landscape("figures", "spectra", run, "--group", "tail", "tail@weight", "--format", "png", "--dpi", "60") == 0
    assert landscape("figures", "overview", run, "--group", "tail", "tail@weight", "--format", "png", "--dpi", "60") == 0
    assert landscape("figures", "curvature_table", run, "--group", "tail@weight", "--format", "png", "--dpi", "60") == 0


def test_a_trace_to_an_error_says_whether_it_reached_it(run, capsys):
    words = ["spectrum", run, "--group", "medium", *QUICK[:-2], "--trace_error", "0.2"]
    row, = document(capsys, *words)["spectra"]
    assert row["trace"]["reached"] and row["trace"]["num_matvecs"] > 2


@pytest.mark.parametrize("command, unit", [(["spectrum", "--group", "head", "tail", "--epoch", "all"], "products"),
                                           (["surface", "--points", "5", "--epoch", "all"], "points")])
def test_a_forecast_names_work_time_and_memory_and_computes_nothing(run, capsys, command, unit):
    before = files(run)
    forecast, = document(capsys, command[0], run, *command[1:], "--dry_run")["forecast"]
    assert forecast[unit] == {"products": 4 * 1520, "points": 50}[unit]
    assert forecast["minutes"] > 0 and 0.01 < forecast["gigabytes"] < 100 and forecast["device"]
    assert landscape(command[0], run, *command[1:], "--dry_run") == 0
    out = capsys.readouterr().out
    assert f"forecast: at most {forecast[unit]} {unit}, " in out and "next:" not in out and files(run) == before


@pytest.mark.parametrize("command", [["train", "--dataset", "synthetic", "--epochs", "3"], ["study", "{study}"]])
def test_training_and_studies_forecast_in_the_same_words(command, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "s.toml").write_text('name = "s"\nseeds = [0, 1]\nworkers = 1\n[train]\ndataset = "synthetic"\nepochs = 2\n'
                                     '[methods.sgd]\nopt = "sgd"\n[spectrum]\nnum_probes = 2\nnum_matvecs = 5\n'
                                     '[[surfaces]]\npoints = 3\n')
    words = [word.format(study="s.toml") for word in command]
    found = document(capsys, *words, "--dry_run")
    forecast = found.get("forecast", found)
    assert forecast["steps"] > 0 and forecast["minutes"] > 0 and forecast["gigabytes"] > 0
    if command[0] == "study":
        assert (forecast["products"], forecast["points"]) == (2 * 2 * 530, 2 * 9)
    assert landscape(*words, "--dry_run") == 0
    assert "forecast: at most " in capsys.readouterr().out and [path.name for path in tmp_path.iterdir()] == ["s.toml"]


def test_forecasts_add_up():
    one = Forecast({"products": 10}, 60.0, 2.0**30, "cpu", {"engine": "jvp"})
    both = (one.times(3) + Forecast({"points": 4}, 20.0, 2.0**31, "cpu")).shared(2)
    assert both.counts == {"products": 30, "points": 4} and both.seconds == 100 and both.bytes == 2.0**32
    assert both.line == "forecast: at most 30 products, 4 points, 2 minutes and 4.00 GiB on cpu, engine jvp"
    assert [in_words(seconds) for seconds in (0.25, 42, 600, 7200)] == ["0.2 seconds", "42 seconds", "10 minutes", "2.0 hours"]


@pytest.mark.parametrize("text, value", [("4GiB", 4 * 2**30), ("500MB", 5e8), ("1.5 g", 1.5e9), ("2e9", 2e9), ("0", 0),
                                         ("512 kib", 2**19), ("auto", "auto")])
def test_memory_is_read_in_words(text, value):
    assert memory_size(text) == value


@pytest.mark.parametrize("text", ["", "-1", "4GiBs", "lots", "4 gigs", "nan", "1e", "."])
def test_memory_in_other_words_is_refused(text):
    with pytest.raises(ArgumentTypeError, match="expected auto, or bytes such as 4GiB"):
        memory_size(text)


@pytest.mark.parametrize("words, word", [
    (["--params", "fc9.*"], "params='fc9.*' matches no trainable parameter"), (["--engine", "fast"], "engine='fast' is unknown"),
    (["--microbatch", "0"], "microbatch=0 is out of range"), (["--memory", "much"], "memory=much is out of range"),
    (["--trace_error", "0.1", "--trace_probes", "5"], "not allowed with"), (["--trace_error", "2"], "trace_error=2.0"),
    (["--operator", "fisher"], "invalid choice: 'fisher'"), (["--group", "class:99"], "class:99"),
    (["--params", "*.weight", "--verify", "pyhessian"], "leave out params and operator")])
def test_a_mistake_is_one_line_and_loses_nothing(run, capsys, words, word):
    before = files(run)
    assert landscape("spectrum", run, "--epoch", "1", *words, "--quiet") == 2
    captured = capsys.readouterr()
    assert captured.err.count("\n") == 1 and word in captured.err and captured.out == ""
    assert files(run) == before


@pytest.mark.slow
def test_two_processes_store_what_one_does(run, tmp_path):
    """Eigenvalues agree to their residuals; the first process alone prints."""
    words = ["--group", "tail", "--epoch", "2", "--num_probes", "2", "--num_matvecs", "15", "--num_pairs", "2", "--tol", "1e-5",
             "--max_matvecs", "80", "--trace_probes", "4", "--dtype", "float64"]
    alone, shared = (shutil.copytree(run, tmp_path / name, ignore=shutil.ignore_patterns("spectra")) for name in ("one", "two"))
    assert landscape("spectrum", alone, *words, "--quiet") == 0
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", "2", "-m", "scripts.cli"]
    done = subprocess.run([*torchrun, "spectrum", str(shared), *words, "--json"], cwd=ROOT, capture_output=True, text=True,
                          timeout=300, env=os.environ | {"OMP_NUM_THREADS": "1"})
    assert done.returncode == 0, done.stderr
    assert len(json.loads(done.stdout)["spectra"]) == 1
    ours, theirs = (RunStore.open(path).read("curvature", epoch=2, group="tail") for path in (alone, shared))
    assert theirs.provenance["processes"] == 2 and theirs.num_samples == ours.num_samples
    assert (np.abs(ours.eigenpairs.values - theirs.eigenpairs.values) <= 10 * ours.eigenpairs.residuals + 1e-9).all()
    assert theirs.trace.value == pytest.approx(ours.trace.value, rel=1e-5) and theirs.loss == pytest.approx(ours.loss, rel=1e-12)
    assert not list(shared.glob("partial/*"))
