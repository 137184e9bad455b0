"""The life of a run: signals, full disks and paths that cannot be used end it in one line, and nothing is lost."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from disturbed_runs import EPOCHS, SETTINGS, STEPS, at_step, landscape_train, same_runs, send, texts_of_log

from checkpoints.store import RunStore
from scripts import interruptions
from scripts.cli import main
from scripts.interruptions import Interruption

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(autouse=True)
def as_on_a_terminal():
    """Undo what a shell does to what it runs in the background, which ignores SIGINT and hands that on."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.fixture(scope="module")
def straight(tmp_path_factory):
    path = tmp_path_factory.mktemp("straight") / "run"
    assert landscape_train(path) == 0
    return path


@pytest.mark.parametrize("number, status, step", [
    (signal.SIGTERM, 0, 1), (signal.SIGUSR1, 0, 10), (signal.SIGINT, 130, STEPS), (signal.SIGTERM, 0, EPOCHS * STEPS)],
    ids=["SIGTERM at the first step", "SIGUSR1 inside an epoch", "SIGINT at an epoch's last step", "SIGTERM at the last step"])
def test_a_signal_ends_after_the_step_at_hand_and_the_rest_has_the_same_bits(
        number, status, step, tmp_path, straight, capsys, monkeypatch):
    at_step(monkeypatch, step, send(number))
    assert landscape_train(tmp_path / "run") == status
    epochs, inside = divmod(step - 1, STEPS)
    told = (f"{tmp_path / 'run'}: stopped by {number.name} after {epochs} of {EPOCHS} epochs and {inside + 1} of {STEPS} steps, "
            f"nothing is lost; go on with: landscape train --resume --out {tmp_path / 'run'}\n")
    assert capsys.readouterr() == ("", told)
    assert not RunStore.open(tmp_path / "run").finished
    monkeypatch.undo()
    assert main(told.split("landscape ")[1].split()) == 0
    assert same_runs(tmp_path / "run", straight)
    assert capsys.readouterr().err.count("continuing") == 0


def test_a_run_stopped_again_and_again_ends_in_the_same_bits(tmp_path, straight, monkeypatch):
    for step in (3, 2, STEPS - 1, 5, 1):
        at_step(monkeypatch, step, send(signal.SIGTERM))
        assert landscape_train(tmp_path) == 0
        monkeypatch.undo()
    assert landscape_train(tmp_path) == 0 and same_runs(tmp_path, straight)
    assert [text.split(" by ")[0] for text in texts_of_log(tmp_path) if not text.startswith("epoch")] == [
        "started", "stopped", "continued after 0 of 4 epochs and 3 of 7 steps", "stopped",
        "continued after 0 of 4 epochs and 5 of 7 steps", "stopped", "continued after 1 of 4 epochs and 4 of 7 steps", "stopped",
        "continued after 2 of 4 epochs and 2 of 7 steps", "stopped", "continued after 2 of 4 epochs and 3 of 7 steps", "finished"]
    assert [text.split("/")[0] for text in texts_of_log(tmp_path) if text.startswith("epoch")] == [
        f"epoch {epoch}" for epoch in range(1, EPOCHS + 1)]


def test_the_forecast_of_a_continued_run_takes_stored_steps_for_no_speed(tmp_path, capsys, monkeypatch):
    at_step(monkeypatch, 10, send(signal.SIGTERM))
    words = ["train", *(word for word in SETTINGS if word != "--quiet"), "--out", str(tmp_path)]
    assert main(words) == 0
    monkeypatch.undo()
    capsys.readouterr()
    assert main(words) == 0
    first = next(line for line in capsys.readouterr().err.splitlines() if line.startswith("training: "))
    assert first.startswith(f"training: 10/{EPOCHS * STEPS} ") and "left" not in first


def test_json_tells_of_a_stop_and_where_a_run_is_computed_is_in_the_words_to_go_on(tmp_path, capsys, monkeypatch):
    at_step(monkeypatch, 2, send(signal.SIGTERM))
    words = [word for word in SETTINGS if word != "--quiet"]
    assert main(["train", *words, "--json", "--threads", "1", "--deterministic", "--out", str(tmp_path / "a run")]) == 0
    shown = capsys.readouterr()
    document = json.loads(shown.out)
    assert (document["finished"], document["stopped_by"], document["epochs_done"], document["steps_done_in_epoch"]) == (
        False, "SIGTERM", 0, 2)
    assert f"--out '{tmp_path / 'a run'}' --deterministic --threads 1\n" in shown.err


def test_a_loss_that_is_not_finite_is_no_point_to_go_on_from(tmp_path, capsys, monkeypatch):
    at_step(monkeypatch, 3, send(signal.SIGTERM))
    assert landscape_train(tmp_path, "--lr", "1e30") == 2
    shown = capsys.readouterr().err
    assert "training diverged" in shown and shown.count("\n") == 1 and not (tmp_path / "resume.h5").exists()
    assert texts_of_log(tmp_path)[-1].startswith("ended by DivergedError: training diverged: the loss is")


def test_a_signal_that_comes_twice_at_once_counts_once_and_handlers_come_back():
    before = [signal.getsignal(number) for number in interruptions.SIGNALS]
    with Interruption(quiet=True) as asked:
        assert not asked()
        send(signal.SIGTERM)(), send(signal.SIGTERM)(), send(signal.SIGINT)()
        assert asked() and asked.name == "SIGTERM" and asked.status == 0
    assert [signal.getsignal(number) for number in interruptions.SIGNALS] == before


def test_a_signal_that_was_ignored_stays_ignored():
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        with Interruption(quiet=True) as asked:
            send(signal.SIGINT)()
            assert not asked() and signal.getsignal(signal.SIGINT) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGINT, before)


TWICE = """
import os, signal, time
from scripts import interruptions
interruptions.ECHO_SECONDS = 0.0
with interruptions.Interruption():
    os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(0.01)
    os.kill(os.getpid(), signal.{})
    time.sleep(10)
"""


@pytest.mark.parametrize("name", ["SIGTERM", "SIGINT"])
def test_a_second_signal_ends_at_once(name):
    done = subprocess.run([sys.executable, "-c", TWICE.format(name)], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == -getattr(signal, name)
    assert done.stderr == "SIGTERM: finishing the step at hand; once more ends at once\n"


def test_a_process_asked_from_outside_ends_in_order_and_can_be_continued(tmp_path):
    words = ["--dataset", "synthetic", "--epochs", "100000", "--out", str(tmp_path / "run")]
    process = subprocess.Popen([sys.executable, str(ROOT / "scripts" / "train.py"), *words], cwd=tmp_path, text=True,
                               stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, env=os.environ | {"OMP_NUM_THREADS": "1"})
    while not (tmp_path / "run" / "resume.h5").exists() and process.poll() is None:
        time.sleep(0.02)
    process.terminate()
    shown = process.communicate(timeout=60)[1]
    assert process.returncode == 0 and shown.splitlines()[0].startswith("SIGTERM: finishing the step at hand")
    assert f"go on with: landscape train --resume --out {tmp_path / 'run'}\n" in shown
    assert sorted(path.name for path in (tmp_path / "run").iterdir()) == [
        "metrics.csv", "resume.h5", "run.json", "train.log", "writer.lock"]


FULL = """
import resource, signal, sys
import pytest
from disturbed_runs import at_step, landscape_train, send

step, size, out, *signals = sys.argv[1:]

def fill():
    resource.setrlimit(resource.RLIMIT_FSIZE, (int(size), resource.getrlimit(resource.RLIMIT_FSIZE)[1]))
    for name in signals:
        send(getattr(signal, name))()

with pytest.MonkeyPatch.context() as patch:
    at_step(patch, int(step), fill) if int(step) else fill()
    sys.exit(landscape_train(out))
"""


def train_on_a_full_disk(out, size, step=0, *signals):
    """Train in another process, where no file grows beyond `size` bytes from this step on, as if the disk were full."""
    # Python 3.11 does not notice that it could write a part of a .pyc file alone: none is written.
    environment = os.environ | {"PYTHONPATH": f"{ROOT}{os.pathsep}{ROOT / 'tests'}", "OMP_NUM_THREADS": "1",
                                "PYTHONDONTWRITEBYTECODE": "1"}
    return subprocess.run([sys.executable, "-c", FULL, str(step), str(size), str(out), *signals], env=environment,
                          capture_output=True, text=True, timeout=200)


def refused_in_one_line(done, path, name, reason="File too large"):
    return (done.returncode, done.stdout, done.stderr) == (2, "", f"landscape train: error: {path / name}: {reason}\n")


@pytest.mark.parametrize("step, size, name", [
    (1, 40, "metrics.csv"), (STEPS + 1, 2000, "checkpoints/epoch-0002.h5"), (2 * STEPS + 1, 2000, "resume.h5")])
def test_a_full_disk_is_one_line_and_costs_at_most_the_epoch(step, size, name, tmp_path, straight):
    assert refused_in_one_line(train_on_a_full_disk(tmp_path, size, step), tmp_path, name)
    assert [path for path in tmp_path.rglob("*") if path.suffix == ".tmp"] == []
    with RunStore.open(tmp_path).writer() as store:
        point = store.recorder().resumed()
        assert (point is None) == (step == 1) and (step == 1 or int(point["epochs_done"]) == step // STEPS)
    assert landscape_train(tmp_path) == 0 and same_runs(tmp_path, straight)


def test_a_disk_too_full_for_a_stop_keeps_the_resume_point_before_it(tmp_path, straight):
    assert refused_in_one_line(train_on_a_full_disk(tmp_path, 2000, STEPS + 3, "SIGTERM"), tmp_path, "resume.h5")
    assert landscape_train(tmp_path) == 0 and same_runs(tmp_path, straight)
    assert "continued after 1 of 4 epochs by process" in texts_of_log(tmp_path)[-5]


def test_a_disk_too_full_to_begin_leaves_no_half_run(tmp_path):
    assert refused_in_one_line(train_on_a_full_disk(tmp_path / "run", 100), tmp_path / "run", "run.json")
    assert [path.name for path in (tmp_path / "run").iterdir()] == ["writer.lock"]
    assert landscape_train(tmp_path / "run") == 0


def test_a_log_that_cannot_grow_keeps_whole_lines_alone(tmp_path, straight):
    store = RunStore.create(tmp_path, RunStore.open(straight).config)
    for _ in range(300):
        store.log("." * 100)
    before = (tmp_path / "train.log").read_bytes()
    assert refused_in_one_line(train_on_a_full_disk(tmp_path, len(before) + 20), tmp_path, "train.log")
    assert (tmp_path / "train.log").read_bytes() == before
    assert landscape_train(tmp_path) == 0 and same_runs(tmp_path, straight)


@pytest.mark.parametrize("path, reason", [
    ("file", "file is a file: expected a folder for the run"), ("file/run", "file/run: Not a directory"),
    ("x" * 300, "File name too long"), ("taken", "such as thesis.tex): choose an empty or new folder"),
    ("/proc/run", "/proc/run: No such file or directory")])
def test_a_path_that_cannot_be_used_is_one_line(path, reason, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").touch()
    (tmp_path / "taken").mkdir()
    (tmp_path / "taken" / "thesis.tex").touch()
    before = sorted(tmp_path.rglob("*"))
    assert landscape_train(path) == 2
    shown = capsys.readouterr()
    assert reason in shown.err and shown.err.count("\n") == 1 and shown.out == "" and sorted(tmp_path.rglob("*")) == before


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_folder_that_may_not_be_written_is_one_line(tmp_path, capsys):
    (tmp_path / "locked").mkdir(mode=0o500)
    assert landscape_train(tmp_path / "locked" / "run") == 2
    assert f"{tmp_path / 'locked' / 'run'}: Permission denied" in capsys.readouterr().err


def test_a_second_process_on_the_same_run_is_refused(tmp_path, capsys, monkeypatch):
    at_step(monkeypatch, 1, send(signal.SIGTERM))
    landscape_train(tmp_path)
    monkeypatch.undo()
    capsys.readouterr()
    before = (tmp_path / "train.log").read_bytes()
    with RunStore.open(tmp_path).writer():
        assert landscape_train(tmp_path) == 2
    assert capsys.readouterr().err == (f"landscape train: error: {tmp_path} is being written by process {os.getpid()}: "
                                       "wait until it ends, or stop it\n")
    assert (tmp_path / "train.log").read_bytes() == before


def test_a_second_process_is_refused_from_another_process(tmp_path):
    run, words = tmp_path / "run", ["--dataset", "synthetic", "--epochs", "100000", "--quiet"]
    command = [sys.executable, str(ROOT / "scripts" / "train.py"), *words, "--out", str(run)]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    first = subprocess.Popen(command, cwd=tmp_path, stderr=subprocess.PIPE, env=environment)
    try:
        while not (run / "resume.h5").exists() and first.poll() is None:
            time.sleep(0.02)
        second = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, env=environment, timeout=100)
        assert (second.returncode, second.stdout) == (2, "") and first.poll() is None
        assert second.stderr == (f"landscape train: error: {run} is being written by process {first.pid}: wait until it ends, "
                                 "or stop it\n")
    finally:
        first.terminate()
        first.communicate(timeout=100)
    assert first.returncode == 0 and (run / "train.log").read_text().count("started by process") == 1


TOGETHER = """
import os, signal, sys
from landscape.distributed import init_from_environment
from scripts.interruptions import Interruption, shared_by_processes
with init_from_environment() as processes, Interruption(quiet=True) as asked:
    assert processes.count == 2
    stop, steps = shared_by_processes(asked), 0
    while True:
        steps += 1
        if processes.rank == 1 and steps == 11:
            os.kill(os.getpid(), signal.SIGTERM)
        if stop():
            break
    open(os.path.join(sys.argv[1], str(processes.rank)), "w").write(f"{steps} {asked.name}")
"""


@pytest.mark.slow
def test_all_processes_stop_after_the_same_step(tmp_path):
    (tmp_path / "together.py").write_text(TOGETHER)
    done = subprocess.run([sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2",
                           str(tmp_path / "together.py"), str(tmp_path)], capture_output=True, text=True, timeout=300,
                          env=os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"})
    assert done.returncode == 0, done.stderr[-3000:]
    assert [(tmp_path / rank).read_text() for rank in "01"] == ["16 a signal to another process", "16 SIGTERM"]
