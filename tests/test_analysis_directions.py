import numpy as np
import pytest
import torch
from torch import nn

from analysis.surfaces.directions import (Direction, between, directions_hash, eigenvector_direction, orthogonalized,
                                          random_direction)
from checkpoints.records import Curvature, EigenPairs, Estimate, Spectrum
from landscape.errors import InputError
from landscape.parameters import theta, unflatten


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


@pytest.fixture
def net():
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(2, 3, 3), nn.BatchNorm2d(3), nn.Flatten(), nn.Linear(12, 4)).double()


def unit(*entries):
    vector = torch.tensor(entries, dtype=torch.float64)
    return vector / vector.norm()


def test_every_filter_of_a_filter_normalized_direction_has_the_norm_of_the_weights(net):
    pieces = unflatten(random_direction(net, generator()).vector, net)
    for name in ("0.weight", "3.weight"):
        weight = net.get_parameter(name).detach()
        torch.testing.assert_close(pieces[name].flatten(1).norm(dim=1), weight.flatten(1).norm(dim=1))


def test_filter_normalization_keeps_the_direction_of_every_filter(net):
    filtered, raw = (unflatten(random_direction(net, generator(), how).vector, net) for how in ("filter", "none"))
    for name in ("0.weight", "3.weight"):
        cosine = torch.nn.functional.cosine_similarity(filtered[name].flatten(1), raw[name].flatten(1))
        torch.testing.assert_close(cosine, torch.ones_like(cosine))


def test_every_layer_of_a_layer_normalized_direction_has_the_norm_of_the_weights(net):
    direction = random_direction(net, generator(), "layer")
    pieces = unflatten(direction.vector, net)
    for name in ("0.weight", "3.weight"):
        torch.testing.assert_close(pieces[name].norm(), net.get_parameter(name).detach().norm())
    assert (direction.name, direction.units) == ("random layer", "layer norms")


@pytest.mark.parametrize("normalization", ["filter", "layer", "none"])
def test_biases_and_batchnorm_stay_at_rest_unless_asked_for(net, normalization):
    still = unflatten(random_direction(net, generator(), normalization).vector, net)
    moving = unflatten(random_direction(net, generator(), normalization, ignore="none").vector, net)
    for name in ("0.bias", "1.weight", "1.bias", "3.bias"):
        assert not still[name].any()
        if normalization != "none":
            torch.testing.assert_close(moving[name].norm(), net.get_parameter(name).detach().norm())
    if normalization != "none":
        assert torch.equal(still["0.weight"], moving["0.weight"])


def test_an_unnormalized_direction_is_isotropic_and_of_unit_length():
    net = nn.Linear(400, 50, bias=False).double()
    with torch.no_grad():
        net.weight[0] = 100.0
    direction = random_direction(net, generator(), "none")
    rows = unflatten(direction.vector, net)["weight"].norm(dim=1) * 50 ** 0.5
    assert float(direction.vector.norm()) == pytest.approx(1)
    torch.testing.assert_close(rows, torch.ones_like(rows), rtol=0.15, atol=0)
    assert (direction.name, direction.units) == ("random", "parameter units")


def test_a_filter_of_norm_zero_stays_at_rest(net):
    with torch.no_grad():
        net[0].weight[1] = 0
    pieces = unflatten(random_direction(net, generator()).vector, net)
    assert not pieces["0.weight"][1].any() and pieces["0.weight"][0].all()


def test_a_model_in_which_nothing_moves_is_refused():
    with pytest.raises(InputError, match="the random direction is zero: with normalization='filter'.*ignore='biasbn'"):
        random_direction(nn.BatchNorm1d(3), generator())


def test_random_directions_repeat_with_the_seed_and_agree_between_precisions(net):
    first, again, other = (random_direction(net, generator(seed)).vector for seed in (1, 1, 2))
    assert torch.equal(first, again) and not torch.equal(first, other)
    single = random_direction(net.float(), generator(1)).vector
    assert single.dtype == torch.float32
    torch.testing.assert_close(single.double(), first, rtol=1e-5, atol=1e-7)


def test_drawing_leaves_the_model_and_the_global_generator_alone(net):
    before, state = theta(net), torch.get_rng_state()
    random_direction(net, generator())
    assert torch.equal(before, theta(net)) and torch.equal(state, torch.get_rng_state())


def test_frozen_parameters_have_no_entry(net):
    net[0].requires_grad_(False)
    assert len(random_direction(net, generator()).vector) == len(theta(net)) == 6 + 52


def curvature(values, vectors):
    nothing = Estimate(0.0, 0.0, 0.0, 0.95, "probes")
    none = np.zeros((1, 1))
    values = np.array(values)
    pairs = EigenPairs(values=values, residuals=0 * values, converged=values == values, values64=values,
                       rounding=0 * values, verified=values == values, vectors=np.array(vectors), tol=1e-5,
                       num_matvecs=1, missed_below=nothing)
    return Curvature(epoch=3, group="tail", num_samples=1, num_available=1, loss=0.0, accuracy=0.0, test_accuracy=0.0,
                     gradient_norm=0.0, spectrum=Spectrum(2, none, none, none, none, 0.0), eigenpairs=pairs,
                     trace=nothing, negative_mass=nothing, threshold=0.0, extreme_ratio=nothing, parameter_norms={},
                     second_opinion={}, provenance={})


@pytest.mark.parametrize("end, rank, index, name", [
    ("lower", 0, 0, "tail lambda_min"), ("lower", 1, 1, "tail lambda_min 1"),
    ("upper", 0, 3, "tail lambda_max"), ("upper", 1, 2, "tail lambda_max 1"),
])
def test_an_eigenvector_is_taken_as_it_is_with_its_eigenvalue(end, rank, index, name):
    vectors = np.linalg.qr(np.random.default_rng(0).normal(size=(6, 6)))[0][:4]
    vectors.flags.writeable = False
    direction = eigenvector_direction(curvature([-3.0, -1.0, 2.0, 5.0], vectors), end, rank)
    np.testing.assert_allclose(direction.vector.numpy(), vectors[index], rtol=1e-12)
    assert (direction.curvature, direction.name, direction.units) == ([-3, -1, 2, 5][index], name, "parameter units")


def test_a_record_without_eigenvectors_is_refused():
    with pytest.raises(InputError, match="group 'tail' at epoch 3 holds no eigenvectors"):
        eigenvector_direction(curvature([-3.0, 5.0], np.zeros((0, 6))))


@pytest.mark.parametrize("options, message", [({"end": "left"}, "end='left' is unknown: expected one of lower, upper"),
                                              ({"rank": 1}, "rank=1 is out of range: expected 0 <= rank < 1"),
                                              ({"rank": -1}, "rank=-1 is out of range")])
def test_a_pair_that_the_record_does_not_hold_is_refused(options, message):
    with pytest.raises(InputError, match=message):
        eigenvector_direction(curvature([-3.0, 5.0], np.eye(2, 6)), **options)


def test_between_walks_from_a_to_b_over_their_distance():
    a, b = (torch.randn(7, generator=generator(seed), dtype=torch.float64) for seed in (0, 1))
    torch.testing.assert_close(a + (b - a).norm() * between(a, b).vector, b)


def test_between_refuses_equal_states_and_other_shapes():
    a = torch.ones(3)
    with pytest.raises(InputError, match="theta_a and theta_b are equal"):
        between(a, a.clone())
    with pytest.raises(InputError, match=r"shapes \(3,\) and \(4,\)"):
        between(a, torch.ones(4))


def test_an_orthogonalized_direction_is_orthogonal_of_unit_length_and_in_the_span():
    first, second, third = unit(1.0, 2.0, 0.0, 1.0), unit(1.0, 2.0, 1e-4, 1.0), unit(0.0, 1.0, 3.0, -1.0)
    others = [Direction(first, "a"), Direction(third, "b")]
    result = orthogonalized(Direction(second, "c", curvature=2.0), others)
    assert abs(float(result.vector @ first)) < 1e-15 and abs(float(result.vector @ third)) < 1e-15
    assert float(result.vector.norm()) == pytest.approx(1, abs=1e-14)
    assert torch.linalg.matrix_rank(torch.stack([first, second, third, result.vector]), tol=1e-12) == 3
    assert np.isnan(result.curvature) and result.units == "parameter units"


def test_a_direction_within_the_span_of_the_others_is_refused():
    first = unit(1.0, 2.0, 0.0)
    with pytest.raises(InputError, match="direction 'b' lies in the span of 'a'"):
        orthogonalized(Direction(-first, "b"), [Direction(first, "a")])


def test_a_direction_in_parameter_units_must_have_unit_length():
    with pytest.raises(InputError, match="direction 'd' has length 2: expected 1 in parameter units"):
        Direction(torch.tensor([2.0, 0.0]), "d")
    assert Direction(torch.tensor([2.0, 0.0]), "d", units="filter norms").vector.norm() == 2


@pytest.mark.parametrize("vector", [torch.eye(2), torch.tensor([1.0, float("nan")]), torch.tensor([])])
def test_a_direction_that_cannot_be_walked_is_refused(vector):
    with pytest.raises(InputError, match="direction 'd' of shape .* cannot be walked"):
        Direction(vector, "d")


@pytest.mark.parametrize("options, message", [
    ({"normalization": "weight"}, "normalization='weight' is unknown: expected one of filter, layer, none"),
    ({"ignore": "bias"}, "ignore='bias' is unknown: expected one of biasbn, none")])
def test_unknown_options_are_refused_with_the_choices(net, options, message):
    with pytest.raises(InputError, match=message):
        random_direction(net, generator(), **options)


def test_units_are_checked():
    with pytest.raises(InputError, match="units='meters' is unknown"):
        Direction(unit(1.0), "d", units="meters")


def test_the_hash_tells_values_order_number_and_type_apart():
    a, b = torch.tensor([1.0, 2.0]), torch.tensor([3.0, 4.0])
    variants = [[a], [a, b], [b, a], [torch.cat([a, b])], [a.double(), b], [a, b + 1e-6]]
    assert len({directions_hash(vectors) for vectors in variants}) == len(variants)
    strided = torch.stack([a, b], dim=1)[:, 0]
    assert directions_hash([strided, b.clone()]) == directions_hash([a, b])
