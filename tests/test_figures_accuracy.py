from dataclasses import replace

import numpy as np
import pytest
from fabricated_runs import fake_run, fake_runs

from analysis.findings import outcomes, summary
from checkpoints.comparison import compare
from checkpoints.errors import RecordError
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
    table = outcomes.accuracy_outcomes(runs)
    assert drawn[:7] == ["epoch", "Many", "Medium", "Few", "Head", "Tail", "All"]
    for how, name in (("last epoch", "SSE-SAM, last *"), ("best on the test set", "SSE-SAM, best")):
        place, row = drawn.index(name), table.loc[("ssesam", how)]
        cells = [summary.cell(row, group, True) for group in summary.ACCURACY_GROUPS]
        assert drawn[place + 1:place + 8] == [row["epochs"], *cells]


def test_the_table_marks_the_result_that_the_runs_report():
    run = fake_run(groups=(), selection="test_best")
    printed = accuracy.print_accuracy_table(compare([run]), Options())
    assert [name for name, _ in printed.names] == ["SGD, last", "SGD, best *"]
    assert "best: the epoch best on the test set, which flatters; * what the runs report as their result" in printed.caption


def test_stages_tint_what_follows_the_switch(runs):
    with style.context():
        figure = accuracy.draw_stages(runs, Options())
    assert [[text.get_text() for text in ax.texts if "stage" in text.get_text()] for ax in figure.axes] \
        == [["stage I", "stage II"]] * 2
    spans = [patch.get_extents() for patch in figure.axes[0].patches]
    assert len(spans) == 1
    table = accuracy.stages_table(runs, Options())
    line = next(line for line in figure.axes[1].lines if line.get_color() == style.look("ssesam").color)
    assert list(line.get_ydata()) == pytest.approx(list(100 * table.sort_index().loc[("ssesam", "tail"), "value"]))
    assert set(table["switch"].dropna()) == {42}


def test_without_a_switch_there_are_no_stages():
    with pytest.raises(RecordError, match="--opt ssesam --gamma 0.7"):
        accuracy.draw_stages(compare([fake_run("sgd", groups=())]), Options())


def test_captions_tell_which_interval_is_which(runs):
    several = accuracy.print_curvature_table(runs, Options()).caption
    assert "t interval over seeds; negative mass: [low, high] of the t limits of its quadrature brackets" in several
    single = accuracy.print_curvature_table(compare([fake_run("sgd", epochs=(60,), probes=2, steps=6)]), Options()).caption
    assert "one seed: ratio within residuals, mass within quadrature and probes" in single and "over seeds" not in single


def test_an_absent_group_is_written_absent():
    run = fake_run(groups=())
    run.table = run.table.drop(columns="test_accuracy/tail")
    with style.context():
        drawn = texts_of(draw_printed(accuracy.print_accuracy_table(compare([run]), Options())))
    assert drawn.count("absent") == 2


def test_the_drawn_curvature_table_is_the_table(runs):
    with style.context():
        figure = draw_printed(accuracy.print_curvature_table(runs, Options()))
    table = summary.curvature_table(runs)
    drawn = texts_of(figure)
    assert "head, SGD" in drawn and "tail, SSE-SAM" in drawn
    for name in accuracy.CURVATURE_COLUMNS:
        assert summary.cell(table.loc[("tail", "sgd")], name) in drawn


def test_the_curvature_table_says_of_which_hessians_it_is():
    run = fake_run("sgd", 0, epochs=(60,), probes=2, steps=6)
    inputs = {"settings": {"split": "test", "loss": "training"}}
    run.kept = [replace(record, num_available=2 * record.num_samples, provenance={"inputs": inputs})
                for record in run.records("curvature")]
    caption = accuracy.print_curvature_table(compare([run]), Options()).caption
    assert ("epoch 60, 500 of 1000 images of head, 60 of 120 images of tail, Hessian over test images, Hessian of the training "
            "loss") in caption


def test_a_rule_sets_groups_apart(runs):
    with style.context():
        figure = draw_printed(accuracy.print_curvature_table(runs, Options()))
    assert sorted(line.get_ydata()[0] for line in figure.axes[0].lines) == [-1.1, -0.1, 2, 4.1]


def test_curves_of_one_color_are_refused():
    runs = compare([fake_run("sam", rho=rho, groups=()) for rho in (0.05, 0.1)], vary="rho")
    for draw in (accuracy.draw_accuracy_curves, accuracy.draw_stages):
        with pytest.raises(RecordError, match="sam rho=0.05 and sam rho=0.1 would be curves of one color"):
            draw(runs, Options())


@pytest.mark.parametrize("values, limits", [([0.0, 0.0], (0, 10)), ([1.0, 1.0], (90, 100)), ([0.5, 0.5], (45, 55))])
def test_an_axis_of_accuracies_stays_within_0_and_100_and_is_not_narrow(values, limits):
    run = fake_run("ssesam", groups=())
    run.table = run.table.assign(**{"test_accuracy/tail": values[0]})
    for draw in (accuracy.draw_stages, accuracy.draw_accuracy_curves):
        with style.context():
            ax = draw(compare([run]), Options()).axes[1]
        assert ax.get_ylim() == pytest.approx(limits)


def test_the_marker_of_the_last_epoch_is_whole_at_the_edge(runs):
    with style.context():
        ax = accuracy.draw_stages(runs, Options()).axes[1]
    curve = max(ax.lines, key=lambda line: len(line.get_xdata()))
    assert ax.get_xlim() == (0, 60) and curve.get_xdata()[-1] == 60 and not curve.get_clip_on()
