import numpy as np
import pytest
import torch
from matrices import SPECTRA, matrix, seeded

from analysis.extremes import extreme_eigenpairs
from analysis.saddle import extreme_ratio, negative_curvature_verified, ritz_negative_share
from analysis.spectrum import estimate_trace, spectral_density
from landscape.errors import InputError

PLAIN = matrix(SPECTRA["outliers"])
PAIRS = extreme_eigenpairs(PLAIN, 3, generator=seeded())


def test_the_trace_interval_covers_the_trace():
    true = SPECTRA["outliers"].sum()
    covered = sum(e.low <= true <= e.high for e in (estimate_trace(PLAIN, num_probes=8, generator=seeded(s)) for s in range(100)))
    assert 89 <= covered <= 100     # a binomial of 100 at 95 %, to three standard errors


def test_deflation_keeps_the_mean_and_narrows_the_interval():
    true, plain, deflated = SPECTRA["outliers"].sum(), [], []
    for seed in range(30):
        plain.append(estimate_trace(PLAIN, num_probes=8, generator=seeded(seed)))
        deflated.append(estimate_trace(PLAIN, num_probes=8, generator=seeded(seed), deflate=PAIRS))
    assert np.mean([e.value for e in deflated]) == pytest.approx(true, abs=0.5)
    assert np.median([e.high - e.low for e in deflated]) < 0.6 * np.median([e.high - e.low for e in plain])


def test_a_diagonal_matrix_has_an_exact_trace_with_rademacher_probes():
    from analysis.operators import MatrixOperator
    operator = MatrixOperator(torch.diag(torch.arange(1.0, 11.0, dtype=torch.float64)))
    estimate = estimate_trace(operator, num_probes=3, generator=seeded())
    assert estimate.value == 55 and estimate.high == estimate.low == 55


def test_the_extreme_ratio_lies_within_its_residual_bounds():
    ratio, true = extreme_ratio(PAIRS), 2 / 10
    assert ratio.low <= true <= ratio.high and ratio.kind == "residual" and ratio.value == pytest.approx(true, rel=1e-6)


def test_the_three_measures_of_negative_curvature_differ():
    assert ritz_negative_share(PAIRS) == 0.5
    assert extreme_ratio(PAIRS).value == pytest.approx(0.2, rel=1e-6)


def test_negative_curvature_is_verified_where_it_is_and_not_where_it_is_not():
    assert negative_curvature_verified(PAIRS)
    assert not negative_curvature_verified(extreme_eigenpairs(matrix(SPECTRA["positive"]), 2, generator=seeded()))


def test_bad_arguments_are_named():
    with pytest.raises(InputError, match="generator=None"):
        spectral_density(PLAIN)
    with pytest.raises(InputError, match="num_probes=0"):
        estimate_trace(PLAIN, num_probes=0, generator=seeded())
