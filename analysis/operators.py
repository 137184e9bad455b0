"""The linear operators of this package, in one place to import them from.

    LinearOperator        what algorithms see: matvec, matmat, size, dtype, device       `analysis.algebra`
    MatrixOperator        a dense matrix; Deflated: a projected one; Combination: a sum
    HessianOperator       the Hessian of a mean loss                                      `analysis.hessian`
    GaussNewtonOperator   its positive semi-definite part                                 `analysis.gauss_newton`
"""

from analysis.algebra import Combination, Deflated, LinearOperator, MatrixOperator, Operator
from analysis.gauss_newton import GaussNewtonOperator
from analysis.hessian import HessianOperator

__all__ = ["Combination", "Deflated", "GaussNewtonOperator", "HessianOperator", "LinearOperator", "MatrixOperator", "Operator"]
