"""`--deterministic` and `--tensorboard`: what they switch, that it is put back, and what is said where they cannot be had."""

import os
import sys
import warnings
from types import ModuleType

import numpy as np
import pytest
import torch
from disturbed_runs import EPOCHS, STEPS, at_step, landscape_train, same_runs, send, texts_of_log

from checkpoints.store import RunStore
from landscape import determinism
from landscape.determinism import WORKSPACE, deterministic
from landscape.errors import InputError
from scripts.log_scalars import Scalars


@pytest.fixture(scope="module")
def straight(tmp_path_factory):
    path = tmp_path_factory.mktemp("straight") / "run"
    assert landscape_train(path) == 0
    return path


def switches():
    return (torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled(),
            torch.backends.cudnn.deterministic, torch.backends.cudnn.benchmark, os.environ.get(WORKSPACE))


@pytest.mark.parametrize("before", [(False, False, False, True, None), (True, True, False, False, ":16:8")])
@pytest.mark.parametrize("has_gpu", [False, True])
def test_switches_are_set_inside_and_put_back_even_after_an_error(before, has_gpu, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: has_gpu)
    monkeypatch.delenv(WORKSPACE, raising=False)
    own = determinism._switches()
    determinism._set(*before[:4])
    if before[4]:
        monkeypatch.setenv(WORKSPACE, before[4])
    try:
        with pytest.raises(ZeroDivisionError), deterministic():
            assert switches() == (True, False, True, False, before[4] or (":4096:8" if has_gpu else None))
            raise ZeroDivisionError
        assert switches() == before
        with deterministic(False):
            assert switches() == before
    finally:
        determinism._restore(own)


def test_a_workspace_that_gives_other_bits_each_time_is_refused(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setenv(WORKSPACE, ":0:0")
    before = switches()
    with pytest.raises(InputError, match="CUBLAS_WORKSPACE_CONFIG=':0:0' is out of range: .* one of :4096:8, :16:8"):
        deterministic().__enter__()
    assert switches() == before


def test_other_errors_pass():
    with pytest.raises(RuntimeError, match="^shapes$"), deterministic():
        raise RuntimeError("shapes")


def test_training_is_deterministic_where_asked_and_says_so(tmp_path, straight, monkeypatch):
    seen = []
    at_step(monkeypatch, 1, lambda: seen.append(torch.are_deterministic_algorithms_enabled()))
    assert landscape_train(tmp_path, "--deterministic") == 0
    store = RunStore.open(tmp_path)
    assert seen == [True] and not torch.are_deterministic_algorithms_enabled()
    assert store.provenance["deterministic"] is store.read("checkpoint", epoch=EPOCHS).provenance["deterministic"] is True
    assert RunStore.open(straight).provenance["deterministic"] is False
    assert same_runs(tmp_path, straight)        # on the CPU it makes no difference


def test_a_run_that_goes_on_without_it_says_so(tmp_path, monkeypatch):
    at_step(monkeypatch, 3, send(15))
    assert landscape_train(tmp_path, "--deterministic") == 0
    monkeypatch.undo()
    assert landscape_train(tmp_path) == 0
    assert "note: begun with --deterministic, continued without it" in texts_of_log(tmp_path)


def test_an_operation_without_a_deterministic_form_is_one_line(tmp_path, capsys):
    words = ["--arch", "disturbed_runs:Indeterminate"]
    assert landscape_train(tmp_path / "run", "--deterministic", *words) == 2
    shown = capsys.readouterr()
    assert shown.err == ("landscape train: error: deterministic: put_ has no deterministic form on this device: "
                         "train on the CPU, use a network without it, or leave deterministic out\n")
    assert landscape_train(tmp_path / "other", *words) == 0


class Board:
    """A stand-in for TensorBoard's writer: one file a writer, one line a scalar."""

    def __init__(self, log_dir):
        os.makedirs(log_dir, exist_ok=True)
        self.path = os.path.join(log_dir, f"events.out.tfevents.{len(os.listdir(log_dir))}.{os.urandom(4).hex()}")
        open(self.path, "w").close()

    def add_scalar(self, tag, value, global_step):
        with open(self.path, "a") as file:
            file.write(f"{tag} {global_step} {value!r}\n")

    def flush(self):
        pass

    close = flush


@pytest.fixture
def board(monkeypatch):
    module = ModuleType("torch.utils.tensorboard")
    module.SummaryWriter = Board
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", module)


def scalars(run):
    lines = [line.split() for path in (run / "tensorboard").glob("events*") for line in path.read_text().splitlines()]
    return sorted((tag, int(step), float(value)) for tag, step, value in lines)


def table(run):
    rows = RunStore.open(run).metrics().to_dict("records")
    return sorted((name, int(row["epoch"]), value) for row in rows for name, value in row.items()
                  if name != "epoch" and value == value)


@pytest.mark.parametrize("step", [STEPS // 2, STEPS, 2 * STEPS + 1])
def test_scalars_are_the_table_each_epoch_once_however_often_a_run_is_stopped(step, tmp_path, board, monkeypatch):
    at_step(monkeypatch, step, send(15))
    for _ in range(2):
        assert landscape_train(tmp_path, "--tensorboard") == 0
    monkeypatch.setattr("scripts.train_stored.train", sys.modules["landscape.training"].train)
    (tmp_path / "tensorboard" / "notes.txt").write_text("mine")
    assert landscape_train(tmp_path, "--tensorboard") == 0
    assert scalars(tmp_path) == table(tmp_path) and RunStore.open(tmp_path).finished
    assert len(list((tmp_path / "tensorboard").glob("events*"))) == 1 and (tmp_path / "tensorboard" / "notes.txt").exists()


def test_tensorboard_itself_reads_the_table_back(tmp_path, monkeypatch):
    pytest.importorskip("tensorboard", exc_type=ImportError)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")         # of its own imports
        from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
        at_step(monkeypatch, 2 * STEPS + 1, send(15))
        for _ in range(2):
            assert landscape_train(tmp_path, "--tensorboard") == 0
            monkeypatch.undo()
        events = EventAccumulator(str(tmp_path / "tensorboard")).Reload()
    found = sorted((tag, event.step, event.value) for tag in events.Tags()["scalars"] for event in events.Scalars(tag))
    expected = table(tmp_path)
    assert [row[:2] for row in found] == [row[:2] for row in expected] and len(expected) > EPOCHS
    assert np.array_equal([row[2] for row in found], np.float32([row[2] for row in expected]))      # as its events hold them


def test_rows_behind_the_resume_point_come_once(tmp_path, board, monkeypatch):
    from checkpoints.recorder import Recorder
    resume, calls = Recorder.resume, []

    def killed(self, arrays):
        calls.append(1)
        if len(calls) == 3:
            raise KeyboardInterrupt     # the row of epoch 3 is in metrics.csv, the resume point is at epoch 2
        resume(self, arrays)
    monkeypatch.setattr(Recorder, "resume", killed)
    assert landscape_train(tmp_path, "--tensorboard") == 130
    assert landscape_train(tmp_path, "--tensorboard") == 0
    assert scalars(tmp_path) == table(tmp_path)


def test_without_tensorboard_nothing_is_begun(tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    assert landscape_train(tmp_path / "run", "--tensorboard") == 2
    shown = capsys.readouterr()
    assert "--tensorboard needs the tensorboard package (" in shown.err and shown.err.count("\n") == 1
    assert shown.err.endswith("pip install 'saddle-landscape[tensorboard]'\n") and not (tmp_path / "run").exists()


def test_scalars_that_cannot_be_written_name_their_folder(tmp_path, board, monkeypatch):
    monkeypatch.setattr(Board, "add_scalar", lambda *arguments: (_ for _ in ()).throw(OSError(28, "No space left on device")))
    with pytest.raises(OSError) as failure, Scalars(tmp_path, []) as writer:
        writer.row({"epoch": 1, "lr": 0.1})
    assert failure.value.filename == str(tmp_path / "tensorboard")
