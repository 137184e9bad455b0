"""The linear operators of this package, in one place to import them from.

    LinearOperator        what algorithms see: matvec, matmat, size, dtype, device       `analysis.operators.algebra`
    MatrixOperator        a dense matrix; Deflated: a projected one; Combination: a sum
    HessianOperator       the Hessian of a mean loss                                      `analysis.operators.hessian`
    GaussNewtonOperator   its positive semi-definite part                                 `analysis.operators.gauss_newton`
"""

from analysis.operators.algebra import Combination, Deflated, LinearOperator, MatrixOperator, Operator
from analysis.operators.gauss_newton import GaussNewtonOperator
from analysis.operators.hessian import HessianOperator

__all__ = ["Combination", "Deflated", "GaussNewtonOperator", "HessianOperator", "LinearOperator", "MatrixOperator", "Operator"]
