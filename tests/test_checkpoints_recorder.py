import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from checkpoints.recorder import Recorder
from checkpoints.schema import RecordError
from checkpoints.store import RunStore

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture
def store(tmp_path):
    store = RunStore.create(tmp_path / "run", {"opt": "sgd"}, provenance={"device": "cpu"})
    with store.writer():
        yield store


def record(recorder: Recorder, epochs, **more) -> None:
    for epoch in epochs:
        recorder.epoch({"epoch": epoch, "loss": 1 / epoch, **more})
        recorder.resume({"w": np.full(2, float(epoch)), "step": epoch})


def table(store: RunStore) -> str:
    return (store.path / "metrics.csv").read_text()


def test_a_fresh_run_has_nothing_to_resume(store):
    assert store.recorder().resumed() is None


def test_the_resume_point_comes_back_bit_for_bit(store):
    recorder = store.recorder()
    record(recorder, [1])
    recorder.resume({"w": np.array([np.nan, -0.0]), "step": 7, "scale": 0.1, "done": False})
    back = store.recorder().resumed()
    assert back["w"].tobytes() == np.array([np.nan, -0.0]).tobytes() and back["step"] == 7
    assert back["scale"] == 0.1 and back["done"].dtype == bool and back["step"].shape == ()


def test_metrics_hold_one_row_an_epoch_and_the_union_of_columns(store):
    recorder = store.recorder()
    recorder.epoch({"epoch": 1, "loss": np.float32(0.5)})
    recorder.epoch({"epoch": 2, "accuracy/tail": 0.1, "loss": 1 / 3})
    recorder.epoch({"epoch": 3, "loss": float("nan"), "accuracy/few": None})
    assert table(store) == "epoch,loss,accuracy/tail\n1,0.5,\n2,0.3333333333333333,0.1\n3,nan,\n"
    metrics = store.metrics()
    assert metrics["loss"][1] == 1 / 3 and metrics["accuracy/tail"].isna().tolist() == [True, False, True]


def test_rows_behind_the_resume_point_come_again(store):
    recorder = store.recorder()
    record(recorder, [1, 2])
    recorder.epoch({"epoch": 3, "loss": 99.0})    # killed before resume
    again = store.recorder()
    assert again.resumed()["step"] == 2
    record(again, [3])
    assert store.metrics()["loss"].tolist() == [1.0, 0.5, 1 / 3]


def test_rows_without_any_resume_point_come_again(store):
    store.recorder().epoch({"epoch": 1, "loss": 99.0, "only_then": 1})    # killed before the first resume
    record(store.recorder(), [1])
    assert table(store) == "epoch,loss\n1,1.0\n"


def test_a_resumed_table_equals_an_undisturbed_one_in_every_byte(store, tmp_path):
    def row(epoch):
        evaluated = {"accuracy/all": epoch / 7} if epoch % 2 == 0 else {}
        return {"epoch": epoch, **evaluated, "loss": 1 / epoch, "lr": 1e-17 * epoch}
    other = RunStore.create(tmp_path / "other", {})
    with other.writer():
        undisturbed = other.recorder()
        for epoch in range(1, 6):
            undisturbed.epoch(row(epoch))
            recorder = store.recorder()    # a new life each epoch
            recorder.epoch(row(epoch))
            recorder.resume({"epoch": epoch})
    assert table(store) == table(other)


def test_a_checkpoint_carries_the_provenance_of_the_process_that_made_it(store):
    store.recorder().checkpoint(4, {"w": np.ones(2)})
    assert store.read("checkpoint", epoch=4).provenance == {"device": "cpu"}


def test_a_resume_point_without_its_metrics_is_refused(store):
    record(store.recorder(), [1, 2])
    (store.path / "metrics.csv").unlink()
    with pytest.raises(RecordError, match="resume.h5 is at epoch 2 but metrics.csv ends at 0: put the file back"):
        store.recorder()


@pytest.mark.parametrize("text", ["loss\n1\n", "epoch,loss\none,2\n", 'epoch,loss\n"1,2\n', "epoch\n1,2,3\n"])
def test_damaged_metrics_are_one_line(store, text):
    (store.path / "metrics.csv").write_text(text)
    with pytest.raises(RecordError, match="metrics.csv is damaged"):
        store.recorder()


def test_a_damaged_resume_point_is_one_line(store):
    record(store.recorder(), [1])
    (store.path / "resume.h5").write_bytes(b"half")
    with pytest.raises(RecordError, match="resume.h5 is not an HDF5 file"):
        store.recorder()


@pytest.fixture(scope="module")
def killed(tmp_path_factory):
    environment = os.environ | {"PYTHONPATH": f"{ROOT}{os.pathsep}{ROOT / 'tests'}", "OMP_NUM_THREADS": "1"}
    command = [sys.executable, str(ROOT / "tests" / "killed_run.py"), str(tmp_path_factory.mktemp("killed"))]
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_a_run_killed_at_any_one_instant_ends_as_an_undisturbed_one(killed):
    assert len(killed["once"]) > 30
    assert [number for number, outcome in enumerate(killed["once"]) if outcome != killed["undisturbed"]] == []


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_a_run_killed_again_and_again_ends_as_an_undisturbed_one(killed):
    assert all(outcome == killed["undisturbed"] for outcome in killed["often"])


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_the_undisturbed_run_holds_what_was_recorded(killed):
    whole = killed["undisturbed"]
    assert whole["files"] == ["checkpoints/epoch-0000.h5", "checkpoints/epoch-0002.h5", "metrics.csv", "resume.h5",
                              "run.json", "surfaces/line.h5", "writer.lock"]
    assert [row["epoch"] for row in whole["metrics"]] == ["1", "2"] and whole["finished"]
