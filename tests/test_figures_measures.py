"""Figures of one measure each: toy saddles, feature quality, robustness of lambda_min, cost of a step."""

import numpy as np
import pandas as pd
import pytest
from fabricated_measures import tidy
from fabricated_runs import fake_run, fake_runs

from checkpoints.comparison import compare
from figures import cost, quality, robustness, style, toy
from figures.options import Options

FEW = {"groups": (), "epochs": (0, 60), "measures": True}


@pytest.fixture(scope="module")
def runs():
    return compare(fake_runs(("sgd", "ssesam"), (0, 1), **FEW))


def test_escape_times_are_points_closed_forms_lines_and_the_stuck_stand_at_the_edge(runs):
    table = toy.toy_table(runs, Options()).reset_index().query("toy == 'single'")
    artists = toy.plot_escape(style.new_figure(2).subplots(), table)
    assert set(artists) == {"gd", "sam", "noisy_sam"}
    sam = table[table["method"] == "sam"]
    np.testing.assert_array_equal(artists["sam"]["points"].get_ydata(), sam["value"][np.isfinite(sam["value"])])
    np.testing.assert_array_equal(artists["sam"]["line"].get_ydata(), sam["closed_form"].replace(np.inf, np.nan))
    assert list(artists["sam"]["stuck"].get_xdata()) == [0.3] and not len(artists["gd"]["stuck"].get_xdata())
    assert toy.method_look("sam") == style.look("sam") and toy.method_look("noisy_sam") != style.look("sam")


def test_quality_has_a_row_for_each_variant(runs):
    with style.context():
        figure = quality.draw_quality(runs, Options())
    assert len(figure.axes) == 4 and [figure.axes[0].get_ylabel(), figure.axes[2].get_ylabel()] == list(quality.LABELS.values())
    table = quality.quality_table(runs, Options()).query("opt == 'sgd' and measure == 'released' and group == 'head'")
    np.testing.assert_array_equal(figure.axes[2].lines[0].get_ydata(), table["value"])


def test_lanes_hold_every_choice_and_the_reference_is_a_line(runs):
    table = robustness.robustness_table(runs, Options()).query("group == 'tail'")
    lanes = list(dict.fromkeys(zip(table["axis"], table["setting"])))
    ax = style.new_figure(3).subplots()
    artists = robustness.plot_variations(ax, table, lanes, runs.optimizers)
    rows = table[table["opt"] == "ssesam"]
    np.testing.assert_array_equal(artists["ssesam"].get_xdata(), rows["value"])
    assert sorted(np.round(artists["ssesam"].get_ydata())) == list(range(len(lanes)))
    upright = [line.get_xdata() for line in ax.lines if len(line.get_xdata()) == 2]
    references = [x[0] for x in upright if x[0] == x[1]]
    assert set(references) == set(table["value"][table["axis"] == "reference"])


def test_every_value_and_zero_are_in_view():
    low, high = robustness._view(pd.Series([-4.0, -3.0]))
    assert low < -4 and high > 0
    assert robustness._view(pd.Series([2.0]))[0] < 0 < 2 < robustness._view(pd.Series([2.0]))[1]


def test_the_cost_of_a_step_is_the_records():
    run = fake_run("sgd", 0, groups=())
    run.kept.append(tidy("cost", 0, [
        {"opt": "sgd", "stage": "", "forwards": 1, "backwards": 1, "value": 0.0123, "low": 0.012, "high": 0.0126, "ratio": 1.0},
        {"opt": "ssesam", "stage": "stage I", "forwards": 3, "backwards": 4, "value": 0.05, "low": np.nan, "high": np.nan,
         "ratio": 4.0}], batch_size=128))
    printed = cost.print_cost_table(compare([run]), Options())
    assert [name for name, _ in printed.names] == ["SGD", "SSE-SAM, stage I"]
    assert printed.cells == (("1 / 1", "12.3 ± 0.3", "1.00"), ("3 / 4", "50.0", "4.00"))
    assert "batch size 128" in printed.caption
