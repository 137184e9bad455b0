"""Measures of negative curvature. Three quantities, three names; none is called a negative ratio.

    negative_mass         spectral weight below -threshold (analysis.spectra.quadrature): the share of descending directions
    extreme_ratio         |lambda_min| / |lambda_max|: how deep the deepest is (Rangwani et al. 2022)
    ritz_negative_share   share of negative values among the k extreme Ritz values: depends on k, for comparison only
"""

import numpy as np

from checkpoints.records import EigenPairs, Estimate
from landscape.errors import InputError


def extreme_ratio(pairs: EigenPairs) -> Estimate:
    """Return |lambda_min| / |lambda_max| from pairs of both ends, with bounds from the residuals; InputError for pairs of one.

    Each end lies within its residual of an eigenvalue, so the ratio of those eigenvalues lies within [low, high]. Where
    nothing negative was found, lambda_min is the smallest Ritz value all the same, and the ratio says nothing of a saddle.
    """
    if pairs.which != "both":
        raise InputError(f"which={pairs.which!r} is out of range: a ratio of both ends needs pairs of both, which=\"both\"")
    (low, high), (low_r, high_r) = np.abs(pairs.values[[0, -1]]), pairs.residuals[[0, -1]]
    value = low / high if high > 0 else np.nan
    largest = (low + low_r) / (high - high_r) if high > high_r else np.inf
    smallest = max(low - low_r, 0.0) / (high + high_r) if high + high_r > 0 else np.nan
    return Estimate(float(value), float(smallest), float(largest), 1.0, "residual")


def ritz_negative_share(pairs: EigenPairs) -> float:
    """Return the share of negative values among the pairs found at both ends; state k beside it."""
    return float(np.mean(pairs.values < 0))


def negative_curvature_verified(pairs: EigenPairs) -> bool:
    """Tell whether some reported direction has v'Hv < 0 beyond the rounding of the product: then lambda_min < 0 for certain.

    The converse is never certain: without such a direction, `missed_below` says where an eigenvalue may still lie.
    """
    return bool(np.any(pairs.verified & (pairs.values64 < 0)))
