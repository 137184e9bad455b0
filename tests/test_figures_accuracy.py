import numpy as np
import pytest
from fabricated_runs import fake_run, fake_runs

from analysis import summary
from checkpoints.comparison import compare
from figures import accuracy, style
from figures.options import Options
from figures.tables import draw_printed


@pytest.fixture(scope="module")
def runs():
    return compare(fake_runs(("sgd", "ssesam"), (0, 1, 2), epochs=(60,), probes=2, steps=6))


def texts_of(figure):
    return [text.get_text() for text in figure.axes[0].texts]


def test_curves_are_means_in_percent(runs):
    table = summary.accuracy_over_epochs(runs, "ssesam", "tail")
    line = accuracy.plot_accuracy(style.new_figure(2).subplots(), table, opt="ssesam")["line"]
    np.testing.assert_allclose(line.get_ydata(), 100 * table["value"])
    np.testing.assert_array_equal(line.get_xdata(), table.index)
    assert line.get_label() == "SSE-SAM"


def test_bands_stay_within_zero_and_a_hundred_percent(runs):
    table = summary.accuracy_over_epochs(runs, "sgd", "head").assign(low=-0.2, high=1.3)
    band = accuracy.plot_accuracy(style.new_figure(2).subplots(), table, opt="sgd")["band"]
    edges = band.get_paths()[0].vertices[:, 1]
    assert edges.min() == 0 and edges.max() == 100


def test_each_group_has_a_panel_and_each_optimizer_a_line(runs):
    with style.context():
        figure = accuracy.draw_accuracy_curves(runs, Options(groups=("head", "tail", "all")))
    assert [ax.get_title(loc="left") for ax in figure.axes] == ["head", "tail", "all"]
    curves = [line for line in figure.axes[1].lines if len(line.get_xdata()) == 10]
    assert [line.get_color() for line in curves] == [style.look(opt).color for opt in runs.optimizers]
    assert 42 in [line.get_xdata()[0] for line in figure.axes[1].lines]


def test_the_drawn_accuracy_table_is_the_table(runs):
    with style.context():
        drawn = texts_of(draw_printed(accuracy.print_accuracy_table(runs, Options())))
    table = summary.accuracy_table(runs)
    assert drawn[:6] == ["Many", "Medium", "Few", "Head", "Tail", "All"]
    assert drawn[6:13] == ["SGD"] + [summary.cell(table.loc["sgd"], group, True) for group in summary.ACCURACY_GROUPS]


def test_an_absent_group_is_written_absent():
    run = fake_run(groups=())
    run.table = run.table.drop(columns="test_accuracy/tail")
    with style.context():
        drawn = texts_of(draw_printed(accuracy.print_accuracy_table(compare([run]), Options())))
    assert drawn.count("absent") == 1


def test_the_drawn_curvature_table_is_the_table(runs):
    with style.context():
        figure = draw_printed(accuracy.print_curvature_table(runs, Options()))
    table = summary.curvature_table(runs)
    drawn = texts_of(figure)
    assert "head, SGD" in drawn and "tail, SSE-SAM" in drawn
    for name in accuracy.CURVATURE_COLUMNS:
        assert summary.cell(table.loc[("tail", "sgd")], name) in drawn


def test_a_rule_sets_groups_apart(runs):
    with style.context():
        figure = draw_printed(accuracy.print_curvature_table(runs, Options()))
    assert sorted(line.get_ydata()[0] for line in figure.axes[0].lines) == [-1.1, -0.1, 2, 4.1]
