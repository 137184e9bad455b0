import networks
import pytest
import torch
from torch import nn

from analysis.operators.kernels import differentiable_kernels
from analysis.surfaces import quadratic
from analysis.surfaces.directions import Direction
from analysis.surfaces.quadratic import class_derivatives
from landscape.batchnorm import evaluation_mode
from landscape.errors import InputError
from landscape.parameters import theta, trainable


def direction_of(net, seed=0):
    vector = torch.randn(len(theta(net)), generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return Direction((vector / vector.norm()).to(theta(net)), f"d{seed}")


def derivatives(net, batches, *directions):
    with evaluation_mode(net):
        return class_derivatives(net, networks.losses, batches, directions, 3)


def reverse(net, x, y, direction):
    """Mean loss, g'd and d'Hd by double backward over the module's own parameters."""
    parameters = list(trainable(net).values())
    with evaluation_mode(net), differentiable_kernels(net):
        loss = networks.losses(net(x), y).mean()
        gradient = torch.autograd.grad(loss, parameters, create_graph=True)
        slope = torch.cat([g.reshape(-1) for g in gradient]) @ direction.vector
        product = torch.autograd.grad(slope, parameters, materialize_grads=True)
    curvature = torch.cat([h.reshape(-1) for h in product]) @ direction.vector
    return torch.stack([loss, slope, curvature]).detach()


@pytest.mark.parametrize("kind", [*networks.EXACT, networks.Counting], ids=lambda kind: kind.__name__)
def test_slope_and_curvature_are_those_of_gradient_and_hessian(kind):
    """Among them what torch nests wrongly in forward mode: LayerNorm, custom functions."""
    net, (x, y) = networks.make(kind), networks.images(5)
    buffers = {name: b.clone() for name, b in net.named_buffers()}
    direction = direction_of(net)
    found = derivatives(net, [(x[:4], y[:4]), (x[4:], y[4:])], direction)
    assert all(torch.equal(b, buffers[name]) for name, b in net.named_buffers())
    torch.testing.assert_close(found.sum(1)[:, 0] / len(y), reverse(net, x, y, direction), rtol=1e-9, atol=1e-12)


def test_every_class_has_its_own():
    net, (x, y) = networks.make(networks.Masked), networks.images(40)
    directions = [direction_of(net, seed) for seed in (0, 1)]
    found = derivatives(net, list(zip(x.split(33), y.split(33))), *directions)
    assert found.shape == (3, 3, 2)
    for label in range(3):
        for place, direction in enumerate(directions):
            mine = y == label
            torch.testing.assert_close(found[:, label, place] / mine.sum(), reverse(net, x[mine], y[mine], direction))


@pytest.mark.parametrize("way", ["_forward_over_forward", "_reverse_over_reverse"])
def test_both_ways_give_the_same(monkeypatch, way):
    net, (x, y) = networks.make(networks.InPlaceResidual), networks.images(9)
    direction = direction_of(net)
    chosen = derivatives(net, [(x, y)], direction)
    monkeypatch.setattr(quadratic, "_choose_way", lambda *_: getattr(quadratic, way))
    torch.testing.assert_close(derivatives(net, [(x, y)], direction), chosen, rtol=1e-10, atol=1e-13)


def test_float32_has_them_to_its_rounding():
    double, single = (networks.make(networks.InPlaceResidual, dtype) for dtype in (torch.float64, torch.float32))
    x, y = networks.images()
    single.load_state_dict(double.state_dict())
    single_direction = direction_of(single)
    exact = derivatives(double, [(x, y)], Direction(single_direction.vector.double(), "d"))
    torch.testing.assert_close(derivatives(single, [(x.float(), y)], single_direction), exact, rtol=1e-4, atol=1e-4)


def test_a_relu_has_no_curvature_and_the_softmax_above_it_has():
    class Piecewise(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.second = nn.Linear(16, 5), nn.Linear(5, 3)
            self.second.requires_grad_(False)

        def forward(self, x):
            return self.second(torch.relu(self.first(x.flatten(1))))

    net, (x, y) = networks.make(Piecewise), networks.images()
    direction = direction_of(net)
    linear = class_derivatives(net, lambda z, t: z[:, 0], [(x, y)], [direction], 3)
    assert linear[1].abs().max() > 0 and not linear[2].any()
    assert derivatives(net, [(x, y)], direction)[2].sum() > 0      # convex along lines on which no relu switches


@pytest.mark.parametrize("kind", [networks.StopGradient, networks.Detached, networks.FalseCustom, networks.AlwaysDropout],
                         ids=lambda kind: kind.__name__)
def test_a_network_whose_derivatives_are_not_those_of_its_loss_is_refused(kind):
    net = networks.make(kind)
    with torch.random.fork_rng(), pytest.raises(InputError, match="what autograd differentiates is not the loss"):
        torch.manual_seed(0)
        derivatives(net, [networks.images(30)], direction_of(net))


def test_a_network_without_second_derivatives_is_refused():
    class Once(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            return x.clone()

        @staticmethod
        @torch.autograd.function.once_differentiable
        def backward(ctx, gradient):
            return gradient

    class Net(networks.Custom):
        def forward(self, x):
            return Once.apply(super().forward(x))

    net = networks.make(Net)
    with pytest.raises(InputError, match="no second derivative along a line"):
        derivatives(net, [networks.images()], direction_of(net))


def test_parameters_gradients_and_modes_are_left_alone():
    net, (x, y) = networks.make(networks.Attention), networks.images()
    before, modes = theta(net), [m.training for m in net.modules()]
    derivatives(net, [(x, y)], direction_of(net))
    assert torch.equal(before, theta(net)) and modes == [m.training for m in net.modules()]
    assert all(p.grad is None for p in net.parameters())
