"""A subspace with known products, its Rayleigh-Ritz pairs, and how it grows and is restarted.

For an orthonormal basis V and H symmetric, the Ritz pairs are the eigenpairs of T = V (H V)' carried back by V; their residuals
need no further product, since H V is known.
"""

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from analysis.operators import LinearOperator
from analysis.operators.algebra import finite
from analysis.spectra.lanczos import Ritz, dots, gram


class Subspace:
    """An orthonormal basis V (p, d) with known products HV, T = V (HV)' (p, p), and its Rayleigh-Ritz pairs.

    Rows are appended in place and T grows with them; the basis is rotated only at a restart.
    """

    def __init__(self, V: Tensor, HV: Tensor, operator: LinearOperator, progress: Callable[[int], None] | None):
        self.operator, self.progress, self.num_matvecs = operator, progress, 0
        self._V, self._HV = V, HV       # with room for more rows at the end
        self.T = gram(V, HV)

    @classmethod
    def of(cls, ritz: Ritz, operator: LinearOperator, progress: Callable[[int], None] | None) -> "Subspace":
        """Join the probes' spaces. Directions that they nearly share are kept once: their difference is mostly rounding."""
        V, HV = ritz.vectors, ritz.products
        for _ in range(2):
            C = _orthonormalizer(gram(V, V), 0.03).to(V.dtype)
            V, HV = C @ V, C @ HV
        return cls(V, HV, operator, progress)

    def __len__(self) -> int:
        return len(self.T)

    @property
    def V(self) -> Tensor:
        return self._V[:len(self)]

    @property
    def HV(self) -> Tensor:
        return self._HV[:len(self)]

    def solve(self) -> np.ndarray:
        """Find the Ritz pairs of the space as it is, and return their values, ascending."""
        values, S = torch.linalg.eigh((self.T + self.T.T) / 2)
        self.S = S.T.to(self.V.dtype)       # (p, p): the Ritz vectors are S V
        self.values = values.cpu().numpy()
        return self.values

    def vectors(self, places: np.ndarray) -> Tensor:
        """Return some Ritz vectors, (q, d)."""
        return self.S[torch.as_tensor(places)] @ self.V

    def residuals(self, places: np.ndarray) -> tuple[Tensor, np.ndarray]:
        """Return the residual vectors of some pairs and their norms."""
        rows = self.S[torch.as_tensor(places)]
        values = torch.as_tensor(self.values[places], dtype=rows.dtype, device=rows.device)
        R = torch.addmm(rows @ self.HV, values[:, None] * rows, self.V, alpha=-1)
        return R, dots(R, R).sqrt().cpu().numpy()

    def expand(self, W: Tensor) -> bool:
        """Add directions (q, d) to the space; return False where nothing of them is new."""
        W = W / dots(W, W).sqrt()[:, None].to(W.dtype)
        for _ in range(2):      # twice is enough; what is left of a direction that is not new is rounding
            W = torch.addmm(W, gram(W, self.V).to(W.dtype), self.V, alpha=-1)
            W = _orthonormalizer(gram(W, W), 0.1).to(W.dtype) @ W
        if not len(W):
            return False
        self._append(W, self.apply(W))
        return True

    def shrink(self, places: np.ndarray) -> None:
        """Thick restart: keep some Ritz vectors."""
        rows = self.S[torch.as_tensor(places)]
        V, HV = rows @ self.V, rows @ self.HV
        self._V[:len(V)], self._HV[:len(V)] = V, HV
        self.T = gram(V, HV)

    def pairs(self, places: np.ndarray) -> tuple[Tensor, Tensor, Tensor]:
        """Return some Ritz vectors, of unit norm, their products as the space knows them, and their Rayleigh quotients."""
        X, HX = (self.S[torch.as_tensor(places)] @ rows for rows in (self.V, self.HV))
        norms = dots(X, X).sqrt()[:, None].to(X.dtype)
        X, HX = X / norms, HX / norms
        values = dots(X, HX)
        order = torch.argsort(values)
        return X[order], HX[order], values[order]

    def apply(self, W: Tensor) -> Tensor:
        """Multiply each row by the operator, counted."""
        self.num_matvecs += len(W)
        if self.progress:
            self.progress(len(W))
        return finite(self.operator.matmat(W))

    def _append(self, W: Tensor, HW: Tensor) -> None:
        old, new = len(self), len(self) + len(W)
        if new > len(self._V):
            room = self._V.new_empty(new + 32 - old, self._V.shape[1])
            self._V, self._HV = torch.cat([self.V, room]), torch.cat([self.HV, room])
        self._V[old:new], self._HV[old:new] = W, HW
        T = self.T.new_zeros(new, new)
        T[:old, :old] = self.T
        T[old:] = gram(W, self._HV[:new])
        T[:old, old:] = T[old:, :old].T
        self.T = T


def _orthonormalizer(G: Tensor, cutoff: float) -> Tensor:
    """Return C with C G C' = I from the Gram matrix of rows of norm 1 or less; directions shorter than `cutoff` are left out."""
    values, S = torch.linalg.eigh(G)
    kept = values > cutoff ** 2
    return (S[:, kept] / values[kept].sqrt()).T
