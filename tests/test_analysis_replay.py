import numpy as np
import pytest
import torch
from matrices import matrix as rotated

from analysis.operators import MatrixOperator, replay
from analysis.operators.replay import Remembered, note, noted
from analysis.spectra.lanczos import krylov


class Listed(list):
    """A journal in memory. Unlike a list, it shows an iterator only the steps that were there when it began."""

    def __iter__(self):
        return iter(self[:])


class Counting(MatrixOperator):
    products = 0

    def matmat(self, V):
        self.products += len(V)
        return super().matmat(V)


@pytest.fixture
def matrix():
    return rotated(np.linspace(-1, 3, 12)).matrix


def run(operator):
    space = krylov(operator, num_matvecs=6, num_probes=2, generator=torch.Generator().manual_seed(0))
    return np.stack([space.alphas, space.betas])


@pytest.mark.parametrize("every_seconds", [0.0, 1e9])
def test_recalled_products_are_those_that_were_made(matrix, monkeypatch, every_seconds):
    monkeypatch.setattr(replay, "EVERY_SECONDS", every_seconds)
    journal, results, made = Listed(), [], []
    for _ in range(2):
        operator = Counting(matrix)
        with Remembered(operator, journal) as products:
            results.append(run(products))
        made.append(operator.products)
    assert np.array_equal(*results) and made == [12, 0] and products.num_matvecs == products.num_recalled == 12
    assert len(journal) == (6 if every_seconds == 0 else 1)


def test_a_run_goes_on_after_its_last_stored_product(matrix, monkeypatch):
    monkeypatch.setattr(replay, "EVERY_SECONDS", 0.0)
    journal = Listed()
    whole = run(Remembered(MatrixOperator(matrix), journal))
    del journal[4:]
    operator = Counting(matrix)
    assert np.array_equal(run(Remembered(operator, journal)), whole) and operator.products == 4 and len(journal) == 6


def test_products_of_other_vectors_are_not_recalled(matrix):
    journal = Listed()
    with Remembered(MatrixOperator(matrix), journal) as products:
        products.matmat(torch.ones(2, 12, dtype=torch.float64))
        first = products.matvec(torch.eye(12, dtype=torch.float64)[3])
    operator = Counting(matrix)
    with Remembered(operator, journal) as products:
        assert torch.equal(products.matvec(torch.eye(12, dtype=torch.float64)[3]), first) and operator.products == 0
        products.matvec(torch.eye(12, dtype=torch.float64)[4])
    assert operator.products == 1


def test_what_is_not_stored_yet_is_stored_when_an_exception_leaves(matrix):
    journal = Listed()
    with pytest.raises(KeyboardInterrupt), Remembered(MatrixOperator(matrix), journal) as products:
        products.matvec(torch.ones(12, dtype=torch.float64))
        raise KeyboardInterrupt
    assert len(journal) == 1


def test_a_note_stands_in_front_of_the_products(matrix):
    journal = Listed()
    assert noted(journal) is None
    note(journal, {"engine": "jvp", "microbatch": 8})
    run(Remembered(MatrixOperator(matrix), journal))
    assert noted(journal) == {"engine": "jvp", "microbatch": 8}


def test_products_of_another_matrix_are_not_recalled(matrix):
    journal = Listed()
    with Remembered(MatrixOperator(matrix), journal, "A") as products:
        whole = run(products)
    assert np.allclose(run(Remembered(MatrixOperator(-matrix), journal, "-A"))[0], -whole[0])


def test_a_caller_may_write_into_a_product(matrix):
    journal, v = Listed(), torch.ones(12, dtype=torch.float64)
    with Remembered(MatrixOperator(matrix), journal) as products:
        products.matvec(v).zero_()
    assert torch.allclose(Remembered(MatrixOperator(matrix), journal).matvec(v), matrix @ v)
