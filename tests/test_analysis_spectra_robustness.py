"""What spectra say of matrices and inputs at the edges: tiny or huge ones, nearly scalar, singular, not finite, unresolved."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from matrices import SPECTRA, batched_rules, jacobi, matrix, probe_weights, seeded
from test_analysis_extremes import Diagonal

from analysis.operators import MatrixOperator
from analysis.spectra.extremes import extreme_eigenpairs
from analysis.spectra.lanczos import krylov
from analysis.spectra.missed import missed_below
from analysis.spectra.quadrature import bandwidth, density, mass_bracket, mass_parts, moments, negative_mass
from analysis.spectra.spectrum import spectral_density
from analysis.spectra.trace import measure_trace
from checkpoints.records import Spectrum
from landscape.errors import InputError

SCALES = (1e-25, 1e-20, 1e20, 1e25)


def counted(operator):
    """Return the operator and a list that grows with the rows it multiplies."""
    rows, exact = [], operator.matmat

    def matmat(V):
        rows.extend([1] * len(V))
        return exact(V)
    operator.matmat = matmat
    return operator, rows


@pytest.mark.parametrize("num_matvecs, num_probes", [(10, 2), (10, 10), (14, 2)])
def test_a_mass_that_few_steps_do_not_resolve_lies_in_its_interval(num_matvecs, num_probes):
    spectrum, trials = np.r_[-0.006, np.linspace(0.05, 3, 99)], 100
    values, weights = probe_weights(spectrum, num_probes * trials, 5)
    alphas, betas = (part[:, :num_matvecs] for part in jacobi(values, weights))
    nodes, weights = batched_rules(alphas, betas)
    held = 0
    for rows in np.split(np.arange(num_probes * trials), trials):
        found = negative_mass(Spectrum(100, nodes[rows], weights[rows], alphas[rows], betas[rows], 0.0), 3e-3)
        held += found.low <= 0.01 <= found.high
    assert held >= 95       # of 100; 52, 72 and 63 with the interval that V's reach alone gives


@pytest.mark.parametrize("scale", SCALES)
def test_float32_ends_do_not_depend_on_the_scale_of_the_loss(scale):
    pairs = extreme_eigenpairs(matrix(SPECTRA["spread"] * scale, torch.float32), 3, generator=seeded())
    assert pairs.converged.all() and np.allclose(pairs.values / scale, SPECTRA["spread"][[0, 1, 2, -3, -2, -1]], atol=1e-4)


@pytest.mark.parametrize("scale", SCALES)
@pytest.mark.parametrize("method", ["hutchinson", "xtrace"])
def test_float32_traces_do_not_depend_on_the_scale_of_the_loss(scale, method):
    plain, scaled = (measure_trace(matrix(SPECTRA["positive"] * s, torch.float32), method=method, generator=seeded())
                     for s in (1.0, scale))
    assert scaled.standard_error / scale == pytest.approx(plain.standard_error, rel=1e-3)
    widths = [found.estimate.high - found.estimate.low for found in (plain, scaled)]
    assert widths[1] / scale == pytest.approx(widths[0], rel=1e-3)


@pytest.mark.parametrize("scale", SCALES)
def test_start_vectors_of_any_length_and_dtype_give_the_same_space(scale):
    operator, V = matrix(SPECTRA["outliers"], torch.float32), torch.randn(2, 200, generator=seeded(), dtype=torch.float64)
    plain, scaled = (krylov(operator, num_matvecs=5, num_probes=2, generator=seeded(), start=start)
                     for start in (V, (V * scale).float()))
    assert np.allclose(plain.alphas, scaled.alphas, atol=1e-4) and not scaled.random


@pytest.mark.parametrize("start, said", [
    (torch.ones(1, 20), r"\(1, 20\) is out of range: expected \(num_probes, size\) = \(2, 20\)"),
    (torch.zeros(2, 20), r"rows of length \[0.0, 0.0\]"), (torch.full((2, 20), torch.inf), "finite lengths > 0")])
def test_start_vectors_that_are_none_are_refused(start, said):
    with pytest.raises(InputError, match=said):
        krylov(matrix(SPECTRA["zero"]), num_matvecs=2, num_probes=2, generator=seeded(), start=start)


def test_from_a_given_start_the_ends_are_looked_for_afresh_and_nothing_is_said_of_what_was_missed():
    operator = matrix(SPECTRA["outliers"])
    largest = torch.linalg.eigh(operator.matrix)[1][:, -1:].T.contiguous()      # its Krylov space is itself
    space = krylov(operator, num_matvecs=20, num_probes=1, generator=seeded(), start=largest)
    pairs = extreme_eigenpairs(space, 1, which="lower", generator=seeded())
    assert pairs.values == pytest.approx([-2.0]) and pairs.missed_below.low == -np.inf


@pytest.mark.parametrize("method", ["hutchinson", "xtrace"])
def test_a_trace_of_products_that_are_not_finite_is_refused(method):
    operator = matrix(SPECTRA["outliers"])
    exact, calls = operator.matmat, []

    def failing(V):
        calls.append(0)
        return exact(V) * (float("nan") if len(calls) > 1 else 1.0)
    operator.matmat = failing
    with pytest.raises(InputError, match="not finite in torch.float64"):
        measure_trace(operator, method=method, rel_error=1e-6, generator=seeded())


@pytest.mark.parametrize("dtype, spread", [(torch.float64, 1e-9), (torch.float32, 1e-4)])
def test_the_trace_of_a_nearly_scalar_matrix_has_its_own_small_error(dtype, spread):
    diagonal = torch.as_tensor(1 + spread * np.random.default_rng(0).normal(size=100), dtype=dtype)
    operator, true = MatrixOperator(torch.diag(diagonal)), float(diagonal.double().sum())
    found = [measure_trace(operator, num_probes=12, generator=seeded(seed)) for seed in range(60)]
    spread = np.std([e.estimate.value for e in found])
    assert np.median([e.standard_error for e in found]) == pytest.approx(spread, rel=0.3)
    assert sum(e.estimate.low <= true <= e.estimate.high for e in found) >= 54
    assert measure_trace(MatrixOperator(torch.eye(100, dtype=dtype)), num_probes=12, generator=seeded()).standard_error == 0


def test_as_many_steps_as_dimensions_explore_everything_only_where_no_probe_broke_down():
    values = np.ones(100)
    values[0] -= 5e-5       # below what float32 tells from a breakdown
    spaces = [krylov(Diagonal(values), num_matvecs=100, num_probes=1, generator=seeded(seed)) for seed in range(30)]
    assert sum(missed_below(space, 1.0).low <= values[0] + 1e-7 for space in spaces) >= 27


def test_the_products_of_a_probe_that_broke_down_are_right_to_rounding():
    operator = matrix(np.logspace(-12, 0, 120), torch.float32)
    space = krylov(operator, num_matvecs=120, num_probes=2, generator=seeded(), num_ritz=4)
    assert not np.isfinite(space.alphas[:, -1]).any()
    wrong = (operator.matmat(space.ritz.vectors) - space.ritz.products).norm(dim=1)
    assert float(wrong.max()) < 3 * torch.finfo(torch.float32).eps      # 20 times as much without the last residual


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_an_eigenvalue_at_the_threshold_is_neither_counted_nor_excluded(dtype):
    for seed in range(4):
        operator = matrix(np.r_[np.zeros(99), 1.0], dtype, seed=seed)
        bracket, *_ = mass_parts(spectral_density(operator, num_matvecs=10, num_probes=5, generator=seeded(seed)), 0.0)
        assert bracket.value == bracket.low == 0 and bracket.high > 0.9
    ends = spectral_density(matrix(np.r_[-np.ones(10), np.ones(10)], dtype), num_matvecs=10, num_probes=5, generator=seeded())
    bracket, *_ = mass_parts(ends, 1.0)
    assert bracket.value == bracket.low == 0 and 0.2 < bracket.high < 0.8


def test_a_node_within_rounding_of_a_place_counts_on_neither_side():
    alphas, betas = np.array([0.0, 1.0]), np.array([1e-7, 0.0])        # nodes near 0 and 1, and the rule is the measure
    assert mass_bracket(alphas, betas, 1e-9) == pytest.approx((1.0, 1.0))
    assert mass_bracket(alphas, betas, 1e-9, rounding=1e-6) == pytest.approx((0.0, 1.0))


@pytest.mark.parametrize("verify", [False, True])
@pytest.mark.parametrize("which", ["lower", "both"])
@pytest.mark.parametrize("spectrum", ["spread", "repeated", "identity"])
def test_ends_of_an_operator_cost_what_they_may_and_a_budget_that_is_too_small_is_refused(spectrum, which, verify):
    least = {"lower": 7, "both": 13}[which]
    for budget in (*range(least, least + 6), 40):
        operator, rows = counted(matrix(SPECTRA[spectrum]))
        pairs = extreme_eigenpairs(operator, 3, which=which, max_matvecs=budget, verify=verify, generator=seeded())
        assert len(rows) <= pairs.num_matvecs <= budget and len(pairs.values) == least // 2
    with pytest.raises(InputError, match=f"max_matvecs={least - 1} is out of range: expected at least {least}"):
        extreme_eigenpairs(operator, 3, which=which, max_matvecs=least - 1, generator=seeded())


@pytest.mark.parametrize("budget", range(7, 20))
def test_no_budget_is_exceeded_by_a_step_at_both_ends(budget):
    space = krylov(matrix(SPECTRA["spread"]), num_matvecs=12, num_probes=3, generator=seeded())
    assert extreme_eigenpairs(space, 3, max_matvecs=budget, generator=seeded(1)).num_matvecs - 36 <= budget


@pytest.mark.parametrize("method, least", [("xtrace", 4), ("auto", 2), ("hutchinson", 2)])
def test_a_trace_costs_what_it_may_and_a_budget_that_is_too_small_is_refused(method, least):
    for budget in range(least, 12):
        found = measure_trace(matrix(SPECTRA["outliers"]), rel_error=1e-6, method=method, max_matvecs=budget, generator=seeded())
        assert found.num_matvecs <= budget
    with pytest.raises(InputError, match=f"max_matvecs={least - 1} is out of range: expected at least {least}"):
        measure_trace(matrix(SPECTRA["outliers"]), method=method, max_matvecs=least - 1, generator=seeded())


def test_moments_that_no_float_holds_are_infinite():
    spectrum = spectral_density(matrix(SPECTRA["positive"]), num_matvecs=10, num_probes=3, generator=seeded())
    huge = replace(spectrum, nodes=spectrum.nodes * 1e30)
    assert moments(huge, 11).value == np.inf and moments(huge, 3).value == pytest.approx(1e90 * moments(spectrum, 3).value)


def test_a_zero_matrix_has_no_negative_mass_no_trace_and_no_density():
    operator = matrix(SPECTRA["zero"], torch.float32)
    space = krylov(operator, num_matvecs=5, num_probes=2, generator=seeded())
    pairs, spectrum = extreme_eigenpairs(space, 2, generator=seeded()), spectral_density(space)
    assert (pairs.values == 0).all() and negative_mass(spectrum, 0.0).value == 0
    assert measure_trace(operator, deflate=pairs, num_probes=4, generator=seeded()).estimate.value == 0
    with pytest.raises(InputError, match="bandwidth=0.0 is out of range: expected a positive number"):
        density(spectrum, np.zeros(1), bandwidth([spectrum]))
    with pytest.raises(InputError, match="scale=0.0"):
        density(spectrum, np.zeros(1), 0.25, 0.0)
