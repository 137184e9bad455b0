"""`landscape train` from the command line: the documented words, what it prints, what it refuses, and a kill at any
moment."""

import hashlib
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from checkpoints.store import RunStore
from landscape.data import load_data
from landscape.recipes import filled
from landscape.training import TrainConfig
from scripts import train_stored
from scripts.cli import main
from scripts.train import slug
from scripts.train_settings import telling_settings

ROOT = Path(__file__).resolve().parents[1]
# The SSE-SAM README's command, with the small data set in place of CIFAR-100 and fewer epochs.
DOCUMENTED = ("--gpu 99 --imb_factor 10 --opt ssesam --loss CE --eta 20 --print_freq 1 --head_rho 0.05 --tail_rho 0.10 "
              "--gamma 0.70 --dataset synthetic --epochs 2").split()
SHORT = ["--dataset", "synthetic", "--epochs", "2", "--print_freq", "1"]


def landscape_train(*words):
    return main(["train", *map(str, words)])


@pytest.mark.parametrize(
    "folder, script",
    [(ROOT, "scripts/train.py"), (Path("/"), str(ROOT / "scripts" / "train.py"))],
    ids=["repository root", "elsewhere"],
)
def test_the_documented_command_runs_as_a_file_and_says_that_it_uses_the_cpu(tmp_path, folder, script):
    done = subprocess.run(
        [sys.executable, script, *DOCUMENTED, "--out", str(tmp_path / "run")],
        cwd=folder,
        text=True,
        capture_output=True,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    )
    assert done.returncode == 0, done.stderr
    assert "--gpu 99: no such GPU on this machine, training on the CPU\n" in done.stderr
    assert "epoch 1/2" in done.stdout and "epoch 2/2" in done.stdout
    assert done.stdout.splitlines()[-1] == f"next: landscape spectrum {tmp_path / 'run'}"
    store = RunStore.open(tmp_path / "run")
    assert store.finished and store.epochs == [2]
    assert (store.config["opt"], store.config["gamma"], store.config["tail_rho"], store.config["eval_every"]) == (
        "ssesam",
        0.7,
        0.1,
        1,
    )


def test_without_out_the_run_folder_is_named_after_its_settings(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert landscape_train(*SHORT, "--loss", "VA") == 0
    [path] = (tmp_path / "runs").iterdir()
    assert path.name.startswith("synthetic-if10-mlp-la-sgd-seed0-")
    assert capsys.readouterr().out.splitlines()[-1] == f"next: landscape spectrum runs/{path.name}"


def test_two_configurations_never_share_a_folder_name():
    names = {
        slug(TrainConfig(lr=lr, seed=seed, dataset=data, arch="mlp"))
        for lr in (0.1, 0.2)
        for seed in (0, 1)
        for data in ("digits", "folder:/a/b c", "npz:../x.npz")
    }
    assert len(names) == 12 and all("/" not in name and " " not in name and not name.startswith(".") for name in names)


def test_a_finished_run_prints_its_result_and_trains_nothing(tmp_path, capsys):
    assert landscape_train(*SHORT, "--out", tmp_path) == 0
    first, log = capsys.readouterr().out, (tmp_path / "train.log").read_text()
    assert landscape_train(*SHORT, "--out", tmp_path) == 0
    second = capsys.readouterr().out
    assert "finished before" in second and (tmp_path / "train.log").read_text() == log
    assert first[first.index("test accuracy") :] == second[second.index("test accuracy") :]


def test_metrics_that_were_cut_off_are_one_line_and_no_result(tmp_path, capsys):
    assert landscape_train(*SHORT, "--out", tmp_path / "run", "--quiet") == 0
    metrics = tmp_path / "run" / "metrics.csv"
    whole = metrics.read_text()
    header, first, last = whole.splitlines(keepends=True)
    for text, told in ((whole[:-3], "a row is cut off"), (header + first + last[:9] + "\n", "a row is cut off"),
                       (header + first, "ends at epoch 1"), (header, "ends at epoch 0")):
        metrics.write_text(text)
        assert landscape_train("--resume", "--out", tmp_path / "run", "--quiet") == 2
        line, = capsys.readouterr().err.splitlines()
        assert told in line and "put back a copy, or train the run again into another folder" in line
    metrics.write_text(whole)
    assert landscape_train("--resume", "--out", tmp_path / "run", "--quiet") == 0


def test_another_configuration_is_refused_and_nothing_is_touched(tmp_path, capsys):
    landscape_train(*SHORT, "--out", tmp_path)
    before = fingerprint(tmp_path)
    capsys.readouterr()
    assert landscape_train(*SHORT, "--lr", "0.5", "--out", tmp_path) == 2
    assert "lr=0.01 there, 0.5 here" in capsys.readouterr().err
    assert fingerprint(tmp_path) == before


def test_resume_takes_the_stored_settings_and_refuses_others(tmp_path, capsys):
    landscape_train(*SHORT, "--lr", "0.02", "--out", tmp_path)
    assert landscape_train("--resume", "--out", tmp_path) == 0
    assert landscape_train("--resume", "--lr", "0.5", "--out", tmp_path) == 2
    assert landscape_train("--resume", "--out", tmp_path / "none") == 2
    capsys.readouterr()
    assert landscape_train("--resume") == 2
    assert "--resume needs --out" in capsys.readouterr().err


def test_the_settings_printed_are_those_that_tell_the_run(tmp_path, capsys):
    words = ["--dataset", "synthetic", "--epochs", "1", "--decay", "0.2", "--out", str(tmp_path / "run")]
    (tmp_path / "o.toml").write_text("rho = 0.3\n")     # may serve other optimizers, and is told of none that does not read it
    words += ["--config", str(tmp_path / "o.toml")]
    assert main(["train", *words]) == 0
    shown = [line.split()[0] for line in capsys.readouterr().out.splitlines() if " = " in line]
    assert " ".join(shown) == "dataset imb_factor arch loss opt epochs batch_size lr weight_decay decay seed"
    assert RunStore.open(tmp_path / "run").config["rho"] == 0.3


def test_settings_of_a_recipe_are_printed_where_the_run_departs_from_them():
    data = load_data("synthetic")
    run = TrainConfig.from_dict(filled({"recipe": "sse-sam", "restore": "copy"})).resolved(data)
    shown = telling_settings(run, data)
    assert (shown["recipe"], shown["restore"], shown["gamma"], shown["tail_rho"]) == ("sse-sam", "copy", 0.7, 0.1)
    assert not {"norm_epsilon", "selection", "gamma_rule", "rho", "scheduler_at"} & shown.keys()


def test_reading_is_announced_where_it_takes_a_while(tmp_path, capsys, monkeypatch):
    def stopped(*_, **__):
        raise KeyboardInterrupt
    monkeypatch.setattr("scripts.train.training_data", stopped)
    for name, told in (("cifar100", "reading cifar100\n"), ("synthetic", "")):
        assert main(["train", "--dataset", name, "--out", str(tmp_path / "run")]) == 130
        assert capsys.readouterr().err == told + "landscape train: interrupted\n"


def test_a_long_evaluation_is_announced(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(train_stored, "LONG", 1)
    words = ["train", "--dataset", "synthetic", "--epochs", "5", "--eval_every", "2", "--out", str(tmp_path)]
    assert main(words) == 0
    told = [line for line in capsys.readouterr().err.splitlines() if line.startswith("evaluating on ")]
    assert len(told) == 3 and told[0].endswith(" test images")      # after the epochs 2, 4 and 5


def test_json_prints_one_document_and_nothing_else(tmp_path, capsys):
    assert landscape_train(*SHORT, "--json", "--out", tmp_path) == 0
    shown = capsys.readouterr()
    document = json.loads(shown.out)
    assert shown.err == "" and document["epochs"] == [2] and document["config"]["dataset"] == "synthetic"
    assert document["last"]["epoch"] == 2 and 0 <= document["best_on_test"]["test_accuracy/all"] <= 1


def test_quiet_prints_nothing(tmp_path, capsys):
    assert landscape_train(*SHORT, "--quiet", "--gpu", "99", "--out", tmp_path) == 0
    assert capsys.readouterr() == ("", "")


def test_an_inverse_imb_factor_is_read_as_such_and_said(tmp_path, capsys):
    assert landscape_train(*SHORT, "--imb_factor", "0.1", "--out", tmp_path) == 0
    assert "imb_factor=0.1 read as its inverse 10" in capsys.readouterr().out
    assert RunStore.open(tmp_path).config["imb_factor"] == 10


def test_dry_run_forecasts_and_writes_nothing(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert landscape_train(*SHORT, "--dry-run") == 0
    assert "2 epochs, 4 steps of" in capsys.readouterr().out
    assert list(tmp_path.iterdir()) == []


def test_settings_come_from_a_file_with_the_command_line_on_top(tmp_path):
    (tmp_path / "run.toml").write_text(     # --opt sam reads no gamma: a file of options may serve several optimizers
        'dataset = "synthetic"\nepochs = 3\nopt = "ssesam"\ngamma = 0.5\nloss = "LDAM"\nmilestones = [1, 2]\n'
        'checkpoint_epochs = [0, 2]\naugment = false\n[loss_options]\nform = "release"\nmax_m = 0.3\n'
    )
    assert landscape_train("--config", tmp_path / "run.toml", "--opt", "sam", "--out", tmp_path / "run") == 0
    store = RunStore.open(tmp_path / "run")
    assert store.config["opt"] == "sam" and store.config["loss_options"] == {"form": "release", "max_m": 0.3}
    assert store.config["milestones"] == [1, 2] and store.config["augment"] is False and store.epochs == [0, 2, 3]


MISTAKES = {
    "opt='adam' is unknown": ["--opt", "adam"],
    "did you mean --tail_rho?": ["--tailrho", "1"],
    "gamma=1.5 is out of range": ["--gamma", "1.5"],
    "epochs=0 is out of range": ["--epochs", "0"],
    "invalid float value": ["--lr", "fast"],
    "is no list of epochs": ["--milestones", "1,b"],
    "expected NAME=VALUE": ["--loss_options", "tau"],
    "checkpoint_epochs='every:0' is unknown": ["--checkpoint_epochs", "every:0"],
    "seed=99999999999999999999 is out of range": ["--seed", "99999999999999999999"],
    "--tail_rho is not read by opt=imbsam: of such settings it reads --rho, --weighting;": [
        "--opt", "imbsam", "--tail_rho", "0.2"],
    "--rho is not read by opt=ssesam: ": ["--opt", "ssesam", "--rho", "0.2"],
    "--rho is not read by opt=sgd: of such settings it reads none;": ["--opt", "sgd", "--rho", "0.05"],
    "gpu=-1 is out of range": ["--gpu", "-1"],
    "dataset='mnist' is unknown": ["--dataset", "mnist"],
    "arch='resnet7' is unknown": ["--arch", "resnet7"],
    "the loss is": ["--lr", "1e30"],
}


@pytest.mark.parametrize("told", MISTAKES)
def test_each_mistake_is_one_line_and_status_2(told, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert landscape_train(*SHORT, "--quiet", *MISTAKES[told]) == 2
    shown = capsys.readouterr()
    assert told in shown.err and shown.err.count("\n") == 1 and shown.out == ""


def test_a_run_begun_on_other_images_is_refused(tmp_path, monkeypatch, capsys):
    def image_file(value):
        images = np.random.RandomState(0).randint(0, 255, (20, 1, 4, 4)).astype(np.uint8)
        images[0, 0, 0, 0] = value
        labels = np.repeat([0, 1], 10)
        np.savez(tmp_path / "own.npz", x_train=images, y_train=labels, x_test=images, y_test=labels)

    words = ["--dataset", f"npz:{tmp_path / 'own.npz'}", "--arch", "mlp", "--epochs", "1", "--out", tmp_path / "run"]
    image_file(0)
    assert landscape_train(*words) == 0
    image_file(1)
    capsys.readouterr()
    assert landscape_train(*words) == 2
    assert "other images or labels" in capsys.readouterr().err


KILLER = """
import os, signal, sys
from checkpoints import atomic
import checkpoints.recorder, checkpoints.run_file, checkpoints.schema
count, replace = [0], os.replace
def replacing(*arguments, **options):
    count[0] += 1
    if count[0] == int(sys.argv[1]):
        os.kill(os.getpid(), signal.SIGKILL)
    return replace(*arguments, **options)
os.replace = replacing
from scripts.cli import main
sys.exit(main(["train", *sys.argv[2:]]))
"""


@pytest.mark.slow
@pytest.mark.parametrize("kills", [[2, 3, 2], [5, 7]])
def test_a_run_killed_at_any_write_and_continued_holds_the_files_of_an_undisturbed_one(tmp_path, kills):
    words = [
        *SHORT,
        "--epochs",
        "4",
        "--opt",
        "ssesam",
        "--gamma",
        "0.5",
        "--checkpoint_epochs",
        "every:1",
        "--quiet",
        "--out",
    ]
    assert landscape_train(*words, tmp_path / "straight") == 0
    for kill in kills:
        done = subprocess.run(
            [sys.executable, "-c", KILLER, str(kill), *words, str(tmp_path / "killed")],
            cwd=ROOT,
            env=os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)},
        )
        assert done.returncode == -signal.SIGKILL
    assert landscape_train(*words, tmp_path / "killed") == 0
    straight, killed = RunStore.open(tmp_path / "straight"), RunStore.open(tmp_path / "killed")
    assert straight.epochs == killed.epochs == [0, 1, 2, 3, 4] and killed.finished
    for one, other in zip(straight.records("checkpoint"), killed.records("checkpoint")):
        assert one.arrays.keys() == other.arrays.keys()
        assert all(np.array_equal(one.arrays[name], other.arrays[name]) for name in one.arrays)
    tables = [store.metrics().drop(columns="seconds") for store in (straight, killed)]
    assert tables[0].equals(tables[1])


def fingerprint(folder):
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in folder.rglob("*") if path.is_file()}
