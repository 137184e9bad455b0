"""What a subset of images says of the whole group: per-sample curvatures, and intervals that hold over draws of subsets."""

import numpy as np
import pytest
import torch
from networks import Attention, InPlaceResidual, images, losses, make

from analysis.operators import HessianOperator
from analysis.spectra.sampling import curvature_of_all, trace_of_all, whole_group
from checkpoints.records import NO_SAMPLE

X, Y = images()
BATCHES = [(X[:5], Y[:5]), (X[5:], Y[5:])]


def test_curvatures_of_samples_are_those_of_each_samples_own_hessian():
    model = make(InPlaceResidual)
    operator = HessianOperator(model, losses, BATCHES, microbatch=2)
    v = torch.randn(operator.size, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    own = [float(v @ (HessianOperator(model, losses, [(X[i:i + 1], Y[i:i + 1])]) @ v)) for i in range(len(X))]
    found = operator.sample_curvatures(v)
    assert found.shape == (len(X),) and torch.allclose(found, torch.tensor(own, dtype=torch.float64), rtol=1e-9, atol=1e-12)
    assert torch.allclose(operator.sample_curvatures(v, [(X[2:4], Y[2:4])]), found[2:4])


def subsets(population, size, draws):
    for seed in range(draws):
        order = np.random.default_rng(seed).permutation(len(population))
        yield order[:size], order[size:2 * size]


def test_intervals_hold_the_whole_groups_numbers_over_draws_of_subsets():
    population = np.random.default_rng(0).gamma(2.0, size=400) - 3.0
    held = {"curvature": 0, "trace": 0}
    for chosen, others in subsets(population, 60, 1000):
        own = population[chosen]
        found = curvature_of_all(own.mean(), 60, population[others], 400)
        held["curvature"] += found.low <= population.mean() <= found.high
        found = trace_of_all(own.mean(), own, 400)
        held["trace"] += found.low <= population.mean() <= found.high
    assert all(0.93 <= count / 1000 <= 0.97 for count in held.values()), held


def test_of_all_images_nothing_is_left_to_chance():
    values = np.array([1.0, 2.0, 6.0])
    found = curvature_of_all(2.0, 5, values, 8)
    assert found.value == found.low == found.high == (5 * 2.0 + 3 * 3.0) / 8 and found.kind == "data"
    assert np.isnan(curvature_of_all(2.0, 5, values[:1], 8).low)        # one image says nothing of the spread


@pytest.mark.parametrize("kind", [InPlaceResidual, Attention])
def test_numbers_are_given_only_where_forward_mode_nests_rightly(kind):
    operator = HessianOperator(make(kind), losses, BATCHES)      # torch nests it wrongly in the LayerNorm of Attention
    v = torch.randn(operator.size, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    v /= v.norm()
    value, diagonal = float(v @ (operator @ v)), operator.matmat(torch.eye(operator.size, dtype=torch.float64)).diagonal()
    found = whole_group(operator, v.numpy(), value, float(diagonal.sum()), BATCHES, 100, torch.Generator().manual_seed(0))
    if kind is Attention:
        assert found == (NO_SAMPLE, NO_SAMPLE)
        return
    curvature, trace = found
    assert np.isclose(curvature.value, value) and curvature.low < value < curvature.high       # the others are the same images
    assert trace.value == float(diagonal.sum()) and trace.high > trace.low
    assert whole_group(operator, v.numpy(), value + 1.0, 1.0, BATCHES, 100, torch.Generator()) == (NO_SAMPLE, NO_SAMPLE)
