from dataclasses import replace

import numpy as np
import pytest
from matrices import SPECTRA, matrix, seeded

from analysis.spectra.extremes import extreme_eigenpairs
from analysis.spectra.saddle import extreme_ratio, ritz_negative_share
from analysis.spectra.spectrum import spectral_density
from landscape.errors import InputError

PLAIN = matrix(SPECTRA["outliers"])
PAIRS = extreme_eigenpairs(PLAIN, 3, generator=seeded())


def test_the_extreme_ratio_lies_within_its_residual_bounds():
    ratio, true = extreme_ratio(PAIRS), 2 / 10
    assert ratio.low <= true <= ratio.high and ratio.kind == "residual" and ratio.value == pytest.approx(true, rel=1e-6)


def test_rounding_widens_the_extreme_ratio():
    pairs = replace(PAIRS, residuals=0 * PAIRS.residuals, rounding=0.01 * np.abs(PAIRS.values))
    ratio = extreme_ratio(pairs)
    assert ratio.low == pytest.approx(0.2 * 0.99 / 1.01) and ratio.high == pytest.approx(0.2 * 1.01 / 0.99)
    unknown = replace(pairs, rounding=np.full(len(pairs.values), np.nan))
    assert extreme_ratio(unknown).low == extreme_ratio(unknown).high == pytest.approx(0.2)


@pytest.mark.parametrize("which", ["lower", "upper"])
def test_pairs_of_one_end_have_no_extreme_ratio(which):
    pairs = extreme_eigenpairs(PLAIN, 3, which=which, generator=seeded())
    assert pairs.which == which
    with pytest.raises(InputError, match=f"which='{which}'"):
        extreme_ratio(pairs)


def test_the_three_measures_of_negative_curvature_differ():
    assert ritz_negative_share(PAIRS) == 0.5
    assert extreme_ratio(PAIRS).value == pytest.approx(0.2, rel=1e-6)


def test_the_sign_of_negative_curvature_is_verified_where_it_is_and_nothing_negative_is_found_where_it_is_not():
    assert PAIRS.verified[0] and PAIRS.values64[0] < 0
    assert (extreme_eigenpairs(matrix(SPECTRA["positive"]), 2, generator=seeded()).values64 > 0).all()


def test_bad_arguments_are_named():
    with pytest.raises(InputError, match="generator=None"):
        spectral_density(PLAIN)
