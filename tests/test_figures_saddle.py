import numpy as np
import pytest
from fabricated_runs import fake_run, fake_runs

from analysis.spectra.intervals import t_interval
from analysis.spectra.quadrature import negative_mass, threshold
from checkpoints.comparison import compare
from checkpoints.errors import RecordError
from figures import saddle, style
from figures.options import Options

FEW = {"epochs": (0, 30, 60), "probes": 2, "steps": 6}


@pytest.fixture(scope="module")
def runs():
    return compare(fake_runs(("sgd", "ssesam"), (0, 1, 2), **FEW))


def test_values_are_means_with_t_intervals_over_seeds(runs):
    table = saddle.over_epochs(runs, ("head", "tail"), "extreme_ratio", 0.9)
    row = table.query("opt == 'ssesam' and group == 'tail' and epoch == 30").iloc[0]
    expected = t_interval([r.extreme_ratio.value for r in runs.curvatures("ssesam", 30, "tail")], 0.9, "seeds")
    assert (row["value"], row["low"], row["high"]) == pytest.approx((expected.value, expected.low, expected.high))
    assert len(table) == 2 * 2 * 3


def test_each_group_is_drawn_at_the_epochs_at_which_it_was_analysed():
    run = fake_run("sgd", **FEW)
    run.kept = [record for record in run.kept if (getattr(record, "group", ""), record.epoch) != ("head", 30)]
    table = saddle.over_epochs(compare([run]), ("head", "tail"), "lambda_min")
    assert [table.query(f"group == '{group}'")["epoch"].tolist() for group in ("head", "tail")] == [[0, 60], [0, 30, 60]]
    assert saddle.draw_lambda_min(compare([run]), Options()) is not None


def test_one_run_shows_the_records_own_interval():
    runs = compare([fake_run("sgd", **FEW)])
    row = saddle.over_epochs(runs, ("tail",), "extreme_ratio").iloc[-1]
    own = runs.curvatures("sgd", 60, "tail")[0].extreme_ratio
    assert (row["low"], row["high"]) == (own.low, own.high)


def test_negative_mass_is_below_one_threshold_everywhere(runs):
    table = saddle.over_epochs(runs, ("head", "tail"), "negative_mass")
    shared = threshold([record.spectrum for member in runs.everyone for record in member.curvatures.values()])
    assert table["threshold"].unique() == pytest.approx([shared])
    masses = [negative_mass(r.spectrum, shared).value for r in runs.curvatures("sgd", 0, "head")]
    row = table.query("opt == 'sgd' and group == 'head' and epoch == 0")
    assert row["value"].item() == pytest.approx(np.mean(masses))


def test_a_seed_that_lacks_an_epoch_is_refused(runs):
    ragged = compare([fake_run("sgd", 0, **FEW), fake_run("sgd", 1, epochs=(0, 60), probes=2, steps=6)])
    with pytest.raises(RecordError, match="landscape spectrum runs/sgd-1 --epoch 30 --group head"):
        saddle.over_epochs(ragged, ("head",), "lambda_min")


def test_lines_and_bands_hold_the_table(runs):
    table = saddle.over_epochs(runs, ("tail",), "lambda_min").query("opt == 'sgd'")
    artists = saddle.plot_over_epochs(style.new_figure(2).subplots(), table)
    np.testing.assert_array_equal(artists["line"].get_ydata(), table["value"])
    assert artists["band"].get_datalim(artists["band"].axes.transData).y0 == pytest.approx(table["low"].min())


@pytest.mark.parametrize("draw", [saddle.draw_extreme_ratio, saddle.draw_negative_mass, saddle.draw_lambda_min])
def test_each_optimizer_has_a_panel_and_ssesam_its_switch(runs, draw):
    with style.context():
        figure = draw(runs, Options())
    assert [ax.get_title(loc="left") for ax in figure.axes] == ["SGD", "SSE-SAM"]
    switches = [[line.get_xdata()[0] for line in ax.lines if len(line.get_xdata()) == 2] for ax in figure.axes]
    assert switches == [[], [42]]   # ceil(0.7 * 60)
    groups = [line for line in figure.axes[0].lines if len(line.get_xdata()) == 3]
    assert len({line.get_linestyle() for line in groups}) == 2


def test_lambda_min_shows_zero_and_every_mean(runs):
    with style.context():
        figure = saddle.draw_lambda_min(runs, Options())
    low, high = figure.axes[0].get_ylim()
    values = saddle.over_epochs(runs, ("head", "tail"), "lambda_min")["value"]
    assert low < values.min() and high >= 0


def test_positive_lambda_min_stays_in_view(runs):
    ax = style.new_figure(2).subplots()
    table = saddle.over_epochs(runs, ("tail",), "lambda_min")
    table[["value", "low", "high"]] = table[["value", "low", "high"]].abs()
    saddle.set_lambda_min_limits(ax, table)
    assert ax.get_ylim()[0] <= 0 and ax.get_ylim()[1] > table["value"].max()
