"""`landscape spectrum` and `surface`: options, tables, forecasts, several processes, and what a newcomer gets wrong."""

import json
import os
import shutil
import subprocess
import sys
from argparse import ArgumentTypeError
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from sample_records import curvature

from analysis.operators import HessianOperator
from checkpoints.records import Estimate
from checkpoints.store import RunStore
from scripts.cli import main
from scripts.compute_spectrum import memory_size, next_figure
from scripts.forecast import Forecast, in_words
from scripts.spectrum_words import agreement, summary, told

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


def copied(run, tmp_path):
    """Return a copy of the run without what was computed of it."""
    return shutil.copytree(run, tmp_path / "run", ignore=shutil.ignore_patterns("spectra", "surfaces"))


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
    assert table[-1] == f"next: landscape figures spectra {run} --group class:0 class:1 class:2 class:3"
    assert len(table) == spectra + 4 and sum("class:0 " in line for line in table[:-1]) == 2
    assert table[-2].startswith("verdicts: ") and table[-2].endswith(f"; in full: landscape inspect {run}")
    assert landscape(*words) == 0
    out, err = capsys.readouterr()
    assert "forecast" not in out and f"{spectra} of {spectra} stored on " in out        # all of them
    assert "left" not in err


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
    command = [*command, "--overwrite"]
    forecast, = document(capsys, command[0], run, *command[1:], "--dry_run")["forecast"]
    assert forecast[unit] == {"products": 4 * 1520, "points": 50}[unit]
    assert forecast["minutes"] > 0 and 0.01 < forecast["gigabytes"] < 100 and forecast["device"]
    assert landscape(command[0], run, *command[1:], "--dry_run") == 0
    out = capsys.readouterr().out
    assert f"forecast: at most {forecast[unit]} {unit}, " in out and "next:" not in out and files(run) == before


def test_a_forecast_leaves_out_what_is_stored_and_names_what_is_of_other_settings(run, tmp_path, capsys):
    words = ["spectrum", copied(run, tmp_path), "--epoch", "2", *QUICK]
    landscape(*words, "--group", "medium", "--quiet")
    forecast, = document(capsys, *words, "--group", "medium", "few", "--dry_run")["forecast"]
    one, = document(capsys, *words, "--group", "few", "--dry_run")["forecast"]
    assert forecast["spectra"] == one["spectra"] == 1 and forecast["products"] == one["products"] > 0
    assert landscape(*words, "--group", "medium", "--dry_run") == 0
    out, err = capsys.readouterr()
    assert "1 of 1 stored already" in err and "forecast: at most 0 products" in out
    assert landscape(*words, "--group", "medium", "few", "--seed", "1", "--dry_run") == 0
    out, err = capsys.readouterr()
    assert "of other settings" in err and "seed=0 there, 1 here" in err and f"at most {one['products']} products" in out


def test_what_is_stale_is_told_before_it_is_replaced(run, tmp_path, capsys):
    run = copied(run, tmp_path)
    words = ["spectrum", run, "--group", "medium", *QUICK]
    landscape(*words, "--quiet")
    store = RunStore.open(run)
    with store.writer():
        store.write(replace(store.read("checkpoint", epoch=1), epoch=2))
    assert landscape(*words, "--dry_run") == 0
    assert "stale, of other weights or data, and to be replaced: medium at epoch 2" in capsys.readouterr().err


def test_an_epoch_that_is_no_number_is_one_line(run, capsys):
    assert landscape("spectrum", run, "--epoch", "\u00b2") == 2
    assert "holds no checkpoint of epoch \u00b2" in capsys.readouterr().err


def test_surfaces_stored_already_are_no_part_of_a_forecast(run, tmp_path, capsys):
    words = ["surface", copied(run, tmp_path), "--points", "3", "--dims", "1"]
    landscape(*words, "--epoch", "1", "--quiet")
    forecast, = document(capsys, *words, "--epoch", "1", "2", "--dry_run")["forecast"]
    assert forecast["points"] == 3
    assert landscape(*words, "--epoch", "1", "2", "--seed", "1", "--dry_run") == 2
    assert "seed=0 there, 1 here" in capsys.readouterr().err


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


def test_a_stored_spectrum_is_said_to_be_and_overwrite_computes_it_again(run, capsys):
    words = ["spectrum", run, "--group", "all", *QUICK]
    assert landscape(*words) == 0
    out, err = capsys.readouterr()
    said = [err.index(word) for word in ("reading data", "tracing and checking products (once)", "timing products of ", "18/18")]
    assert said == sorted(said) and out.splitlines()[-1] == f"next: landscape figures spectra {run} --group all"
    assert "  stored " not in out and landscape(*words) == 0
    assert "not computed again" in capsys.readouterr().out
    assert document(capsys, *words)["spectra"][0]["stored_before"]
    assert not document(capsys, *words, "--overwrite")["spectra"][0]["stored_before"]


def test_a_record_of_another_engine_is_not_given_for_that_of_the_engine_named(run, capsys):
    words = ["spectrum", run, "--group", "class:1", "--epoch", "2", *QUICK, "--seed", "3", "--overwrite", "--quiet"]
    kept = [word for word in words if word != "--overwrite"]
    assert landscape(*words) == 0 and landscape(*kept) == 0
    for asked, word in ((["--engine", "jvp"], "engine=linearized there, jvp"), (["--microbatch", "3"], "microbatch=32 there")):
        assert landscape(*kept, *asked) == 2
        line, = capsys.readouterr().err.splitlines()
        assert "holds another spectrum of class:1 at epoch 2: " in line and word in line and "--overwrite" in line
    assert landscape(*words, "--engine", "reverse", "--microbatch", "3") == 0
    assert landscape(*kept, "--engine", "reverse", "--microbatch", "3") == 0 and landscape(*kept) == 0


def test_an_inexact_spectrum_says_so_wherever_it_is_shown(run, tmp_path, capsys):
    run = copied(run, tmp_path)
    words = ["spectrum", run, "--group", "tail", *QUICK]
    assert landscape(*words, "--engine", "differences") == 0
    out = capsys.readouterr().out
    assert "INEXACT        finite differences" in out and "nothing below  not bounded" in out and "verified in float64" not in out
    row, = document(capsys, *words, "--engine", "differences")["spectra"]
    assert row["inexact"] == "inexact: finite differences" and row["missed_below"]["low"] is None
    assert not row["lambda_max"]["sign_verified_in_float64"] and row["extreme_ratio"]["high"] is None
    record = RunStore.open(run).read("curvature", epoch=2, group="tail")
    assert not record.eigenpairs.verified.any() and np.isnan(record.eigenpairs.missed_below.low)
    assert landscape("inspect", run) == 0 and "INEXACT (finite differences)" in capsys.readouterr().out
    assert landscape(*words) == 2 and "(inexact: finite differences) there, auto here" in capsys.readouterr().err
    assert landscape("surface", run, "--directions", "eigen", "--points", "3") == 2
    assert "no directions to go by" in capsys.readouterr().err


def test_spectra_over_training_and_test_images_lie_side_by_side_and_share_a_figure(run, tmp_path, capsys):
    run = copied(run, tmp_path)
    train, = document(capsys, "spectrum", run, "--group", "tail", *QUICK)["spectra"]
    test, = document(capsys, "spectrum", run, "--group", "tail", *QUICK, "--split", "test")["spectra"]
    assert (train["group"], test["group"]) == ("tail", "tail@test") and train["loss"] != test["loss"]
    assert {path.name for path in run.glob("spectra/*")} == {"epoch-0002-tail.h5", "epoch-0002-tail@test.h5"}
    assert landscape("spectrum", run, "--group", "tail", *QUICK, "--split", "test") == 0
    assert "spectra " + str(run) + " --group tail@test" in capsys.readouterr().out
    assert landscape("figures", "spectra", run, "--group", "tail", "tail@test", "--out", tmp_path) == 0
    assert "tail@test" in (tmp_path / "spectra.csv").read_text()
    assert landscape("inspect", run) == 0 and "of the test images' loss" in capsys.readouterr().out


def test_records_of_other_settings_stop_none_of_the_others(run, tmp_path, capsys):
    run = copied(run, tmp_path)
    assert landscape("spectrum", run, "--group", "class:1", "class:2", *QUICK, "--quiet") == 0
    before = {path: path.read_bytes() for path in run.glob("spectra/*")}
    assert landscape("spectrum", run, "--group", "class:1", "class:0", "class:2", *QUICK, "--seed", "3", "--quiet") == 2
    line, = capsys.readouterr().err.splitlines()
    assert "2 of 3 spectra were left as they are" in line and "holds another spectrum of class:2 at epoch 2: seed=0 there" in line
    assert all(path.read_bytes() == content for path, content in before.items()) and len(list(run.glob("spectra/*"))) == 3


def test_records_of_other_settings_are_named_before_anything_is_computed(run, tmp_path, capsys):
    run = copied(run, tmp_path)
    assert landscape("spectrum", run, "--group", "class:1", *QUICK, "--quiet") == 0
    assert landscape("spectrum", run, "--group", "class:1", "--epoch", "all", *QUICK, "--seed", "3") == 2
    err = capsys.readouterr().err
    named = err.index("left as they are, of other settings: ")
    assert "another spectrum of class:1 at epoch 2: seed=0 there, 3 here" in err[named:].splitlines()[0]
    assert named < err.index("tracing and checking products")


def test_an_interrupted_spectrum_goes_on_without_a_forecast_and_says_where(run, tmp_path, capsys, monkeypatch):
    run = copied(run, tmp_path)
    words, matmat, made = ["spectrum", run, "--group", "tail", *QUICK], HessianOperator.matmat, []

    def stopping(self, V):
        made.append(len(V))
        if sum(made) > 12:
            raise KeyboardInterrupt
        return matmat(self, V)
    monkeypatch.setattr(HessianOperator, "matmat", stopping)
    assert landscape(*words, "--quiet") == 130
    monkeypatch.setattr(HessianOperator, "matmat", matmat)
    capsys.readouterr()
    assert landscape(*words) == 0
    out, err = capsys.readouterr()
    assert "forecast" not in out and "timing" not in err and "tail, epoch 2: continuing at product 13 of 18" in err


def test_the_figure_of_many_classes_is_a_table_of_all():
    shown = [{"run": "a b", "group": f"class:{label}"} for label in range(10)]
    assert next_figure(shown, ["classes"]) == "curvature_table 'a b' --group classes"
    assert next_figure(shown[:2], ["classes"]) == "spectra 'a b' --group class:0 class:1"


def test_help_names_the_engines_as_the_error_does(capsys):
    from analysis.operators.products import ENGINES
    assert landscape("spectrum", "--help") == 0
    assert ", ".join(ENGINES) in " ".join(capsys.readouterr().out.split())


@pytest.mark.parametrize("words", [["--engine", "fast"], ["--group", "tial"], ["--device", "gpu"], ["--seed", str(2**63)]])
def test_a_misspelt_word_is_found_before_the_run_is_looked_at(tmp_path, capsys, words):
    assert landscape("spectrum", tmp_path / "nowhere", *words) == 2
    assert words[1] in capsys.readouterr().err


@pytest.mark.parametrize("top, trace, same", [(0, 0, (True, True)), (1, 0, (False, True)), (0, 1, (True, False))])
def test_a_second_opinion_is_judged_by_residuals_and_intervals(top, trace, same):
    record = curvature()
    far, place = 100 * abs(record.eigenpairs.values).max(), int(abs(record.eigenpairs.values).argmax())
    opinion = {"pyhessian_top_eigenvalue": record.eigenpairs.values[place] + top * far,
               "pyhessian_trace": record.trace.high + 0.5 + trace * 2.0, "pyhessian_trace_error": 1.0}
    assert tuple(agreement(replace(record, second_opinion=opinion)).values()) == same


@pytest.mark.parametrize("share, same, words", [
    (0.9969, True, "stopped early on the top eigenvalue, below ours: consistent"), (1.0, True, "agrees on the top eigenvalue"),
    (1.004, False, "DISAGREES on the top eigenvalue"), (0.95, False, "DISAGREES on the top eigenvalue")])
def test_a_power_iteration_that_stopped_early_is_consistent_from_below_alone(share, same, words):
    record, pairs = curvature(), curvature().eigenpairs
    record = replace(record, eigenpairs=replace(pairs, residuals=pairs.residuals * 1e-9))
    top = float(pairs.values[abs(pairs.values).argmax()])
    record = replace(record, second_opinion={"pyhessian_top_eigenvalue": top * share})
    assert agreement(record) == {"top_eigenvalue": same}
    assert f"  pyhessian {words}" in told([summary(record) | {"stored_before": False, "run": "RUN"}])


def test_the_words_tell_rounding_beyond_the_tolerance_and_what_images_outside_a_subset_show():
    record, pairs = curvature(), curvature().eigenpairs
    rough = replace(record, eigenpairs=replace(pairs, rounding=pairs.values * 0 + 0.01),
                    group_curvature=Estimate(-0.4, -0.5, -0.3, 0.95, "data"), group_trace=Estimate(9.0, 7.0, 11.0, 0.95, "data"))
    facts = {"stored_before": False, "run": "RUN"}
    plain, text = (told([summary(each) | facts]) for each in (record, rough))
    assert "1.0e-02 off" in text and "off" not in plain
    assert "all 30 images: lambda_min <= v'Hv -0.4 [-0.5, -0.3]" in text and "all 30 images" not in plain


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
