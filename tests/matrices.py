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


def matrix(spectrum: Sequence[float], dtype: torch.dtype = torch.float64, seed: int = 0) -> MatrixOperator:
    """Rotate diag(spectrum) by a random orthogonal matrix."""
    generator = torch.Generator().manual_seed(seed)
    Q, _ = torch.linalg.qr(torch.randn(len(spectrum), len(spectrum), generator=generator, dtype=torch.float64))
    A = ((Q * torch.as_tensor(np.asarray(spectrum, dtype=float))) @ Q.T).to(dtype)
    return MatrixOperator((A + A.T) / 2)


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)
