"""Intervals for the mean of a quantity over random probes. NumPy and SciPy only: figures and tables use them too.

For a uniform unit vector q in d dimensions the weights <q, u_i>^2 are Dirichlet(1/2, ..., 1/2), so that X = q'f(H)q has, with
v and c the second and third central moments of f over the spectrum,

    E X = tr f(H) / d,   var X = 2 v / (d + 2),   third cumulant of X = 8 c / ((d + 2) (d + 4))          (law of uniform vectors)

The Gauss rules of all probes together estimate v and c far better than the R values of X do: at 95 %, from 2 to 20 probes,
Student's t covers 82 to 93 % where a few eigenvalues carry a moment, this 94 to 96 %. A mean with such cumulants is close to
s + a chi2(nu) (Pearson 1959), nu = 8 / skewness^2. As in the exact problem of one eigenvalue of unknown share, s and a are taken
as known and nu is inverted: E X = s + a nu for the nu under which what was observed is improbably large, and improbably small.

    t_interval     independent samples of any kind, nearly normal
    law_interval   values that a probe's Gauss rule takes exactly (moments of degree < 2m), or nearly (masses, densities)
"""

from collections.abc import Sequence

import numpy as np
from scipy.special import chdtriv
from scipy.stats import chi2, norm
from scipy.stats import t as student_t

from checkpoints.records import Estimate

LAW_FREEDOM = 10        # degrees of freedom that the law's variance counts for where the rule is not exact
IMPOSSIBLE = 1e-3       # probability below which the samples' spread is said not to follow the law
NORMAL = 1e-3           # skewness below which the limits are linear in it to six digits


def t_half_width(samples: np.ndarray, level: float) -> np.ndarray:
    """Return the half width of Student's t interval for the mean over axis 0; NaN where there is one sample."""
    n = len(samples)
    if n < 2:
        return np.full(np.shape(samples)[1:], np.nan)
    return student_t.ppf(0.5 + level / 2, n - 1) * np.std(samples, axis=0, ddof=1) / np.sqrt(n)


def t_interval(samples: Sequence[float], level: float = 0.95, kind: str = "probes") -> Estimate:
    """Return the mean of independent samples with Student's t interval."""
    samples = np.asarray(samples, dtype=float)
    mean, half = float(samples.mean()), float(t_half_width(samples, level))
    return Estimate(mean, mean - half, mean + half, level, kind)


def law_interval(values: np.ndarray, weights: np.ndarray, size: int, level: float = 0.95, *,
                 exact: bool) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return mean, low and high of sum_j w_j f_j over R probes, by the law of uniform vectors; limits are NaN with one probe.

    values   (R, m) or (R, m, P): f at the nodes of each probe, for P functions at once
    weights  (R, m) of each probe's Gauss rule; a weight of 0 ignores its value
    size     d, the dimension of H
    exact    whether the rules integrate f exactly; if not, nodes move from probe to probe and add a spread of their own.
             The law's variance is then averaged with that of the samples, for which it counts as LAW_FREEDOM degrees of freedom;
             where the samples spread as the law cannot explain (chi-square test at IMPOSSIBLE), Student's t takes its place.
    """
    weights = weights.reshape(weights.shape + (1,) * (values.ndim - 2))
    values = np.where(weights > 0, values, 0.0)
    samples, count = (weights * values).sum(axis=1), len(values)
    mean = samples.mean(axis=0)
    if count < 2:
        return mean, np.full_like(mean, np.nan), np.full_like(mean, np.nan)
    variance, skewness = _law(values - mean, weights, size)
    below, above = chi2_reach(skewness, level)
    if exact:
        return mean, mean - below * np.sqrt(variance), mean + above * np.sqrt(variance)
    half, spread = t_half_width(samples, level), np.var(samples, axis=0, ddof=1)
    freedom = LAW_FREEDOM + count - 1
    mixed = (LAW_FREEDOM * variance + (count - 1) * spread / count) / freedom
    stretch = np.sqrt(mixed) * student_t.ppf(0.5 + level / 2, freedom ** 2 / (count - 1)) / norm.ppf(0.5 + level / 2)
    lawless = (count - 1) * spread > chi2.isf(IMPOSSIBLE, count - 1) * count * variance
    return mean, mean - np.where(lawless, half, below * stretch), mean + np.where(lawless, half, above * stretch)


def _law(offsets: np.ndarray, weights: np.ndarray, size: int) -> tuple[np.ndarray, np.ndarray]:
    """Return variance and skewness of the mean over R probes from offsets f - mean; 0 skewness where nothing varies."""
    count = len(offsets)
    scale = np.abs(offsets).max(axis=(0, 1))
    unit = offsets / np.where(scale > 0, scale, 1.0)        # no power under- or overflows
    second, third = ((weights * unit ** k).sum(axis=(0, 1)) / count for k in (2, 3))
    c = count * (size + 2) / 2 - 1                          # the average of R rules spreads as a Dirichlet process of this mass
    variance = 2 * second * (c + 1) / c / (size + 2) / count
    cumulant = 8 * third / ((size + 2) * (size + 4)) / count ** 2
    skewness = np.divide(cumulant, variance ** 1.5, out=np.zeros_like(cumulant), where=variance > 0)
    return variance * scale ** 2, skewness


def chi2_reach(skewness: np.ndarray, level: float) -> tuple[np.ndarray, np.ndarray]:
    """Return how many standard deviations the interval reaches below and above the mean: the normal ones without skewness."""
    z = norm.ppf(0.5 + level / 2)
    size = np.maximum(np.abs(skewness), NORMAL)
    freedom = 8 / size ** 2
    short = (freedom - chdtriv(0.5 + level / 2, freedom)) / np.sqrt(2 * freedom)    # chdtriv solves chi2.cdf(x, nu) = p for nu
    short = np.maximum(short, 0.0)      # freedoms below one: the estimate itself is more than the law would give
    long = (chdtriv(0.5 - level / 2, freedom) - freedom) / np.sqrt(2 * freedom)
    tilt = skewness * (z ** 2 + 2) / 12                         # both limits to first order in the skewness
    below = np.where(skewness >= 0, short, long)
    above = np.where(skewness >= 0, long, short)
    nearly = np.abs(skewness) <= NORMAL
    return np.where(nearly, z - tilt, below), np.where(nearly, z + tilt, above)
