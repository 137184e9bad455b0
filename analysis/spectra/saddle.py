"""Measures of negative curvature from extreme pairs; none is called a negative ratio.

    extreme_ratio         |lambda_min| / |lambda_max|: how deep the deepest is (Rangwani et al. 2022)
    ritz_negative_share   share of negative values among the k extreme Ritz values: depends on k, for comparison only

The share of all eigenvalues below -threshold is `analysis.spectra.quadrature.negative_mass`; whether a negative sign is certain
stands with each pair, and `analysis.findings.verdict` judges by it.
"""

import numpy as np

from checkpoints.records import EigenPairs, Estimate
from landscape.errors import InputError


def extreme_ratio(pairs: EigenPairs) -> Estimate:
    """Return |lambda_min| / |lambda_max| from pairs of both ends, with bounds from their radii; InputError for pairs of one.

    Each end lies within residual and rounding of an eigenvalue, so the ratio of those eigenvalues lies within [low, high]. Where
    nothing negative was found, lambda_min is the smallest Ritz value all the same, and the ratio says nothing of a saddle.
    """
    if pairs.which != "both":
        raise InputError(f"which={pairs.which!r} is out of range: a ratio of both ends needs pairs of both, which=\"both\"")
    (low, high), (low_r, high_r) = np.abs(pairs.values[[0, -1]]), pairs.radii[[0, -1]]
    value = low / high if high > 0 else np.nan
    largest = (low + low_r) / (high - high_r) if high > high_r else np.inf
    smallest = max(low - low_r, 0.0) / (high + high_r) if high + high_r > 0 else np.nan
    return Estimate(float(value), float(smallest), float(largest), 1.0, "residual")


def ritz_negative_share(pairs: EigenPairs) -> float:
    """Return the share of negative values among the pairs found at both ends; state k beside it."""
    return float(np.mean(pairs.values < 0))
