from dataclasses import replace

import numpy as np
import pytest
from fabricated_runs import fake_run, fake_runs

from checkpoints.brief import brief
from checkpoints.comparison import compare
from checkpoints.errors import RecordError
from figures import style, trajectory
from figures.options import Options


@pytest.fixture(scope="module")
def runs():
    return compare(fake_runs(("sgd", "ssesam"), (0,), groups=(), measures=True))


def test_the_path_is_that_of_the_runs_checkpoints_in_order(runs):
    plane = runs.surface("sgd", "path-plane")
    epochs, places = trajectory.path_of(plane)
    assert epochs.tolist() == [0, 15, 30, 45, 60]
    np.testing.assert_array_equal(places[[0, -1]], [[4.0, 0.0], [0.0, 0.0]])
    assert list(trajectory.others_of(plane)) == ["tail-only epoch 60"]
    artists = trajectory.plot_path(style.new_figure(2).subplots(), plane)
    np.testing.assert_array_equal(artists["path"].get_xydata(), places)
    np.testing.assert_array_equal(artists["last"].get_xydata(), places[-1:])
    np.testing.assert_array_equal(artists["tail-only epoch 60"].get_xydata(), plane.point_coordinates[-1:])


def test_the_caption_states_the_length_of_the_path_distance_and_barrier(runs):
    plane = runs.surface("sgd", "path-plane")
    words = trajectory.distances_in_words(runs, "sgd", plane, ("tail", "all"))
    _, places = trajectory.path_of(plane)
    assert f"path {np.linalg.norm(np.diff(places, axis=0), axis=1).sum():.2f} long in the plane" in words
    line = runs.surface("sgd", "path-line")
    inside = line.loss[1][(line.alpha >= 0) & (line.alpha <= 4)]
    assert f"epoch 60 and epoch 0 4.00 apart, barrier of tail {inside.max() - max(inside[0], inside[-1]):.3f}" in words


def test_tail_and_all_are_drawn_unless_other_groups_are_asked_for(runs):
    for options, rows in ((Options(), ["tail", "all"]), (Options(groups=("head",)), ["head"])):
        with style.context():
            figure = trajectory.draw_trajectory(runs, options)
        panels = [ax for ax in figure.axes if ax.get_label() != "<colorbar>"]
        assert len(panels) == 2 * len(rows) and len({ax.collections[0].get_clim() for ax in panels}) == 1


def test_planes_without_checkpoints_are_refused_with_a_command(runs):
    with pytest.raises(RecordError, match="'random-plane' shows no checkpoints on a plane: .*--directions pca"):
        trajectory.draw_trajectory(runs, Options(surface="random-plane"))
    with pytest.raises(RecordError, match="landscape surface runs/sgd-0 --directions pca"):
        trajectory.draw_trajectory(compare([fake_run(groups=())]), Options())


def test_the_table_says_how_far_checkpoints_lie_off_the_plane(runs):
    table = trajectory.trajectory_table(runs, Options())
    assert list(table.loc["sgd", "checkpoint"])[0] == "epoch 60" and table["off_plane"].max() == 0.4


@pytest.fixture
def small(runs):
    """Return runs as they are exported: without directions."""
    kept = [fake_run(opt, 0, groups=(), measures=True) for opt in ("sgd", "ssesam")]
    for run in kept:
        run.kept = [brief(record) for record in run.kept]
    return compare(kept)


def test_a_run_exported_without_its_directions_is_drawn_as_the_run(runs, small):
    plane = small.surface("sgd", "path-plane")
    assert not len(plane.directions)
    assert trajectory.distances_in_words(small, "sgd", plane, ("tail", "all")) \
        == trajectory.distances_in_words(runs, "sgd", runs.surface("sgd", "path-plane"), ("tail", "all"))
    unknown = replace(plane, coordinate_units="filter norms")
    assert "long in the plane" not in trajectory.distances_in_words(small, "sgd", unknown, ("tail",))


@pytest.mark.parametrize("factor, word", [(1.0, ""), (0.05, "\nstretched ")])
def test_the_y_axis_has_its_unit_and_says_where_it_is_stretched(factor, word):
    run = fake_run("sgd", 0, groups=(), measures=True)
    run.kept = [replace(record, beta=factor * record.beta) if getattr(record, "name", "") == "path-plane" else record
                for record in run.kept]
    with style.context():
        figure = trajectory.draw_trajectory(compare([run]), Options())
    label = figure.axes[0].get_ylabel()
    assert "[parameter units]" in label and (word in label if word else "fold" not in label)
