import numpy as np
import pytest
from fabricated_runs import fake_run, fake_runs

from checkpoints.comparison import compare
from figures import Options, draw, drawn, surface
from figures.catalogue import CATALOGUE
from figures.lines import quadratic_prediction


@pytest.fixture(scope="module")
def runs():
    return compare(fake_runs(("sgd", "ssesam"), (0,), epochs=(60,), probes=2, steps=6))


def test_every_figure_has_its_numbers_beside_it():
    assert [name for name, entry in CATALOGUE.items() if entry.table is None] == []


def test_the_numbers_of_the_overview_are_those_drawn_in_its_three_parts():
    runs = compare(fake_runs(("sgd", "ssesam"), (0, 1), epochs=(0, 60), probes=2, steps=6))
    table, figure = drawn.overview(runs, Options()).reset_index(), draw("overview", runs)
    tail = table.query("opt == 'ssesam' and group == 'tail'")
    ridges, epochs, accuracies = (figure.axes[place] for place in (1, 3, 5))      # the right column
    curve = tail.query("quantity == 'density'")
    assert any(np.array_equal(line.get_xdata(), curve["eigenvalue"]) for line in ridges.lines)
    lines = [line.get_xydata().tolist() for line in epochs.lines]
    lowest = tail.query("quantity == 'lambda_min'")
    means, dots = (part[["epoch", "value"]].to_numpy(float).tolist() for part in (
        lowest[lowest["seed"].isna()], lowest[lowest["seed"].notna()]))
    assert means in lines and any(sorted(dots) == sorted(points) for points in lines)
    mean = tail.query("quantity == 'test_accuracy' and seed != seed").iloc[0]
    assert any(line.get_xdata()[0] == 100 * mean["value"] for line in accuracies.lines)
    assert mean["low"] < mean["value"] < mean["high"] and set(tail["seed"].dropna()) == {0, 1}


def test_the_densities_are_those_of_the_lines_drawn(runs):
    table = drawn.densities(runs, Options())
    figure = draw("spectra", runs)
    curves = [line.get_xydata() for ax in figure.axes for line in ax.lines if len(line.get_xdata()) > 100]
    assert len(curves) == 4
    for group in ("head", "tail"):
        rows = table.loc["ssesam"].query("group == @group")
        assert any(curve.shape[0] == len(rows) and np.allclose(curve[:, 1], np.maximum(rows["density"], curve[:, 1].min()))
                   for curve in curves), group      # drawn down to a floor
    assert (table["low"] <= table["high"] + 1e-15).all() and set(table["epoch"]) == {60}


def test_lines_come_with_their_prediction(runs):
    table = drawn.lines(runs, Options()).loc["sgd"]
    record = runs.surface("sgd", "tail-lambda_min")
    tail = table.query("group == 'tail' and surface == 'tail-lambda_min'")
    np.testing.assert_array_equal(tail[["alpha", "loss"]].to_numpy().T, [record.alpha, record.loss[1]])
    np.testing.assert_array_equal(tail["predicted"], quadratic_prediction(record, "tail"))
    here = tail[tail["alpha"].abs() < 1e-9]
    np.testing.assert_allclose(here["predicted"], here["loss"])
    assert quadratic_prediction(record, "head") is None and table.query("group == 'head'")["predicted"].isna().all()


def test_planes_hold_every_point_of_the_plane_drawn(runs):
    table = drawn.planes(runs, Options(groups=("tail",))).loc["ssesam"]
    record = runs.surface("ssesam", "random-plane")
    assert set(table["group"]) == {"tail"} and set(table["surface"]) == {"random-plane"}
    grid = table.pivot(index="alpha", columns="beta", values="loss")
    np.testing.assert_array_equal(grid.to_numpy(), record.loss[1])
    np.testing.assert_array_equal(grid.columns, record.beta)


def test_a_plane_through_checkpoints_comes_after_others_in_the_table_as_in_the_picture():
    both = compare([fake_run("sgd", 0, groups=(), measures=True)])
    assert both.surface_names(2) == ["path-plane", "random-plane"]      # by name, the path comes first
    assert set(drawn.planes(both, Options())["surface"]) == {surface.plane_name(both, Options())} == {"random-plane"}
    assert set(drawn.planes(both, Options(surface="path-plane"))["surface"]) == {"path-plane"}
