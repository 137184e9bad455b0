"""Gauss quadrature of a spectral density: nodes and weights from Lanczos, smoothed densities, mass below a point.

For a unit vector q the Lanczos tridiagonal T gives the Gauss rule sum_j w_j f(theta_j) for the measure
mu_q = sum_i <q, u_i>^2 delta(lambda_i), with theta_j the eigenvalues of T and w_j the squared first components of its
eigenvectors (Golub and Welsch 1969). For random q, E mu_q is the spectral density of H. Here are the NumPy parts, so that
figures need no torch: everything is derived from a stored `Spectrum`.

Two uncertainties are kept apart. *Quadrature*: for one q, the Gauss-Radau rule with a node at x brackets mu_q(-inf, x)
(Chebyshev, Markov, Stieltjes; Golub and Meurant 2010). *Probes*: the law of uniform vectors, see
`analysis.spectra.intervals`; one probe gives NaN.
"""

from collections.abc import Sequence

import numpy as np
from scipy.linalg import eigh_tridiagonal, solve_banded

from analysis.spectra.intervals import law_interval
from checkpoints.records import Estimate, Spectrum
from landscape.errors import InputError


SPARE = 1.08    # room for calibration: a bracket without width adds nothing to an interval that holds the truth in just 95 %
WIDEST = 2.0    # bandwidths: wider, and the density would spread visibly beyond the extreme eigenvalues
ROUNDING = 1e-14    # of nodes in float64, relative to the largest
BLUR = 100      # times the loss of orthogonality, a few units of the product's rounding, by which nodes of one eigenvalue scatter


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
    return np.einsum("rm,rmp->rp", spectrum.weights, _kernels(spectrum, grid, bandwidth, scale))


def _kernels(spectrum: Spectrum, grid: np.ndarray, bandwidth: float, scale: float | None) -> np.ndarray:
    """Return each node's Gaussian on the grid, (R, m, P)."""
    for name, value in (("bandwidth", bandwidth), ("scale", 1.0 if scale is None else scale)):
        if not value > 0:
            raise InputError(f"{name}={value} is out of range: expected a positive number, in units of lambda; where all "
                             "eigenvalues are 0 a relative one is 0 too: there is nothing to smooth")

    def axis(values):
        return values if scale is None else np.arcsinh(values / scale)

    widths = np.full(spectrum.nodes.shape, bandwidth)
    if scale is not None:
        reach = (axis(spectrum.nodes)[:, 2:] - axis(spectrum.nodes)[:, :-2]) / 4
        widths[:, 1:-1] = np.clip(np.nan_to_num(reach), bandwidth, WIDEST * bandwidth)
    nodes = np.nan_to_num(axis(spectrum.nodes))      # a NaN node carries zero weight
    offsets = (axis(grid)[None, None, :] - nodes[:, :, None]) / widths[:, :, None]
    return np.exp(-0.5 * offsets ** 2) / (widths[:, :, None] * np.sqrt(2 * np.pi))


def density_band(spectrum: Spectrum, grid: np.ndarray, bandwidth: float, level: float = 0.95,
                 scale: float | None = None) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return the mean density over probes and its pointwise interval, (P,) each; NaN limits with one probe.

    The band holds the mean of the smoothed rules over all probes, at this number of steps: quadrature is not in it. Where
    the kernels are narrower than the distance of the nodes, a probe has a node near a place or has none, few probes do not
    show that they differ, and the band covers less than `level`. Read masses from `mass_parts` instead.
    """
    kernels = _kernels(spectrum, grid, bandwidth, scale)
    mean, low, high = law_interval(kernels, spectrum.weights, spectrum.size, level, exact=False)
    return mean, np.maximum(low, 0.0), high


def moments(spectrum: Spectrum, k: int, level: float = 0.95) -> Estimate:
    """Return tr H^k / d, k >= 1, with the interval of the probes; k < 2m, up to which Gauss rules are exact.

    k = 1 is the mean eigenvalue. NaN limits with one probe; infinite where the moment exceeds what a float holds.
    """
    steps = spectrum.nodes.shape[1]
    if not 1 <= k < 2 * steps:
        raise InputError(f"k={k} is out of range: expected 1 <= k <= {2 * steps - 1} for {steps} Lanczos steps")
    scale = largest_magnitude([spectrum]) or 1.0
    values = np.nan_to_num(spectrum.nodes / scale) ** k
    with np.errstate(over="ignore"):
        scaled = np.array(law_interval(values, spectrum.weights, spectrum.size, level, exact=True)) * np.float64(scale) ** k
    return Estimate(*scaled.tolist(), level, "probes")


def mass_bracket(alpha: np.ndarray, beta: np.ndarray, x: float, rounding: float = ROUNDING) -> tuple[float, float]:
    """Return bounds low <= mu_q(-inf, x) <= mu_q(-inf, x] <= high from one probe's tridiagonal (m,), (m,).

    The Gauss-Radau rule with prescribed node x has weight W_x there; the mass of nodes below x, without and with W_x,
    are the bounds. The width W_x is the quadrature's own uncertainty and shrinks as m grows. Other nodes within
    `rounding` * max|lambda| of x may belong to an eigenvalue on either side: they count as W_x does.
    """
    return _bracket(alpha, beta, *(part[0] for part in tridiagonal_rule(alpha[None], beta[None])), x, rounding)[:2]


def _bracket(alpha: np.ndarray, beta: np.ndarray, nodes: np.ndarray, weights: np.ndarray, x: float,
             rounding: float) -> tuple[float, float, bool]:
    """Return both bounds, and whether the rule is the measure itself."""
    length = num_steps(alpha)
    alpha, beta, nodes, weights = alpha[:length], beta[:length], nodes[:length], weights[:length]
    scale = max(np.abs(nodes).max(), abs(x))
    exact = bool(beta[-1] <= ROUNDING * scale)      # a breakdown
    if not exact and np.abs(nodes - x).min() > ROUNDING * scale:
        nodes, weights = _radau_rule(alpha, beta, x)
    blur = rounding * scale
    return float(weights[nodes < x - blur].sum()), float(weights[nodes <= x + blur].sum()), exact


def _radau_rule(alpha: np.ndarray, beta: np.ndarray, x: float) -> tuple[np.ndarray, np.ndarray]:
    """Append the row that gives T the eigenvalue x (Golub 1973)."""
    last = x + _last_of_solution(alpha - x, beta[:-1], beta[-1] ** 2)
    theta, vectors = eigh_tridiagonal(np.append(alpha, last), beta)
    return theta, vectors[0] ** 2


def _last_of_solution(diagonal: np.ndarray, off: np.ndarray, last: float) -> float:
    """Solve (T - x I) delta = last * e_m for the last entry of delta."""
    bands = np.zeros((3, len(diagonal)))
    bands[0, 1:], bands[1], bands[2, :-1] = off, diagonal, off
    right = np.zeros(len(diagonal))
    right[-1] = last
    return float(solve_banded((1, 1), bands, right)[-1])


def mass_parts(spectrum: Spectrum, threshold: float, level: float = 0.95) -> tuple[Estimate, Estimate, Estimate]:
    """Return the spectral weight below -threshold with its quadrature bracket, with the interval of its probes, and with both.

    The value of all is the geometric mean V = sqrt(L U) of a probe's bounds L and U = L + W, averaged over probes; where the
    rule is the measure itself, the mass itself. The bounds may differ by orders of magnitude, and V is the middle of those. The
    weight of Gauss nodes below x = -threshold would jump where a node crosses x. V is a smooth function of the probe's measure:
    where a node of the Radau rule passes from one end to the other, it passes through infinity with weight 0. To first order V
    varies as the integral of f = dV/dL below x, dV/dW at x and 0 above does: the Radau rule is exact to degree 2m, and a
    polynomial of that degree has these values at its nodes and slope 0 at all but x, so that nodes that move do not show. So
    the law of uniform vectors gives its variance. (V is homogeneous: the rule's sum of f is V itself.)
    Where a mass is barely resolved, V errs to the low side, and is 0 where L is: then the bracket tells, and V does not.

    The bracket (level 1) is the mean of the probes' own brackets, and narrows with more steps; the second interval is for the
    mean of V over all probes at this number of steps, and narrows with more probes; `_joined` makes one for the mass of both.
    """
    blur = max(ROUNDING, BLUR * spectrum.orthogonality_loss)
    rows = zip(spectrum.alphas, spectrum.betas, spectrum.nodes, spectrum.weights)
    low, high, exact = np.array([_bracket(*row, -threshold, blur) for row in rows]).T
    high_too = np.where(exact, low, high)       # what an exact rule has at x is not below it
    middle = np.sqrt(low * high_too)
    slopes = [np.divide(low + high_too, 2 * middle, out=np.ones_like(low), where=middle > 0),
              np.divide(low, 2 * middle, out=np.zeros_like(low), where=(middle > 0) & (exact == 0)), np.zeros_like(low)]
    weights = np.stack([low, high - low, np.maximum(1 - high, 0.0)], axis=1)        # all nodes on one side have the same f
    value, *limits = (float(x) for x in law_interval(np.stack(slopes, axis=1), weights, spectrum.size, level, exact=False))
    bracket = Estimate(value, *np.clip([low.mean(), high.mean()], 0.0, 1.0).tolist(), 1.0, "quadrature")
    probes = Estimate(value, *np.clip(limits, 0.0, 1.0).tolist(), level, "probes")
    return bracket, probes, _joined(bracket, probes, low, high, spectrum.size)


def _joined(bracket: Estimate, probes: Estimate, low: np.ndarray, high: np.ndarray, size: int) -> Estimate:
    """Return the bracket widened on each side by SPARE times the reach of V's interval, or further, to the limits of L and U.

    The bracket of few probes scatters too. V tells by how much where L and U are near each other; where L is 0, V is 0 in every
    probe and tells nothing. But E L <= mass <= E U, and the law of uniform vectors gives a limit for each (of U: f = 1 up to x, 0
    above). These are one-sided, at `level`: in a wide bracket a mass near one end is far from the other (Imbens and Manski 2004).
    """
    least = bracket.low - SPARE * (probes.value - probes.low)
    most = bracket.high + SPARE * (probes.high - probes.value)
    if bracket.high - bracket.low > probes.high - probes.low:
        one_sided = 2 * probes.level - 1        # of a two-sided interval each of whose limits is passed in 1 - level
        least = min(least, _share_interval(low, size, one_sided)[0])
        most = max(most, _share_interval(high, size, one_sided)[1])
    return Estimate(bracket.value, max(least, 0.0), min(most, 1.0), probes.level, "quadrature+probes")


def _share_interval(shares: np.ndarray, size: int, level: float) -> tuple[float, float]:
    """Return the limits for the mean of L or U, (R,) of R probes; the rule takes f, a polynomial of degree 2m, exactly."""
    weights = np.stack([shares, np.maximum(1 - shares, 0.0)], axis=1)
    _, low, high = law_interval(np.tile([1.0, 0.0], (len(shares), 1)), weights, size, level, exact=True)
    return float(low), float(high)


def negative_mass(spectrum: Spectrum, threshold: float, level: float = 0.95) -> Estimate:
    """Return the spectral weight below -threshold: the fraction of eigenvalues with lambda < -threshold.

    threshold >= 0, in units of lambda. The interval joins the `mass_parts`. It held the truth in 95 % or more of 1000 trials on
    each of four spectra with 10 probes and 20 to 100 steps, and of 250 trials with 2 and with 10 probes where 10 to 20 steps do
    not resolve a mass of 1 %. NaN limits with one probe.
    """
    return mass_parts(spectrum, threshold, level)[2]
