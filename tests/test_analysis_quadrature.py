import numpy as np
import pytest
from matrices import SPECTRA, matrix, seeded
from scipy.integrate import trapezoid

from analysis.spectra import lanczos
from analysis.spectra.lanczos import krylov
from analysis.spectra.intervals import t_interval
from analysis.spectra.quadrature import (bandwidth, density, density_band, mass_bracket, mass_parts, moments, negative_mass,
                                         published_bandwidth, threshold, tridiagonal_rule)
from analysis.spectra.spectrum import spectral_density
from checkpoints.records import Spectrum
from landscape.errors import InputError


def rule(name="outliers", num_matvecs=20, num_probes=4, seed=0):
    return spectral_density(matrix(SPECTRA[name]), num_matvecs=num_matvecs, num_probes=num_probes, generator=seeded(seed))


def probe_measure(name, seed=0, num_probes=1):
    """Return eigenvalues and the exact weights <q, u_i>^2 of the probes that `rule` starts from."""
    operator = matrix(SPECTRA[name])
    values, U = np.linalg.eigh(operator.matrix.numpy())
    q = lanczos.random_unit(num_probes, operator, seeded(seed)).numpy()
    return values, (q @ U) ** 2


def test_quadrature_is_exact_up_to_degree_2m_minus_1():
    values, weights = probe_measure("outliers")
    spectrum = rule(num_matvecs=6, num_probes=1)
    for degree in range(12):
        exact = float(weights[0] @ (values / 10) ** degree)
        assert float(spectrum.weights[0] @ (spectrum.nodes[0] / 10) ** degree) == pytest.approx(exact, rel=1e-9, abs=1e-12)
    assert abs(float(spectrum.weights[0] @ (spectrum.nodes[0] / 10) ** 12) - float(weights[0] @ (values / 10) ** 12)) > 1e-10


def test_weights_sum_to_one_and_nodes_ascend():
    spectrum = rule()
    assert np.allclose(spectrum.weights.sum(axis=1), 1, atol=1e-13)
    assert (np.diff(spectrum.nodes, axis=1) > 0).all() and (spectrum.weights >= 0).all()


def test_an_exhausted_probe_has_the_exact_measure():
    spectrum, (values, weights) = rule("low rank", num_matvecs=12), probe_measure("low rank", num_probes=4)
    for x in (-4, 0, 1, 2, 3, 4, 5):
        found = np.where(np.abs(spectrum.nodes - x) < 1e-9, spectrum.weights, 0).sum(axis=1)
        assert np.allclose(found, weights[:, np.abs(values - x) < 1e-9].sum(axis=1), atol=1e-12)


def test_steps_after_a_breakdown_have_nan_nodes_and_no_weight():
    spectrum = rule("identity", num_matvecs=5)
    assert np.allclose(spectrum.nodes[:, 0], 1) and np.isnan(spectrum.nodes[:, 1:]).all()
    assert np.array_equal(spectrum.weights, np.eye(5)[[0] * 4])


@pytest.mark.parametrize("x", [-1.3, -0.5, -0.1, 0.0, 0.2, 4.0, 30.0, -30.0])
@pytest.mark.parametrize("num_matvecs", [3, 8, 25])
def test_the_bracket_holds_the_probes_own_mass(x, num_matvecs):
    for seed in range(10):
        values, weights = probe_measure("outliers", seed)
        spectrum = rule(num_matvecs=num_matvecs, num_probes=1, seed=seed)
        low, high = mass_bracket(spectrum.alphas[0], spectrum.betas[0], x)
        assert low - 1e-10 <= float(weights[0][values < x].sum()) <= high + 1e-10
        assert 0 <= low <= high <= 1 + 1e-12


def test_the_bracket_narrows_with_more_steps_and_closes_at_a_breakdown():
    widths = []
    for m in (5, 20, 80):
        spectrum = rule(num_matvecs=m, num_probes=1)
        widths.append(np.subtract(*mass_bracket(spectrum.alphas[0], spectrum.betas[0], -0.1)[::-1]))
    assert widths[0] > widths[1] > widths[2] > 0
    exact = rule("identity", num_matvecs=5, num_probes=1)
    assert np.subtract(*mass_bracket(exact.alphas[0], exact.betas[0], -0.1)) == 0


@pytest.mark.parametrize("name", ["outliers", "spread", "low rank"])
def test_the_negative_mass_interval_holds_the_truth_in_nineteen_of_twenty(name):
    true, covered = float((SPECTRA[name] < -0.1).mean()), 0
    for seed in range(100):
        estimate = negative_mass(rule(name, num_matvecs=20, num_probes=5, seed=seed), 0.1)
        covered += estimate.low <= true <= estimate.high
    assert covered >= 93       # 95 % of 100, less two standard errors of this small sample


@pytest.mark.parametrize("num_negative", [1, 2])
def test_the_mass_of_a_few_negative_directions_is_covered_too(num_negative):
    spectrum, covered = np.r_[-np.linspace(1, 2, num_negative), np.linspace(0.1, 3, 150 - num_negative)], 0
    operator = matrix(spectrum)
    for seed in range(100):
        rules = spectral_density(operator, num_matvecs=25, num_probes=3, generator=seeded(seed))
        estimate = negative_mass(rules, 0.5)
        covered += estimate.low <= num_negative / 150 <= estimate.high
    assert covered >= 91        # Student's t covers 80 to 90 of 100


def test_one_probe_has_no_interval_instead_of_a_zero_one():
    estimate = negative_mass(rule(num_probes=1), 0.1)
    assert np.isfinite(estimate.value) and np.isnan(estimate.low) and np.isnan(estimate.high)
    assert np.isnan(t_interval([1.0]).low)


def test_moments_are_those_of_the_rules_and_scale_with_the_loss():
    spectrum = rule()
    small = Spectrum(spectrum.size, spectrum.nodes * 1e-8, spectrum.weights, spectrum.alphas * 1e-8, spectrum.betas * 1e-8, 0.0)
    for k in (1, 4):
        big, little = moments(spectrum, k), moments(small, k)
        assert big.value == pytest.approx((spectrum.weights * spectrum.nodes ** k).sum(axis=1).mean(), rel=1e-12)
        assert (little.low, little.high) == pytest.approx((big.low * 1e-8 ** k, big.high * 1e-8 ** k), rel=1e-9)
    assert np.isnan(moments(rule(num_probes=1), 2).low)
    with pytest.raises(InputError, match="k=40"):
        moments(spectrum, 40)


def test_the_parts_of_a_negative_mass_add_up():
    bracket, probes, _ = mass_parts(rule(), 0.1)
    both = negative_mass(rule(), 0.1)
    assert bracket.value == probes.value == both.value and (bracket.kind, probes.kind) == ("quadrature", "probes")
    assert both.high - bracket.high == pytest.approx(1.08 * (probes.high - probes.value), rel=1e-12)


def test_t_interval_is_the_textbook_one():
    estimate = t_interval([1.0, 2.0, 3.0], level=0.95)
    half = 4.302652729749464 / np.sqrt(3)      # t quantile with two degrees of freedom, standard deviation 1
    assert (estimate.value, estimate.low, estimate.high) == pytest.approx((2, 2 - half, 2 + half), rel=1e-12)


@pytest.mark.parametrize("scale", [None, 0.05])
def test_densities_integrate_to_one_on_their_own_axis(scale):
    spectrum = rule()
    grid = np.linspace(-40, 40, 400_001)
    axis = grid if scale is None else np.arcsinh(grid / scale)
    assert np.allclose(trapezoid(density(spectrum, grid, 0.1, scale), axis, axis=1), 1, atol=1e-4)


def test_the_band_surrounds_the_mean_and_is_not_negative():
    mean, low, high = density_band(rule(), np.linspace(-3, 11, 200), 0.1)
    assert (low >= 0).all() and (low <= mean).all() and (mean <= high).all()


def test_thresholds_and_bandwidths_are_relative_and_shared():
    small, large = rule("spread"), rule("outliers")
    assert threshold([small, large]) == pytest.approx(1e-3 * 10, rel=1e-3)
    assert bandwidth([small, large], 0.02) == pytest.approx(0.2, rel=1e-3)


def test_the_published_bandwidth_is_not_scale_free():
    assert published_bandwidth(rule()) == pytest.approx(np.sqrt(1e-5 * 12), rel=1e-2)


def test_masses_and_weights_do_not_change_with_the_scale_of_the_loss():
    plain = rule()
    alphas, betas = plain.alphas * 1e-8, plain.betas * 1e-8
    nodes, weights = tridiagonal_rule(alphas, betas)
    assert np.allclose(weights, plain.weights, atol=1e-12) and np.allclose(nodes, plain.nodes * 1e-8, rtol=1e-10)
    brackets = [mass_bracket(a[0], b[0], x) for a, b, x in ((plain.alphas, plain.betas, -0.1), (alphas, betas, -1e-9))]
    assert np.allclose(*brackets, atol=1e-9)


def test_density_reuses_a_krylov_run():
    space = krylov(matrix(SPECTRA["outliers"]), num_matvecs=15, num_probes=2, generator=seeded())
    assert np.array_equal(spectral_density(space).alphas, space.alphas)
