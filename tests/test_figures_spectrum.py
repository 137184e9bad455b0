from dataclasses import replace

import numpy as np
import pytest
from fabricated_runs import fake_pairs, fake_runs, lanczos

from analysis.spectra import quadrature
from checkpoints.comparison import compare
from checkpoints.errors import RecordError
from figures import spectrum, style
from figures.options import Options

RNG = np.random.default_rng(0)
VALUES = np.sort(np.concatenate([RNG.standard_normal(200) * 0.01, [-3.0, 5.0, 20.0]]))


def new_axes():
    return style.new_figure(2, 3).subplots()


@pytest.fixture(scope="module")
def spectra():
    return [lanczos(VALUES, 3, 12, np.random.default_rng(seed)) for seed in (1, 2)]


@pytest.fixture(scope="module")
def runs():
    return compare(fake_runs(("sgd", "ssesam"), (0, 1), epochs=(60,), probes=2, steps=8))


def test_the_drawn_density_is_the_quadratures(spectra):
    scale = spectrum.common_scale(spectra[:1])
    artists = spectrum.plot_spectrum(new_axes(), spectra[0], scale)
    grid, drawn = artists["line"].get_data()
    mean = quadrature.density(spectra[0], grid, 0.25, scale.linear).mean(axis=0)
    np.testing.assert_array_equal(drawn, np.maximum(mean, scale.floor))
    assert scale.linear == quadrature.threshold(spectra[:1])


def test_the_band_of_one_run_is_the_interval_over_probes(spectra):
    scale = spectrum.common_scale(spectra[:1])
    band = spectrum.plot_spectrum(new_axes(), spectra[0], scale, level=0.8)["band"]
    grid = spectrum.density_grid(spectra[:1], scale)
    _, low, high = quadrature.density_band(spectra[0], grid, 0.25, 0.8, scale.linear)
    edges = band.get_paths()[0].vertices
    for edge in (low, high):
        points = np.column_stack([grid, np.maximum(edge, scale.floor)])
        assert {tuple(p) for p in points} <= {tuple(v) for v in edges}


def test_several_runs_are_drawn_as_mean_and_t_interval_over_seeds(spectra):
    scale = spectrum.common_scale(spectra)
    grid = spectrum.density_grid(spectra, scale)
    mean, low, high = spectrum.smoothed(spectra, grid, scale)
    each = [quadrature.density(one, grid, 0.25, scale.linear).mean(axis=0) for one in spectra]
    np.testing.assert_allclose(mean, (each[0] + each[1]) / 2)
    half = 12.7062 * np.abs(each[0] - each[1]) / 2         # Student's t with one degree of freedom, 97.5 %
    np.testing.assert_allclose([mean - low, high - mean], [half, half], rtol=1e-5, atol=1e-15)


def test_the_density_on_the_axis_holds_all_mass(spectra):
    scale = spectrum.common_scale(spectra)
    grid = spectrum.density_grid(spectra, scale)
    mean, _, _ = spectrum.smoothed(spectra, grid, scale)
    assert np.trapezoid(mean, scale.place(grid)) == pytest.approx(1.0, abs=1e-3)


def test_a_scaled_loss_only_relabels_the_axis(spectra):
    small = [replace(one, nodes=1e-8 * one.nodes) for one in spectra]
    curves = []
    for pool in (spectra, small):
        scale = spectrum.common_scale(pool)
        grid = spectrum.density_grid(pool, scale)
        curves.append(spectrum.smoothed(pool, grid, scale)[0])
        assert scale.low < scale.linear * np.sinh(-1) and scale.high > scale.linear
    np.testing.assert_allclose(curves[0], curves[1], rtol=1e-9)


def test_the_published_style_has_the_published_constants(spectra):
    ax, scale = new_axes(), spectrum.common_scale(spectra[:1], "published")
    artists = spectrum.plot_spectrum(ax, spectra[0], scale)
    assert ax.get_xscale() == "symlog" and ax.xaxis.get_transform().linthresh == 1.0 and scale.floor == 1e-7
    grid, drawn = artists["line"].get_data()
    sigma = np.sqrt(1e-5 * (np.nanmax(spectra[0].nodes) - np.nanmin(spectra[0].nodes)))
    mean = quadrature.density(spectra[0], grid, sigma).mean(axis=0)
    np.testing.assert_allclose(drawn, np.maximum(mean, 1e-7))
    assert np.trapezoid(drawn, grid) == pytest.approx(1.0, abs=0.01)   # no needle falls between two points


def test_an_unknown_style_and_an_empty_spectrum_are_refused(spectra):
    with pytest.raises(RecordError, match="style=fancy is unknown: expected one of relative, published"):
        spectrum.common_scale(spectra, "fancy")
    with pytest.raises(RecordError, match="zero everywhere"):
        spectrum.common_scale([replace(spectra[0], nodes=np.zeros_like(spectra[0].nodes))])


@pytest.mark.parametrize("low, high, linear", [(-8, 40, 0.04), (-1e-9, 3e-6, 3e-9), (-2e5, 10, 200), (0.1, 5, 0.005)])
@pytest.mark.parametrize("width", [1.0, 1.5, 3.0])
def test_ticks_are_few_and_inside_and_include_zero(low, high, linear, width):
    low = min(low, -linear)
    ticks = spectrum.eigenvalue_ticks(spectrum.Scale("relative", linear, 1e-4, low, high), width)
    assert 2 <= len(ticks) <= 4 * width + 2 and 0.0 in ticks
    assert ticks == sorted(ticks) and low <= ticks[0] and ticks[-1] <= high


def test_extreme_eigenvalues_beyond_the_nodes_are_in_view(runs):
    record = runs.curvatures("sgd", 60, "tail")[0]
    deep = replace(record, eigenpairs=fake_pairs(np.array([-500.0, -1.0, 1.0, 900.0])))
    scale = spectrum.scale_of([record, deep])
    assert scale.low < -500 and scale.high > 900


def test_a_breakdown_is_drawn_as_it_is():
    single = lanczos(np.array([-1.0, 2.0]), 1, 2, RNG)
    nodes, weights = np.append(single.nodes, [[np.nan]], 1), np.append(single.weights, [[0.0]], 1)
    line = spectrum.plot_spectrum(new_axes(), replace(single, nodes=nodes, weights=weights))["line"]
    assert np.isfinite(line.get_ydata()).all()


def test_extremes_are_marked_where_they_are_and_hollow_unless_verified(runs):
    record = runs.curvatures("sgd", 60, "tail")[0]
    doubtful = replace(record, eigenpairs=fake_pairs(record.eigenpairs.values[[0, 1, 2, 3]], verified=False))
    artists = spectrum.mark_extremes(new_axes(), [record, doubtful], "red")
    ends = record.eigenpairs.values[[0, -1]]
    assert artists["lambda_min"].get_xdata()[0] == ends[0] and artists["lambda_max"].get_xdata()[0] == ends[1]
    assert [marker.get_markerfacecolor() for marker in artists["lambda_min runs"]] == ["red", "white"]


def test_the_annotation_says_what_the_records_say(runs):
    pool = runs.curvatures("sgd", 60, "tail")
    text = spectrum.annotation(pool)
    lowest = np.mean([record.eigenpairs.values[0] for record in pool])
    assert rf"$\lambda_{{\min}}$  {lowest:.2f}".replace("  -", "  −") in text
    assert "±" in text and text.splitlines()[-1].startswith("test acc.") and text.endswith("%")
    untested = [replace(record, test_accuracy=float("nan")) for record in pool]
    assert "test" not in spectrum.annotation(untested)


def test_panels_share_their_axes_and_texts_cover_no_curve(runs):
    with style.context():
        figure = spectrum.draw_spectra(runs, Options())
        figure.draw_without_rendering()
    panels = figure.axes
    assert len(panels) == 4
    assert len({ax.get_xlim() for ax in panels}) == 1 and len({ax.get_ylim() for ax in panels}) == 1
    renderer = figure.canvas.get_renderer()
    for ax in panels:
        box = ax.get_title(loc="left") and ax._left_title.get_window_extent(renderer)
        assert box.y0 >= ax.bbox.y1
