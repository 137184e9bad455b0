"""Linear operators: what every algorithm here sees of a matrix is matvec, matmat, size, dtype and device.

Operators add, subtract and scale: `H - G`, `0.5 * H`, `0.9 * H_head + 0.1 * H_tail`.
"""

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from landscape.distributed import Processes
from landscape.errors import InputError


def finite(products: Tensor) -> Tensor:
    """Return products, refusing those that are not finite: a NaN would pass for a breakdown, and so for a full spectrum."""
    if not torch.isfinite(products).all():
        raise InputError(f"a product with the operator is not finite in {products.dtype}: use float64, or look for infinite "
                         "derivatives such as that of sqrt or norm at 0")
    return products


class LinearOperator(Protocol):
    """A symmetric matrix known by its products."""

    size: int
    dtype: torch.dtype
    device: torch.device

    def matvec(self, v: Tensor) -> Tensor:
        """Return H v, (d,) -> (d,)."""

    def matmat(self, V: Tensor) -> Tensor:
        """Return H applied to each row, (k, d) -> (k, d)."""

    def double(self) -> "LinearOperator":
        """Return the same matrix in float64, for second opinions; InputError where there is none."""


class Operator:
    """What all operators share: given `matmat`, `size`, `dtype` and `device`, products with @, sums and multiples."""

    size: int
    dtype: torch.dtype
    device: torch.device

    def matmat(self, V: Tensor) -> Tensor:
        """Return H applied to each row, (k, d) -> (k, d)."""
        raise NotImplementedError

    def matvec(self, v: Tensor) -> Tensor:
        """Return H v, (d,) -> (d,)."""
        return self.matmat(v[None])[0]

    def double(self) -> "Operator":
        """Return the same matrix in float64; InputError where the operator has no such form."""
        raise InputError(f"{type(self).__name__} has no form in float64: give it a method double()")

    def to_scipy(self):
        """Return a scipy.sparse.linalg.LinearOperator on the host."""
        from scipy.sparse.linalg import LinearOperator as ScipyOperator
        dtype = torch.empty(0, dtype=self.dtype).numpy().dtype

        def matvec(v):
            return self.matvec(torch.as_tensor(v.ravel(), dtype=self.dtype, device=self.device)).cpu().numpy()
        return ScipyOperator((self.size, self.size), matvec=matvec, rmatvec=matvec, dtype=dtype)

    def __matmul__(self, v: Tensor) -> Tensor:
        return self.matvec(v) if v.ndim == 1 else self.matmat(v.T).T

    def __add__(self, other: LinearOperator) -> "Combination":
        return Combination.of((1.0, self), (1.0, other))

    def __sub__(self, other: LinearOperator) -> "Combination":
        return Combination.of((1.0, self), (-1.0, other))

    def __mul__(self, factor: float) -> "Combination":
        return Combination.of((float(factor), self))

    __rmul__ = __mul__

    def __neg__(self) -> "Combination":
        return Combination.of((-1.0, self))


class MatrixOperator(Operator):
    """A dense symmetric matrix (d, d) as an operator."""

    def __init__(self, matrix: Tensor):
        if matrix.ndim != 2 or not torch.equal(matrix, matrix.T):
            raise InputError(f"matrix of shape {tuple(matrix.shape)} is not symmetric: pass (A + A.T) / 2")
        self.matrix, self.size = matrix, len(matrix)
        self.dtype, self.device = matrix.dtype, matrix.device

    def matvec(self, v: Tensor) -> Tensor:
        return self.matrix @ v

    def matmat(self, V: Tensor) -> Tensor:
        return V @ self.matrix

    def double(self) -> "MatrixOperator":
        """Return the operator in float64."""
        return MatrixOperator(self.matrix.double())


class Like(Operator):
    """An operator of the size and kind of another."""

    operator: LinearOperator

    @property
    def size(self) -> int:
        return self.operator.size

    @property
    def dtype(self) -> torch.dtype:
        return self.operator.dtype

    @property
    def device(self) -> torch.device:
        return self.operator.device

    @property
    def processes(self) -> Processes:
        """Those that share the other's products."""
        return sharing(self.operator)


def sharing(operator: LinearOperator) -> Processes:
    """Return the processes that make an operator's products together, and so take every step together: this one alone, mostly."""
    return getattr(operator, "processes", Processes())


@dataclass(frozen=True, eq=False)
class Deflated(Like):
    """P A P with P the projector onto the complement of orthonormal rows X (p, d)."""

    operator: LinearOperator
    X: Tensor

    def matmat(self, V: Tensor) -> Tensor:
        return self.project(self.operator.matmat(self.project(V)))

    def double(self) -> "Deflated":
        """Return the operator in float64."""
        return Deflated(self.operator.double(), self.X.double())

    def project(self, V: Tensor) -> Tensor:
        """Return P applied to each row, (k, d) -> (k, d)."""
        return V - (V @ self.X.T) @ self.X


@dataclass(frozen=True, eq=False)
class Combination(Like):
    """sum_i c_i A_i of operators of one size, dtype and device."""

    terms: tuple[tuple[float, LinearOperator], ...]

    @classmethod
    def of(cls, *terms: tuple[float, LinearOperator]) -> "Combination":
        """Join terms, opening those that are combinations themselves."""
        first = terms[0][1]
        for _, other in terms[1:]:
            if (other.size, other.dtype, other.device) != (first.size, first.dtype, first.device):
                raise InputError(f"operators do not fit: one is {first.size} wide, {first.dtype} on {first.device}, another "
                                 f"{other.size} wide, {other.dtype} on {other.device}")
        return cls(tuple((c * inner, a) for c, term in terms
                         for inner, a in (term.terms if isinstance(term, Combination) else ((1.0, term),))))

    @property
    def operator(self) -> LinearOperator:
        """The first of the operators."""
        return self.terms[0][1]

    def matmat(self, V: Tensor) -> Tensor:
        return sum(factor * operator.matmat(V) for factor, operator in self.terms)

    def double(self) -> "Combination":
        """Return the operator in float64."""
        return Combination(tuple((factor, operator.double()) for factor, operator in self.terms))
