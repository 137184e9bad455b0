import numpy as np
import pytest
import torch
from matrices import SPECTRA, matrix, seeded
from networks import InPlaceResidual, images, losses, make

from analysis.operators import HessianOperator
from analysis.spectra.extremes import extreme_eigenpairs
from analysis.spectra.trace import Hutchinson, _Complement, estimate_trace, measure_trace
from analysis.spectra.xtrace import XTrace
from landscape.errors import InputError

PLAIN = matrix(SPECTRA["outliers"])
TRACE = float(SPECTRA["outliers"].sum())
PAIRS = extreme_eigenpairs(PLAIN, 3, generator=seeded())


def test_deflation_keeps_the_mean_and_narrows_the_interval():
    found = {deflate: [measure_trace(PLAIN, num_probes=8, generator=seeded(s), deflate=deflate and PAIRS) for s in range(30)]
             for deflate in (None, True)}
    assert np.mean([e.estimate.value for e in found[True]]) == pytest.approx(TRACE, abs=0.5)
    assert np.median([e.standard_error for e in found[True]]) < 0.6 * np.median([e.standard_error for e in found[None]])


@pytest.mark.parametrize("known", [None, PAIRS])
def test_xtrace_is_the_mean_of_traces_that_leave_one_probe_out(known):
    source = _Complement(PLAIN, known, seeded(3), None)
    found = XTrace(source)
    found.grow(5)
    found.grow(4)
    P = torch.eye(200, dtype=torch.float64) - (0 if known is None else torch.as_tensor(known.vectors.T @ known.vectors))
    A, W, expected = P @ PLAIN.matrix @ P, found.W, []
    for i in range(9):
        Q, _ = torch.linalg.qr((torch.cat([W[:i], W[i + 1:]]) @ A).T)
        r = W[i] - Q @ (Q.T @ W[i])
        expected.append(float(torch.trace(Q.T @ A @ Q) + (source.size - 8) * (r @ A @ r) / (r @ r)) + source.known)
    trace, error, freedom = found.solve()
    assert trace == pytest.approx(np.mean(expected), abs=1e-9) and error > 0 and freedom == 8 and source.num_matvecs == 18


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_xtrace_is_exact_where_the_probes_exceed_the_rank(dtype):
    found = measure_trace(matrix(SPECTRA["low rank"], dtype), num_probes=15, method="xtrace", generator=seeded())
    assert found.estimate.value == pytest.approx(SPECTRA["low rank"].sum(), rel=100 * torch.finfo(dtype).eps)
    assert found.standard_error < 1e-5 * found.estimate.value and found.num_matvecs == 25     # rank 10: no product for the rest


@pytest.mark.parametrize("method", ["hutchinson", "xtrace"])
@pytest.mark.parametrize("name", ["identity", "zero"])
def test_a_matrix_without_spread_has_an_exact_trace(name, method):
    found = measure_trace(matrix(SPECTRA[name]), method=method, generator=seeded())
    assert found.estimate.value == pytest.approx(SPECTRA[name].sum(), rel=1e-12)
    assert found.standard_error < 1e-12 and found.reached


def test_the_error_is_that_of_repeated_estimates():
    values = [measure_trace(PLAIN, num_probes=20, generator=seeded(s)) for s in range(200)]
    assert np.std([e.estimate.value for e in values]) == pytest.approx(np.mean([e.standard_error for e in values]), rel=0.15)


def test_the_rank_that_carries_the_variance_is_estimated():
    probes = Hutchinson(_Complement(matrix(SPECTRA["spread"]), None, seeded(), None))
    probes.grow(400)
    squares = SPECTRA["spread"] ** 2
    assert probes.rank() == pytest.approx(squares.sum() ** 2 / (squares ** 2).sum(), rel=0.1)


def test_auto_takes_what_needs_the_fewest_products():
    def products(method, deflate=None):
        return measure_trace(PLAIN, method=method, deflate=deflate, max_matvecs=3000, generator=seeded(2))
    plain, crossed, chosen = products("hutchinson"), products("xtrace"), products("auto")
    assert chosen.num_matvecs == min(plain.num_matvecs, crossed.num_matvecs) and chosen.method == "xtrace"
    flat = measure_trace(matrix(SPECTRA["positive"]), generator=seeded())
    assert flat.method == "hutchinson" and flat.num_matvecs < 30
    assert products("auto", PAIRS).num_matvecs <= chosen.num_matvecs


def test_a_budget_that_is_too_small_is_said_to_be():
    found = measure_trace(PLAIN, rel_error=1e-3, max_matvecs=40, method="hutchinson", generator=seeded())
    assert not found.reached and found.num_matvecs == 40
    assert measure_trace(PLAIN, rel_error=1e-4, max_matvecs=60, method="xtrace", generator=seeded()).num_matvecs <= 60


@pytest.mark.parametrize("method", ["hutchinson", "xtrace"])
def test_the_trace_scales_with_the_loss(method):
    big, small = (measure_trace(matrix(SPECTRA["outliers"] * s), method=method, generator=seeded(4), max_matvecs=2000)
                  for s in (1, 1e-8))
    assert small.num_matvecs == big.num_matvecs
    for field in ("value", "low", "high"):
        assert getattr(small.estimate, field) == pytest.approx(1e-8 * getattr(big.estimate, field), rel=1e-6)


def test_one_probe_has_no_interval():
    found = estimate_trace(PLAIN, num_probes=1, generator=seeded())
    assert np.isfinite(found.value) and np.isnan(found.low) and np.isnan(found.high)


def test_the_trace_of_a_network_costs_what_it_says():
    x, y = images()
    operator = HessianOperator(make(InPlaceResidual), losses, [(x, y)], engine="reverse")
    before, told = operator.num_matvecs, []
    found = measure_trace(operator, generator=seeded(), progress=told.append)
    assert operator.num_matvecs - before == found.num_matvecs == sum(told) and found.reached
    exact = float(operator.matmat(torch.eye(operator.size, dtype=torch.float64)).trace())
    assert found.estimate.value == pytest.approx(exact, rel=0.2)


@pytest.mark.parametrize("wrong, said", [({"num_probes": 0}, "num_probes=0"), ({"rel_error": 0.0}, "rel_error=0.0"),
                                         ({"max_matvecs": 1}, "max_matvecs=1"), ({"method": "x"}, "method='x'"),
                                         ({"method": "deflated"}, "needs eigenvectors")])
def test_bad_arguments_are_named(wrong, said):
    with pytest.raises(InputError, match=said):
        measure_trace(PLAIN, generator=seeded(), **wrong)


def test_an_exact_trace_has_an_interval_of_rounding_width():
    for seed in range(20):
        found = measure_trace(matrix(SPECTRA["low rank"]), num_probes=15, method="xtrace", generator=seeded(seed)).estimate
        assert found.low <= SPECTRA["low rank"].sum() <= found.high and found.high - found.low < 1e-10


@pytest.mark.parametrize("probes", [20, 25])
def test_probes_that_span_the_whole_space_give_the_exact_trace(probes):
    spectrum = np.linspace(-1, 2, 20)
    found = measure_trace(matrix(spectrum), num_probes=probes, method="xtrace", generator=seeded())
    assert abs(found.estimate.value - spectrum.sum()) < 1e-12 and found.standard_error == 0 and found.reached
