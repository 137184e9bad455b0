import numpy as np
import pytest

from figures import style
from figures.panels import arrange, group_names, optimizer_names, panels

OPTS = ("sgd", "sam", "imbsam", "ssesam")


@pytest.mark.parametrize("rows, columns, most", [(1, 4, 2), (2, 4, 2), (3, 4, 2), (2, 4, 4), (2, 7, 4), (1, 1, 4), (3, 5, 2)])
def test_every_panel_has_a_place_of_its_own_on_the_page(rows, columns, most):
    places, _ = arrange(range(rows), range(columns), most)
    assert len(set(places.values())) == len(places) == rows * columns
    assert max(position for _, position in places.values()) < most


def test_rows_that_fit_are_turned_others_are_folded():
    turned = arrange(("head", "tail"), OPTS, 2)
    assert turned[1] and turned[0]["tail", "ssesam"] == (3, 1)
    folded = arrange(("one",), OPTS, 2)
    assert not folded[1] and list(folded[0].values()) == [(0, 0), (0, 1), (1, 0), (1, 1)]
    assert arrange(("one",), OPTS[:3], 2)[0]["one", "imbsam"] == (1, 0)


def drawn(width, rows=("head", "tail"), **options):
    with style.context({}, width):
        made = panels(rows, OPTS, 1.5, **options)
        made.name(group_names(rows), optimizer_names(OPTS))
        made.label_x("epoch")
        made.label_y({row: f"loss of {row}" for row in rows})
    return made


def test_names_stand_once_above_and_once_beside():
    wide, narrow = drawn("two"), drawn("one")
    assert [ax.get_title("left") for ax in wide.row("head")] == ["SGD", "SAM", "ImbSAM", "SSE-SAM"]
    assert all(not ax.get_title("left") for ax in wide.row("tail"))
    assert [wide["head", "sgd"].texts[0].get_text(), wide["tail", "sgd"].texts[0].get_text()] == ["head", "tail"]
    assert [ax.get_title("left") for ax in narrow.column("sgd")] == ["head", "tail"]
    assert [ax.texts[0].get_text() for ax in narrow.row("head")] == ["SGD", "SAM", "ImbSAM", "SSE-SAM"]


@pytest.mark.parametrize("width, lowest", [("two", [("tail", opt) for opt in OPTS]),
                                           ("one", [("head", "ssesam"), ("tail", "ssesam")])])
def test_the_lowest_panels_carry_the_x_label_and_ticks(width, lowest):
    made = drawn(width)
    assert [key for key, ax in made.axes.items() if ax.get_xlabel()] == lowest
    hidden = [key for key, ax in made.axes.items() if not ax.xaxis.get_tick_params()["labelbottom"]]
    assert set(hidden) == set(made.axes) - set(lowest)


def test_axes_are_shared_as_asked_wherever_panels_stand():
    for width in style.WIDTHS:
        made = drawn(width, share_y="row")
        made["head", "sgd"].set_ylim(0, 7)
        made["tail", "sgd"].set_ylim(0, 9)
        assert {ax.get_ylim() for ax in made.row("head")} == {(0, 7)} and {ax.get_ylim() for ax in made.row("tail")} == {(0, 9)}
        assert {ax.get_ylabel() for ax in made.row("head")} <= {"loss of head", ""}


def test_a_label_longer_than_its_panel_is_broken_but_not_its_mathematics():
    with style.context({}, "one"):
        made = panels(("",), OPTS, 1.2)
        made.label_y(r"a rather long label of $a + b + c + d$ [units]")
    label = made["", "sgd"].get_ylabel()
    assert "\n" in label and "$a + b + c + d$" in label


def test_the_page_sets_how_many_stand_side_by_side():
    with style.context({"figure.figsize": "10,4"}):
        assert style.most_columns() == 6 and panels(("",), OPTS, 1.0).figure.get_figwidth() <= 10
    assert [np.round(style.WIDTHS[width], 2) for width in ("one", "two")] == [3.25, 6.75]


@pytest.mark.parametrize("width", style.WIDTHS)
@pytest.mark.parametrize("columns", [1, 2, 4])
@pytest.mark.parametrize("square", [False, True])
def test_a_figure_fills_the_width_of_the_page(width, columns, square):
    with style.context({}, width):
        made = panels(("head", "tail"), OPTS[:columns], 1.5, square=square)
    assert made.figure.get_figwidth() == style.WIDTHS[width]
    assert made.turned == (square and columns == 1 and width == "two" or columns == 4 and width == "one")
