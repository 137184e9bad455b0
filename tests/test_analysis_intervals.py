import numpy as np
import pytest
from scipy.stats import chi2, norm, t

from analysis.spectra.intervals import chi2_reach, law_interval


def rule(values, share, count):
    """Rules of `count` probes with the same two nodes."""
    return np.tile(values, (count, 1)), np.tile([share, 1 - share], (count, 1))


def test_limits_of_one_eigenvalue_of_unknown_share_are_the_exact_chi_square_ones():
    size, count, share = 10 ** 6, 5, 4e-6
    value, low, high = law_interval(*rule([1.0, 0.0], share, count), size, exact=True)
    freedom = count * size * share      # a share p of d dimensions has p chi2(R d p) / (R d p)
    for limit, level in ((low, 0.975), (high, 0.025)):
        assert chi2.cdf(freedom, limit * count * size) == pytest.approx(level, abs=1e-3)
    assert value == pytest.approx(share)


def test_the_law_is_symmetric_and_normal_for_half_of_many_dimensions():
    size, count = 10 ** 4, 10
    value, low, high = law_interval(*rule([1.0, 0.0], 0.5, count), size, exact=True)
    assert high - value == pytest.approx(norm.ppf(0.975) * np.sqrt(2 * 0.25 / size / count), rel=1e-3)
    assert value - low == pytest.approx(high - value, rel=1e-6)


def test_the_interval_mirrors_and_moves_with_the_values():
    values, weights = np.random.default_rng(0).normal(size=(2, 6, 9))
    weights = weights ** 2 / (weights ** 2).sum(1, keepdims=True)
    for exact in (True, False):
        value, low, high = law_interval(values ** 3, weights, 50, exact=exact)
        mirrored = law_interval(2 - 1e-8 * values ** 3, weights, 50, exact=exact)
        assert np.allclose(mirrored, [2 - 1e-8 * value, 2 - 1e-8 * high, 2 - 1e-8 * low], rtol=0, atol=1e-14)


def test_reaches_are_normal_without_skewness_and_longer_on_the_skewed_side():
    assert chi2_reach(np.array(0.0), 0.95) == pytest.approx([1.96, 1.96], abs=1e-3)
    below, above = chi2_reach(np.array([0.5, -0.5]), 0.95)
    assert above[0] == below[1] > 2.15 > 1.8 > below[0] == above[1]


def test_spread_that_the_law_cannot_explain_gets_student_t():
    values = np.tile([[1.0], [0.0]], (5, 1))        # rules that jump as a whole
    value, low, high = law_interval(values, np.ones((10, 1)), 10 ** 6, exact=False)
    assert high - value == pytest.approx(t.ppf(0.975, 9) * np.std(values, ddof=1) / np.sqrt(10))


def test_one_probe_and_no_spread():
    assert np.isnan(law_interval(*rule([1.0, 0.0], 0.5, 1), 10, exact=True)[1:]).all()
    assert law_interval(*rule([1.0, 1.0], 0.5, 3), 10, exact=False) == pytest.approx((1.0, 1.0, 1.0), abs=1e-15)


def test_several_functions_at_once_are_each_their_own():
    values, weights = np.random.default_rng(1).uniform(size=(2, 4, 5))
    weights /= weights.sum(1, keepdims=True)
    both = law_interval(np.stack([values, values ** 2], axis=2), weights, 30, exact=False)
    for i, power in enumerate((1, 2)):
        assert np.allclose([part[i] for part in both], law_interval(values ** power, weights, 30, exact=False), rtol=1e-12)
