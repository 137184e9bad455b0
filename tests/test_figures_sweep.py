import numpy as np
import pytest
from fabricated_runs import fake_run, fake_runs, swept_runs

from analysis.findings import summary
from checkpoints.comparison import compare
from checkpoints.errors import RecordError
from checkpoints.variants import FIDELITY, LOSS, RADII
from figures import accuracy, classwise, style, sweep
from figures.options import Options
from figures.spectrum import scale_of

FEW = {"epochs": (60,), "probes": 1, "steps": 4}
SAME = {"rho": 0.05, "head_rho": 0.05, "tail_rho": 0.05}


def swept():
    runs = swept_runs((0.5, 0.05, 0.1), **FEW)
    for run in runs[:6]:
        run.table = run.table.assign(**{"test_accuracy/tail": run.config["rho"] + 0.1 * run.config["seed"]})
    return compare(runs, RADII)


@pytest.fixture(scope="module")
def runs():
    return swept()


def test_a_sweep_holds_means_by_radius(runs):
    table = sweep.rho_sweep_table(runs, Options())
    tail = table.loc["tail"].loc["sam"]
    assert list(tail.index) == [0.05, 0.1, 0.5] and list(tail["value"]) == pytest.approx([0.1, 0.15, 0.55])
    assert (tail["num_seeds"] == 2).all() and tail["low"].iloc[0] < 0.05 < tail["high"].iloc[0]
    depth = [record.eigenpairs.values[0] for record in runs.curvatures("sam rho=0.1", 60, "tail")]
    assert table.loc[("lambda_min", "sam", 0.1), "value"] == pytest.approx(np.mean(depth))
    assert table.loc[("tail", "ssesam", 0.2), "num_seeds"] == 1


def test_lines_go_up_in_radius_and_what_has_none_is_level(runs):
    with style.context():
        figure = sweep.draw_rho_sweep(runs, Options())
    lines = {line.get_color(): line for line in figure.axes[1].lines}
    assert list(lines[style.look("sam").color].get_xdata()) == [0.05, 0.1, 0.5]
    assert list(lines[style.look("sam").color].get_ydata()) == pytest.approx([10, 15, 55])
    level = lines[style.look("sgd").color]
    assert len(set(level.get_ydata())) == 1 and level.get_linestyle() == "--"
    assert "SGD, without a radius" in [text.get_text() for text in figure.legends[0].texts]


def test_a_sweep_of_one_radius_and_one_with_two_pools_at_a_radius_are_refused():
    with pytest.raises(RecordError, match="rho=0.05: a sweep needs two radii"):
        sweep.rho_sweep_table(compare([fake_run("sam", **FEW, **SAME), fake_run("sgd", **FEW, **SAME)], RADII), Options())
    both = compare([fake_run("ssesam", **FEW, **SAME | change) for change in ({}, {"head_rho": 0.1}, {"tail_rho": 0.2})], RADII)
    with pytest.raises(RecordError, match="rho=0.05 has two pools .* choose runs that differ in one of rho, head_rho, tail_rho"):
        sweep.rho_sweep_table(both, Options())


def test_a_radius_among_the_optimizers_own_options_is_found():
    assert sweep.radius({"opt": "asam", "opt_options": {"rho": 0.5}, "rho": 0.05}) == 0.5
    assert sweep.radius({"opt": "sgd", "rho": 0.05}) is None and sweep.radius({"opt": "ssesam"}) is None


def switched(seeds=(0, 1)):
    def run(seed, change, gain):
        made = fake_run("imbsam", seed, **FEW, **{"weighting": "batch", "restore": "copy"} | change)
        made.table = made.table.assign(**{"test_accuracy/tail": 0.5 + 0.1 * seed + gain * (1 + 0.1 * seed)})
        return made

    return compare([run(seed, change, gain) for seed in seeds for change, gain in
                    (({}, 0.0), ({"weighting": "double_tail"}, 0.1), ({"restore": "subtract"}, -0.1),
                     ({"weighting": "group_mean", "restore": "subtract"}, 0.3))], FIDELITY)


def test_switches_are_differences_by_shared_seeds_from_the_common_baseline():
    table = sweep.switches_table(switched(), Options())
    assert list(table.index) == [("imbsam", "restore", "copy", "subtract"), ("imbsam", "weighting", "batch", "double_tail")]
    row = table.loc[("imbsam", "weighting", "batch", "double_tail")]
    assert row["tail"] == pytest.approx(0.105) and row["tail_kind"] == "paired"
    assert row["tail_high"] - row["tail"] == pytest.approx(12.7062 * 0.01 / 2, rel=1e-4)      # t of one degree of freedom
    assert row["lambda_min"] == 0


def test_the_printed_switches_have_signs_and_say_where_the_spread_is_unknown():
    printed = sweep.print_switches(switched(seeds=(0,)), Options())
    assert printed.cells[0][:2] == ("copy", "subtract") and printed.cells[0][3] == "−10.0" and printed.cells[1][3] == "+10.0"
    assert "without ±: one seed" in printed.caption
    assert "without ±" not in sweep.print_switches(switched(), Options()).caption


def test_runs_that_differ_in_nothing_have_no_switches():
    with pytest.raises(RecordError, match="no two runs of one optimizer differ in one switch alone"):
        sweep.switches_table(compare(fake_runs(("sgd", "sam"), (0,), **FEW), FIDELITY), Options())


def test_losses_stand_side_by_side_in_the_curvature_table():
    runs = compare([fake_run("sgd", **FEW, loss=loss, drw_epoch=epoch) for loss, epoch in (("CE", None), ("LDAM", 40))], LOSS)
    names = [name for name, _ in accuracy.print_curvature_table(runs, Options(groups=("tail",))).names]
    assert names == ["tail, SGD, CE", "tail, SGD, LDAM+DRW"]


CLASSES = {"groups": ("all", "class:0", "class:1", "class:9", "head", "tail")} | FEW


def test_by_default_the_first_head_class_and_the_last_tail_class_stand_beside_all():
    runs = compare(fake_runs(("sgd", "sam"), (0,), **CLASSES))
    assert classwise.classwise_groups(runs) == ("all", "class:0", "class:9")
    assert classwise.classwise_groups(compare([fake_run("sgd", **FEW)])) == ("all", "head", "tail")


def test_lanes_hold_each_groups_ends_and_all_comes_first():
    groups, members = ("class:0", "class:9"), fake_runs(("sgd",), (0, 1), **CLASSES)
    for run in members:
        run.table = run.table.assign(**{f"test_accuracy/{group}": 0.5 for group in groups})
    runs = compare(members)
    with style.context():
        figure = classwise.draw_classwise(runs, Options(groups=groups))
        pools = {group: runs.curvatures("sgd", 60, group) for group in ("all", *groups)}
        records = [record for pool in pools.values() for record in pool]
        artists = classwise.plot_lanes(style.new_figure(2).subplots(), pools, scale_of(records))
    assert [label.get_text() for label in figure.axes[0].get_yticklabels()] == ["all", "class 0", "class 9"]
    ends = [summary.pooled(pools["class:9"], name).value for name in ("lambda_min", "lambda_max")]
    assert list(artists["class:9"]["span"].get_xdata()) == ends
    table = classwise.classwise_table(runs, Options(groups=groups))
    assert table.loc[("class:9", "sgd"), "lambda_min"] == ends[0]


def test_without_the_spectrum_of_all_data_the_command_is_named():
    with pytest.raises(RecordError, match="landscape spectrum runs/sgd-0 --epoch 60 --group all"):
        classwise.draw_classwise(compare([fake_run("sgd", **FEW)]), Options())


def test_markers_at_the_edges_of_a_sweep_are_whole():
    members = [fake_run("sam", rho=rho, **FEW) for rho in (0.05, 0.5)]      # of one depth: the axis is all empty above it
    for run in members:
        run.table = run.table.assign(**{"test_accuracy/tail": 0.0})
    with style.context():
        _, tail, depth = sweep.draw_rho_sweep(compare(members, RADII), Options()).axes
    assert tail.get_ylim() == (0, 10) and not tail.lines[0].get_clip_on()
    low, high = depth.get_ylim()
    assert high == 0 and min(depth.lines[0].get_ydata()) - low > 0.03 * (high - low)
