import numpy as np
import pytest
import torch
from matrices import SPECTRA, matrix, seeded
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves

from analysis.operators import Deflated
from analysis.operators.replay import Remembered
from analysis.spectra import lanczos
from analysis.spectra.extremes import extreme_eigenpairs
from analysis.spectra.lanczos import CAPACITY, CHUNK, capacity, home, krylov, project_out
from landscape.errors import InputError


def basis_of(operator, num_matvecs, num_probes, seed=0):
    """Run the recurrence and keep its bases (R, m + 1, d)."""
    state = lanczos._State.start(lanczos.random_unit(num_probes, operator, seeded(seed)), num_matvecs)
    for _ in range(num_matvecs):
        state.advance(operator)
    return state


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_three_term_recurrence_holds(dtype):
    operator, m = matrix(SPECTRA["outliers"], dtype), 40
    state = basis_of(operator, m, 2)
    for Q, alpha, beta in zip(state.basis, state.alphas, state.betas):
        T = torch.as_tensor(np.diag(alpha) + np.diag(beta[:-1], 1) + np.diag(beta[:-1], -1), dtype=dtype)
        gap = operator.matmat(Q[:m]) - T @ Q[:m]
        gap[m - 1] -= beta[m - 1] * Q[m]
        assert float(gap.norm()) < 100 * torch.finfo(dtype).eps * 10


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_basis_stays_orthonormal_beyond_the_convergence_of_outliers(dtype):
    space = krylov(matrix(SPECTRA["outliers"], dtype), num_matvecs=120, num_probes=3, generator=seeded())
    assert space.orthogonality_loss < 10 * torch.finfo(dtype).eps


def test_the_loss_of_orthogonality_is_the_largest_inner_product_within_a_probe_or_error_of_a_norm():
    e = torch.eye(4, dtype=torch.float64)
    state = lanczos._State.start(e[:2], 2)
    state.alphas[:], state.step = 0.0, 2
    state.basis[0, 1], state.basis[1, 1] = 0.8 * e[1] + 0.6 * e[0], e[0]      # the second probe's is the first's: that is no loss
    assert state.orthogonality_loss() == pytest.approx(0.6)
    state.basis[1, 1] = 2 * e[2]
    assert state.orthogonality_loss() == pytest.approx(3.0)
    state.alphas[1, 1] = np.nan         # after a breakdown a vector is not counted
    assert state.orthogonality_loss() == pytest.approx(0.6)


def test_without_reorthogonalisation_the_loss_is_reported(monkeypatch):
    def thrice(basis, W):       # the three-term recurrence alone
        return torch.stack([w - (q[-2:] @ w) @ q[-2:] for q, w in zip(basis, W)])
    monkeypatch.setattr(lanczos, "project_out", thrice)
    space = krylov(matrix(SPECTRA["outliers"], torch.float32), num_matvecs=60, num_probes=2, generator=seeded())
    assert space.orthogonality_loss > 0.1


def test_probes_advance_as_if_alone():
    operator = matrix(SPECTRA["spread"])
    together = krylov(operator, num_matvecs=20, num_probes=3, generator=seeded())
    Q = lanczos.random_unit(3, operator, seeded())
    for row in range(3):
        state = lanczos._State.start(Q[row:row + 1], 20)
        for _ in range(20):
            state.advance(operator)
        assert np.allclose(together.alphas[row], state.alphas[0], rtol=1e-10, atol=1e-12)
        assert np.allclose(together.betas[row], state.betas[0], rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("name", ["identity", "zero"])
def test_a_breakdown_ends_the_probe(name):
    space = krylov(matrix(SPECTRA[name]), num_matvecs=15, num_probes=2, generator=seeded())
    assert (np.isfinite(space.alphas).sum(axis=1) == 1).all() and (space.betas == 0).all()
    assert space.num_matvecs == 2


def test_a_space_exhausted_but_for_rounding_couples_to_nothing_more():
    distinct = 7
    space = krylov(matrix(SPECTRA["low rank"]), num_matvecs=20, num_probes=2, generator=seeded())
    assert (space.betas[:, distinct - 1] < 1e-10).all() and (space.betas[:, :distinct - 1] > 0.1).all()


def test_a_scaled_matrix_scales_the_tridiagonal_and_nothing_else():
    spaces = [krylov(matrix(s * SPECTRA["outliers"]), num_matvecs=30, num_probes=2, generator=seeded())
              for s in (1.0, 2.0 ** -40)]
    assert np.allclose(spaces[1].alphas * 2.0 ** 40, spaces[0].alphas, rtol=1e-9, atol=1e-9)
    assert torch.allclose(spaces[1].ritz.vectors.abs(), spaces[0].ritz.vectors.abs(), atol=1e-6)


def test_ritz_products_are_those_of_the_operator():
    operator = matrix(SPECTRA["outliers"])
    ritz = krylov(operator, num_matvecs=30, num_probes=2, generator=seeded()).ritz
    assert ritz.vectors.shape == (60, 200)
    assert torch.allclose(operator.matmat(ritz.vectors), ritz.products, atol=1e-12)


def test_of_many_probes_and_where_memory_is_short_both_ends_are_kept(monkeypatch):
    operator = matrix(SPECTRA["outliers"])
    many = krylov(operator, num_matvecs=40, num_probes=8, num_ritz=3, generator=seeded())
    assert len(many.ritz.vectors) == 8 * 2 * (CAPACITY // 24) and many.num_ritz == CAPACITY // 24
    monkeypatch.setattr(lanczos, "free_memory", lambda device: 2 * 18 * 2 * 8 * operator.size)     # of 18 vectors
    few = krylov(operator, num_matvecs=40, num_probes=1, num_ritz=3, generator=seeded())
    assert len(few.ritz.vectors) == 2 * 18 // 3
    assert torch.allclose(operator.matmat(few.ritz.vectors), few.ritz.products, atol=1e-12)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_projection_leaves_nothing_of_a_basis_even_of_a_vector_mostly_inside_it(dtype):
    size, steps = 3 * CHUNK + 17, 40
    Q = torch.linalg.qr(torch.randn(size, steps, generator=seeded(), dtype=torch.float64))[0].T.to(dtype)
    w = 1e3 * Q.sum(0) + torch.randn(size, generator=seeded(), dtype=torch.float64).to(dtype) / size ** 0.5
    left = project_out(torch.stack([Q, Q]), torch.stack([w, 2 * w])).double()
    assert float((left @ Q.double().T).abs().max() / left.norm()) < 2 * torch.finfo(dtype).eps
    assert float((left[1] - 2 * left[0]).norm() / left[0].norm()) < 1e-3      # 1e3 times the rounding: most of w cancels


def test_a_basis_that_its_device_has_no_room_for_is_kept_on_the_host(monkeypatch):
    operator = matrix(SPECTRA["outliers"], torch.float32)
    operator.device = torch.device("meta")      # stands in for a GPU
    monkeypatch.setattr(lanczos, "free_memory", lambda device: 2 * 63 * operator.size * 4)
    assert home(operator, 63) == torch.device("meta") and home(operator, 64) == torch.device("cpu")


@pytest.mark.parametrize("wrap", [lambda a: a, lambda a: 2.0 * a, lambda a: Deflated(a, torch.zeros(0, 200)),
                                  lambda a: Remembered(a, [])])
def test_of_processes_that_share_products_the_first_decides_what_fits_in_memory(wrap):
    class Second:       # what the first has found there is told to the second
        def first(self, value):
            return {True: False, CAPACITY: 18}[value]
    operator = matrix(SPECTRA["outliers"])
    assert capacity(wrap(operator)) == CAPACITY
    operator.processes, operator.device = Second(), torch.device("cpu", 0)
    assert capacity(wrap(operator)) == 18 and home(wrap(operator), 10).index is None


class Elsewhere(torch.Tensor):
    """A tensor of a device of its own: it computes with others of that device alone."""

    @classmethod
    def __torch_function__(cls, function, types, args=(), kwargs=None):
        with torch._C.DisableTorchFunctionSubclass():
            if any(isinstance(x, torch.Tensor) and x.ndim and not isinstance(x, cls) for x in tree_leaves((args, kwargs))):
                raise RuntimeError("expected all tensors to be on the same device")
        return super().__torch_function__(function, types, args, kwargs)


class Moving(TorchFunctionMode):
    """Let `.to` move tensors between that device, which calls itself cpu:0, and the host."""

    def __torch_function__(self, function, types, args=(), kwargs=None):
        moved = function(*args, **(kwargs or {}))
        if function is torch.Tensor.to and isinstance(args[1], torch.device):
            moved = moved.as_subclass(torch.Tensor if args[1].index is None else Elsewhere)
        return moved


def test_a_basis_on_the_host_gives_the_same_space_and_its_ends_go_back_to_the_device(monkeypatch):
    plain = krylov(matrix(SPECTRA["outliers"]), num_matvecs=30, num_probes=2, generator=seeded())
    operator = matrix(SPECTRA["outliers"])
    operator.device, exact = torch.device("cpu", 0), operator.matmat

    def matmat(V):
        assert isinstance(V, Elsewhere)
        return exact(V.as_subclass(torch.Tensor)).as_subclass(Elsewhere)
    operator.matmat = matmat
    monkeypatch.setattr(lanczos, "free_memory", lambda device: 0)
    monkeypatch.setattr(lanczos, "capacity", lambda operator: CAPACITY)
    with Moving():
        space = krylov(operator, num_matvecs=30, num_probes=2, generator=seeded())
    assert np.array_equal(space.alphas, plain.alphas) and np.array_equal(space.betas, plain.betas)
    assert isinstance(space.ritz.vectors, Elsewhere) and isinstance(space.ritz.products, Elsewhere)
    assert torch.equal(space.ritz.vectors.as_subclass(torch.Tensor), plain.ritz.vectors)
    assert space.orthogonality_loss == plain.orthogonality_loss


@pytest.mark.parametrize("change, word", [
    (dict(num_matvecs=0), "1 <= num_matvecs <= size=20"), (dict(num_matvecs=21), "num_matvecs=21"),
    (dict(num_probes=0), "num_probes=0")])
def test_bad_numbers_are_named_with_their_range(change, word):
    with pytest.raises(InputError, match=word):
        krylov(matrix(SPECTRA["zero"]), **(dict(num_matvecs=5, num_probes=1, generator=seeded()) | change))


@pytest.mark.parametrize("when", [0, 5, 22])
def test_a_product_that_is_not_finite_is_refused_and_never_taken_for_a_breakdown(when):
    operator, calls = matrix(SPECTRA["outliers"]), []
    exact = operator.matmat

    def failing(V):
        calls.append(0)
        return exact(V) * (float("nan") if len(calls) > when else 1.0)
    operator.matmat = failing
    with pytest.raises(InputError, match="not finite in torch.float64"):
        extreme_eigenpairs(krylov(operator, num_matvecs=20, num_probes=2, generator=seeded()), 4, tol=1e-14, generator=seeded())
