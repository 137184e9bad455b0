"""Whether intervals hold what they claim, in many trials on named spectra. A uniform probe's law knows eigenvalues alone."""

import numpy as np
import pytest
import torch
from matrices import CALIBRATION, batched_rules, jacobi, matrix, probe_weights, seeded

from analysis.operators import MatrixOperator
from analysis.spectra.lanczos import krylov, random_unit
from analysis.spectra.quadrature import join, mass_parts, moments
from analysis.spectra.trace import measure_trace
from checkpoints.records import Spectrum

PROBES = 10
RELATIVE = {"decay": 3e-2}      # thresholds in units of max |lambda|; 1e-3 where not named


def trials(name, count, num_matvecs, seed):
    """Return the Spectra of `count` independent studies of PROBES probes each."""
    values, weights = probe_weights(CALIBRATION[name], count * PROBES, seed)
    alphas, betas = (part[:, :num_matvecs] for part in jacobi(values, weights))
    nodes, weights = batched_rules(alphas, betas) if num_matvecs < len(values) else (np.tile(values, (len(weights), 1)), weights)
    for i in range(0, len(nodes), PROBES):
        rows = slice(i, i + PROBES)
        yield Spectrum(len(CALIBRATION[name]), nodes[rows], weights[rows], alphas[rows], betas[rows], 0.0)


def mean_gauss_mass(name, num_matvecs, x, count, seed=10 ** 6):
    values, weights = probe_weights(CALIBRATION[name], count, seed)
    if num_matvecs >= len(values):
        return float((CALIBRATION[name] < x).mean())
    nodes, weights = batched_rules(*(part[:, :num_matvecs] for part in jacobi(values, weights)))
    return float((weights * (nodes < x)).sum(axis=1).mean())


def covers(estimate, truth):
    return estimate.low <= truth <= estimate.high


def mass_coverage(name, num_matvecs, count, seed, relative=None):
    """Return how often the probe interval holds its mean, the joined one the truth, and the widest joined to parts."""
    spectrum = CALIBRATION[name]
    cutoff = (relative or RELATIVE.get(name, 1e-3)) * np.abs(spectrum).max()
    truth, mean = float((spectrum < -cutoff).mean()), mean_gauss_mass(name, num_matvecs, -cutoff, 5 * count)
    held, joined, widest = 0, 0, 0.0
    for study in trials(name, count, num_matvecs, seed):
        bracket, probes = mass_parts(study, cutoff)
        both = join(bracket, probes)
        held, joined = held + covers(probes, mean), joined + covers(both, truth)
        width = bracket.high - bracket.low + probes.high - probes.low
        widest = max(widest, (both.high - both.low) / width if width > 0 else 0.0)
    return held / count, joined / count, widest


def moment_coverage(name, count, seed):
    spectrum, held = CALIBRATION[name], np.zeros(4)
    for study in trials(name, count, 20, seed):
        held += [covers(moments(study, k), float((spectrum ** k).mean())) for k in range(1, 5)]
    return held / count


def test_fabricated_tridiagonals_are_those_of_lanczos():
    operator = matrix(CALIBRATION["few negative"])
    eigenvalues, U = torch.linalg.eigh(operator.matrix)
    weights = ((random_unit(2, operator, seeded(3)) @ U) ** 2).numpy()
    alphas, betas = jacobi(eigenvalues.numpy(), weights)
    space = krylov(operator, num_matvecs=20, num_probes=2, generator=seeded(3))
    assert np.allclose(space.alphas, alphas[:, :20], atol=1e-10) and np.allclose(space.betas, betas[:, :20], atol=1e-10)


@pytest.mark.parametrize("name", CALIBRATION)
def test_moment_intervals_hold_the_moments(name):
    assert (moment_coverage(name, 200, 1) >= 0.91).all()


@pytest.mark.parametrize("name", ["outliers", "few negative"])
def test_mass_intervals_hold_mean_and_truth(name):
    held, joined, widest = mass_coverage(name, 20, 200, 2)
    assert held >= 0.91 and joined >= 0.93 and widest <= 1.1


@pytest.mark.slow
@pytest.mark.parametrize("name", CALIBRATION)
def test_in_a_thousand_trials_moment_intervals_hold_in_93_to_97_percent(name):
    coverage = moment_coverage(name, 1000, 3)
    assert (coverage >= 0.93).all() and (coverage <= 0.97).all(), coverage


@pytest.mark.slow
@pytest.mark.parametrize("name, num_matvecs", [(n, m) for n in CALIBRATION for m in (20, 40, 60, 100)
                                               if n != "Marchenko-Pastur" and m <= len(CALIBRATION[n])])
def test_in_a_thousand_trials_mass_intervals_hold_mean_and_truth(name, num_matvecs):
    held, joined, widest = mass_coverage(name, num_matvecs, 1000, 4)
    assert 0.93 <= held <= 0.97 and joined >= 0.95 and widest <= 1.1, (held, joined, widest)


@pytest.mark.slow
@pytest.mark.parametrize("relative", [1e-3, 1e-2])
def test_where_nodes_jump_across_the_threshold_the_joined_interval_still_holds_the_truth(relative):
    held, joined, widest = mass_coverage("decay", 20, 300, 6, relative)
    assert joined >= 0.95 and widest <= 1.1 and held >= 0.8      # what `mass_parts` says of this case


def stopped(name, count, **options):
    spectrum = CALIBRATION[name]
    operator = MatrixOperator(torch.diag(torch.as_tensor(spectrum)))
    found = [measure_trace(operator, max_matvecs=2000, generator=seeded(s), **options) for s in range(count)]
    return (np.mean([covers(e.estimate, spectrum.sum()) for e in found]), np.mean([e.reached for e in found]),
            np.sqrt(np.mean([(e.estimate.value / spectrum.sum() - 1) ** 2 for e in found])))


@pytest.mark.parametrize("method", ["hutchinson", "xtrace", "auto"])
def test_a_trace_to_a_stated_error_has_that_error_and_its_interval_holds_after_stopping(method):
    coverage, reached, error = stopped("outliers", 50, method=method, rel_error=0.1)
    assert coverage >= 0.86 and reached == 1 and error <= 0.13


@pytest.mark.slow
@pytest.mark.parametrize("name, count", [("outliers", 300), ("decay", 100), ("few negative", 1000), ("Marchenko-Pastur", 1000)])
def test_in_many_trials_the_interval_of_a_trace_holds_after_stopping(name, count):
    coverage, reached, error = stopped(name, count)
    assert coverage >= 0.93 and reached == 1 and error <= 0.055, (coverage, reached, error)
