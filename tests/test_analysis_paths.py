import numpy as np
import pytest
import torch

from analysis.surfaces.directions import Direction, between
from analysis.surfaces.paths import axis_between, covering_axis, principal_directions, project
from landscape.errors import InputError


def random(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.fixture
def walk():
    """Nine checkpoints that wander mostly along two directions of forty, and the last one."""
    places = random(9, 2) * torch.linspace(3, 1, 9, dtype=torch.float64)[:, None]
    return places @ random(2, 40, seed=1) + 0.01 * random(9, 40, seed=2), random(40, seed=3)


def test_principal_directions_are_those_of_the_centred_covariance(walk):
    path, origin = walk
    made, shares = principal_directions(path, origin, 2)
    rows = (path - origin).numpy()
    values, vectors = np.linalg.eigh(np.cov(rows.T))
    for direction, share, value, vector in zip(made, shares, values[::-1], vectors.T[::-1]):
        assert abs(float(direction.vector @ torch.from_numpy(vector.copy()))) == pytest.approx(1, abs=1e-10)
        assert share == pytest.approx(value / values.sum(), rel=1e-10)
    assert [d.name for d in made] == ["PC 1", "PC 2"] and made[0].units == "parameter units"


def test_principal_directions_agree_with_scikit_learn(walk):
    from sklearn.decomposition import PCA
    path, origin = walk
    made, shares = principal_directions(path, origin, 2)
    reference = PCA(2).fit((path - origin).numpy())
    np.testing.assert_allclose(shares, reference.explained_variance_ratio_, rtol=1e-9)
    np.testing.assert_allclose(abs(reference.components_ @ torch.stack([d.vector for d in made]).T.numpy()), np.eye(2), atol=1e-9)


def test_the_first_checkpoint_lies_ahead_along_every_principal_direction(walk):
    path, origin = walk
    for direction in principal_directions(path, origin, 2)[0]:
        assert float(direction.vector @ (path[0] - origin)) > 0


def test_too_few_checkpoints_have_no_principal_directions(walk):
    path, origin = walk
    with pytest.raises(InputError, match="pca has 2 checkpoints beside the one at the origin: 2 directions need at least 3; "):
        principal_directions(path[:2], origin, 2)
    with pytest.raises(InputError, match="no 1 directions: the 3 checkpoints span fewer"):
        principal_directions(path[:1].expand(3, -1), origin, 1)     # one place thrice


def test_points_of_the_plane_are_found_where_they_are_and_others_at_their_distance():
    d, e, off = torch.linalg.qr(random(30, 3))[0].T
    origin = random(30, seed=5)
    oblique = Direction((d + e) / 2 ** 0.5, "oblique")
    places, distances = project([origin, origin + 2 * d - 3 * oblique.vector, origin + d + 0.25 * off], origin,
                                [Direction(d, "d"), oblique])
    np.testing.assert_allclose(places, [[0, 0], [2, -3], [1, 0]], atol=1e-14)
    np.testing.assert_allclose(distances, [0, 0, 0.25], atol=1e-14)


def test_coordinates_count_in_the_directions_own_length():
    long = Direction(3 * torch.eye(4, dtype=torch.float64)[0], "long", units="filter norms")
    places, _ = project([torch.tensor([6.0, 0, 0, 0], dtype=torch.float64)], torch.zeros(4, dtype=torch.float64), [long])
    assert places.tolist() == [[2.0]]


def test_the_nearest_place_of_an_oblique_plane_is_the_least_squares_one():
    basis, origin, point = random(30, 2), random(30, seed=6), random(30, seed=7)
    made = [between(origin, origin + column) for column in basis.T]
    places, distances = project([point], origin, made)
    columns, step = torch.stack([d.vector for d in made], 1).numpy(), (point - origin).numpy()
    solution, residual, *_ = np.linalg.lstsq(columns, step, rcond=None)
    np.testing.assert_allclose(places[0], solution, rtol=1e-10)
    assert distances[0] == pytest.approx(float(residual[0]) ** 0.5, rel=1e-10)


@pytest.mark.parametrize("places", [[0.0, 3.0], [-2.0, 0.0, 5.0], [0.0], [1e-9, 0.0], [0.0, -7.0]])
@pytest.mark.parametrize("points", [3, 5, 21, 51])
def test_a_covering_axis_holds_zero_and_everything_else(places, points):
    axis = covering_axis(places, points)
    step = np.diff(axis)
    assert len(axis) == points and (axis == 0).any() and np.allclose(step, step[0])
    assert axis[0] - step[0] <= min(places) and max(places) <= axis[-1] + step[0]
    if points > 10:
        assert axis[0] <= min(places) and max(places) <= axis[-1]
        assert np.ptp(axis) <= 1.5 * max(np.ptp([*places, 0.0]), 1)


def test_a_covering_axis_has_at_least_its_width():
    assert np.ptp(covering_axis([0.0, 0.001], 21, width=3.0)) >= 3.0


@pytest.mark.parametrize("points", [3, 5, 11, 21, 99])
def test_an_axis_between_holds_both_ends_to_the_bit(points):
    axis = axis_between(0.1 + 0.2, points)
    assert len(axis) == points and 0.0 in axis.tolist() and 0.1 + 0.2 in axis.tolist() and (np.diff(axis) > 0).all()
    assert np.allclose(np.diff(axis), axis[1] - axis[0])
    assert (axis[0] < 0) == (axis[-1] > 0.1 + 0.2) == (points > 10)
