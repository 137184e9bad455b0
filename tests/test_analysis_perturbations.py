import copy

import numpy as np
import pytest
import torch
from torch import nn

from analysis.measures.perturbations import (ASCENTS, ablated, alignments, amplification, as_gradient, minibatch_ascents,
                                             null_alignment, radii, region, reliable)
from landscape.configuration import TrainConfig
from landscape.optimizers.ascent import displaced
from landscape.parameters import theta, trainable
from landscape.training import build_network, training_data


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def smooth(seed=0):
    """Return a loss of theta (d,) and theta: a small tanh network in float64, far from a critical point."""
    torch.manual_seed(seed)
    net = nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 3)).double()
    inputs, labels = torch.randn(20, 4, dtype=torch.float64), torch.randint(3, (20,))
    names, shapes = zip(*[(name, p.shape) for name, p in net.named_parameters()])

    def loss(vector):
        pieces = [piece.reshape(shape) for piece, shape in zip(vector.split([s.numel() for s in shapes]), shapes)]
        return nn.functional.cross_entropy(torch.func.functional_call(net, dict(zip(names, pieces)), (inputs,)), labels)
    return loss, theta(net)


def law(loss, origin, rho, direction=None):
    """Return measured and predicted amplification along the five lowest eigenvectors, for an ascent of length rho."""
    values, vectors = torch.linalg.eigh(torch.autograd.functional.hessian(loss, origin))
    slope = torch.func.grad(loss)
    gradient = slope(origin)
    climbed = gradient if direction is None else direction
    eps = rho * climbed / climbed.norm()
    return amplification(vectors.T[:5], values[:5].numpy(), gradient, slope(origin + eps), eps)


def test_the_amplification_law_holds_to_first_order_whatever_is_climbed():
    loss, origin = smooth()
    for direction in (None, torch.randn(len(origin), generator=generator(), dtype=torch.float64)):
        errors = []
        for rho in (4e-2, 2e-2, 1e-2, 5e-3):
            found = law(loss, origin, rho, direction)
            errors.append(np.abs(found["measured"] - found["predicted"]))
        ratios = np.array(errors[:-1]) / np.array(errors[1:])
        np.testing.assert_allclose(ratios[-1], 4, rtol=0.1)     # of second order in rho
        assert np.abs(found["predicted"] - 1).min() > 0 and (errors[-1] < 1e-2 * np.abs(found["predicted"])).all()


def test_the_law_is_exact_on_a_quadratic_also_where_the_sign_flips():
    values = torch.tensor([-3.0, -1.0, 0.5, 2.0], dtype=torch.float64)
    origin = torch.tensor([0.02, -0.3, 0.5, 0.1], dtype=torch.float64)

    def loss(x):
        return (values * x * x).sum() / 2
    for rho in (0.01, 0.5, 3.0):
        found = law(loss, origin, rho)
        np.testing.assert_allclose(found["measured"], found["predicted"], rtol=1e-12)
        effective = rho / float((values * origin).norm())
        np.testing.assert_allclose(found["predicted"], 1 + effective * values.numpy(), rtol=1e-12)


@pytest.mark.parametrize("strength, factor, word", [
    (0.5, 0.5, "shrinks"), (0.999, 0.001, "shrinks"), (1.5, -0.5, "shrinks, sign flipped"),
    (2.5, -1.5, "amplifies, sign flipped")])
def test_regions_say_what_one_plus_rho_lambda_does(strength, factor, word):
    assert region(strength) == word and 1 - strength == pytest.approx(factor)
    assert ("flipped" in word) == (factor < 0) and ("shrinks" in word) == (abs(factor) < 1)


def test_alignment_knows_neither_lengths_nor_signs():
    vectors = torch.eye(4)[:2] * 7
    direction = torch.tensor([3.0, -4.0, 0.0, 0.0])
    np.testing.assert_allclose(alignments(vectors, direction), [0.6, 0.8])
    np.testing.assert_allclose(alignments(vectors, -1e-30 * direction.double()), [0.6, 0.8])
    assert np.isnan(alignments(vectors, torch.zeros(4))).all()


@pytest.mark.parametrize("size", [50, 2000])
def test_the_null_line_is_the_mean_alignment_of_random_directions(size):
    draws = torch.randn(4000, size, generator=generator(1))
    found = (draws[:, 0].abs() / draws.norm(dim=1)).double()
    standard_error = float(found.std()) / 4000 ** 0.5
    assert abs(float(found.mean()) - null_alignment(size)) < 4 * standard_error + null_alignment(size) / (4 * size)


def test_components_within_rounding_are_not_reliable():
    exact = np.array([1e-3, 1e-9, 2e-5, 0.0])
    found = reliable(exact + np.array([1e-9, 1e-9, 3e-6, 0.0]), exact, 1.0, torch.float32)
    assert found.tolist() == [True, False, False, False]


def test_what_is_removed_is_orthogonal_to_the_global_gradient_and_adds_up():
    group, whole = torch.randn(2, 30, generator=generator(2), dtype=torch.float64)
    parts = ablated(group, whole)
    assert abs(float(parts["removed"] @ whole)) < 1e-12
    torch.testing.assert_close(parts["projected"] + parts["removed"], group)
    torch.testing.assert_close(parts["projected"], whole * float(group @ whole / (whole @ whole)))
    torch.testing.assert_close(ablated(group, 1e-20 * whole)["removed"], parts["removed"])


def test_nothing_is_left_of_the_only_group_there_is():
    group = torch.randn(30, generator=generator(3))
    parts = ablated(group, group.double() * (1 + 1e-8 * torch.randn(30, generator=generator(4), dtype=torch.float64)))
    assert not parts["removed"].any() and torch.equal(parts["full"], group.double())


def test_a_global_gradient_of_zero_takes_nothing_away():
    group = torch.ones(3)
    parts = ablated(group, torch.zeros(3))
    assert not parts["projected"].any() and torch.equal(parts["removed"], group.double())


@pytest.fixture(scope="module")
def config():
    return TrainConfig(dataset="synthetic", dtype="float64", batch_size=24, rho=0.1, head_rho=0.2, tail_rho=0.3,
                       augment=False)


@pytest.fixture(scope="module")
def network(config):
    data = training_data(config)
    return config.resolved(data), data, build_network(config.resolved(data), data).double()


def test_mini_batch_ascents_are_the_rule_applied_to_gradients_of_the_batch(network):
    config, data, model = network
    seen = []
    watching = model.register_forward_pre_hook(lambda module, args: seen.append(args[0]))
    found = list(minibatch_ascents(config, data, model, epoch=1, number=3, seed=5))
    watching.remove()
    batches = [images for place, images in enumerate(seen) if not place or not torch.equal(images, seen[place - 1])]
    assert len(found) == len(batches) == 3 and [list(moves) for moves in found] == [list(ASCENTS)] * 3
    for moves, images in zip(found, batches):
        labels = label_of(images, data)
        for name, ascent in ASCENTS.items():
            mine = torch.isin(labels, torch.tensor(members(data, config, ascent.climbs)))
            losses = nn.functional.cross_entropy(model(images), labels, reduction="none")
            slope = torch.cat([g.flatten() for g in torch.autograd.grad((losses * mine).sum(), list(trainable(model).values()))])
            expected = radii(config)[name] * slope / slope.norm() if mine.any() else torch.zeros_like(slope)
            torch.testing.assert_close(moves[name], expected, rtol=1e-9, atol=1e-14)


def label_of(images, data):
    """Return the labels of normalized, un-augmented images by finding each among the data's own."""
    own = data.inputs(data.train.images, torch.float64).flatten(1)
    return data.train.labels[torch.cdist(images.flatten(1), own).argmin(1)]


def members(data, config, group):
    counts = np.asarray(data.counts)
    return np.flatnonzero({"all": counts >= 0, "head": counts >= config.eta, "tail": counts < config.eta}[group]).tolist()


def test_the_model_is_left_as_it_was_and_draws_repeat(network):
    config, data, _ = network
    torch.manual_seed(3)
    width = int(np.prod(data.train.images.shape[1:]))
    model = nn.Sequential(nn.Flatten(), nn.Linear(width, 8), nn.BatchNorm1d(8), nn.Dropout(0.5),
                          nn.Linear(8, data.num_classes)).double().eval()
    model[2].train()
    before, modes, state = copy.deepcopy(model.state_dict()), [m.training for m in model.modules()], torch.get_rng_state()
    first, second = (list(minibatch_ascents(config, data, model, epoch=0, number=2, seed=1)) for _ in range(2))
    assert all(torch.equal(a[name], b[name]) for a, b in zip(first, second) for name in a)
    assert not torch.equal(first[0]["sam"], first[1]["sam"])
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert [m.training for m in model.modules()] == modes and torch.equal(torch.get_rng_state(), state)


def test_more_batches_than_an_epoch_has_go_on_in_the_next(network):
    config, data, model = network
    number = -(-len(data.train) // config.batch_size) + 1
    found = list(minibatch_ascents(config, data, model, epoch=0, number=number, seed=0))
    assert len(found) == number and not torch.equal(found[0]["sam"], found[-1]["sam"])


def test_an_ascent_that_the_run_leaves_out_still_has_a_direction(network):
    config, data, model = network
    silent = TrainConfig(**{**config.as_dict(), "head_rho": 0.0, "rho": 0.0})
    moves = next(minibatch_ascents(silent, data, model, epoch=0, number=1, seed=0))
    told = next(minibatch_ascents(config, data, model, epoch=0, number=1, seed=0))
    for name in ASCENTS:
        torch.testing.assert_close(moves[name] / moves[name].norm(), told[name] / told[name].norm(), rtol=1e-8, atol=1e-14)


def test_a_vector_and_its_pieces_move_the_model_alike(network):
    _, _, model = network
    vector = torch.randn(len(theta(model)), generator=generator(7), dtype=torch.float64)
    start = theta(model)
    with displaced(as_gradient(vector, model), 0.5):
        torch.testing.assert_close(theta(model) - start, 0.5 * vector / vector.norm(), rtol=1e-9, atol=1e-14)
    assert torch.equal(theta(model), start)


def test_a_loss_that_contrasts_views_gets_them():
    config = TrainConfig(dataset="synthetic", loss="BCL", batch_size=12)
    data = training_data(config)
    model = build_network(config.resolved(data), data)
    moves = next(minibatch_ascents(config.resolved(data), data, model, epoch=0, number=1, seed=0))
    assert len(moves["sam"]) == len(theta(model)) and float(moves["sam"].norm()) == pytest.approx(0.05, rel=1e-3)
