"""Symmetric matrices of prescribed spectrum."""

from collections.abc import Sequence

import numpy as np
import torch

from analysis.operators import MatrixOperator

_random = np.random.default_rng(0)
BULK = np.sort(_random.normal(size=190) * 0.3)
SPECTRA = {
    "spread": np.sort(_random.normal(size=200)),
    "outliers": np.sort(np.r_[BULK, [10, 8, 5, 3, 2, 1, -2, -1.5, -1.2, -1.1]]),
    "repeated": np.sort(np.r_[BULK, [5] * 5, [-4] * 5]),
    "clustered": np.sort(np.r_[BULK, 5 + 1e-4 * np.arange(5), -4 - 1e-4 * np.arange(5)]),
    "low rank": np.sort(np.r_[np.zeros(190), [5] * 3, [-4] * 3, 1, 2, 3, 4]),
    "positive": np.linspace(0.1, 3, 200),
    "identity": np.ones(50),
    "zero": np.zeros(20),
}


def _quantiles(density: np.ndarray, x: np.ndarray, count: int) -> np.ndarray:
    mass = np.cumsum(density)
    return np.interp((np.arange(count) + 0.5) / count, mass / mass[-1], x)


def semicircle(count: int, radius: float = 1.0) -> np.ndarray:
    x = np.linspace(-radius, radius, 20001)
    return _quantiles(np.sqrt(radius ** 2 - x ** 2), x, count)


def marchenko_pastur(count: int, ratio: float) -> np.ndarray:
    low, high = (1 - ratio ** 0.5) ** 2, (1 + ratio ** 0.5) ** 2
    x = np.linspace(low, high, 20001)
    return _quantiles(np.sqrt((x - low) * (high - x)) / x, x, count)


CALIBRATION = {     # for intervals: what a Hessian's spectrum may look like, small enough for a thousand trials
    "semicircle": semicircle(100) + 0.05,
    "outliers": np.sort(np.r_[semicircle(54, 0.5) + 0.1, [10, 6, 4, 2, -2, -1.2]]),
    "decay": np.sort(np.r_[np.exp(-np.arange(30) / 4), -0.5 * np.exp(-np.arange(30) / 4)]),
    "few negative": np.sort(np.r_[np.linspace(0.05, 3, 57), [-0.3, -0.6, -1]]),
    "Marchenko-Pastur": np.sort(np.r_[np.zeros(36), marchenko_pastur(24, 0.5)]),
}


def matrix(spectrum: Sequence[float], dtype: torch.dtype = torch.float64, seed: int = 0) -> MatrixOperator:
    """Rotate diag(spectrum) by a random orthogonal matrix."""
    generator = torch.Generator().manual_seed(seed)
    Q, _ = torch.linalg.qr(torch.randn(len(spectrum), len(spectrum), generator=generator, dtype=torch.float64))
    A = ((Q * torch.as_tensor(np.asarray(spectrum, dtype=float))) @ Q.T).to(dtype)
    return MatrixOperator((A + A.T) / 2)


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def probe_weights(spectrum: Sequence[float], count: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Return the distinct eigenvalues and the weights (count, n) that uniform unit vectors have on their eigenspaces."""
    values, multiplicity = np.unique(spectrum, return_counts=True)
    squares = np.random.default_rng(seed).chisquare(multiplicity, (count, len(values)))
    return values, squares / squares.sum(axis=1, keepdims=True)


def jacobi(nodes: np.ndarray, weights: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the tridiagonals (B, n), (B, n) that full Lanczos runs give for measures of weights (B, n).

    By adding one node at a time (Gragg and Harwood 1984): no vectors, no products, no reorthogonalisation.
    """
    count, n = weights.shape
    alphas, squares = np.tile(np.asarray(nodes, float)[:, None], count), np.zeros((n, count))
    squares[0] = weights[:, 0]
    for k in range(n - 1):
        gamma, sigma, shift, mass = np.ones(count), np.zeros(count), np.zeros(count), weights[:, k + 1].copy()
        for j in range(k + 2):
            rho, before = squares[j] + mass, sigma
            kept = gamma * rho
            some = np.where(rho > 0, rho, 1.0)
            gamma, sigma = np.where(rho > 0, squares[j] / some, 1.0), np.where(rho > 0, mass / some, 0.0)
            moved = sigma * (alphas[j] - nodes[k + 1]) - gamma * shift
            alphas[j] -= moved - shift
            mass = np.where(sigma > 0, moved ** 2 / np.where(sigma > 0, sigma, 1.0), before * squares[j])
            squares[j], shift = kept, moved
    return alphas.T.copy(), np.hstack([np.sqrt(np.maximum(squares[1:], 0)).T, np.zeros((count, 1))])


def batched_rules(alphas: np.ndarray, betas: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the Gauss rules (B, m), (B, m) of many tridiagonals at once."""
    T = np.zeros(alphas.shape + alphas.shape[1:])
    i = np.arange(alphas.shape[1])
    T[:, i, i], T[:, i[1:], i[:-1]] = alphas, betas[:, :-1]
    nodes, vectors = np.linalg.eigh(T)
    return nodes, vectors[:, 0] ** 2
