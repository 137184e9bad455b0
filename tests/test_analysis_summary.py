import json

import numpy as np
import pytest
from fabricated_runs import fake_run, fake_runs
from scipy.stats import t as student_t

from analysis.findings import summary
from analysis.spectra.quadrature import negative_mass, threshold
from checkpoints.comparison import compare
from checkpoints.errors import RecordError

FEW = {"epochs": (0, 60), "probes": 2, "steps": 6}


@pytest.fixture(scope="module")
def runs():
    return compare(fake_runs(("sgd", "ssesam"), (0, 1, 2), **FEW))


def test_over_seeds_is_students_t():
    estimate = summary.over_seeds([1.0, 2.0, 4.0], 0.9)
    half = student_t.ppf(0.95, 2) * np.std([1, 2, 4], ddof=1) / np.sqrt(3)
    assert (estimate.value, estimate.kind, estimate.level) == (pytest.approx(7 / 3), "seeds", 0.9)
    assert estimate.high - estimate.value == pytest.approx(half)


def test_one_run_has_no_interval_over_seeds_and_no_run_no_value():
    assert np.isnan(summary.over_seeds([3.0]).low) and summary.over_seeds([3.0]).value == 3.0
    assert np.isnan(summary.over_seeds([]).value)


def test_a_single_record_brings_its_own_interval(runs):
    record = runs.curvatures("sgd", 60, "tail")[0]
    assert summary.pooled([record], "trace") is record.trace
    assert np.isnan(summary.pooled([record], "lambda_min").low)
    assert summary.pooled([record, record], "trace").kind == "seeds"


def test_curvature_frame_has_one_row_a_record(runs):
    frame = summary.curvature_frame(runs)
    assert len(frame) == 2 * 3 * 2 * 2
    row = frame.query("opt == 'sgd' and seed == 1 and epoch == 60 and group == 'tail'").iloc[0]
    record = runs.members["sgd"][1].curvature(60, "tail")
    assert row["lambda_min"] == record.eigenpairs.values[0] and row["trace"] == record.trace.value
    assert bool(row["lambda_min_verified"])


def test_curvature_table_holds_means_over_seeds(runs):
    table = summary.curvature_table(runs)
    values = [record.eigenpairs.values[-1] for record in runs.curvatures("ssesam", 60, "head")]
    assert table.loc[("head", "ssesam"), "lambda_max"] == pytest.approx(np.mean(values))
    assert (table["num_seeds"] == 3).all() and (table["epoch"] == 60).all()


def test_negative_mass_of_a_table_is_below_one_threshold(runs):
    table = summary.curvature_table(runs)
    pools = [runs.curvatures(opt, 60, group) for group in ("head", "tail") for opt in runs.optimizers]
    records = [record for pool in pools for record in pool]
    shared = threshold([record.spectrum for record in records])
    expected = np.mean([negative_mass(r.spectrum, shared).value for r in runs.curvatures("sgd", 60, "tail")])
    assert table["threshold"].unique() == pytest.approx([shared])
    assert table.loc[("tail", "sgd"), "negative_mass"] == pytest.approx(expected)


def test_negative_mass_over_seeds_keeps_the_quadrature_uncertainty_that_all_runs_share(runs):
    records = runs.curvatures("sgd", 60, "tail")
    pooled = summary.pooled(records, "negative_mass")
    narrow = summary.over_seeds([record.negative_mass.value for record in records])
    assert pooled.kind == "quadrature+probes+seeds" and pooled.value == narrow.value
    assert pooled.low <= min(np.mean([r.negative_mass.low for r in records]), narrow.value)
    assert 1 >= pooled.high >= np.mean([r.negative_mass.high for r in records]) and pooled.low >= 0


def test_a_record_without_eigenpairs_has_no_extremes():
    from dataclasses import replace
    record = fake_run(**FEW).kept[0]
    pairs = replace(record.eigenpairs, values=np.zeros(0), verified=np.zeros(0, bool))
    assert np.isnan(summary.pooled([replace(record, eigenpairs=pairs)], "lambda_min").value)


def test_accuracy_table_takes_the_last_epoch_and_says_how_many_seeds(runs):
    table = summary.accuracy_table(runs)
    values = [member.metrics["test_accuracy/tail"].iloc[-1] for member in runs.members["ssesam"]]
    assert table.loc["ssesam", "tail"] == pytest.approx(np.mean(values))
    assert table.loc["ssesam", "num_seeds"] == 3 and table.loc["ssesam", "epoch"] == 60
    last = summary.last_accuracies(runs).query("opt == 'ssesam'")
    assert list(last["tail"]) == values and list(last["seed"]) == [0, 1, 2]


def test_accuracy_at_an_epoch_that_was_not_evaluated_is_refused(runs):
    with pytest.raises(RecordError, match="epoch=7 was not evaluated in runs/sgd-0: expected one of 6, 12"):
        summary.accuracy_table(runs, 7)


def test_an_absent_group_is_absent_and_never_zero():
    run = fake_run(**FEW)
    run.table = run.table.drop(columns="test_accuracy/few")
    table = summary.accuracy_table(compare([run]))
    assert np.isnan(table.loc["sgd", "few"])
    assert summary.cell(table.loc["sgd"], "few", percent=True) == "absent"
    assert summary.as_json(table)[0]["few"] is None


def test_curves_over_epochs_are_means_at_evaluated_epochs(runs):
    curve = summary.accuracy_over_epochs(runs, "sgd", "head")
    assert list(curve.index) == list(range(6, 61, 6))
    values = [member.metrics.set_index("epoch").loc[12, "test_accuracy/head"] for member in runs.members["sgd"]]
    assert curve.loc[12, "value"] == pytest.approx(np.mean(values)) and curve.loc[12, "low"] < curve.loc[12, "value"]


def test_seeds_evaluated_at_other_epochs_have_no_mean():
    short = fake_run("sgd", 1, **FEW)
    short.table = short.table[short.table["epoch"] <= 30]
    runs = compare([fake_run("sgd", 0, **FEW), short])
    with pytest.raises(RecordError, match="runs/sgd-1: evaluated after other epochs than runs/sgd-0"):
        summary.accuracy_over_epochs(runs, "sgd", "head")


def test_a_run_that_was_never_evaluated_is_refused():
    run = fake_run(**FEW)
    run.table = run.table[["epoch", "lr"]].iloc[:0]
    with pytest.raises(RecordError, match="no evaluated epoch"):
        summary.accuracy_table(compare([run]))
    with pytest.raises(RecordError, match="no column test_accuracy/class:1"):
        summary.accuracy_over_epochs(compare([fake_run(**FEW)]), "sgd", "class:1")


def test_intervals_share_the_decimals_of_their_value():
    assert summary.interval_text(-59.01, -62.21, -55.81) == "−59.0 ± 3.2"
    assert summary.interval_text(0.5, 0.4, 0.9) == "0.50 [0.40, 0.90]"
    assert summary.interval_text(2.0, np.nan, np.nan) == "2.00"
    assert summary.interval_text(np.nan, 1.0, 2.0) == "absent"
    assert summary.interval_text(-5.2e-9, -7.4e-9, -3.0e-9) == "(−5.20 ± 2.20)e−9"
    assert summary.interval_text(51.23, 50.0, 52.46, 1) == "51.2 ± 1.2"


def test_numbers_stay_short_over_many_decades():
    assert [summary.number_text(v) for v in (0.0, 12345.6, -0.0123456, 2.5e-7, -3e8)] \
        == ["0.00", "12346", "−0.0123", "2.50e−07", "−3.00e+08"]


def test_text_and_json_show_the_same_table(runs):
    table = summary.accuracy_table(runs)
    text = summary.as_text(table, ["head", "tail"], percent=True)
    assert summary.cell(table.loc["sgd"], "tail", percent=True) in text and "ssesam" in text
    rows = json.loads(json.dumps(summary.as_json(table), allow_nan=False))
    assert rows[0]["opt"] == "sgd" and rows[0]["tail"] == pytest.approx(table.loc["sgd", "tail"])
