import math

import numpy as np
import pytest

from analysis.findings.slices import TrustRadius, barrier, predicted, trust_radius
from checkpoints.errors import RecordError
from checkpoints.records import Surface


def line(alpha, loss, terms=None, points=(), precision="float64", beta=()):
    """Return a surface of one group on a line, with its derivatives (loss, slope, curvature) at 0."""
    alpha, loss = np.asarray(alpha, float), np.asarray(loss, float)[None]
    extra = {} if terms is None else {"derivatives": np.asarray(terms, float)[:, None, None]}
    if points:
        extra |= {"point_names": tuple(points), "point_coordinates": np.array([[place] for place in points.values()], float),
                  "point_distances": np.zeros(len(points))}
    directions = np.zeros((1 + bool(len(beta)), 4))
    return Surface("line", 3, ("tail",), np.array([5]), alpha, np.asarray(beta, float), loss, np.zeros_like(loss), directions,
                   ("d", "e")[:len(directions)], np.full(len(directions), np.nan), "parameter units", "hash", {},
                   precision=precision, **extra)


GRID = np.linspace(-1, 1, 201)


def test_the_prediction_is_the_parabola_of_the_stored_derivatives():
    surface = line(GRID, np.cos(GRID), (1.0, 0.5, -1.0))
    np.testing.assert_allclose(predicted(surface, "tail"), 1 + 0.5 * GRID - GRID ** 2 / 2, rtol=1e-14)
    assert predicted(line(GRID, np.cos(GRID)), "tail") is None


def test_a_quadratic_is_predicted_to_the_end_of_the_line():
    surface = line(GRID, 2 - GRID + 3 * GRID ** 2, (2.0, -1.0, 6.0))
    assert trust_radius(surface, "tail") == {side: TrustRadius(1.0, math.inf) for side in ("minus", "plus")}


@pytest.mark.parametrize("share", [0.02, 0.1, 0.5])
def test_a_cubic_leaves_its_prediction_where_the_algebra_says(share):
    # L = a + a^3: apart by |a|^3, predicted change |a|, so they part by a share at |a| = sqrt(share).
    found = trust_radius(line(GRID, GRID + GRID ** 3, (0.0, 1.0, 0.0)), "tail", share)
    for side in ("minus", "plus"):
        assert found[side].low <= math.sqrt(share) < found[side].high and found[side].high - found[side].low < 0.0101


def test_both_sides_have_their_own_radius():
    loss = np.where(GRID > 0, GRID + 7 * GRID ** 2, GRID)      # apart by a tenth at 1/70
    found = trust_radius(line(GRID, loss, (0.0, 1.0, 0.0)), "tail")
    assert found["minus"] == TrustRadius(1.0, math.inf) and found["plus"].low <= 1 / 70 <= found["plus"].high


def test_a_predicted_change_that_returns_to_zero_does_not_end_the_trust():
    # -a + a^2 is back at 0 for a = 1; it had changed by 1/4 on the way, and they part by a tenth of that where a^3/100 = 1/40.
    alpha = np.linspace(0, 2, 401)
    found = trust_radius(line(alpha, -alpha + alpha ** 2 + alpha ** 3 / 100, (0.0, -1.0, 2.0)), "tail")["plus"]
    assert found.high == math.inf
    found = trust_radius(line(alpha, -alpha + alpha ** 2 + alpha ** 3 / 10, (0.0, -1.0, 2.0)), "tail")["plus"]
    assert found.low <= 0.25 ** (1 / 3) < found.high       # apart by a^3/10 = 1/40 at a = 0.63, the largest change being 1/4


def test_rounding_is_no_departure():
    noisy = 2 + 1e-7 * np.sin(100 * GRID)
    assert trust_radius(line(GRID, noisy, (2.0, 0.0, 0.0), precision="float32"), "tail")["plus"].high == math.inf
    assert trust_radius(line(GRID, noisy, (2.0, 0.0, 0.0)), "tail")["plus"].high < 0.1


def test_a_loss_that_is_not_finite_ends_the_trust():
    loss = np.where(GRID > 0.305, np.nan, GRID)
    assert trust_radius(line(GRID, loss, (0.0, 1.0, 0.0)), "tail")["plus"] == TrustRadius(pytest.approx(0.3), pytest.approx(0.31))


@pytest.mark.parametrize("surface", [line(GRID, GRID), line(GRID, GRID, (0.0, 1.0, math.nan)),
                                     line(GRID, GRID, (0.0, 1.0, 0.0), precision="bfloat16")],
                         ids=["no derivatives", "not finite", "bfloat16"])
def test_without_derivatives_or_digits_there_is_no_radius(surface):
    assert trust_radius(surface, "tail") is None


def test_a_barrier_is_the_height_above_the_higher_end_and_above_the_mean():
    alpha = np.linspace(-1, 3, 41)
    surface = line(alpha, 1 + 0.5 * alpha - (alpha - 1) ** 2, points={"epoch 3": 0.0, "epoch 1": 2.0})
    found = barrier(surface, "tail")        # ends 0 and 1; highest at alpha = 1.25: the grid has 1.2 and 1.3
    assert found == pytest.approx({"height": 1.56 - 1, "above_mean": 1.56 - 0.5, "alpha": 1.2})


def test_a_line_that_only_falls_has_no_barrier_and_what_lies_beyond_the_ends_does_not_count():
    alpha = np.linspace(-1, 3, 41)
    surface = line(alpha, -alpha, points={"epoch 3": 0.0, "epoch 1": 2.0})
    assert barrier(surface, "tail") == pytest.approx({"height": 0.0, "above_mean": 1.0, "alpha": 0.0})


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_barrier_that_is_not_finite_says_so(value):
    alpha = np.linspace(0, 2, 5)
    found = barrier(line(alpha, [0, 1, value, 0, 0], points={"epoch 3": 0.0, "epoch 1": 2.0}), "tail")
    assert found["height"] == pytest.approx(value, nan_ok=True) and found["alpha"] == 1.0


@pytest.mark.parametrize("surface, message", [
    (line(GRID, GRID), "no line between checkpoints: make one with landscape surface"),
    (line(GRID, GRID, points={"epoch 3": 0.0, "epoch 1": 5.0}), "does not hold both checkpoints: leave out --span")])
def test_a_line_without_both_ends_has_no_barrier(surface, message):
    with pytest.raises(RecordError, match=message):
        barrier(surface, "tail")


def test_an_unknown_group_is_named():
    with pytest.raises(RecordError, match="group head is not in surface 'line': expected one of tail"):
        predicted(line(GRID, GRID), "head")
