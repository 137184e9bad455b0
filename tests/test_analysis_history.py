"""Escapes read off sequences of verdicts that are known."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from fabricated_runs import fake_run, fake_runs
from torch import nn

from analysis.findings import history
from analysis.findings.verdict import NONE_FOUND, SADDLE, SLOPE, UNDECIDED, judge
from analysis.pipeline import parameter_norms
from analysis.spectra.intervals import t_interval
from checkpoints.comparison import compare
from checkpoints.records import Estimate

FEW = {"probes": 1, "steps": 4}


def verdicts(*kinds, every=10):
    record = fake_run("sgd", epochs=(0,), **FEW).kept[0]
    return [replace(judge(record), epoch=(place + 1) * every, kind=kind) for place, kind in enumerate(kinds)]


@pytest.mark.parametrize("kinds, low, high, words", [
    ((SADDLE, SLOPE, NONE_FOUND), 20, 30, "after epoch 20, by 30"),
    ((SADDLE, UNDECIDED, NONE_FOUND, UNDECIDED), 10, 30, "after epoch 10, by 30"),
    ((NONE_FOUND, NONE_FOUND), 0, 10, "none proved before, by epoch 10"),
    ((SLOPE, NONE_FOUND, SADDLE), 10, 20, "after epoch 10, by 20, found again at 30"),
    ((SLOPE, SADDLE), 20, np.inf, "not within 20 epochs"),
    ((SLOPE, UNDECIDED, UNDECIDED), 10, np.inf, "undecided from epoch 20 on"),
    ((UNDECIDED,), 0, np.inf, "undecided from epoch 10 on")])
def test_an_escape_lies_between_two_checkpoints_or_is_censored(kinds, low, high, words):
    found = history.escape(verdicts(*kinds))
    assert (found["low"], found["high"], found["words"]) == (low, high, words)


def escaping(opt, seed, by):
    """Return a run whose tail bends down before epoch `by` and does not from then on."""
    run = fake_run(opt, seed, epochs=(10, 20, 30, 40), **FEW)
    run.kept = [record if record.epoch < by else flat(record) for record in run.records("curvature")]
    return run


def flat(record):
    pairs = record.eigenpairs
    values = np.abs(pairs.values)
    missed = Estimate(values[0], -1e-6, values[0], 0.95, "probes")
    return replace(record, eigenpairs=replace(pairs, values=values, values64=values, missed_below=missed))


def test_the_interval_over_seeds_holds_the_distance_of_checkpoints():
    runs = compare([escaping("sgd", 0, 20), escaping("sgd", 1, 30), escaping("sgd", 2, 30)])
    row = history.escape_table(runs, ("tail",)).loc[("tail", "sgd")]
    assert (row["num_seeds"], row["escaped"]) == (3, 3) and row["value"] == pytest.approx((15 + 25 + 25) / 3)
    assert row["low"] < (10 + 20 + 20) / 3 and row["high"] > (20 + 30 + 30) / 3
    assert row["words"] == "after epoch 10, by 30 (3 of 3 seeds)"


def test_one_seed_has_the_ends_of_its_own():
    row = history.escape_table(compare([escaping("sgd", 0, 20)]), ("tail",)).loc[("tail", "sgd")]
    assert (row["low"], row["value"], row["high"], row["words"]) == (10, 15, 20, "after epoch 10, by 20")


def test_a_seed_that_never_escapes_censors_the_mean():
    runs = compare([escaping("sgd", 0, 20), escaping("sgd", 1, 99)])
    row = history.escape_table(runs, ("tail",)).loc[("tail", "sgd")]
    assert np.isnan(row["value"]) and row["high"] == np.inf and row["escaped"] == 1
    assert row["words"] == "not within 40 epochs in 1 of 2 seeds, else after epoch 10, by 20"
    assert history.escape_table(compare([escaping("sgd", 0, 99)]), ("tail",))["words"].item() == "not within 40 epochs"


def test_the_frame_has_a_verdict_a_run_epoch_and_group():
    runs = compare(fake_runs(("sgd", "sam"), (0, 1), epochs=(0, 60), **FEW))
    frame = history.verdict_frame(runs, ("head", "tail"))
    assert len(frame) == 2 * 2 * 2 * 2 and set(frame["verdict"]) == {SLOPE}
    record = runs.members["sam"][1].curvature(60, "tail")
    row = frame.query("opt == 'sam' and seed == 1 and epoch == 60 and group == 'tail'").iloc[0]
    assert row["lambda_min"] == record.eigenpairs.values[0] and row["eps_H"] == judge(record).eps_H


def test_tolerances_that_are_given_reach_every_verdict():
    runs = compare(fake_runs(("sgd",), (0, 1), epochs=(60,), **FEW))
    table = history.verdict_table(runs, ("head", "tail"), eps_g=0.1, eps_H=0.01)
    assert list(table[SADDLE]) == [2, 2] and list(table[SLOPE]) == [0, 0] and (table["eps_g"] == 0.1).all()
    assert (history.verdict_table(runs, ("tail",))[SLOPE] == 2).all()


def test_weight_decay_of_the_run_is_told():
    runs = compare([fake_run("sgd", epochs=(60,), weight_decay=0.002, **FEW)])
    assert "weight decay 0.002" in history.verdict_frame(runs, ("tail",))["sentence"].item()


def test_the_table_has_the_mean_and_interval_of_every_quantity_that_it_names():
    runs = compare(fake_runs(("sgd",), (0, 1, 2), epochs=(60,), **FEW))
    row = history.verdict_table(runs, ("tail",)).loc[("tail", "sgd")]
    masses = [record.negative_mass.value for record in runs.curvatures("sgd", 60, "tail")]
    expected = t_interval(masses, 0.95)
    assert (row["negative_mass"], row["negative_mass_low"], row["negative_mass_high"]) == pytest.approx(
        (expected.value, expected.low, expected.high))
    named = history.verdict_table.__doc__.partition("over seeds of ")[2].partition(";")[0].replace(",", " ").split()
    assert len(named) == 5 and all({name, f"{name}_low", f"{name}_high"} <= set(row.index) for name in named)


def test_parameter_norms_are_those_of_the_trainable_parameters_of_the_model():
    model = nn.Sequential(nn.Linear(2, 1), nn.BatchNorm1d(1), nn.Linear(1, 1, bias=False))
    with torch.no_grad():
        model[0].weight.copy_(torch.tensor([[3.0, -4.0]]))
        model[0].bias.fill_(-2.0)
        model[1].weight.fill_(0.5)
    model[2].weight.requires_grad_(False)
    assert parameter_norms(model) == {"0.weight": 5.0, "0.bias": 2.0, "1.weight": 0.5, "1.bias": 0.0}
