import numpy as np
import pandas as pd
import pytest
from fabricated_runs import fake_run, fake_runs

from analysis.measures.perturbations import region
from analysis.spectra.intervals import t_interval
from checkpoints.comparison import compare
from checkpoints.errors import RecordError
from checkpoints.frames import frame
from figures import bars, mechanism, style
from figures.options import Options

FEW = {"groups": (), "epochs": (0, 60), "measures": True}


@pytest.fixture(scope="module")
def runs():
    return compare(fake_runs(("sgd", "imbsam"), (0, 1), **FEW))


def test_alignment_is_the_mean_over_seeds_of_whole_groups_and_over_draws_of_batches(runs):
    pooled = mechanism.alignment_table(runs, Options())
    values = []
    for member in runs.members["imbsam"]:
        record = member.measurement("alignment", 60)
        table = frame(record).query("group == 'tail' and perturbation == 'sam' and source == 'batch' and pair == 0")
        values.append(table["value"].mean())
    row = pooled.query("opt == 'imbsam' and group == 'tail' and perturbation == 'sam' and source == 'batch' and pair == 0 "
                       "and epoch == 60")
    expected = t_interval(values, 0.95)
    assert (row["value"].item(), row["high"].item()) == pytest.approx((expected.value, expected.high))


def test_a_line_a_perturbation_the_null_line_and_batches_apart(runs):
    table = mechanism.alignment_table(runs, Options()).query("opt == 'sgd' and group == 'tail'")
    artists = mechanism.plot_alignment(style.new_figure(2).subplots(), table, null=0.0126)
    assert set(artists) - {"null"} == {(name, source) for name in mechanism.FOLLOWS for source in ("group", "batch")}
    assert artists["null"].get_ydata()[0] == 0.0126
    whole, batch = artists["sam", "group"]["line"], artists["sam", "batch"]["line"]
    assert whole.get_linestyle() != "None" and batch.get_linestyle() == "None" and batch.get_markerfacecolor() == "white"
    rows = table.query("perturbation == 'sam' and source == 'group' and pair == 0")
    np.testing.assert_array_equal(whole.get_ydata(), rows["value"])
    same = [artists[name, "group"]["line"].get_ydata() for name in ("imbsam", "ssesam_tail")]
    np.testing.assert_allclose(*same)      # they climb one gradient


def test_perturbations_look_like_their_optimizer_and_the_group_they_follow():
    for name, opt, group in (("sam", "sam", "all"), ("ssesam_head", "ssesam", "head"), ("ssesam_tail", "ssesam", "tail")):
        look = mechanism.perturbation_look(name)
        assert (look["color"], look["linestyle"]) == (style.look(opt).color, style.group_line(group))
    assert mechanism.perturbation_name("ssesam_head") == "SSE-SAM, head"


def test_amplification_points_are_marked_by_region_and_hollow_where_unreliable():
    table = pd.DataFrame({"perturbation": "sam", "predicted": [0.5, -0.5, -3.0, 0.9, 2.5],
                          "measured": [0.4, -0.6, -3.5, 0.7, 2.0], "reliable": [1.0, 1.0, 1.0, 0.0, 1.0],
                          "region": [region(0.5), region(1.5), region(4.0), region(0.1), "none"]})
    artists = mechanism.plot_amplification(style.new_figure(2).subplots(), table)
    found = {(points.get_marker(), points.get_markerfacecolor() == "white"): list(points.get_xdata())
             for points in artists["points"]}
    assert found == {("o", False): [0.5], ("o", True): [0.9], ("^", False): [-0.5], ("s", False): [-3.0], ("d", False): [2.5]}
    np.testing.assert_array_equal(artists["diagonal"].get_xdata(), artists["diagonal"].get_ydata())


def test_every_finite_point_of_every_panel_is_in_view_on_one_scale(runs):
    with style.context():
        figure = mechanism.draw_amplification(runs, Options())
    table = mechanism.amplification_table(runs, Options())
    limits = {(*ax.get_xlim(), *ax.get_ylim()) for ax in figure.axes}
    assert len(limits) == 1
    low, high, *_ = limits.pop()
    assert low < table[["predicted", "measured"]].min().min() and high > table[["predicted", "measured"]].max().max()


@pytest.mark.parametrize("strength, words", [(0.5, "below 1"), (1.0, "1 to 2"), (2.0, "above 2"), (50.0, "above 2")])
def test_regions_split_at_one_and_two(strength, words):
    assert words in mechanism.REGIONS[region(strength)][1]


def test_the_region_of_the_record_is_kept_and_none_where_the_law_has_no_regions(runs):
    table = mechanism.amplification_table(runs, Options())
    stored = [word for member in runs.everyone for epoch in (0, 60)
              for word in member.measurement("amplification", epoch).labels["region"]]
    assert sorted(table["region"]) == sorted(stored)
    foreign = table["perturbation"].map(mechanism.FOLLOWS) != table["group"]
    assert foreign.any() and set(table["region"][foreign]) == {"none"}
    own = table[~foreign]
    assert list(own["region"]) == [region(value) for value in own["strength"]]      # every eigenvalue here is negative


def test_records_from_before_regions_were_stored_have_none():
    run = fake_run("sgd", 0, **FEW)
    for record in run.records("measurement"):
        record.labels.pop("region", None)
    assert set(mechanism.amplification_table(compare([run]), Options())["region"]) == {"none"}


def test_what_is_left_of_a_gradient_is_a_bar_a_direction_and_group(runs):
    table = mechanism.ablation_table(runs, Options())
    assert set(table["quantity"]) == set(mechanism.ABLATED) and (table["epoch"] == 60).all()
    full = table.query("quantity == 'share' and direction == 'full'")
    assert (full["value"] == 1.0).all()
    with style.context():
        figure = mechanism.draw_ablation(runs, Options())
    heights = [patch.get_height() for patch in figure.axes[0].patches]
    assert len(heights) == 6 and heights[0] == pytest.approx(1.0)


def test_bars_stand_side_by_side_and_groups_are_told_apart():
    table = pd.DataFrame([{"case": case, "group": group, "value": value, "low": value - 1, "high": value + 1}
                          for case in (0, 50) for value, group in enumerate(("head", "tail", "class:3"), 1)])
    artists = bars.plot_bars(style.new_figure(2).subplots(), table, [0, 50], ["head", "tail", "class:3"], color="red")
    places = [bar.get_x() + bar.get_width() / 2 for group in artists for bar in artists[group]]
    assert len(set(np.round(places, 6))) == 6 and max(places) < 1.5
    looks = [bars.bar_look(group, ["head", "tail", "class:3"], "red") for group in ("head", "tail", "class:3")]
    assert len({(look["facecolor"], look["hatch"]) for look in looks}) == 3


def test_similarity_of_one_seed_has_the_records_interval():
    runs = compare([fake_run("sgd", 0, **FEW)])
    table = mechanism.similarity_table(runs, Options())
    record = runs.everyone[0].measurement("similarity", 0)
    row = table.query("group == 'tail' and epoch == 0")
    assert row["low"].item() == record.numbers["low"][record.labels["group"].index("tail")]


@pytest.mark.parametrize("draw", [mechanism.draw_alignment, mechanism.draw_amplification, mechanism.draw_ablation,
                                  mechanism.draw_similarity])
def test_absent_measurements_are_refused_with_their_command(draw):
    name = draw.__name__.removeprefix("draw_")
    with pytest.raises(RecordError, match=f"landscape measure {name} runs/sgd-0 --epoch 60"):
        draw(compare([fake_run("sgd", 0, groups=())]), Options())
