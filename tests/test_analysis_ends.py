"""Ends of spectra under one varied choice, against matrices of known spectrum and dense Hessians."""

import numpy as np
import pytest
import torch
from matrices import SPECTRA, matrix, seeded
from networks import dense_hessian, images, losses
from torch import nn

from analysis.measures.ends import (Redrawn, batch_normalized, converged_ends, ends_by_steps, images_that_fit, joined_ends,
                                    redrawn_ends, tridiagonal_ends, unchecked)
from analysis.operators import MatrixOperator
from analysis.operators.hessian import HessianOperator
from landscape.batchnorm import batch_statistics
from landscape.errors import InputError

OUTLIERS = SPECTRA["outliers"]
ROUNDING = 1e-12


class Normalized(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv, self.norm, self.head = nn.Conv2d(1, 2, 3, padding=1), nn.BatchNorm2d(2), nn.Linear(32, 3)
        self.norm.running_mean.normal_()

    def forward(self, x):
        return self.head(torch.tanh(self.norm(self.conv(x))).flatten(1))


@pytest.fixture
def model():
    torch.manual_seed(0)
    return Normalized().double()


def test_converged_ends_are_those_of_the_matrix():
    found = converged_ends(matrix(OUTLIERS), num_matvecs=20, tol=1e-6, max_matvecs=400, generator=seeded())
    assert (found.lower, found.upper) == pytest.approx((OUTLIERS[0], OUTLIERS[-1]), rel=1e-10)
    assert found.lower_residual <= 1e-6 * 2 and found.upper_residual <= 1e-5


def test_ends_move_outward_with_every_step_and_stay_within_the_spectrum():
    found = ends_by_steps(matrix(OUTLIERS), (5, 10, 20, 200, 201), seeded())
    assert list(found) == [5, 10, 20, 200]
    lowers, uppers = ([getattr(ends, name) for ends in found.values()] for name in ("lower", "upper"))
    assert (np.diff(lowers) <= ROUNDING).all() and (np.diff(uppers) >= -ROUNDING).all()
    assert lowers[-1] == pytest.approx(OUTLIERS[0]) and uppers[-1] == pytest.approx(OUTLIERS[-1])
    assert all(ends.num_matvecs == m for m, ends in found.items())


def test_a_residual_holds_an_eigenvalue():
    for ends in ends_by_steps(matrix(OUTLIERS), (3, 8, 15), seeded(3)).values():
        assert np.abs(OUTLIERS - ends.lower).min() <= ends.lower_residual + 1e-12
        assert np.abs(OUTLIERS - ends.upper).min() <= ends.upper_residual + 1e-12


def test_the_residuals_of_a_tridiagonal_are_those_of_its_ritz_vectors():
    A, n, m = matrix(OUTLIERS).matrix, len(OUTLIERS), 6
    generator = seeded(5)
    found = ends_by_steps(MatrixOperator(A), (m,), generator)[m]
    q = torch.randn(1, n, generator=seeded(5), dtype=torch.float64)[0]
    Q, R = torch.linalg.qr(torch.stack([torch.linalg.matrix_power(A, k) @ (q / q.norm()) for k in range(m)], 1))
    values, S = torch.linalg.eigh(Q.T @ A @ Q)
    v = Q @ S[:, 0]
    assert found.lower == pytest.approx(float(values[0]), rel=1e-6)
    assert found.lower_residual == pytest.approx(float((A @ v - values[0] * v).norm()), rel=1e-4)


def test_many_starts_together_find_more_than_each_alone():
    *alone, joined = joined_ends(matrix(OUTLIERS), num_probes=4, num_matvecs=8, generator=seeded())
    assert len(alone) == 4 and all(ends.num_matvecs == 8 for ends in alone)
    assert OUTLIERS[0] - 1e-9 <= joined.lower <= min(ends.lower for ends in alone) + 1e-9
    assert OUTLIERS[-1] + 1e-9 >= joined.upper >= max(ends.upper for ends in alone) - 1e-9
    assert joined.num_matvecs == 4 * 8 + 2      # both pairs are multiplied once more
    assert len(joined_ends(matrix(OUTLIERS), num_probes=1, num_matvecs=8, generator=seeded())) == 1


def test_a_broken_down_recurrence_is_cut_where_it_ended():
    found = tridiagonal_ends(np.array([2.0, -1.0, np.nan]), np.array([0.0, 0.0, 0.0]))
    assert (found.lower, found.upper, found.num_matvecs) == (-1.0, 2.0, 2)
    assert ends_by_steps(matrix(SPECTRA["identity"]), (1, 4), seeded())[4].lower == pytest.approx(1.0)


def test_a_matrix_redrawn_at_every_product_gives_itself_away():
    noise = torch.randn(30, 200, 200, generator=seeded(), dtype=torch.float64)
    A = matrix(OUTLIERS).matrix
    steady, gap = redrawn_ends(Redrawn(lambda k: MatrixOperator(A)), num_matvecs=24, generator=seeded())
    assert gap == 0 and steady.lower == pytest.approx(OUTLIERS[0], rel=1e-2)
    assert steady.lower_residual == pytest.approx(ends_by_steps(MatrixOperator(A), (24,), seeded())[24].lower_residual, rel=1e-2)
    found, gap = redrawn_ends(Redrawn(lambda k: MatrixOperator(A + 0.02 * (noise[k] + noise[k].T))), num_matvecs=24,
                              generator=seeded())
    assert gap > 0.1 and found.lower_residual > 5 * steady.lower_residual
    assert found.num_matvecs == 24 + 4


def test_every_product_of_what_is_redrawn_asks_for_the_next_draw():
    asked = []
    operator = Redrawn(lambda k: asked.append(k) or MatrixOperator(torch.eye(3)))
    operator.matvec(torch.ones(3)), operator.matmat(torch.ones(2, 3))
    assert asked == [0, 1, 2] and operator.size == 3


@pytest.mark.parametrize("engine", ["jvp", "reverse"])
def test_the_unchecked_hessian_is_the_checked_one(model, engine):
    x, y = images(7)
    batches = [(x[:4], y[:4]), (x[4:], y[4:])]
    V = torch.randn(2, sum(p.numel() for p in model.parameters()), generator=seeded(), dtype=torch.float64)
    expected = HessianOperator(model, losses, batches).matmat(V)
    torch.testing.assert_close(unchecked(model, losses, batches, engine).matmat(V), expected, rtol=1e-9, atol=1e-12)


def test_batch_statistics_are_those_of_the_one_batch(model):
    x, y = images(7)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    operator = batch_normalized(model, losses, (x, y))
    found = operator.matmat(torch.eye(operator.size, dtype=torch.float64))
    with batch_statistics(model):
        model.eval = lambda: model          # the oracle evaluates the module in the mode that it is in
        expected = dense_hessian(model, x, y)
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-12)
    del model.eval
    assert not torch.allclose(expected, dense_hessian(model, x, y))
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_one_batch_is_no_larger_than_memory_allows(model, monkeypatch):
    x, y = images(1)
    few, many = (_fitting(model, (x, y), free, monkeypatch) for free in (1e5, 2e5))
    assert 1 <= few < many <= 2 * few + 2
    assert _fitting(model, (x, y), 1e12, monkeypatch) == 1000 and _fitting(model, (x, y), 1, monkeypatch) == 1
    assert model.training


def _fitting(model, image, free, monkeypatch):
    monkeypatch.setattr("analysis.operators.plan.budget", lambda memory, device: free)
    return images_that_fit(model, losses, image, 1000)


def test_a_network_without_statistics_has_none_of_a_batch():
    with pytest.raises(InputError, match="no layer with running statistics"):
        batch_normalized(nn.Sequential(nn.Flatten(), nn.Linear(16, 3)), losses, images(4, torch.float32))


def test_too_many_steps_are_told():
    with pytest.raises(InputError, match="expected 1 <= steps <= size=50"):
        ends_by_steps(matrix(SPECTRA["identity"]), (51,), seeded())
