import numpy as np
import pytest
import scipy.sparse.linalg
import torch
from matrices import SPECTRA, matrix, seeded

from analysis.operators import Deflated, MatrixOperator
from analysis.operators.algebra import Operator
from analysis.spectra.extremes import _inside, _outermost_open, _Wanted, extreme_eigenpairs
from analysis.spectra.lanczos import krylov
from analysis.spectra.missed import missed_below
from landscape.errors import InputError


@pytest.mark.parametrize("name", SPECTRA)
@pytest.mark.parametrize("num_probes", [1, 4])
def test_all_extreme_pairs_are_found_repeated_and_clustered_ones_too(name, num_probes):
    spectrum, operator = SPECTRA[name], matrix(SPECTRA[name])
    space = krylov(operator, num_matvecs=min(30, operator.size), num_probes=num_probes, generator=seeded())
    pairs = extreme_eigenpairs(space, 4, tol=1e-8, generator=seeded(1), max_matvecs=2000)
    assert np.allclose(pairs.values, np.r_[spectrum[:4], spectrum[-4:]], atol=1e-7)
    assert (pairs.converged | (pairs.residuals < 1e-13)).all()      # zero has no relative residual
    assert np.allclose(pairs.vectors @ pairs.vectors.T, np.eye(8), atol=1e-9)


@pytest.mark.parametrize("name", ["outliers", "repeated", "clustered"])
def test_float32_products_reach_their_rounding_and_say_so(name):
    spectrum, operator = SPECTRA[name], matrix(SPECTRA[name], torch.float32)
    pairs = extreme_eigenpairs(operator, 3, tol=1e-12, generator=seeded())
    scale = np.abs(spectrum).max()
    assert np.allclose(pairs.values, np.r_[spectrum[:3], spectrum[-3:]], atol=1e-5 * scale)
    assert not pairs.converged.any() and (pairs.residuals < 1e-5 * scale).all()
    assert pairs.verified.all()


def test_residuals_are_those_of_the_returned_vectors():
    operator = matrix(SPECTRA["spread"])
    pairs = extreme_eigenpairs(operator, 3, tol=1e-2, generator=seeded(), max_matvecs=30)
    X, A = pairs.vectors, operator.matrix.numpy()
    assert np.allclose(np.linalg.norm(X @ A - pairs.values[:, None] * X, axis=1), pairs.residuals, rtol=1e-9)
    distance = np.abs(SPECTRA["spread"][:, None] - pairs.values).min(axis=0)
    assert (distance <= pairs.residuals + 1e-12).all()


def test_values_agree_with_scipy():
    operator = matrix(SPECTRA["spread"])
    pairs = extreme_eigenpairs(operator, 5, tol=1e-9, generator=seeded(), max_matvecs=3000)
    expected = scipy.sparse.linalg.eigsh(operator.matrix.numpy(), k=10, which="BE", return_eigenvectors=False)
    assert np.allclose(pairs.values, np.sort(expected), atol=1e-9)


def test_going_on_from_a_krylov_space_costs_no_more_than_its_own_recurrence_would():
    spectrum = np.sort(np.r_[np.linspace(-2, 0, 150), np.zeros(200), np.linspace(50, 400, 50)])
    operator, tol = matrix(spectrum), 1e-4
    whole = krylov(operator, num_matvecs=200, num_probes=1, generator=seeded())
    enough = next(m for m in range(60, 200) if _lower_residual(whole, m) <= tol * 2)
    source = krylov(operator, num_matvecs=60, num_probes=1, generator=seeded())
    pairs = extreme_eigenpairs(source, 1, which="lower", tol=tol, generator=seeded(1), verify=False)
    assert pairs.converged.all() and 70 < enough < 150
    assert pairs.num_matvecs <= enough + 2      # one for the residual recomputed


def _lower_residual(space, steps):
    alphas, betas = space.alphas[0, :steps], space.betas[0, :steps]
    _, S = np.linalg.eigh(np.diag(alphas) + np.diag(betas[:-1], 1) + np.diag(betas[:-1], -1))
    return abs(betas[-1] * S[-1, 0])


@pytest.mark.parametrize("which, expected", [("lower", SPECTRA["outliers"][:3]), ("upper", SPECTRA["outliers"][-3:])])
def test_one_end_can_be_asked_for(which, expected):
    pairs = extreme_eigenpairs(matrix(SPECTRA["outliers"]), 3, which=which, generator=seeded())
    assert np.allclose(pairs.values, expected, atol=1e-6)


def test_a_scaled_matrix_scales_values_and_residuals_and_leaves_vectors():
    plain, small = (extreme_eigenpairs(matrix(s * SPECTRA["outliers"]), 2, generator=seeded()) for s in (1.0, 1e-8))
    assert np.allclose(small.values * 1e8, plain.values, rtol=1e-9)
    assert np.allclose(np.abs(np.sum(small.vectors * plain.vectors, axis=1)), 1, atol=1e-6)
    assert (small.converged == plain.converged).all() and (small.verified == plain.verified).all()


def test_negative_curvature_of_pure_rounding_is_not_verified():
    noisy = SPECTRA["positive"].copy()
    operator = matrix(noisy, torch.float32)

    class Rounded(MatrixOperator):
        """A product whose rounding makes a singular direction look negative."""

        def matmat(self, V):
            return super().matmat(V) - 0.2 * V

        def double(self):
            return operator.double()
    pairs = extreme_eigenpairs(Rounded(operator.matrix), 1, generator=seeded())
    assert pairs.values[0] < 0 and not pairs.verified[0]
    assert pairs.rounding[0] == pytest.approx(0.2, rel=1e-3)
    assert pairs.residuals[0] < 1e-4        # of the products that were made: an eigenvalue of H64 is within residual + rounding


def test_the_bound_on_missed_eigenvalues_is_the_published_one():
    space = krylov(matrix(SPECTRA["spread"]), num_matvecs=60, num_probes=2, generator=seeded())
    ends = space.ritz.products.mul(space.ritz.vectors).sum(1)
    bound = missed_below(space, -100.0)             # below every Ritz value, so that this is where the search stands
    drop, found = -100.0 - bound.low, float(ends.max()) + 100.0
    eps = drop / (found + 2 * drop)                 # the spread is at most found / (1 - 2 eps), and drop = eps * spread
    each = 1.648 * np.sqrt(200) * np.exp(-(2 * 60 - 1) * np.sqrt(eps))
    assert each ** 2 == pytest.approx(0.025, rel=1e-6)      # two probes; half of 5 % for each end


def test_the_bound_stands_on_the_smallest_value_seen_whichever_end_was_asked_for():
    pairs = extreme_eigenpairs(matrix(np.linspace(-2, 3, 50)), 3, which="upper", generator=seeded())
    assert pairs.values[0] > 2.5 and pairs.missed_below.low <= -2


@pytest.mark.parametrize("k, num_probes, num_ritz", [(10, 12, 8), (6, 6, 2)])
def test_pairs_are_found_where_fewer_start_vectors_were_kept(k, num_probes, num_ritz):
    spectrum = np.sort(np.r_[-5.0 - np.arange(20), np.linspace(-0.3, 0.3, 160), 5.0 + np.arange(20)])
    space = krylov(matrix(spectrum), num_matvecs=60, num_probes=num_probes, num_ritz=num_ritz, generator=seeded())
    pairs = extreme_eigenpairs(space, k, which="lower", generator=seeded(1))
    assert np.allclose(pairs.values, spectrum[:k], atol=1e-4)


def test_a_whole_small_spectrum_is_found():
    for seed in range(10):
        space = krylov(MatrixOperator(torch.diag(torch.arange(1.0, 6.0, dtype=torch.float64))), num_matvecs=5, num_probes=5,
                       num_ritz=2, generator=seeded(seed))
        assert np.allclose(extreme_eigenpairs(space, 5, which="lower", generator=seeded(seed)).values, np.arange(1, 6))


@pytest.mark.parametrize("seed", range(5))
def test_a_positive_semidefinite_matrix_has_no_verified_negative_curvature(seed):
    B = torch.randn(30, 100, generator=seeded(seed), dtype=torch.float64)
    A = B.T @ B
    pairs = extreme_eigenpairs(MatrixOperator((A + A.T) / 2), 3, generator=seeded(seed))
    assert not (pairs.verified & (pairs.values64 < 0)).any() and pairs.verified[-3:].all()


def test_the_bound_holds_for_a_needle_that_lanczos_seldom_sees():
    spectrum = np.r_[-1.02, np.linspace(-1, 1, 399)]
    missed = 0
    for seed in range(100):
        space = krylov(matrix(spectrum, seed=seed), num_matvecs=12, num_probes=1, generator=seeded(seed))
        off = space.betas[0, :-1]
        smallest = float(np.linalg.eigvalsh(np.diag(space.alphas[0]) + np.diag(off, 1) + np.diag(off, -1))[0])
        missed += bool(missed_below(space, smallest).low > spectrum[0])
    assert missed <= 5


@pytest.mark.parametrize("arguments, word", [(dict(k=0), "k=0"), (dict(k=11), "1 <= k <= 10"), (dict(k=1, which="left"), "both")])
def test_bad_numbers_are_named_with_their_range(arguments, word):
    with pytest.raises(InputError, match=word):
        extreme_eigenpairs(matrix(SPECTRA["zero"]), generator=seeded(), **arguments)


class Diagonal(Operator):
    """diag(v) without a matrix."""

    def __init__(self, values, dtype=torch.float32):
        self.values = torch.as_tensor(values, dtype=dtype)
        self.size, self.dtype, self.device = len(self.values), dtype, self.values.device

    def matmat(self, V):
        return V * self.values

    def double(self):
        return Diagonal(self.values, torch.float64)


@pytest.mark.parametrize("seed", range(4))
def test_copies_of_an_end_just_beyond_a_dense_bulk_are_all_found(seed):
    values = np.r_[np.linspace(0, 1, 4000) ** 2, [1.002] * 3]
    pairs = extreme_eigenpairs(Diagonal(values), 3, which="upper", generator=seeded(seed))
    assert np.allclose(pairs.values, 1.002, atol=1e-5)


@pytest.mark.parametrize("size, offset", [(10_000, 1e-3), (1000, 1e-4)])
def test_the_bound_holds_where_rounding_hides_an_eigenvalue(size, offset):
    values = np.ones(size)
    values[7] -= offset
    found = [extreme_eigenpairs(Diagonal(values), 1, which="lower", generator=seeded(seed)) for seed in range(20)]
    assert sum(pairs.missed_below.low <= values[7] + 1e-7 for pairs in found) >= 18


def test_a_deflated_operator_has_a_second_opinion_too():
    X = torch.eye(30, dtype=torch.float32)[:2]
    pairs = extreme_eigenpairs(Deflated(Diagonal(np.r_[9, 8, np.linspace(1, 3, 28)]), X), 1, which="upper", generator=seeded())
    assert pairs.verified.all() and np.allclose(pairs.values, 3, atol=1e-5)


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("which, values", [
    ("lower", np.r_[1.0, 1.0, 1.0, np.linspace(2, 10, 97)]),                    # 0, of what was projected out, lies outside
    ("upper", np.r_[-np.linspace(2, 10, 97), -1.0, -1.0, -1.0]),
    ("both", np.r_[-2.0, -2.0, -2.0, -1.9, np.linspace(-1.5, 20, 300), 100, 370, 390]),  # apart by less than 1e-3 of the largest
])
def test_repeated_eigenvalues_are_found_wherever_zero_and_the_other_end_lie(which, values, seed):
    pairs = extreme_eigenpairs(matrix(values, torch.float32), 3, which=which, tol=1e-3, generator=seeded(seed))
    expected = {"lower": values[:3], "upper": values[-3:], "both": values[[0, 1, 2, -3, -2, -1]]}[which]
    assert pairs.values == pytest.approx(expected, rel=1e-3) and pairs.converged.all()


@pytest.mark.parametrize("verify", [False, True])
@pytest.mark.parametrize("budget", [8, 10, 17, 30])
def test_the_budget_holds_however_the_products_are_spent(budget, verify):
    space = krylov(matrix(np.linspace(-1, 30, 400), torch.float32), num_matvecs=12, num_probes=1, generator=seeded())
    pairs = extreme_eigenpairs(space, 3, max_matvecs=budget, verify=verify, generator=seeded(1))
    assert pairs.num_matvecs - 12 <= budget


def test_pairs_that_were_within_their_limits_are_looked_at_once_more():
    class Moving:
        """A space of six pairs whose lowest one is within its limit at the first look alone."""

        looks = 0

        def residuals(self, places):
            norms = [1.0 if place == 0 and self.looks else 0.0 for place in places]
            self.looks += 1
            return torch.eye(6)[torch.as_tensor(places)], np.array(norms)

    space, settled = Moving(), [0, 0]
    found = _outermost_open(space, _Wanted(2, True, True), np.full(6, 0.5), settled)
    assert found.tolist() == torch.eye(6)[:1].tolist() and settled == [0, 2]


def test_where_one_vector_stands_for_both_ends_the_narrower_limit_counts():
    assert _inside(_Wanted(1, True, True), np.array([-5.0, 1.0]), 1e-3)(np.array([0.0])) == pytest.approx([0.5])
