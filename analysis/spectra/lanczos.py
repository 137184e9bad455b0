"""The Lanczos recurrence, for several independent probes advanced together.

For a symmetric A and a unit vector q_1 it builds an orthonormal basis Q (m, d) and a tridiagonal T with

    A Q' = Q' T + beta_m q_{m+1} e_m'                                  (Lanczos 1950)

The basis is kept in the product's dtype, on the host where the device has no room for it; each new vector is projected
against the whole basis twice ("twice is enough", Kahan in Parlett 1980), with coefficients accumulated in float64. A residual
below the rounding of the product ends a probe (breakdown): its Krylov space is invariant and its quadrature exact.

The probes are unrestarted, so that their tridiagonals serve densities and moments; of few probes the whole bases are kept, of
many the Ritz vectors at both ends, and `analysis.spectra.extremes` goes on from there.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from scipy.linalg import eigh_tridiagonal
from torch import Tensor

from analysis.operators import LinearOperator
from analysis.operators.algebra import finite, sharing
from analysis.operators.memory import free_memory
from landscape.errors import InputError

CHUNK = 1 << 15     # entries of a vector whose products are summed in its own dtype; such sums are added in float64
BREAKDOWN = 100     # units of rounding of T's largest entry, below which a residual is none
SHARE = 0.5         # of a device's free memory, that a basis may take
CAPACITY = 160          # vectors of a space in which ends are sought; of a fitted network's lower end more save few products


@dataclass(frozen=True, eq=False)
class Ritz:
    """A subspace with known products, orthonormal within each probe: where restarts begin."""

    vectors: Tensor             # (p, d)
    products: Tensor            # (p, d) A applied to each


@dataclass(frozen=True, eq=False)
class Krylov:
    """Tridiagonals of R probes, and the ends of their spaces."""

    operator: LinearOperator
    alphas: np.ndarray          # (R, m) diagonal of T; NaN after a breakdown
    betas: np.ndarray           # (R, m) off-diagonal; the last entry is the norm of the residual
    ritz: Ritz                  # both ends of every probe
    orthogonality_loss: float   # max |QQ' - I|
    num_matvecs: int
    num_ritz: int               # Ritz vectors kept at each end of each probe
    random: bool                # whether the probes are uniform random vectors, which seldom miss an eigenvector


def krylov(operator: LinearOperator, *, num_matvecs: int, num_probes: int, generator: torch.Generator,
           num_ritz: int = 8, progress: Callable[[int], None] | None = None, start: Tensor | None = None) -> Krylov:
    """Run `num_matvecs` Lanczos steps from each of `num_probes` random unit vectors, uniform on the sphere.

    num_matvecs   m, 1 <= m <= size
    num_ritz      Ritz vectors kept at each end of each probe at least, where m // 2 are as many; more where there is room
    generator     on the CPU, so that all devices start from the same vectors
    progress      called with the number of products after each step
    start         (num_probes, d) in place of random vectors, of any length but 0: what is found is then no sample of the
                  spectrum, and says nothing of eigenvalues that it missed
    """
    if not 1 <= num_matvecs <= operator.size:
        raise InputError(f"num_matvecs={num_matvecs} is out of range: expected 1 <= num_matvecs <= size={operator.size}")
    if num_probes < 1:
        raise InputError(f"num_probes={num_probes} is out of range: expected at least 1")
    Q = random_unit(num_probes, operator, generator) if start is None else _unit(start, num_probes, operator)
    state = _State.start(Q.to(home(operator, num_probes * (num_matvecs + 1))), num_matvecs)
    while state.step < num_matvecs and state.running().any():
        state.advance(operator)
        if progress:
            progress(num_probes)
    kept = min(max(num_ritz, capacity(operator) // (3 * num_probes)), max(1, num_matvecs // 2))
    return Krylov(operator, state.alphas, state.betas, state.ends(kept, operator.device), state.orthogonality_loss(),
                  num_probes * state.step, kept, start is None)


def random_unit(count: int, operator: LinearOperator, generator: torch.Generator) -> Tensor:
    """Draw unit vectors (count, d), uniform on the sphere: on the CPU in float64, then moved."""
    V = torch.randn(count, operator.size, generator=generator, dtype=torch.float64)
    return (V / V.norm(dim=1, keepdim=True)).to(operator.device, operator.dtype)


def _unit(start: Tensor, num_probes: int, operator: LinearOperator) -> Tensor:
    """Return given start vectors with length 1, in the operator's dtype and on its device."""
    if start.shape != (num_probes, operator.size):
        raise InputError(f"start of shape {tuple(start.shape)} is out of range: expected (num_probes, size) = "
                         f"({num_probes}, {operator.size})")
    V = start.double()
    lengths = V.norm(dim=1)
    if not (torch.isfinite(lengths) & (lengths > 0)).all():
        raise InputError(f"start has rows of length {lengths.tolist()}: expected finite lengths > 0; leave start out for random "
                         "vectors")
    return (V / lengths[:, None]).to(operator.device, operator.dtype)


class _State:
    """R recurrences in step: basis (R, m + 1, d), diagonals and off-diagonals."""

    def __init__(self, basis: Tensor, num_matvecs: int):
        self.basis = basis
        self.alphas = np.full((len(basis), num_matvecs), np.nan)
        self.betas = np.zeros((len(basis), num_matvecs))
        self.step = 0

    @classmethod
    def start(cls, Q: Tensor, num_matvecs: int) -> "_State":
        basis = Q.new_zeros(len(Q), num_matvecs + 1, Q.shape[1])
        basis[:, 0] = Q
        return cls(basis, num_matvecs)

    def advance(self, operator: LinearOperator) -> None:
        """Take one step of every recurrence. The residual of one that ends here stays behind its basis, as it is."""
        j = self.step
        W = finite(operator.matmat(self.basis[:, j].to(operator.device))).to(self.basis.device)
        alpha = dots(self.basis[:, j], W)
        W = project_out(self.basis[:, :j + 1], W)
        beta = dots(W, W).sqrt()
        alive = self._alive(alpha, beta)
        running = self.running()
        self.basis[:, j + 1] = torch.where(torch.as_tensor(running, device=W.device)[:, None],
                                           W / torch.where(alive, beta, 1.0).to(W.dtype)[:, None], 0.0)
        self.alphas[:, j] = np.where(running, alpha.cpu().numpy(), np.nan)
        self.betas[:, j] = torch.where(alive, beta, 0.0).cpu().numpy()
        self.step += 1

    def running(self) -> np.ndarray:
        """Tell which probes have not broken down."""
        return np.ones(len(self.betas), bool) if self.step == 0 else self.betas[:, self.step - 1] > 0

    def ends(self, count: int, device: torch.device) -> Ritz:
        """Return `count` Ritz vectors at each end of every probe, with products from A Q' = Q' T + beta q e'.

        After a breakdown beta counts as 0, yet the residual in place of beta q is up to BREAKDOWN units of rounding long.
        """
        pairs = [self._ends_of(row, count) for row in range(len(self.basis))]
        return Ritz(*(torch.cat(parts).to(device) for parts in zip(*pairs)))

    def orthogonality_loss(self) -> float:
        """Return max |QQ' - I| over the probes, accumulated in float64."""
        return max(self._loss_of(row) for row in range(len(self.basis)))

    def _alive(self, alpha: Tensor, beta: Tensor) -> Tensor:
        """Tell which residuals stand above the rounding of the product, relative to the largest entry of T so far."""
        before = np.nanmax(np.abs(np.hstack([self.alphas[:, :self.step], self.betas[:, :self.step]])), axis=1,
                           initial=0.0)
        scale = torch.maximum(torch.as_tensor(before, device=beta.device), torch.maximum(alpha.abs(), beta))
        running = torch.as_tensor(self.running(), device=beta.device)
        return running & (beta > BREAKDOWN * torch.finfo(self.basis.dtype).eps * scale)

    def _length(self, row: int) -> int:
        return int(np.isfinite(self.alphas[row]).sum())

    def _ends_of(self, row: int, count: int) -> tuple[Tensor, Tensor]:
        m = self._length(row)
        theta, S = eigh_tridiagonal(self.alphas[row, :m], self.betas[row, :m - 1])
        chosen = np.unique(np.r_[:min(count, m), max(m - count, 0):m])
        S = torch.as_tensor(S[:, chosen].T.copy(), dtype=self.basis.dtype, device=self.basis.device)   # (p, m)
        values = torch.as_tensor(theta[chosen], dtype=self.basis.dtype, device=self.basis.device)
        Y = S @ self.basis[row, :m]
        products = values[:, None] * Y + (float(self.betas[row, m - 1]) or 1.0) * S[:, -1:] * self.basis[row, m]
        return Y, products

    def _loss_of(self, row: int) -> float:
        Q = self.basis[row, :self._length(row)]
        return float((gram(Q, Q) - torch.eye(len(Q), dtype=torch.float64, device=Q.device)).abs().max())


def dots(U: Tensor, V: Tensor) -> Tensor:
    """Return the inner products of rows (R, d), accumulated in float64: (R,)."""
    return sum((u.double() * v.double()).sum(1) for u, v in zip(U.split(CHUNK, 1), V.split(CHUNK, 1)))


def gram(U: Tensor, V: Tensor) -> Tensor:
    """Return U V' of rows (p, d) and (q, d), accumulated in float64: (p, q)."""
    return sum((u @ v.T).double() for u, v in zip(U.split(CHUNK, 1), V.split(CHUNK, 1)))


def project_out(basis: Tensor, W: Tensor) -> Tensor:
    """Remove from each row of W (R, d) its components along its own orthonormal basis (R, j, d), twice."""
    rows = [W[row] for row in range(len(W))]
    for row, Q in enumerate(basis):
        for _ in range(2):
            coefficients = sum(torch.mv(q, w).double() for q, w in zip(Q.split(CHUNK, 1), rows[row].split(CHUNK)))
            rows[row] = torch.addmv(rows[row], Q.T, coefficients.to(W.dtype), alpha=-1)
    return torch.stack(rows)


def home(operator: LinearOperator, rows: int) -> torch.device:
    """Return where a basis of so many vectors is kept: with the operator, or on the host where the device lacks the room.

    Of processes that share the products the first decides, here and in `capacity`: their vectors must have the same bits.
    """
    needed = rows * operator.size * torch.empty(0, dtype=operator.dtype).element_size()
    fits = sharing(operator).first(needed <= SHARE * free_memory(operator.device))
    return operator.device if fits else torch.device("cpu")


def capacity(operator: LinearOperator) -> int:
    """Return how many vectors, each with its product, ends may be sought in: CAPACITY, or what half the free memory holds.

    Below CAPACITY, with more than 20 million parameters in 50 GiB for one, it is not the same at another time.
    """
    each = 2 * operator.size * torch.empty(0, dtype=operator.dtype).element_size()
    return sharing(operator).first(min(CAPACITY, int(SHARE * free_memory(operator.device) / each)))
