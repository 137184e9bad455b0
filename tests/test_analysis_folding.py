"""Folding changes the operations of a forward pass, never its value: each case against the plain pass in float64."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from analysis.operators.folding import Folding


class Calls(torch.overrides.TorchFunctionMode):
    """Counts convolutions that reach torch."""

    def __init__(self):
        super().__init__()
        self.shifts = []

    def __torch_function__(self, function, types, args=(), kwargs=None):
        if function in (F.conv2d, torch.conv2d):
            self.shifts.append(args[2] is not None)
        return function(*args, **(kwargs or {}))


def network(**options):
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(4, 6, 3, **options), nn.BatchNorm2d(6)).double().eval()
    net[1].running_mean.normal_()
    net[1].running_var.uniform_(0.5, 2.0)
    nn.init.uniform_(net[1].weight, 0.5, 2.0)
    nn.init.normal_(net[1].bias)
    return net


def images(*shape):
    return torch.randn(*(shape or (5, 4, 8, 8)), generator=torch.Generator().manual_seed(1), dtype=torch.float64)


def same(net, x=None, channels_last=True):
    x = images() if x is None else x
    plain = net(x)
    with Folding(channels_last):
        folded = net(x)
    return torch.allclose(plain, folded, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("options", [{}, {"bias": False}, {"stride": 2, "padding": 1}, {"padding": "same"}, {"dilation": 2},
                                     {"groups": 2}, {"padding": 1, "padding_mode": "reflect"}])
@pytest.mark.parametrize("channels_last", [True, False])
def test_a_folded_convolution_has_the_same_value(options, channels_last):
    assert same(network(**options), channels_last=channels_last)


def test_the_normalisation_disappears_in_the_convolution():
    with Calls() as calls, Folding(True):
        network(bias=False)(images())
    assert calls.shifts == [False, True]        # the plain one, unused from here on, and the folded one with its shift


@pytest.mark.parametrize("affine", [True, False])
def test_a_normalisation_alone_becomes_a_scale_and_a_shift(affine):
    net = nn.BatchNorm2d(4, affine=affine).double().eval()
    net.running_mean.normal_()
    net.running_var.uniform_(0.5, 2.0)
    assert same(net)
    assert same(nn.BatchNorm1d(4).double().eval(), images(5, 4)) and same(nn.BatchNorm1d(4).double().eval(), images(5, 4, 7))


def test_batch_statistics_are_left_alone():
    net = network().train()
    with Folding(True):
        folded = net(images())
    assert torch.allclose(folded.mean(dim=(0, 2, 3)), net[1].bias, rtol=0, atol=1e-12)


@pytest.mark.parametrize("between", [lambda y, x: y.relu_(), lambda y, x: y.mul_(2.0), lambda y, x: x.zero_(),
                                     lambda y, x: y[:, 0].zero_(), lambda y, x: F.relu(y, inplace=True)])
def test_what_writes_between_convolution_and_normalisation_is_seen(between):
    net = network()

    def forward(x):
        x = x.clone()
        y = net[0](x)
        between(y, x)
        return net[1](y)
    assert same(forward)


def test_a_convolution_used_twice_keeps_its_own_value():
    net = network()

    def forward(x):
        y = net[0](x)
        return net[1](y) + y
    assert same(forward)


def test_a_single_image_without_a_batch_is_not_folded_wrongly():
    net = network()
    assert same(lambda x: net[1](net[0](x)[None]), images(4, 8, 8))
