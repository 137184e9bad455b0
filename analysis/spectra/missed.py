"""How far below the smallest value found an eigenvalue may still lie, unseen by Lanczos from random starts.

For m steps from a uniform unit vector in d dimensions (Kuczynski and Wozniakowski 1992),

    P(lambda_min(T) - lambda_min > eps (lambda_max - lambda_min)) <= 1.648 sqrt(d) exp(-(2m - 1) sqrt(eps)).
"""

import numpy as np
import torch
from scipy.stats import chi2

from analysis.spectra.lanczos import BREAKDOWN, Krylov, dots
from checkpoints.records import Estimate

LEVEL = 0.95        # of the bound


def missed_below(source: Krylov, smallest: float, level: float = LEVEL) -> Estimate:
    """Return how far below the smallest value found an eigenvalue may still lie, missed with probability 1 - level at most.

    The probes are independent, so that all miss with the product of their probabilities. The unknown spread lambda_max -
    lambda_min enters through the same bound at both ends: found spread / (1 - 2 eps), half the probability for each.
    -inf where the steps bound nothing, and where the start vectors were given. Rounding of the product is added.

    Where all probes have broken down, Q A = T Q + E with ||E|| below what counts as breakdown, so that an eigenvector u of
    an eigenvalue at distance delta from those of T has |u' q_1| delta <= ||E||; (u' q_1)^2 is chi-squared_1 / d.
    """
    probes, steps = source.alphas.shape
    quotients = dots(source.ritz.vectors, source.ritz.products) / dots(source.ritz.vectors, source.ritz.vectors)
    smallest = min(smallest, float(quotients.min()))
    scale = max(float(quotients.abs().max()), np.nanmax(np.abs(source.alphas)), np.nanmax(source.betas))
    rounding = BREAKDOWN * torch.finfo(source.operator.dtype).eps * scale
    each = ((1 - level) / 2) ** (1 / probes)
    eps = (np.log(1.648 * np.sqrt(source.operator.size) / each) / (2 * steps - 1)) ** 2
    if not source.random:
        eps = np.inf
    elif steps == source.operator.size and np.isfinite(source.alphas).all(axis=1).any():     # nothing is left to explore
        eps = 0.0
    elif (source.betas[:, -1] == 0).all():
        eps, rounding = 0.0, rounding * np.sqrt(source.operator.size / chi2.ppf((1 - level) ** (1 / probes), 1))
    drop = eps * (float(quotients.max()) - smallest) / (1 - 2 * eps) if eps < 0.5 else np.inf
    return Estimate(smallest, float(smallest - drop - rounding), smallest, level, "probes")
