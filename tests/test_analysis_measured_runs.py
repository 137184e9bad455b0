from dataclasses import replace

import numpy as np
import pytest
from fabricated_measures import tidy
from fabricated_runs import fake_run

from analysis.findings import measured
from analysis.spectra.intervals import t_interval
from checkpoints.comparison import compare
from checkpoints.errors import RecordError


def run_of(seed=0, epochs=(0, 60), opt="sgd", values=(1.0, 2.0), **about):
    run = fake_run(opt, seed, epochs=(60,), groups=())
    for epoch in epochs:
        rows = [{"group": group, "value": value + seed, "low": value - 1, "high": value + 1}
                for group, value in zip(("head", "tail"), values)]
        run.kept.append(tidy("quality", epoch, rows, **about))
    return run


def test_several_seeds_give_their_mean_and_t_interval():
    runs = compare([run_of(seed) for seed in (0, 1, 3)])
    table = measured.pooled(measured.rows(runs, "quality"), ["group", "epoch"], level=0.9)
    row = table[(table["group"] == "tail") & (table["epoch"] == 60)].iloc[0]
    expected = t_interval([2.0, 3.0, 5.0], 0.9)
    assert (row["value"], row["low"], row["high"], row["num_seeds"]) == pytest.approx(
        (expected.value, expected.low, expected.high, 3))
    assert len(table) == 4


def test_one_seed_shows_the_records_own_interval_and_says_so():
    runs = compare([run_of(interval="images")])
    row = measured.pooled(measured.rows(runs, "quality"), ["group", "epoch"]).iloc[0]
    assert (row["value"], row["low"], row["high"]) == (1.0, 0.0, 2.0)
    record = runs.everyone[0].measurement("quality", 60)
    assert measured.interval_words(runs, record, 0.95) == "; 95 % interval over images"
    assert "t interval over seeds" in measured.interval_words(compare([run_of(0), run_of(1)]), record)


def test_draws_are_averaged_before_seeds():
    run = fake_run("sgd", 0, epochs=(60,), groups=())
    run.kept.append(tidy("alignment", 60, [{"group": "head", "draw": n, "value": value} for n, value in enumerate((1, 2, 6))]))
    row = measured.pooled(measured.rows(compare([run]), "alignment"), ["group"]).iloc[0]
    expected = t_interval([1, 2, 6], 0.95)
    assert (row["value"], row["high"]) == pytest.approx((3.0, expected.high))


def test_draws_of_several_seeds_count_once_a_seed():
    runs = []
    for seed, draws in enumerate(((1, 2, 6), (5, 5, 5))):
        run = fake_run("sgd", seed, epochs=(60,), groups=())
        run.kept.append(tidy("alignment", 60, [{"group": "head", "draw": n, "value": value} for n, value in enumerate(draws)]))
        runs.append(run)
    row = measured.pooled(measured.rows(compare(runs), "alignment"), ["group"]).iloc[0]
    expected = t_interval([3.0, 5.0], 0.95)
    assert (row["value"], row["low"], row["num_seeds"]) == pytest.approx((4.0, expected.low, 2))


def test_a_measurement_that_one_seed_lacks_is_refused_with_its_command():
    runs = compare([run_of(0), run_of(1, epochs=(60,))])
    with pytest.raises(RecordError, match="landscape measure quality runs/sgd-1 --epoch 0"):
        measured.rows(runs, "quality")
    assert measured.last_epoch(runs, "quality") == 60
    with pytest.raises(RecordError, match="landscape measure toy runs/sgd-0"):
        measured.any_record(runs, "toy")


def test_measurements_made_differently_are_refused():
    odd = run_of(1)
    odd.kept[-1] = replace(odd.kept[-1], provenance={"inputs": {"data": "other", "settings": {}}})
    with pytest.raises(RecordError, match="data=other and data=d1: measurements of quality that were made differently"):
        measured.rows(compare([run_of(0), odd]), "quality")


def test_groups_that_were_not_measured_are_refused_by_name():
    table = measured.rows(compare([run_of()]), "quality")
    assert measured.chosen_groups(table, ("head", "tail")) == ["head", "tail"]
    assert measured.chosen_groups(table[table["group"] == "tail"], ("head", "tail")) == ["tail"]
    with pytest.raises(RecordError, match="groups=few: none of them was measured: expected some of head, tail"):
        measured.chosen_groups(table, ("few",))
    assert np.isfinite(table["value"]).all()
