from dataclasses import replace

import matplotlib
import pytest
from fabricated_runs import fake_run

from checkpoints.comparison import compare
from checkpoints.errors import RecordError
from figures import style


def drawn_figure():
    figure = style.new_figure(1.5, 2.0)
    ax = figure.subplots()
    ax.plot([0, 1], [1, 3])
    ax.set_xlabel(style.LAMBDA_LABEL)
    return figure


@pytest.mark.parametrize("name", style.FORMATS)
def test_the_same_figure_gives_the_same_bytes_at_any_time(tmp_path, monkeypatch, name):
    contents = []
    for moment in ("86400", "1700000000"):
        monkeypatch.setenv("SOURCE_DATE_EPOCH", moment)   # what matplotlib takes for now
        with style.context():
            path, = style.save(drawn_figure(), tmp_path / "figure", [name], dpi=50)
        contents.append(path.read_bytes())
    assert contents[0] == contents[1]
    assert [file.name for file in tmp_path.iterdir()] == [f"figure.{name}"]


def test_an_unknown_format_is_refused_with_the_choices(tmp_path):
    with pytest.raises(RecordError, match="format=bmp is unknown: expected one of pdf, png, svg"):
        style.save(drawn_figure(), tmp_path / "figure", ["bmp"])


def test_settings_come_back_and_the_users_are_on_top():
    before = matplotlib.rcParams["font.size"]
    with style.context({"font.size": "11"}):
        assert matplotlib.rcParams["font.size"] == 11.0
        assert matplotlib.rcParams["pdf.fonttype"] == 42
    assert matplotlib.rcParams["font.size"] == before


def test_settings_that_we_do_not_set_are_the_users_own():
    with matplotlib.rc_context({"hatch.linewidth": 3.0}), style.context():
        assert matplotlib.rcParams["hatch.linewidth"] == 3.0


@pytest.mark.parametrize("key, value", [("font.sizze", "3"), ("font.size", "large-ish")])
def test_an_unknown_setting_is_refused_by_name(key, value):
    with pytest.raises(RecordError, match=f"rc {key}={value} is not a matplotlib setting"):
        with style.context({key: value}):
            raise AssertionError("not reached")


def test_optimizers_have_their_proper_names_and_colors_of_their_own():
    assert [style.look(opt).name for opt in ("sgd", "sam", "imbsam", "ssesam")] == ["SGD", "SAM", "ImbSAM", "SSE-SAM"]
    assert len({style.look(opt).color for opt in ("sgd", "sam", "imbsam", "ssesam", "gsa")}) == 5
    assert style.look("gsa") == style.look("gsa") and style.look("gsa").name == "GSA"


def test_groups_and_classes_are_told_apart_by_line_and_marker():
    def look(group):
        return str(style.group_line(group)), style.group_marker(group)

    assert len({look(f"class:{number}") for number in range(35)}) == 35
    for groups in (("head", "tail", "all"), ("many", "medium", "few", "all")):
        for way in (style.group_line, style.group_marker):
            assert len({way(group) for group in groups}) == len(groups)


def test_runs_are_described_by_what_they_share():
    runs = compare([fake_run("sgd", seed, groups=()) for seed in (0, 1)])
    assert style.describe(runs) == "digits, imbalance 20, tail: fewer than 20 training images a class, 2 seeds"
    bare = compare([fake_run(groups=(), imb_factor=None, eta=None)])
    assert style.describe(bare) == "digits, one seed"
    assert style.describe(bare, seeds=False) == "digits"


def test_the_switch_is_one_vertical_line_and_named_once():
    ax = style.new_figure(1).subplots()
    assert style.mark_switch(ax, 42).get_xdata()[0] == 42
    assert style.mark_switch(ax, None) is None
    runs = compare([fake_run(opt, groups=(), gamma=0.5) for opt in ("sgd", "ssesam")])
    assert [handle.get_label() for handle in style.switch_handles(runs)] == ["SSE-SAM's second stage"]
    runs = compare([fake_run(opt, groups=(), drw_epoch=30) for opt in ("sgd", "sam")])
    assert [handle.get_label() for handle in style.switch_handles(runs)] == ["re-weighting starts"]


def test_long_texts_of_a_legend_are_wrapped_to_the_figure():
    figure = style.new_figure(2, 3)
    legend = style.shared_legend(figure, [], "word " * 40)
    figure.draw_without_rendering()
    assert legend.get_window_extent().x1 <= figure.bbox.x1


def test_a_caption_says_where_the_hessian_is_not_the_default_one():
    tail, head = (record for record in fake_run().records("curvature") if record.epoch == 60)
    tail, head = sorted((tail, head), key=lambda record: record.group, reverse=True)
    assert style.describe_hessians([tail, head]) == ""
    part = replace(tail, num_samples=50, num_available=305)
    other = {"inputs": {"settings": {"split": "test", "loss": "training"}}}
    assert style.describe_hessians([part, head]) == ", 50 of 305 images of tail"
    words = style.describe_hessians([replace(head, provenance=other)])
    assert words == ", Hessian over test images, Hessian of the training loss"
    apart = replace(tail, group="tail@test", provenance={"inputs": {"settings": {"split": "test"}}})
    assert style.describe_hessians([tail, apart]) == ", tail, test: Hessian over test images"


def test_a_pool_told_apart_by_a_setting_looks_as_its_optimizer_and_is_named_with_it():
    assert style.look("sam rho=0.1") == style.Look("SAM, ρ = 0.1", style.look("sam").color, style.look("sam").marker)
    assert style.look("sgd loss=LDAM,drw_epoch=160").name == "SGD, LDAM+DRW"
    assert [style.setting_name(f"drw_epoch={epoch}") for epoch in (None, 160)] == ["without DRW", "DRW from 160"]


def test_unequal_numbers_of_seeds_are_told_of_each_optimizer():
    from fabricated_runs import fake_run, fake_runs

    from checkpoints.comparison import compare
    few = {"epochs": (60,), "probes": 1, "steps": 4}
    text = style.describe(compare([*fake_runs(("sgd",), (0, 1), **few), fake_run("ssesam", **few)]))
    assert text.endswith("seeds: 2 of SGD, 1 of SSE-SAM")


def test_the_dates_of_a_font_are_no_news(tmp_path, caplog):
    with style.context():
        figure = style.new_figure(1)
        figure.subplots().set_title("$g'v$")       # the prime is of the old font
        style.save(figure, tmp_path / "x", ("pdf",))
    assert not [record for record in caplog.records if record.name.startswith("fontTools")]
