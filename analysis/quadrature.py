"""Gauss quadrature of a spectral density: nodes and weights from Lanczos, smoothed densities, mass below a point.

For a unit vector q the Lanczos tridiagonal T gives the Gauss rule sum_j w_j f(theta_j) for the measure
mu_q = sum_i <q, u_i>^2 delta(lambda_i), with theta_j the eigenvalues of T and w_j the squared first components of its
eigenvectors (Golub and Welsch 1969). For random q, E mu_q is the spectral density of H. Here are the NumPy parts, so that
figures need no torch: everything is derived from a stored `Spectrum`.

Two uncertainties are kept apart. *Quadrature*: for one q, the Gauss-Radau rule with a node at x brackets mu_q(-inf, x)
(Chebyshev, Markov, Stieltjes; Golub and Meurant 2010). *Probes*: Student's t across independent q, or for a mass the law of
a uniform vector's weight; one probe gives NaN.
"""

from collections.abc import Sequence

import numpy as np
from scipy.linalg import eigh_tridiagonal, solve_banded
from scipy.optimize import brentq
from scipy.stats import chi2
from scipy.stats import t as student_t

from checkpoints.records import Estimate, Spectrum

WIDEST = 2.0    # bandwidths: wider, and the density would spread visibly beyond the extreme eigenvalues


def tridiagonal_rule(alphas: np.ndarray, betas: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the Gauss nodes and weights (R, m) of tridiagonals given by diagonals (R, m) and off-diagonals (R, m).

    betas[:, -1] is the norm of the last residual and does not enter. Entries after a breakdown are NaN in `alphas`;
    the rule then has NaN nodes and zero weights at its end.
    """
    nodes, weights = np.full(alphas.shape, np.nan), np.zeros(alphas.shape)
    for row, (alpha, beta) in enumerate(zip(alphas, betas)):
        length = num_steps(alpha)
        theta, vectors = eigh_tridiagonal(alpha[:length], beta[:length - 1])
        nodes[row, :length], weights[row, :length] = theta, vectors[0] ** 2
    return nodes, weights


def num_steps(alpha: np.ndarray) -> int:
    """Return the number of Lanczos steps before a breakdown: the leading finite entries of one diagonal (m,)."""
    return int(np.isfinite(alpha).sum())


def largest_magnitude(spectra: Sequence[Spectrum]) -> float:
    """Return max |theta| over all nodes of all spectra: the common scale of relative thresholds and bandwidths."""
    return max(float(np.nanmax(np.abs(spectrum.nodes))) for spectrum in spectra)


def threshold(spectra: Sequence[Spectrum], relative: float = 1e-3) -> float:
    """Return the absolute threshold `relative` * max|lambda|, shared by the spectra that one figure or table compares."""
    return relative * largest_magnitude(spectra)


def bandwidth(spectra: Sequence[Spectrum], relative: float = 0.01) -> float:
    """Return the shared standard deviation `relative` * max|lambda| of the smoothing Gaussian, in units of lambda."""
    return relative * largest_magnitude(spectra)


def published_bandwidth(spectrum: Spectrum) -> float:
    """Return sigma = sqrt(1e-5 max(1, lambda_max - lambda_min)) (PyHessian; Rangwani et al. 2022). Not scale-free."""
    spread = float(np.nanmax(spectrum.nodes) - np.nanmin(spectrum.nodes))
    return float(np.sqrt(1e-5 * max(1.0, spread)))


def density(spectrum: Spectrum, grid: np.ndarray, bandwidth: float, scale: float | None = None) -> np.ndarray:
    """Smooth the rule of each probe with a Gaussian; return densities (R, P) on `grid` (P,).

    With `scale` None the Gaussian lives on the eigenvalue axis: phi(x) = sum_j w_j N(x; theta_j, bandwidth^2), per unit
    of lambda. With `scale` s it lives on u = arcsinh(lambda / s), the axis of a symlog plot, and phi is per unit of u:
    structure near zero is then not smeared by a bandwidth chosen for the largest eigenvalue. There an inner node's
    Gaussian widens toward its neighbors, to WIDEST bandwidths at most: Lanczos resolves no more, and an empty stretch between
    two nodes need not be a gap of the spectrum.
    """
    def axis(values):
        return values if scale is None else np.arcsinh(values / scale)

    widths = np.full(spectrum.nodes.shape, bandwidth)
    if scale is not None:
        reach = (axis(spectrum.nodes)[:, 2:] - axis(spectrum.nodes)[:, :-2]) / 4
        widths[:, 1:-1] = np.clip(np.nan_to_num(reach), bandwidth, WIDEST * bandwidth)
    nodes = np.nan_to_num(axis(spectrum.nodes))      # a NaN node carries zero weight
    offsets = (axis(grid)[None, None, :] - nodes[:, :, None]) / widths[:, :, None]
    kernels = np.exp(-0.5 * offsets ** 2) / (widths[:, :, None] * np.sqrt(2 * np.pi))
    return np.einsum("rm,rmp->rp", spectrum.weights, kernels)


def density_band(spectrum: Spectrum, grid: np.ndarray, bandwidth: float, level: float = 0.95,
                 scale: float | None = None) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return the mean density over probes and its pointwise t interval, (P,) each; NaN limits with one probe."""
    samples = density(spectrum, grid, bandwidth, scale)
    half = t_half_width(samples, level)
    mean = samples.mean(axis=0)
    return mean, np.maximum(mean - half, 0.0), mean + half


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


def mass_bracket(alpha: np.ndarray, beta: np.ndarray, x: float) -> tuple[float, float]:
    """Return sharp bounds low <= mu_q(-inf, x) <= mu_q(-inf, x] <= high from one probe's tridiagonal (m,), (m,).

    The Gauss-Radau rule with prescribed node x has weight W_x there; the mass of nodes below x, without and with W_x,
    are the bounds. The width W_x is the quadrature's own uncertainty and shrinks as m grows.
    """
    length = num_steps(alpha)
    nodes, weights = _radau_rule(alpha[:length], beta[:length], x)
    at_x = int(np.argmin(np.abs(nodes - x)))
    below = float(weights[:at_x].sum())
    return below, below + float(weights[at_x])


def _radau_rule(alpha: np.ndarray, beta: np.ndarray, x: float) -> tuple[np.ndarray, np.ndarray]:
    """Append the row that gives T the eigenvalue x (Golub 1973); after a breakdown the Gauss rule is already exact."""
    tail = beta[-1]
    nodes = eigh_tridiagonal(alpha, beta[:-1], eigvals_only=True)
    scale = np.abs(nodes).max(initial=np.finfo(float).tiny)
    gap = np.abs(nodes - x).min()
    if tail <= 1e-14 * scale:
        return _exact_rule(alpha, beta, x)
    if gap > 1e-14 * scale:
        last = x + _last_of_solution(alpha - x, beta[:-1], tail ** 2)
        alpha, beta = np.append(alpha, last), np.append(beta[:-1], [tail, 0.0])
    theta, vectors = eigh_tridiagonal(alpha, beta[:len(alpha) - 1])
    return theta, vectors[0] ** 2


def _exact_rule(alpha: np.ndarray, beta: np.ndarray, x: float) -> tuple[np.ndarray, np.ndarray]:
    """Insert an empty node at x into a rule that is exact, so that the bracket has zero width."""
    theta, vectors = eigh_tridiagonal(alpha, beta[:-1])
    place = int(np.searchsorted(theta, x))
    return np.insert(theta, place, x), np.insert(vectors[0] ** 2, place, 0.0)


def _last_of_solution(diagonal: np.ndarray, off: np.ndarray, last: float) -> float:
    """Solve (T - x I) delta = last * e_m for the last entry of delta."""
    bands = np.zeros((3, len(diagonal)))
    bands[0, 1:], bands[1], bands[2, :-1] = off, diagonal, off
    right = np.zeros(len(diagonal))
    right[-1] = last
    return float(solve_banded((1, 1), bands, right)[-1])


def negative_mass(spectrum: Spectrum, threshold: float, level: float = 0.95) -> Estimate:
    """Return the spectral weight below -threshold: the fraction of eigenvalues with lambda < -threshold.

    value is the mean weight of the Gauss nodes below, which each probe's bracket contains. The interval joins both
    uncertainties: from the lower limit of the mean lower bound to the upper limit of the mean upper bound. threshold >= 0, in
    units of lambda. NaN limits with one probe.
    """
    bounds = np.array([mass_bracket(a, b, -threshold) for a, b in zip(spectrum.alphas, spectrum.betas)])
    low, high = np.clip(bounds.mean(axis=0), 0.0, 1.0)
    below = np.nan_to_num(spectrum.nodes, nan=np.inf) < -threshold
    value, freedom = float((spectrum.weights * below).sum(axis=1).mean()), len(bounds) * spectrum.size
    if len(bounds) < 2:
        return Estimate(value, np.nan, np.nan, level, "quadrature+probes")
    low, high = _mass_limit(low, freedom, (1 + level) / 2), 1 - _mass_limit(1 - high, freedom, (1 + level) / 2)
    return Estimate(value, low, high, level, "quadrature+probes")


def _mass_limit(mean: float, freedom: int, level: float) -> float:
    """Return the smallest fraction p whose probes would show `mean` or more with probability 1 - level.

    A uniform unit vector puts Beta(pd/2, (1-p)d/2) of its weight on a share p of d eigenvectors, whatever the eigenvalues.
    The mean over R probes is p chi2(nu) / nu with nu = R d p / (1 - p), by its first two moments. Student's t would be too
    narrow for the few negative directions that matter here, since their weight is skewed. freedom = R d.
    """
    def excess(p: float) -> float:
        nu = freedom * p / (1 - p)
        return chi2.cdf(nu * mean / p, nu) - level

    lowest = 1e-3 / freedom
    highest = min(mean, 1 - 1e-12)
    if mean <= lowest or excess(lowest) < 0:
        return 0.0
    return float(brentq(excess, lowest, highest)) if excess(highest) < 0 else float(mean)
