"""Whether intervals hold what they claim, in many trials on named spectra. A uniform probe's law knows eigenvalues alone."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from matrices import CALIBRATION, batched_rules, jacobi, matrix, probe_weights, seeded

from analysis.operators import MatrixOperator
from analysis.spectra.lanczos import krylov, random_unit
from analysis.spectra.quadrature import mass_parts, moments
from analysis.spectra.trace import measure_trace
from checkpoints.records import Spectrum

PROBES = 10
CUTOFFS = [("semicircle", 1e-3), ("outliers", 1e-3), ("few negative", 1e-3), *[("decay", 10.0 ** -k) for k in (4, 3, 2, 1.5)]]


def spectrum_of(name, num_probes, num_matvecs, seed):
    """Return the Spectrum that so many probes of so many steps give."""
    values, weights = probe_weights(CALIBRATION[name], num_probes, seed)
    alphas, betas = (part[:, :num_matvecs] for part in jacobi(values, weights))
    nodes, weights = batched_rules(alphas, betas) if num_matvecs < len(values) else (np.tile(values, (len(weights), 1)), weights)
    return Spectrum(len(CALIBRATION[name]), nodes, weights, alphas, betas, 0.0)


def trials(name, count, num_matvecs, seed):
    """Return the Spectra of `count` independent studies of PROBES probes each."""
    every = spectrum_of(name, count * PROBES, num_matvecs, seed)
    for i in range(0, count * PROBES, PROBES):
        rows = slice(i, i + PROBES)
        yield replace(every, nodes=every.nodes[rows], weights=every.weights[rows], alphas=every.alphas[rows],
                      betas=every.betas[rows])


def covers(estimate, truth):
    return estimate.low <= truth <= estimate.high


def mass_coverage(name, num_matvecs, count, seed, relative=1e-3):
    """Return how often the probe interval holds its mean, the joined one the truth, and the widest joined to parts."""
    spectrum = CALIBRATION[name]
    cutoff = relative * np.abs(spectrum).max()
    mean = mass_parts(spectrum_of(name, 5 * count, num_matvecs, 10 ** 6), cutoff)[1].value
    truth, held, joined, widest = float((spectrum < -cutoff).mean()), 0, 0, 0.0
    for study in trials(name, count, num_matvecs, seed):
        bracket, probes, both = mass_parts(study, cutoff)
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


@pytest.mark.parametrize("name", ["decay", "few negative"])
def test_mass_intervals_hold_mean_and_truth(name):
    held, joined, widest = mass_coverage(name, 20, 200, 2)
    assert held >= 0.91 and joined >= 0.93 and widest <= 1.1


def test_the_mass_itself_is_nearer_to_the_truth_than_the_weight_of_nodes_where_these_jump():
    cutoff = 1e-3
    truth = float((CALIBRATION["decay"] < -cutoff).mean())
    found = [(mass_parts(study, cutoff)[0].value, (study.weights * (study.nodes < -cutoff)).sum(1).mean())
             for study in trials("decay", 50, 20, 7)]
    values, counted = np.sqrt(np.mean((np.array(found) - truth) ** 2, axis=0))
    assert values < 0.08 and counted > 2 * values


@pytest.mark.slow
@pytest.mark.parametrize("name", CALIBRATION)
def test_in_a_thousand_trials_moment_intervals_hold_in_93_to_97_percent(name):
    coverage = moment_coverage(name, 1000, 3)
    assert (coverage >= 0.93).all() and (coverage <= 0.97).all(), coverage


@pytest.mark.slow
@pytest.mark.parametrize("name, relative, num_matvecs", [(*cutoff, m) for cutoff in CUTOFFS for m in (20, 40, 60, 100)
                                                         if m <= len(CALIBRATION[cutoff[0]])])
def test_in_a_thousand_trials_mass_intervals_hold_mean_and_truth(name, relative, num_matvecs):
    held, joined, widest = mass_coverage(name, num_matvecs, 1000, 4, relative)
    assert 0.93 <= held <= 0.97 and joined >= 0.95 and widest <= 1.1, (held, joined, widest)


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
