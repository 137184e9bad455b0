"""Rerouted convolutions give the same sums, and only where they fit."""

import pytest
import torch
from networks import losses
from torch import nn
from torch.fx.experimental.proxy_tensor import make_fx
from torch.nn import functional as F

from analysis.operators import HessianOperator
from analysis.operators.convolutions import kernel_gradient, reroute

aten = torch.ops.aten


def traced(x, weight, bias=None, **options):
    graph = make_fx(lambda *tensors: F.conv2d(*tensors, **options))(x, weight, *([] if bias is None else [bias]))
    reroute(graph.graph)
    graph.recompile()
    return graph, {node.target for node in graph.graph.nodes}


@pytest.mark.parametrize("kernel, padding", [((3, 3), 1), ((3, 3), 0), ((3, 3), 2), ((5, 3), (2, 1)), ((2, 2), 1),
                                             ((1, 3), (0, 1))])
@pytest.mark.parametrize("with_bias", [False, True])
@pytest.mark.parametrize("channels", [(4, 4), (3, 6)])
def test_a_convolution_with_stride_one_is_the_gradient_of_another(kernel, padding, with_bias, channels):
    torch.manual_seed(0)
    x = torch.randn(5, channels[0], 7, 8, dtype=torch.float64)
    weight = torch.randn(channels[1], channels[0], *kernel, dtype=torch.float64)
    bias = torch.randn(channels[1], dtype=torch.float64) if with_bias else None
    graph, targets = traced(x, weight, bias, padding=padding)
    assert aten.convolution_backward.default in targets and aten.convolution.default not in targets
    torch.testing.assert_close(graph(x, weight, *([bias] if with_bias else [])), F.conv2d(x, weight, bias, padding=padding),
                               rtol=1e-13, atol=1e-13)


@pytest.mark.parametrize("options", [{"padding": 1}, {"padding": (2, 1), "stride": (1, 2)}, {"dilation": (1, 2), "padding": 3},
                                     {"stride": 3}])
@pytest.mark.parametrize("kernel", [(3, 3), (2, 4), (1, 3)])
def test_a_kernels_gradient_is_that_of_autograd(kernel, options):
    torch.manual_seed(0)
    x, weight = torch.randn(19, 4, 9, 8).double(), torch.randn(5, 4, *kernel).double().requires_grad_()
    out = F.conv2d(x, weight, **options)
    grad = torch.randn_like(out)
    graph = make_fx(lambda x, w, g: torch.autograd.grad(F.conv2d(x, w, **options), w, g)[0])(x, weight, grad)
    reroute(graph.graph)
    graph.recompile()
    targets = {node.target for node in graph.graph.nodes}
    assert kernel_gradient in targets and aten.convolution_backward.default not in targets
    expected, = torch.autograd.grad(out, weight, grad)
    torch.testing.assert_close(graph(x, weight, grad), expected, rtol=1e-12, atol=1e-12)


def test_of_both_gradients_only_the_kernels_goes_by_patches():
    x, weight = torch.randn(3, 4, 6, 6).double().requires_grad_(), torch.randn(5, 4, 3, 3).double().requires_grad_()
    bias = torch.randn(5).double().requires_grad_()

    def gradients(*tensors):
        return torch.autograd.grad(F.conv2d(*tensors, padding=1).pow(3).sum(), tensors)
    graph = make_fx(gradients)(x, weight, bias)
    reroute(graph.graph)
    graph.recompile()
    masks = [node.args[-1] for node in graph.graph.nodes if node.target is aten.convolution_backward.default]
    assert [True, False, True] in masks and all(not mask[1] for mask in masks)
    torch.testing.assert_close(graph(x, weight, bias), gradients(x, weight, bias), rtol=1e-11, atol=1e-11)


@pytest.mark.parametrize("options", [{"stride": 2}, {"dilation": 2}, {"groups": 2}, {"padding": 3}])
def test_others_stay_as_they_are(options):
    x, weight = torch.randn(2, 4, 9, 9).double(), torch.randn(4, 4 // options.get("groups", 1), 3, 3).double()
    assert aten.convolution.default in traced(x, weight, **options)[1]


def test_so_do_float32_and_kernels_of_one_pixel():
    assert aten.convolution.default in traced(torch.randn(2, 4, 9, 9), torch.randn(4, 4, 3, 3), padding=1)[1]
    assert aten.convolution.default in traced(torch.randn(2, 4, 9, 9).double(), torch.randn(4, 4, 1, 1).double())[1]


def test_a_traced_product_uses_them_and_agrees_with_reverse_mode():
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(2, 3, 3, padding=1), nn.Tanh(), nn.Conv2d(3, 3, 3), nn.Flatten(), nn.Linear(48, 3)).double()
    batch = [(torch.randn(4, 2, 6, 6).double(), torch.tensor([0, 1, 2, 0]))]
    traces = {}
    linearized = HessianOperator(net, losses, batch, engine="linearized", traces=traces)
    v = torch.randn(3, linearized.size, dtype=torch.float64)
    expected = HessianOperator(net, losses, batch, engine="reverse").matmat(v)
    torch.testing.assert_close(linearized.matmat(v), expected, rtol=1e-12, atol=1e-13)
    split = next(value for value in traces.values() if hasattr(value, "tangent"))
    assert aten.convolution.default not in {node.target for node in split.tangent.graph.nodes}
