import numpy as np
import pytest
from fabricated_runs import fake_run, fake_runs
from test_analysis_history import escaping

from analysis.findings import history as numbers
from analysis.findings.tracking import tracked
from checkpoints.comparison import compare
from checkpoints.errors import RecordError
from figures import history, style
from figures.options import Options

EPOCHS = {"epochs": (0, 20, 60), "probes": 1, "steps": 4}


@pytest.fixture(scope="module")
def runs():
    return compare(fake_runs(("sgd", "ssesam"), (0, 1), **EPOCHS))


@pytest.fixture(scope="module")
def escapes():
    return compare([escaping("sgd", 0, 99), escaping("sgd", 1, 20), escaping("sam", 0, 30)])


def test_the_printed_verdicts_are_those_of_the_table(runs):
    table, printed = history.verdicts_table(runs, Options()), history.print_verdicts(runs, Options())
    assert [name for name, _ in printed.names] == ["head, SGD", "head, SSE-SAM", "tail, SGD", "tail, SSE-SAM"]
    assert {row[0] for row in printed.cells} == {"slope (2 of 2)"}
    assert printed.gaps == (2,)
    assert list(table["slope that bends down"]) == [2] * 4
    assert "no proof" in printed.caption and "minimum" not in printed.caption


def test_seeds_that_differ_are_counted_one_by_one():
    escapes = compare([escaping("sgd", 0, 99), escaping("sgd", 1, 20)])
    assert history.print_verdicts(escapes, Options(groups=("tail",))).cells[0][0] == "1 slope, 1 none found"


def test_an_escape_is_drawn_between_its_checkpoints_and_a_censored_one_as_an_arrow(escapes):
    with style.context():
        figure = history.draw_escape_epochs(escapes, Options(groups=("tail",)))
        frame = numbers.escape_frame(escapes, ("tail",))
        ax = style.new_figure(2).subplots()
        artists = history.plot_escape(ax, frame[frame["opt"] == "sgd"], 1, "black")
    assert [list(one["line"].get_xdata()) for one in artists] == [[40, 40], [10, 20]]
    assert [one["end"].get_marker() for one in artists] == [">", "|"]
    assert [text.get_text() for text in figure.axes[0].texts if "within" in text.get_text()] \
        == ["1 of 1 within 40 epochs by epoch 30", "1 of 2 within 40 epochs"]


@pytest.mark.parametrize("width", style.WIDTHS)
def test_the_mean_over_seeds_and_its_interval_are_written_and_exported(width):
    runs = compare([escaping("sgd", 0, 20), escaping("sgd", 1, 30), escaping("sgd", 2, 30)])
    row = numbers.escape_table(runs, ("tail",)).loc[("tail", "sgd")]
    with style.context(width=width):
        figure = history.draw_escape_epochs(runs, Options(groups=("tail",), width=width))
        figure.canvas.draw()
    words = [text for text in figure.axes[0].texts if "within" in text.get_text()]
    assert [text.get_text() for text in words] == [f"3 of 3 within 40 epochs: 21.7 [{row['low']:.1f}, {row['high']:.1f}]"]
    assert words[0].get_window_extent().x1 <= figure.bbox.x1        # also in one column
    assert "95 % t interval over seeds" in figure.legends[0].get_title().get_text().replace("\n", " ")
    table = history.escape_epochs_table(runs, Options(groups=("tail",)))
    assert list(table["high"]) == [20, 30, 30]      # a row a seed, as before
    for name, column in (("value", "over_seeds"), ("low", "over_seeds_low"), ("high", "over_seeds_high")):
        assert list(table[column]) == [row[name]] * 3


def test_a_mean_that_is_censored_is_not_written(escapes):
    table = history.escape_epochs_table(escapes, Options(groups=("tail",)))
    two = table.xs("sgd", level="opt")
    assert two["over_seeds"].isna().all() and (two["over_seeds_high"] == np.inf).all()
    with style.context():
        figure = history.draw_escape_epochs(escapes, Options(groups=("tail",)))
    assert "t interval" not in figure.legends[0].get_title().get_text()


def test_what_decides_nothing_at_the_end_is_a_question_mark(escapes):
    frame = numbers.escape_frame(escapes, ("tail",)).iloc[:1].assign(low=20.0)
    with style.context():
        end = history.plot_escape(style.new_figure(2).subplots(), frame, 0, "black")[0]["end"]
    assert end.get_marker() == "$?$"


def test_curves_of_overlap_are_those_of_the_table(runs):
    with style.context():
        figure = history.draw_tracking(runs, Options(groups=("tail",)))
    upper, lower = ([line for line in figure.axes[place].lines if len(line.get_xdata()) == 2 and line.get_marker() == "o"]
                    for place in (0, 2))
    np.testing.assert_allclose(upper[0].get_ydata(), np.cos(1.2 * np.array([20, 40]) / 60) ** 2)
    np.testing.assert_allclose(lower[0].get_ydata(), np.cos(1.2 * np.array([20, 40]) / 60))
    assert list(upper[0].get_xdata()) == [20, 60]
    assert "random directions of 400 dimensions" in figure.legends[0].get_title().get_text().replace("\n", " ")


def test_one_seed_has_no_band():
    runs = compare([fake_run("sgd", **EPOCHS)])
    with style.context():
        figure = history.draw_tracking(runs, Options(groups=("tail",)))
    assert all(not np.isfinite(band.get_datalim(ax.transData).y1) or band.get_datalim(ax.transData).height <= 0
               for ax in figure.axes for band in ax.collections)


def test_squares_show_the_matrix_of_the_lowest_seed(runs):
    table = tracked(runs, "tail")
    part = table[(table["opt"] == "sgd") & (table["seed"] == 0) & (table["epoch"] == 20)]
    with style.context():
        image = history.plot_overlaps(style.new_figure(2).subplots(), part)
        figure = history.draw_overlap_matrix(runs, Options())
    np.testing.assert_allclose(image.get_array(), np.cos(0.8) * np.eye(2), atol=1e-12)
    assert sum(bool(ax.images) for ax in figure.axes) == 4


def test_one_epoch_has_no_overlap():
    with pytest.raises(RecordError, match="--epoch all --group tail"):
        history.tracking_table(compare([fake_run("sgd", epochs=(60,), probes=1, steps=4)]), Options(groups=("tail",)))
