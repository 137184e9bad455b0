import pytest
import torch
from matrices import SPECTRA, matrix, seeded

from analysis.operators import Deflated, MatrixOperator
from analysis.spectra.extremes import extreme_eigenpairs
from landscape.errors import InputError

A, B = (matrix(SPECTRA["spread"], seed=seed) for seed in (0, 1))
V = torch.randn(3, A.size, generator=seeded(), dtype=torch.float64)


@pytest.mark.parametrize("operator, expected", [
    (A - B, A.matrix - B.matrix), (A + B, A.matrix + B.matrix), (0.25 * A, 0.25 * A.matrix), (-A, -A.matrix),
    (0.9 * A + 0.1 * (B - 2 * A), 0.7 * A.matrix + 0.1 * B.matrix)], ids=["difference", "sum", "multiple", "negative", "nested"])
def test_operators_combine_as_matrices_do(operator, expected):
    assert torch.allclose(operator.matmat(V), V @ expected, rtol=1e-13, atol=1e-13)
    assert torch.allclose(operator @ V[0], expected @ V[0], rtol=1e-13, atol=1e-13)
    assert torch.allclose(operator @ V.T, expected @ V.T, rtol=1e-13, atol=1e-13)
    assert (operator.size, operator.dtype, operator.device) == (A.size, A.dtype, A.device)


def test_every_algorithm_takes_a_combination():
    pairs = extreme_eigenpairs(A - B, 2, generator=seeded())
    exact = torch.linalg.eigvalsh(A.matrix - B.matrix)
    assert torch.allclose(torch.as_tensor(pairs.values), exact[[0, 1, -2, -1]], rtol=1e-8) and pairs.verified.all()


def test_the_float64_twin_of_a_combination_is_that_of_its_terms():
    small = MatrixOperator(A.matrix.float()) - MatrixOperator(B.matrix.float())
    assert small.double().dtype == torch.float64
    assert torch.equal(small.double().matmat(V), V @ A.matrix.float().double() - V @ B.matrix.float().double())


def test_deflated_vectors_are_in_the_kernel():
    X = torch.linalg.qr(V.T)[0].T
    operator = Deflated(A, X)
    assert float(operator.matmat(X).abs().max()) < 1e-14 and float((X @ operator.matmat(V).T).abs().max()) < 1e-13


@pytest.mark.parametrize("other", [matrix(SPECTRA["zero"]), MatrixOperator(A.matrix.float())], ids=["size", "dtype"])
def test_operators_that_do_not_fit_are_refused(other):
    with pytest.raises(InputError, match="operators do not fit"):
        A - other


def test_scipy_sees_the_same_matrix():
    assert (A - B).to_scipy() @ V[0].numpy() == pytest.approx(((A.matrix - B.matrix) @ V[0]).numpy(), rel=1e-12, abs=1e-12)
