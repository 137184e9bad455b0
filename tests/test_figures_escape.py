"""The figure of walks along v_min: what is drawn is what was measured."""

import numpy as np
import pytest
from fabricated_measures import escape as fabricated
from fabricated_runs import fake_runs

from checkpoints.comparison import compare
from checkpoints.frames import frame
from figures import escape, style
from figures.options import Options


@pytest.fixture(scope="module")
def runs():
    return compare(fake_runs(("sgd", "ssesam"), (0, 1), groups=(), epochs=(0, 60), measures=True))


@pytest.fixture
def record():
    return fabricated("sgd", 60, ("head", "tail"), np.random.default_rng(0))


def test_a_panel_shows_the_change_of_loss_the_prediction_and_the_other_groups(record):
    artists = escape.plot_escape(style.new_figure(2).subplots(), record, "tail")
    rows = frame(record).query("group == 'tail' and end == 'lower'")
    np.testing.assert_array_equal(artists["line"].get_xdata(), rows["alpha"])
    np.testing.assert_allclose(artists["line"].get_ydata(), rows["loss"] - 0.5)
    np.testing.assert_allclose(artists["prediction"].get_ydata(), rows["predicted"] - 0.5)
    np.testing.assert_allclose(artists["others"][0].get_ydata(), rows["loss_head"] - 0.5)
    assert artists["lowest"].get_ydata()[0] == pytest.approx((rows["loss"] - 0.5).min())


def test_the_ground_is_gray_as_far_as_the_prediction_holds(record):
    artists = escape.plot_escape(style.new_figure(2).subplots(), record, "head")
    assert artists["trust"].get_x() == -0.1 and artists["trust"].get_width() == pytest.approx(0.2)


def test_a_walk_whose_end_is_its_lowest_point_has_a_hollow_mark(record):
    next(case for case in record.about["escapes"] if case["group"] == "tail")["bounded"] = False
    artists = escape.plot_escape(style.new_figure(2).subplots(), record, "tail")
    assert artists["lowest"].get_markerfacecolor() == "white"


def test_the_table_has_every_seed_group_and_end(runs):
    table = escape.escape_table(runs, Options())
    assert len(table) == 2 * 2 * 2 * 2 and list(table)[:3] == ["opt", "seed", "epoch"]
    lower = table.query("group == 'tail' and end == 'lower'")
    np.testing.assert_allclose(lower["drop"], -lower["change_tail"])
    assert (table.query("end == 'upper'")["drop"] == 0).all() and (table["trust_plus"] == 0.1).all()
