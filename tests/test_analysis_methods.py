import numpy as np
import pytest
from fabricated_runs import fake_run, fake_runs

from analysis.findings import measured, summary
from analysis.findings.methods import methods_table, plainest
from analysis.spectra.intervals import t_interval
from checkpoints.comparison import compare
from figures.methods import print_methods
from figures.options import Options

FEW = {"epochs": (60,), "probes": 2, "steps": 6}


def timed(run, seconds):
    """Give a run's epochs their seconds; the first takes as long as ten."""
    run.table["seconds"] = [10 * seconds] + [seconds] * (len(run.table) - 1)
    return run


@pytest.fixture(scope="module")
def runs():
    made = [timed(run, {"sgd": 2.0, "sam": 4.0 + 0.1 * run.config["seed"]}[run.config["opt"]])
            for run in fake_runs(("sgd", "sam"), (0, 1, 2), measures=True, **FEW)]
    return compare([*made, *(timed(fake_run("sgd", seed, loss="BCL", measures=True, **FEW), 9.0) for seed in (0, 1, 2))],
                   vary=("loss",))


def test_a_row_a_method_with_the_numbers_of_the_other_tables(runs):
    table, curvature = methods_table(runs), summary.curvature_table(runs)
    assert list(table.index) == ["sgd loss=BCL", "sgd loss=CE", "sam"] and list(table["loss"]) == ["BCL", "CE", "CE"]
    accuracy = summary.accuracy_table(runs)
    for name in ("many", "all_low"):
        np.testing.assert_array_equal(table[name], accuracy.loc[table.index, name])
    for group in ("head", "tail"):
        for name in ("lambda_min", "lambda_max_high", "trace", "negative_mass_low"):
            np.testing.assert_array_equal(table[f"{group}_{name}"], curvature.loc[group].loc[table.index, name])


def test_alignment_is_that_of_the_lowest_pair_with_the_groups_own_gradient(runs):
    rows = measured.rows(runs, "alignment")
    kept = rows[(rows["opt"] == "sam") & (rows["group"] == "tail") & (rows["perturbation"] == "imbsam") & (rows["pair"] == 0)
                & (rows["source"] == "group")]
    expected = t_interval(kept.groupby("seed")["value"].mean(), 0.95)
    row = methods_table(runs).loc["sam"]
    assert (row["tail_alignment_imbsam"], row["tail_alignment_imbsam_low"]) == pytest.approx((expected.value, expected.low))


def test_the_cost_is_of_median_epochs_seed_by_seed_over_plain_sgd(runs):
    assert plainest(runs) == "sgd loss=CE"
    expected = t_interval([2.0, 2.05, 2.1], 0.95)
    row = methods_table(runs).loc["sam"]
    assert (row["cost"], row["cost_low"], row["cost_high"]) == pytest.approx((expected.value, expected.low, expected.high))
    assert methods_table(runs).loc["sgd loss=BCL", "cost"] == pytest.approx(4.5)


def test_signs_that_float64_confirms_are_counted_by_seeds():
    made = fake_runs(("sgd",), (0, 1, 2), **FEW)
    pairs = next(record for record in made[0].kept if getattr(record, "group", "") == "tail").eigenpairs
    pairs.verified[0] = False
    table = methods_table(compare(made))
    assert (table.loc["sgd", "tail_verified"], table.loc["sgd", "head_verified"]) == (2, 3)
    printed = print_methods(compare(made), Options())
    marked = [printed.cells[0][printed.heads.index(rf"{group} $\lambda_{{\min}}$")] for group in ("head", "tail")]
    assert [cell.endswith("(2/3)") for cell in marked] == [False, True]


def test_what_was_not_measured_has_no_column():
    runs = compare(fake_runs(("sgd", "sam"), (0,), **FEW))
    table = methods_table(runs)
    assert not [name for name in table if "alignment" in name or "cost" in name]
    printed = print_methods(runs, Options())
    assert len(printed.heads) == 4 + 2 * 5 and "cost" not in printed.caption and "epsilon" not in printed.caption


def test_a_loss_that_the_name_does_not_say_is_added():
    runs = compare([fake_run("sam", loss="BCL", **FEW), fake_run("sgd", **FEW)], vary=("loss",))
    assert [name for name, _ in print_methods(runs, Options()).names] == ["SGD", "SAM, BCL"]
