"""Accuracy by choice of epoch and of flips, on metrics whose best epoch is known."""

import numpy as np
import pandas as pd
import pytest
from fabricated_runs import fake_run

from analysis.findings import outcomes
from checkpoints.comparison import compare
from checkpoints.errors import RecordError

FEW = {"epochs": (60,), "probes": 1, "steps": 4}


def chosen(seed=0, best=20, flips=True, **config):
    """Return a run evaluated at 10, 20 and 30, best on all test images at `best`; flips add a hundredth."""
    run = fake_run("sgd", seed, **FEW, **config)
    everyone = np.where(np.arange(10, 31, 10) == best, 0.9, 0.5) + seed / 100
    table = {"epoch": [10, 20, 30], "test_accuracy/all": everyone, "test_accuracy/tail": [0.1, 0.2, 0.3]}
    if flips:
        table |= {"test_accuracy_flip/all": everyone + 0.01, "test_accuracy_flip/tail": [0.11, 0.21, 0.31]}
    run.table = pd.DataFrame(table)
    return run


def test_four_choices_stand_side_by_side_with_their_epochs():
    table = outcomes.accuracy_outcomes(compare([chosen(0), chosen(1, best=10)]))
    assert list(table.loc["sgd"].index) == ["last epoch", "last epoch, flips averaged", "best on the test set",
                                            "best on the test set, flips averaged"]
    assert list(table["epochs"]) == ["30", "30", "10, 20", "10, 20"]
    assert list(table["tail"]) == pytest.approx([0.3, 0.31, 0.15, 0.16])
    assert table["many"].isna().all() and (table["num_seeds"] == 2).all()


@pytest.mark.parametrize("config, result", [
    ({}, "last epoch"), ({"selection": "test_best"}, "best on the test set"),
    ({"selection": "test_best", "flip_average": True}, "best on the test set, flips averaged")])
def test_the_runs_own_result_is_marked(config, result):
    table = outcomes.accuracy_outcomes(compare([chosen(**config)])).reset_index()
    assert list(table.loc[table["result"], "how"]) == [result]


def test_without_mirror_images_there_are_two_choices():
    table = outcomes.accuracy_outcomes(compare([chosen(flips=False, flip_average=True)])).reset_index()
    assert list(table["how"]) == ["last epoch", "best on the test set"] and list(table["result"]) == [True, False]
    mixed = outcomes.accuracy_outcomes(compare([chosen(0), chosen(1, flips=False)])).reset_index()
    assert list(mixed["how"]) == ["last epoch", "best on the test set"]


def test_an_epoch_that_is_named_is_not_selected():
    table = outcomes.accuracy_outcomes(compare([chosen()]), epoch=10).reset_index()
    assert list(table["how"]) == ["epoch 10", "epoch 10, flips averaged"] and list(table["tail"]) == [0.1, 0.11]
    with pytest.raises(RecordError, match="epoch=11 was not evaluated in runs/sgd-0: expected one of 10, 20, 30"):
        outcomes.accuracy_outcomes(compare([chosen()]), epoch=11)


def test_a_run_that_was_never_evaluated_is_refused():
    run = chosen()
    run.table = run.table[["epoch"]]
    with pytest.raises(RecordError, match="no evaluated epoch"):
        outcomes.accuracy_outcomes(compare([run]))


def test_on_cifar10_head_mid_and_tail_are_those_of_rangwani():
    run = chosen(flips=False, dataset="cifar10")
    run.table = run.table.assign(**{f"test_accuracy/class:{c}": c / 10 for c in range(10)})
    runs = compare([run])
    assert outcomes.groups_of(runs) == ("many", "medium", "few", "head", "tail", "head 0-2", "mid 3-6", "tail 7-9", "all")
    row = outcomes.accuracy_outcomes(runs).iloc[0]
    assert [row[name] for name in ("head 0-2", "mid 3-6", "tail 7-9")] == pytest.approx([0.1, 0.45, 0.8])
    assert "mid 3-6" not in outcomes.groups_of(compare([chosen()]))
