from dataclasses import replace

import numpy as np
import pytest
from fabricated_runs import fake_lines, fake_run, fake_runs
from matplotlib.colors import LogNorm

from analysis.findings import slices
from checkpoints.comparison import compare
from checkpoints.errors import RecordError
from figures import interactive, lines, style, surface
from figures.options import Options


@pytest.fixture(scope="module")
def runs():
    return compare(fake_runs(("sgd", "ssesam"), (0, 1), groups=()))


@pytest.fixture(scope="module")
def plane(runs):
    return runs.surface("sgd", "random-plane")


@pytest.fixture(scope="module")
def line(runs):
    return runs.surface("sgd", "tail-lambda_min")


def test_contours_put_alpha_to_the_right_and_beta_up(plane):
    ax = style.new_figure(2).subplots()
    tilted = replace(plane, loss=np.broadcast_to(1 + np.arange(15.0)[:, None], plane.loss.shape))   # rises with alpha
    filled = surface.plot_surface(ax, tilted, "head")["filled"]
    first_band = filled.get_paths()[0].vertices
    assert np.ptp(first_band[:, 1]) == pytest.approx(2.0) and first_band[:, 0].max() < 0


def test_a_loss_that_is_not_finite_is_left_blank(plane):
    loss = plane.loss.copy()
    loss[1, :3, :3], loss[1, 14, 14] = np.nan, np.inf
    broken = replace(plane, loss=loss)
    ax = style.new_figure(2).subplots()
    artists = surface.plot_surface(ax, broken, "tail")
    assert not any(path.contains_point((-0.95, -0.95)) for path in artists["filled"].get_paths())
    norm = surface.common_norm([surface.plane_of(broken, "tail")])
    assert np.isfinite([norm.vmin, norm.vmax]).all()


def test_a_loss_that_is_nowhere_finite_is_refused(plane, line):
    with pytest.raises(RecordError, match="nowhere finite on this surface"):
        surface.common_norm([np.full((3, 3), np.nan)])


def test_colors_are_logarithmic_only_over_a_wide_span():
    assert isinstance(surface.common_norm([np.array([[0.01, 1.0]])]), LogNorm)
    assert not isinstance(surface.common_norm([np.array([[0.5, 1.0]])]), LogNorm)
    assert not isinstance(surface.common_norm([np.array([[0.0, 1.0]])]), LogNorm)
    assert np.all(np.diff(surface.contour_levels(surface.common_norm([np.ones((2, 2))]))) > 0)


def test_groups_and_optimizers_share_one_color_scale(runs):
    with style.context():
        figure = surface.draw_surface(runs, Options())
    panels = [ax for ax in figure.axes if ax.get_label() != "<colorbar>"]
    limits = [ax.collections[0].get_clim() for ax in panels]
    assert len(limits) == 4 and len(set(limits)) == 1


def test_three_dimensional_views_hold_the_loss(plane):
    ax = style.new_figure(2).subplots(subplot_kw={"projection": "3d"})
    sheet = surface.plot_surface_3d(ax, plane, "head")["sheet"]
    assert len(sheet.get_facecolor()) == 14 * 14


def test_the_parabola_is_predicted_by_the_eigenvalue(line):
    predicted = lines.quadratic_prediction(line, "tail")
    middle = len(line.alpha) // 2
    assert predicted[middle] == line.loss[1, middle]
    curve = np.gradient(np.gradient(predicted, line.alpha), line.alpha)[middle]
    assert curve == pytest.approx(line.direction_curvatures[0])


def test_the_length_of_the_direction_enters_the_parabola(line):
    double = replace(line, directions=2 * line.directions)
    ours, theirs = (lines.quadratic_prediction(s, "tail") for s in (line, double))
    start = ours[len(line.alpha) // 2]
    np.testing.assert_allclose(theirs - start, 4 * (ours - start), atol=1e-12)


def test_nothing_is_predicted_for_other_groups_or_random_directions(line):
    assert lines.quadratic_prediction(line, "head") is None
    random = replace(line, direction_curvatures=np.array([np.nan]), direction_names=("tail random",))
    assert lines.quadratic_prediction(random, "tail") is None
    ax = style.new_figure(2).subplots()
    assert set(lines.plot_line(ax, line, "head")) == {"line"}
    assert set(lines.plot_line(ax, line, "tail")) == {"line", "prediction", "trust"}


def test_stored_slope_and_curvature_predict_every_group_and_say_how_far():
    line = fake_lines("sgd", 60, np.random.default_rng(0), derivatives=True)[0]
    ax = style.new_figure(2).subplots()
    artists = lines.plot_line(ax, line, "tail")
    loss, slope, curvature = line.derivatives[:, 1, 0]
    np.testing.assert_allclose(artists["prediction"].get_ydata(), loss + slope * line.alpha + curvature * line.alpha ** 2 / 2)
    radii = slices.trust_radius(line, "tail")
    assert sorted(artists["trust"].get_xdata()) == [-radii["minus"].high, radii["plus"].high]
    np.testing.assert_allclose(artists["trust"].get_ydata(), np.interp(artists["trust"].get_xdata(), line.alpha, line.loss[1]))
    assert lines.quadratic_prediction(line, "head") is not None
    head = lines.plot_line(ax, line, "head")["trust"]
    assert not len(head.get_xdata())      # the head is a parabola itself: the prediction holds to the line's ends


def test_a_plane_through_checkpoints_is_not_drawn_before_others():
    runs = compare([fake_run("sgd", 0, groups=(), measures=True)])
    assert surface.planes_of(runs, Options())["sgd"].name == "random-plane"


def test_slices_hold_the_loss_and_the_measured_loss_sets_the_view(runs):
    with style.context():
        figure = lines.draw_lines(runs, Options())
    assert len(figure.axes) == 4
    low, high = figure.axes[2].get_ylim()
    losses = [runs.surface(opt, "tail-lambda_min").loss for opt in runs.optimizers]
    assert low == pytest.approx(np.min(losses) - 0.06 * np.ptp(losses))
    assert high == pytest.approx(np.max(losses) + 0.06 * np.ptp(losses))
    np.testing.assert_array_equal(figure.axes[2].lines[0].get_ydata(), losses[0][0])


def test_a_line_is_no_plane_and_an_unknown_group_is_named(plane, line):
    with pytest.raises(RecordError, match="'tail-lambda_min' is a line"):
        surface.plane_of(line, "tail")
    with pytest.raises(RecordError, match="'random-plane' is a plane"):
        lines.line_of(plane, "tail")
    with pytest.raises(RecordError, match="group few is not in surface 'random-plane': expected one of head, tail"):
        surface.plane_of(plane, "few")


def test_absent_surfaces_are_refused_with_a_command():
    run = fake_run(groups=())
    run.kept = []
    for draw in (surface.draw_surface, surface.draw_surface_3d, lines.draw_lines):
        with pytest.raises(RecordError, match="landscape surface runs/sgd-0"):
            draw(compare([run]), Options())


def test_directions_are_written_in_greek():
    assert surface.direction_label("tail lambda_min") == r"tail $\lambda_{\min}$"


def test_captions_say_which_images_a_surface_is_of_where_it_is_not_all_of_training():
    run = fake_run("sgd", 0, groups=())
    settings = {"inputs": {"settings": {"max_samples": 256, "split": "test"}}}
    run.kept = [replace(record, provenance=settings) for record in run.kept]
    runs = compare([run])
    for draw in (surface.draw_surface, surface.draw_surface_3d, lines.draw_lines):
        with style.context():
            text = draw(runs, Options()).legends[0].get_title().get_text().replace("\n", " ")
        assert "loss over test images, at most 256 images of head and of tail" in text
    document = interactive.document_of(runs, "random-plane")
    assert document["evaluated"] == ", loss over test images, at most 256 images of head and of tail"


def test_a_caption_says_what_is_not_the_default_of_the_evaluation(plane):
    assert surface.evaluation_note([plane, plane]) == ""
    other = replace(plane, batchnorm="recalibrated", precision="bfloat16")
    assert surface.evaluation_note([plane, other]) == ", BatchNorm statistics estimated anew at every point, bfloat16"


def test_a_line_between_checkpoints_marks_both_and_the_top_of_each_barrier():
    runs = compare([fake_run("sgd", 0, groups=(), measures=True)])
    between = runs.surface("sgd", "path-line")
    artists = lines.mark_barriers(style.new_figure(2).subplots(), between, ("head", "tail"))
    assert [end.get_xdata()[0] for end in artists["ends"]] == between.point_coordinates[:, 0].tolist()
    found = slices.barrier(between, "tail")
    assert artists["barriers"].get_xdata().tolist() == [found["alpha"]]       # the head has none
    assert artists["barriers"].get_ydata().tolist() == [between.loss[1].max(where=between.alpha <= 4, initial=0)]
    with style.context():
        legend = lines.draw_lines(runs, Options()).legends[0]
    assert {"the two checkpoints", "top of a barrier"} <= {text.get_text() for text in legend.texts}
    assert "epoch 60 and epoch 0 4.00 apart, barrier of head 0.00, tail 0.250" in legend.get_title().get_text().replace("\n", " ")


def test_a_line_of_one_checkpoint_has_no_barrier_and_one_without_directions_no_length(line):
    assert slices.barriers(line, ("tail",)) == {} and lines.barriers_in_words(line, ("tail",)) == ""
    small = replace(line, directions=line.directions[:0], direction_names=("tail lambda_min",))
    np.testing.assert_allclose(lines.quadratic_prediction(small, "tail"), lines.quadratic_prediction(line, "tail"))
    assert lines.quadratic_prediction(replace(small, coordinate_units="filter norms"), "tail") is None
