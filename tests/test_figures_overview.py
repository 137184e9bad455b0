from dataclasses import replace

import numpy as np
import pytest
from fabricated_runs import fake_pairs, fake_run, fake_runs

from analysis.findings import summary
from checkpoints.comparison import compare
from checkpoints.errors import RecordError
from figures import overview, spectrum, style
from figures.options import Options


@pytest.fixture(scope="module")
def runs():
    return compare(fake_runs(("sgd", "ssesam"), (0, 1), epochs=(0, 60), probes=2, steps=8))


def pools_of(runs, *groups):
    return {group: {opt: runs.curvatures(opt, 60, group) for opt in runs.optimizers} for group in groups}


def test_findings_are_the_records_extremes(runs):
    pools, table = pools_of(runs, "tail"), summary.accuracy_table(runs, groups=("tail",))
    sentence = overview.findings(pools, table)
    depths = {opt: summary.number_text(summary.pooled(pool, "lambda_min").value) for opt, pool in pools["tail"].items()}
    low, high = (f"{100 * table.loc[opt, 'tail']:.1f}{overview.PERCENT}" for opt in ("sgd", "ssesam"))
    assert sentence == (r"Tail: 4 of 4 runs with verified negative curvature, none of them at a strict saddle, "
                        rf"$\lambda_{{\min}}$ {depths['sgd']} (SGD) to "
                        f"{depths['ssesam']} (SSE-SAM); test accuracy {low} (SGD) to {high} (SSE-SAM).")


def test_only_verified_negative_curvature_counts(runs):
    pool = runs.curvatures("sgd", 60, "tail")
    doubtful = replace(pool[0], eigenpairs=fake_pairs(pool[0].eigenpairs.values, verified=False))
    convex = replace(pool[0], eigenpairs=fake_pairs(np.array([0.1, 0.2, 3.0, 4.0])))
    table = summary.accuracy_table(runs, groups=("tail",))
    assert "1 of 3 runs with verified" in overview.findings({"tail": {"sgd": [pool[0], doubtful, convex]}}, table)


def test_where_the_gradient_vanishes_it_is_called_a_strict_saddle(runs):
    pool = [replace(record, gradient_norm=norm) for record, norm in zip(runs.curvatures("sgd", 60, "tail"), (0.0, 9.0))]
    table = summary.accuracy_table(runs, groups=("tail",))
    assert "2 of 2 runs with verified negative curvature, 1 of them at a strict saddle" in overview.findings(
        {"tail": {"sgd": pool}}, table)


def test_one_optimizer_has_no_range():
    runs = compare([fake_run("sam", epochs=(60,), probes=1, steps=6)])
    sentence = overview.findings(pools_of(runs, "head"), summary.accuracy_table(runs, groups=("head",)))
    assert " to SAM" not in sentence and sentence.count("(SAM)") == 2


def test_ridges_stand_in_their_lanes_and_mark_lambda_min(runs):
    pools = pools_of(runs, "tail")["tail"]
    scale = spectrum.common_scale([record.spectrum for pool in pools.values() for record in pool])
    ax = style.new_figure(2).subplots()
    artists = overview.plot_ridges(ax, pools, scale)
    for base, opt in ((1, "sgd"), (0, "ssesam")):
        heights = artists[opt]["line"].get_ydata()
        assert heights.min() >= base and base + 0.3 < heights.max() < base + 1
        assert artists[opt]["lambda_min"].get_xdata()[0] == pytest.approx(
            np.mean([record.eigenpairs.values[0] for record in pools[opt]]))
    assert [label.get_text() for label in ax.get_yticklabels()] == ["SGD", "SSE-SAM"]


def test_every_seed_is_a_dot(runs):
    table, values = summary.accuracy_table(runs, groups=("tail",)), summary.last_accuracies(runs, ("tail",))
    ax = style.new_figure(2).subplots()
    overview.plot_seeds(ax, values, table, "tail")
    dots = np.concatenate([points.get_offsets()[:, 0] for points in ax.collections])
    np.testing.assert_allclose(np.sort(dots), np.sort(100 * values["tail"]))


def test_the_picture_needs_spectra_of_every_run():
    runs = compare([fake_run("sgd", epochs=(60,), probes=1, steps=4), fake_run("sam", groups=())])
    with pytest.raises(RecordError, match="landscape spectrum runs/sam-0 --epoch 60 --group head"):
        overview.draw_overview(runs, Options())


def test_accuracies_of_several_optimizers_stand_in_whole_lanes(runs):
    with style.context():
        figure = overview.draw_overview(runs, Options())
    accuracies = [ax for ax in figure.axes if ax.get_xlabel() == "test accuracy [%]"]
    assert {ax.get_ylim() for ax in accuracies} == {(len(runs.optimizers) - 0.5, -0.5)}
