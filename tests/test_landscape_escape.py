"""Noise that leaves saddles: PGD's on the gradient, LPF-SGD's on the parameters."""

import copy
import math

import pytest
import torch
from test_landscape_optimizers import INPUTS, LABELS, make_base, make_net
from torch.nn.functional import cross_entropy

from landscape.optimizers import SGD
from landscape.optimizers.noise import LPFSGD, PGD


def closure_of(net, chosen=slice(None)):
    return lambda: cross_entropy(net(INPUTS[chosen]), LABELS[chosen], reduction="none")


def step_of(make, seed=0, pieces=(slice(None),)):
    """Return the gradient that the base optimizer was given, and the net, after one step without a base step."""
    net = make_net()
    optimizer = make(torch.optim.SGD(net.parameters(), lr=0.0), net)
    torch.manual_seed(seed)
    loss = optimizer.step(*(closure_of(net, piece) for piece in pieces))
    return [p.grad for p in net.parameters()], net, loss


def flat(tensors):
    return torch.cat([t.flatten() for t in tensors])


def test_pgd_adds_gaussian_noise_of_the_radius_to_the_gradient():
    plain = flat(step_of(SGD)[0])
    draws = torch.stack([flat(step_of(lambda b, n: PGD(b, n, noise_radius=0.4), seed)[0]) - plain for seed in range(200)])
    size = draws.shape[1]
    assert (draws ** 2).sum(1).mean().sqrt() == pytest.approx(0.4, rel=0.05)
    assert draws.std() == pytest.approx(0.4 / math.sqrt(size), rel=0.05) and abs(draws.mean()) < 0.01
    assert abs((draws[:, 0] * draws[:, 1]).mean()) < 3 * 0.4 ** 2 / size / math.sqrt(200)    # independent entries


def test_pgd_is_the_step_with_the_noise_that_was_drawn():
    grad, net, _ = step_of(lambda b, n: PGD(b, n, noise_radius=0.4), seed=7)
    torch.manual_seed(7)
    noise = [torch.randn_like(p) for p in net.parameters()]
    expected = flat(step_of(SGD)[0]) + 0.4 / math.sqrt(len(flat(grad))) * flat(noise)
    assert torch.allclose(flat(grad), expected, rtol=0, atol=1e-14)


def norms(p):
    """Return the norm of the filter that each entry is of: a row of a weight, the whole of a bias."""
    if p.ndim == 1:
        return torch.full_like(p, p.norm())
    return torch.stack([torch.full_like(row, row.norm()) for row in p])


@pytest.mark.parametrize("draws", [1, 3])
def test_lpf_sgd_averages_gradients_at_parameters_moved_by_each_filters_norm(draws):
    grad, net, loss = step_of(lambda b, n: LPFSGD(b, n, lpf_std=0.2, lpf_draws=draws), seed=5)
    start = make_net()
    torch.manual_seed(5)
    found, losses = [], []
    for _ in range(draws):
        moved = copy.deepcopy(start)
        with torch.no_grad():
            for p in moved.parameters():
                p += 0.2 * norms(p) * torch.randn_like(p)
        own = closure_of(moved)().mean()
        losses.append(own.item())
        found.append(flat(torch.autograd.grad(own, list(moved.parameters()))))
    assert torch.allclose(flat(grad), sum(found) / draws, rtol=0, atol=1e-13)
    assert loss.item() == pytest.approx(sum(losses) / draws, abs=1e-14)
    assert all(torch.equal(p, q) for p, q in zip(net.parameters(), make_net().parameters()))


def test_lpf_sgd_in_pieces_draws_for_each_as_the_release_does():
    pieces = (slice(0, 5), slice(5, 10))
    grad, _, _ = step_of(lambda b, n: LPFSGD(b, n, lpf_std=0.2), seed=5, pieces=pieces)
    start = make_net()
    torch.manual_seed(5)
    found = []
    for piece in pieces:
        moved = copy.deepcopy(start)
        with torch.no_grad():
            for p in moved.parameters():
                p += 0.2 * norms(p) * torch.randn_like(p)
        found.append(flat(torch.autograd.grad(closure_of(moved, piece)().mean(), list(moved.parameters()))))
    assert torch.allclose(flat(grad), (found[0] + found[1]) / 2, rtol=0, atol=1e-13)


def test_the_noise_of_lpf_sgd_grows_over_training_where_asked():
    net = make_net()
    grows = LPFSGD(make_base(net), net, total_epochs=4, lpf_std=0.01, lpf_growth=15.0)
    stds = []
    for _ in range(5):
        stds.append(grows.std)
        grows.end_epoch()
    grown = [0.0, (1 - math.sqrt(0.5)) / 2, 0.5, (1 + math.sqrt(0.5)) / 2, 1.0]
    assert stds == pytest.approx([0.01 * (1 + 15 * share) for share in grown])
    still = LPFSGD(make_base(net), net, total_epochs=4, lpf_std=0.01)
    still.end_epoch()
    assert still.std == 0.01


@pytest.mark.parametrize("make", [lambda b, n: PGD(b, n, noise_radius=0.0), lambda b, n: LPFSGD(b, n, lpf_std=0.0)])
def test_without_noise_both_are_sgd_bit_by_bit(make):
    assert torch.equal(flat(step_of(make)[0]), flat(step_of(SGD)[0]))


def test_noise_leaves_a_saddle_where_the_gradient_vanishes():
    """From the saddle of (x^2 - y^2) / 2 itself gradient descent never moves; PGD leaves it along y."""
    def travel(make):
        torch.manual_seed(0)
        point = torch.nn.Module()
        point.x = torch.nn.Parameter(torch.zeros(2).double())
        optimizer = make(torch.optim.SGD(point.parameters(), lr=0.1), point)
        for _ in range(80):
            optimizer.step(lambda: (point.x[0] ** 2 - point.x[1] ** 2)[None] / 2)
        return point.x.detach().abs().tolist()

    assert travel(SGD) == [0.0, 0.0]
    x, y = travel(lambda b, n: PGD(b, n, noise_radius=0.01))
    assert y > 0.3 and x < 0.05


def test_the_noise_of_lpf_sgd_is_of_the_parameters_size_and_vanishes_with_them():
    net = make_net()
    with torch.no_grad():
        net[2].weight.zero_()
    seen = []

    def closure():
        seen.append([p.detach().clone() for p in net.parameters()])
        return closure_of(net)()
    LPFSGD(torch.optim.SGD(net.parameters(), lr=0.0), net, lpf_std=0.3).step(closure)
    moved = [torch.equal(there, p) for there, p in zip(seen[0], net.parameters())]
    assert moved == [False, False, True, False]
