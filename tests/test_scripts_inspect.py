import json

import numpy as np
import pytest
from sample_records import checkpoint, curvature, eigenpairs, measurement, surface

from checkpoints.store import RunStore
from scripts.cli import main


@pytest.fixture
def run(tmp_path):
    origin = {"versions": {"torch": "2.13.0"}}
    store = RunStore.create(tmp_path / "run", {"opt": "ssesam", "epochs": 2}, provenance=origin)
    with store.writer():
        recorder = store.recorder()
        recorder.checkpoint(0, checkpoint().arrays)
        tested = {"test_accuracy/tail": 0.25, "test_accuracy/head": 0.75, "test_loss/head": 1}
        recorder.epoch({"epoch": 1, "train_loss": 2.0, **tested})
        recorder.epoch({"epoch": 2, "train_loss": 1.0})
        recorder.resume({"w": np.ones(1)})
    without_pairs = curvature(group="class:3", eigenpairs=eigenpairs(num_pairs=0))
    for record in (curvature(), without_pairs, surface(), surface("line", 0), measurement(), measurement(epoch=0)):
        store.write(record)
    return store


def test_the_text_holds_configuration_metrics_and_the_main_numbers(run, capsys):
    assert main(["inspect", str(run.path)]) == 0
    text = capsys.readouterr().out
    for part in ("training not finished", "opt     ssesam", "versions  torch 2.13.0", "checkpoints at epochs: 0",
                 "last metrics (epoch 2)", "train_loss  1",
                 "epoch 2, group tail: 20 of 30 samples, loss 0.75, accuracy 80.00%, test accuracy absent",
                 "lambda_min -0.5 +- 1e-06 (verified negative), lambda_max 4 +- 1e-06",
                 "trace 9 [8.75, 9.25] (95%, probes)", "negative_mass 0.1 (no interval) below -0.004", "no eigenpairs",
                 "plane: epoch 2, 3 x 2 points, groups head, tail, along random filter and tail lambda_min in filter",
                 "line: epoch 2, 3 points", "alignment: epoch 0, 2"):
        assert part in text
    table = {line.split()[0]: line.split()[1:] for line in text.splitlines() if line.startswith(("  tail", "  head"))}
    assert table == {"tail": ["25.00%", "absent"], "head": ["75.00%", "1"]}


def test_json_is_one_document_with_the_same_numbers(run, capsys):
    assert main(["inspect", "--json", str(run.path)]) == 0
    document = json.loads(capsys.readouterr().out)
    tail = next(entry for entry in document["curvatures"] if entry["group"] == "tail")
    assert tail["lambda_min"] == {"value": -0.5, "residual": 1e-6, "radius": 1e-6, "converged": True, "verified": True}
    assert tail["lambda_max"]["value"] == 4.0 and tail["test_accuracy"] is None
    assert tail["negative_mass"] == {"value": 0.1, "low": None, "high": None, "level": 0.95, "kind": "probes"}
    assert document["metrics"]["test_accuracy/tail"] == {"epoch": 1, "value": 0.25}
    assert document["metrics"]["train_loss"] == {"epoch": 2, "value": 1.0}
    assert document["config"] == run.config and document["epochs"] == [0] and document["damaged"] == []
    assert [entry["shape"] for entry in document["surfaces"]] == [[2, 3], [2, 3, 2]]


def test_a_damaged_record_is_named_and_the_others_are_shown(run, capsys):
    path = run.path / "spectra" / "epoch-0002-tail.h5"
    path.write_bytes(path.read_bytes()[:-5])
    assert main(["inspect", str(run.path)]) == 2
    out, err = capsys.readouterr()
    assert "group class:3" in out and "surfaces\n" in out and "group tail" not in out
    assert err.startswith(f"landscape inspect: error: 1 records cannot be read: {path} is damaged")
    assert err.count("\n") == 1


def test_a_run_without_records_says_so(tmp_path, capsys):
    RunStore.create(tmp_path / "run", {})
    assert main(["inspect", str(tmp_path / "run")]) == 0
    text = capsys.readouterr().out
    for part in ("checkpoints at epochs: none", "metrics: none yet", "spectra: none", "surfaces: none", "measurements: none"):
        assert part in text


def test_a_value_never_verified_or_converged_is_marked(tmp_path, capsys):
    pairs = eigenpairs()
    pairs.converged[:], pairs.verified[:] = False, False
    RunStore.create(tmp_path / "run", {}).write(curvature(eigenpairs=pairs))
    main(["inspect", str(tmp_path / "run")])
    text = capsys.readouterr().out
    assert "lambda_min -0.5 +- 1e-06 (not converged, sign not verified), lambda_max 4 +- 1e-06 (not converged)" in text


def test_quiet_prints_nothing(run, capsys):
    assert main(["inspect", str(run.path), "--quiet"]) == 0
    assert capsys.readouterr() == ("", "")


def test_a_study_folder_names_its_runs(run, capsys):
    assert main(["inspect", str(run.path.parent)]) == 2
    assert "is not a run folder: it holds 1 of them (run)" in capsys.readouterr().err


def test_each_spectrum_ends_in_a_verdict_with_its_tolerances(run, capsys):
    assert main(["inspect", str(run.path)]) == 0
    text = capsys.readouterr().out
    assert ("    |gradient| 0.01, |theta| 2 in 1 layers\n"
            "    verdict: slope that bends down: |gradient| 0.01 > eps_g 0.0004, "
            "lambda_min <= -0.5 <= -eps_H -0.04, verified in float64; a subset, 20 of 30 images") in text
    assert "verdict: undecided: no eigenpairs were computed" in text
    assert main(["inspect", str(run.path), "--eps-g", "0.02", "--eps_H", "0.1", "--json"]) == 0
    entry = json.loads(capsys.readouterr().out)["curvatures"][1]
    assert entry["verdict"]["sentence"].startswith("strict saddle at (eps_g 0.02, eps_H 0.1)")
    assert entry["verdict"]["layer_norms"] == {"layer": 2.0}


def test_a_tolerance_out_of_range_is_one_line(run, capsys):
    assert main(["inspect", str(run.path), "--eps_g", "-1"]) == 2
    assert capsys.readouterr().err == ("landscape inspect: error: eps_g=-1.0 is out of range: expected a finite number >= 0\n")
