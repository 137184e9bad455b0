"""Convolutions in float64 on a CPU, by the faster of two routines that torch has for them.

There a forward convolution lays out every patch of an image, while the gradient with respect to a convolution's input does
not: it takes a sixth of the time (layers of ResNet-32, two cores), and a whole product in float64 two thirds. With stride 1
the two are one operation, with W'[c, o] = W[o, c] turned by 180 degrees,

    conv(x, W; padding p) = grad_input of conv(., W'; padding k - 1 - p) at the output gradient x,

the same sums in another order. In float32 other kernels serve convolutions, and nothing is changed.
"""

import operator

import torch
from torch import Tensor, fx

aten = torch.ops.aten


def reroute(graph: fx.Graph) -> None:
    """Replace forward convolutions of a traced graph where that is faster."""
    for node in list(graph.nodes):
        if node.target is aten.convolution.default and _fits(node):
            with graph.inserting_before(node):
                node.replace_all_uses_with(_turned(graph, node))
            graph.erase_node(node)


def _fits(node: fx.Node) -> bool:
    x, weight, out = (each.meta.get("val") for each in (*node.args[:2], node))
    if not all(isinstance(each, Tensor) and each.ndim == 4 for each in (x, weight, out)):
        return False
    _, _, _, stride, padding, dilation, transposed, _, groups = node.args
    plain = set(stride) == {1} and set(dilation) == {1} and not transposed and groups == 1
    kernel = weight.shape[2:]
    inside = all(0 <= p < k for p, k in zip(padding, kernel)) and max(kernel) > 1
    return plain and inside and (out.dtype, out.device.type) == (torch.float64, "cpu")


def _turned(graph: fx.Graph, node: fx.Node) -> fx.Node:
    x, weight, bias, _, padding, *_ = node.args
    kernel, out = weight.meta["val"].shape[2:], node.meta["val"]
    turned = graph.call_function(aten.transpose.int, (graph.call_function(aten.flip.default, (weight, [2, 3])), 0, 1))
    # Of the input only the shape is read.
    same = x.meta["val"].shape == out.shape
    like = x if same else graph.call_function(aten.new_zeros.default, (x, list(out.shape)))
    found = graph.call_function(aten.convolution_backward.default, (
        x, like, turned, None, [1, 1], [k - 1 - p for p, k in zip(padding, kernel)], [1, 1], False, [0, 0], 1,
        [True, False, False]))
    result = graph.call_function(operator.getitem, (found, 0))
    if bias is None:
        return result
    return graph.call_function(aten.add.Tensor, (result, graph.call_function(aten.reshape.default, (bias, [1, -1, 1, 1]))))
