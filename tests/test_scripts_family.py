"""The family on the command line: every row trains from there, one's own by module:callable, mistakes leave nothing."""

import numpy as np
import pytest
from torch.nn.functional import cross_entropy

from checkpoints.store import RunStore
from landscape.configuration import TrainConfig
from landscape.family import FAMILY, register_optimizer
from landscape.losses import LOSSES, loss_options, register_loss
from landscape.optimizers import SAM
from landscape.optimizers.building import hyperparameters
from landscape.training import train, training_data
from scripts.cli import main

QUICK = ["train", "--dataset", "synthetic", "--arch", "mlp", "--eta", "30", "--batch_size", "64"]
OWN = '''
import torch
from landscape import GroupSAM


def tail_only(optimizer, model, *, tail_radius=0.1, **options):
    return GroupSAM(optimizer, model, {"head": 0.0, "tail": tail_radius}, **options)


def tempered(class_counts, *, temperature=2.0):
    return lambda logits, targets: torch.nn.functional.cross_entropy(logits / temperature, targets, reduction="none")
'''


def test_help_names_every_optimizer_loss_and_option_with_its_default(capsys):
    assert main(["train", "--help"]) == 0
    text = " ".join(capsys.readouterr().out.split())
    for opt in FAMILY:
        assert opt in text
        for name, default in hyperparameters(opt).items():
            assert f"{name}={default}" in text or f"--{name}" in text
    for name in LOSSES:
        assert name in text and all(f"{option}={value}" in text for option, value in loss_options(name).items())


def test_ones_own_optimizer_and_loss_train_and_go_on_from_the_command_line(tmp_path, monkeypatch, capsys):
    (tmp_path / "my_family.py").write_text(OWN)
    monkeypatch.chdir(tmp_path)
    words = [*QUICK, "--opt", "my_family:tail_only",
             "--opt_options", "tail_radius=0.2", "--loss", "my_family:tempered", "--out", "run"]
    assert main([*words, "--epochs", "2"]) == 0
    assert "opt = my_family:tail_only" in capsys.readouterr().out
    store = RunStore.open("run")
    assert store.config["opt_options"] == {"tail_radius": 0.2} and store.finished
    assert main(["train", "--resume", "--out", "run"]) == 0 and "nothing to train" in capsys.readouterr().out


def test_flags_and_options_of_one_name_are_one_setting(tmp_path, capsys):
    file = tmp_path / "mine.toml"
    file.write_text('opt = "friendlysam"\n[opt_options]\nrho = 0.2\nfriendly = 0.5\n')
    assert main([*QUICK, "--epochs", "1", "--config", str(file), "--out", str(tmp_path / "run")]) == 0
    config = RunStore.open(tmp_path / "run").config
    assert config["rho"] == 0.2 and config["opt_options"] == {"friendly": 0.5}
    shown = capsys.readouterr().out
    assert "rho = 0.2" in shown and "opt_options = {'friendly': 0.5}" in shown and "tail_rho" not in shown


def test_running_averages_come_back_from_the_file_in_the_same_bits(tmp_path):
    config = TrainConfig(dataset="synthetic", arch="mlp", eta=30, opt="imbsam", opt_options={"friendly": 1.0}, epochs=2)
    data, points = training_data(config), {}
    for name, stops in (("whole", ()), ("stopped", (False, True))):
        store, answers = RunStore.create(tmp_path / name, config.resolved(data).stored()), iter(stops)
        for stop in ((lambda: next(answers), None) if stops else (None,)):
            with store.writer():
                train(config, data=data, recorder=store.recorder(), stop=stop)
        with store.writer():
            points[name] = store.recorder().resumed()
    assert any("average of tail" in name for name in points["whole"])
    assert points["whole"].keys() == points["stopped"].keys()
    assert all(np.array_equal(array, points["stopped"][name]) for name, array in points["whole"].items())


@pytest.mark.parametrize("words, told", [
    (("--opt", "lpfsgd", "--opt_options", "lpf_draws=0"), "lpf_draws=0 is out of range"),
    (("--opt", "focalsam", "--opt_options", "focal_weight=-1"), "focal_weight=-1.0 is out of range"),
    (("--opt", "ccsam", "--imb_factor", "60"), "class_counts[3]=1 is out of range: CC-SAM"),
    (("--opt", "focal"), "opt='focal' is unknown: expected one of sgd, sam"),
    (("--opt", "sam", "--opt_options", "radius=1"), "'radius' is unknown to opt sam: expected rho, scaling"),
    (("--loss", "Focal", "--loss_options", "focal_gamma=-1"), "focal_gamma=-1 is out of range"),
])
def test_a_mistake_is_one_line_and_leaves_no_folder(tmp_path, capsys, words, told):
    assert main([*QUICK, *words, "--quiet", "--out", str(tmp_path / "run")]) == 2
    error = capsys.readouterr().err
    assert told in error and error.count("\n") == 1 and not (tmp_path / "run").exists()


def test_a_run_is_analysed_where_its_own_optimizer_and_loss_are_not(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("landscape.family.FAMILY", dict(FAMILY))
    monkeypatch.setattr("landscape.losses.table.LOSSES", dict(LOSSES))
    register_optimizer("gone", lambda optimizer, model, *, amount=0.1, **options: SAM(optimizer, model, amount, **options))
    register_loss("lost", lambda class_counts: lambda logits, targets: cross_entropy(logits, targets, reduction="none"))
    config = TrainConfig(dataset="synthetic", arch="mlp", eta=30, opt="gone", opt_options={"amount": 0.2}, loss="lost", epochs=1)
    data = training_data(config)
    store = RunStore.create(tmp_path / "run", config.resolved(data).stored(), provenance={"data_hash": data.hash})
    with store.writer():
        train(config, data=data, recorder=store.recorder())
        store.mark_finished()
    monkeypatch.undo()
    words = ["spectrum", str(store.path), "--group", "tail", "--max_samples", "20", "--num_probes", "1", "--num_matvecs", "5",
             "--num_pairs", "1", "--quiet"]
    assert main(words) == 0 and main(["inspect", str(store.path)]) == 0
    assert main([*words, "--loss", "training", "--overwrite"]) == 2
    assert "loss='lost' is unknown: expected one of CE" in capsys.readouterr().err
    assert main(["train", "--resume", "--out", str(store.path), "--quiet"]) == 2
    assert "is unknown: expected one of" in capsys.readouterr().err
