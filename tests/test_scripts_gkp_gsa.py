"""GKP-GSA on balanced contrastive learning, from the command line to a spectrum and back to the weights."""

import json

import pytest
import torch

from analysis.subject import Subject
from checkpoints.store import RunStore
from landscape.errors import InputError
from landscape.losses.contrastive import HEADS
from landscape.parameters import trainable
from scripts.cli import main

TRAIN = ("train --dataset digits --opt gkp_gsa --loss BCL --epochs 2 --batch_size 128 --lr 0.02 --eval_every 2 --threads 1 "
         "--loss_options hidden=8 dim=4 --opt_options num_groups=3 regroup_every=1 --json").split()
SPECTRUM = ("spectrum --group tail --num_matvecs 4 --num_probes 1 --num_pairs 1 --max_matvecs 8 --max_samples 20 "
            "--trace_probes 2 --json").split()


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    path = tmp_path_factory.mktemp("runs") / "bcl"
    assert main([*TRAIN, "--out", str(path)]) == 0
    return path


def test_a_run_tells_alpha_and_penalty_and_is_finished_when_asked_again(run, capsys):
    rows = RunStore.open(run).metrics()
    assert list(rows["alpha"]) == pytest.approx([0.95, 0.775])     # those that the two epochs stepped with
    assert rows["gkp_penalty"].iloc[0] == 0 < rows["gkp_penalty"].iloc[1]      # the first anchors are of the first epoch's end
    assert main([*TRAIN, "--out", str(run)]) == 0
    assert json.loads(capsys.readouterr().out)["finished"]


def test_its_spectrum_is_of_ce_on_the_logits_and_leaves_the_heads_out(run, capsys):
    arguments = [SPECTRUM[0], str(run), *SPECTRUM[1:]]
    assert main(arguments) == 0
    capsys.readouterr()
    record = RunStore.open(run).read("curvature", epoch=2, group="tail")
    subject = Subject.open(RunStore.open(run))
    subject.load(2)
    assert record.eigenpairs.vectors.shape[-1] == sum(p.numel() for p in trainable(subject.model).values())
    assert not any(name.startswith(HEADS) for name in trainable(subject.model))
    stored = subject.checkpoint.arrays      # they are in the checkpoint, and loaded
    assert all(torch.equal(subject.model.state_dict()[name], torch.tensor(value)) for name, value in stored.items())
    assert any(name.startswith(HEADS) for name in stored)
    for measure in ("alignment", "similarity", "quality"):      # mini-batches are drawn as they were trained on
        assert main(["measure", measure, str(run), "--group", "tail", "--max_samples", "20", "--quiet"]) == 0


def test_its_training_loss_is_no_function_of_the_logits(run):
    with pytest.raises(InputError, match="loss=training is BCL, which contrasts views .* expected loss=CE"):
        Subject.open(RunStore.open(run)).loss("training")


@pytest.mark.parametrize("words, line", [
    (["--opt_options", "num_groups=11"], "num_groups=11 is out of range: expected an integer, 1 <= num_groups <= 10"),
    (["--opt_options", "penalty=-1"], "penalty=-1 is out of range"),
    (["--imb_factor", "120"], "class 8 has 1 training image: the variance of its features is undefined"),
    (["--gkp_variant", "released", "--opt_options", "direction=full"], "direction=full is of gkp_variant=paper"),
    (["--loss", "BCL", "--loss_options", "views=policy"], "views=policy is for color images"),
])
def test_mistakes_are_one_line_and_leave_no_folder(words, line, tmp_path, capsys):
    assert main(["train", "--dataset", "digits", "--opt", "gkp_gsa", *words, "--out", str(tmp_path / "run")]) == 2
    error = capsys.readouterr().err
    assert line in error and len(error.strip().splitlines()) == 1
    assert not (tmp_path / "run").exists()
