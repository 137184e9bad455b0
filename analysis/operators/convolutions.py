"""Convolutions in float64 on a CPU, by faster routines than those that torch chooses.

There a forward convolution and a gradient with respect to a kernel lay out every patch of an image, slowly. Two thirds of the
time of a product go into that (ResNet-32), and both have another form, the same sums in another order:

With stride 1 a forward convolution is the gradient of another with respect to its input, which lays out nothing: with
W'[c, o] = W[o, c] turned by 180 degrees, at the output gradient x,

    conv(x, W; padding p) = grad_input of conv(., W'; padding k - 1 - p)

The gradient of a kernel is a matrix product with the patches P(x), (c k k, pixels) for each image, which are read as a view of
the padded image and copied row by row:

    grad W = sum over images of (P(x) g')'

In float32 other kernels serve convolutions, and nothing is changed.
"""

import operator
from collections.abc import Sequence

import torch
from torch import Tensor, fx
from torch.nn import functional as F

aten = torch.ops.aten
IMAGES = 8      # whose patches are laid out at once, so that they stay in a cache


def reroute(graph: fx.Graph) -> None:
    """Replace the convolutions of a traced graph, and the gradients of their kernels, where that is faster."""
    for node in list(graph.nodes):
        if node.target is aten.convolution.default and _turns(node):
            with graph.inserting_before(node):
                _replaced(node, _turned(graph, node))
            graph.erase_node(node)
        elif node.target is aten.convolution_backward.default and _has_kernel_gradient(node):
            _by_patches(graph, node)
    graph.eliminate_dead_code()


def kernel_gradient(grad: Tensor, x: Tensor, kernel: tuple[int, int], stride: tuple[int, int], padding: tuple[int, int],
                    dilation: tuple[int, int]) -> Tensor:
    """Return the gradient (o, c, *kernel) of <grad, conv(x, W)> with respect to W, for x (n, c, h, w), grad (n, o, h', w')."""
    total = sum(torch.bmm(_patches(some, kernel, stride, padding, dilation, g.shape[2:]), g.flatten(2).mT).sum(0)
                for some, g in zip(x.split(IMAGES), grad.split(IMAGES)))
    return total.T.reshape(-1, x.shape[1], *kernel)


def _patches(x: Tensor, kernel: tuple[int, int], stride: tuple[int, int], padding: tuple[int, int], dilation: tuple[int, int],
             size: tuple[int, int]) -> Tensor:
    """Return P(x), (n, c k k, pixels), for outputs of `size`."""
    x = F.pad(x, (padding[1], padding[1], padding[0], padding[0])).contiguous()
    n, c, row, column = x.stride()
    view = x.as_strided((*x.shape[:2], *kernel, *size), (n, c, dilation[0] * row, dilation[1] * column, stride[0] * row,
                                                         stride[1] * column))
    return view.reshape(len(x), -1, size[0] * size[1])


def _turns(node: fx.Node) -> bool:
    x, weight, _, stride, padding, dilation, transposed, _, groups = node.args
    kernel = _kernel(x, weight, node)
    inside = kernel is not None and all(0 <= p < k for p, k in zip(_both(padding), kernel))
    return inside and set(stride) == {1} and set(dilation) == {1} and not transposed and groups == 1


def _has_kernel_gradient(node: fx.Node) -> bool:
    grad, x, weight, *_, transposed, _, groups, mask = node.args
    return mask[1] and not transposed and groups == 1 and _kernel(x, weight, grad) is not None


def _kernel(x: fx.Node, weight: fx.Node, out: fx.Node) -> tuple[int, int] | None:
    """Return the size of a kernel that is larger than a pixel, where the slow routines would serve these three; else None."""
    tensors = [node.meta.get("val") for node in (x, weight, out)]
    if not all(isinstance(each, Tensor) and each.ndim == 4 for each in tensors):
        return None
    slow = all((each.dtype, each.device.type) == (torch.float64, "cpu") for each in tensors)
    kernel = tuple(tensors[1].shape[2:])
    return kernel if slow and max(kernel) > 1 else None


def _turned(graph: fx.Graph, node: fx.Node) -> fx.Node:
    x, weight, bias, _, padding, *_ = node.args
    kernel, out = _kernel(x, weight, node), node.meta["val"]
    turned = graph.call_function(aten.transpose.int, (graph.call_function(aten.flip.default, (weight, [2, 3])), 0, 1))
    # Of the input only the shape is read.
    same = x.meta["val"].shape == out.shape
    like = x if same else graph.call_function(aten.new_zeros.default, (x, list(out.shape)))
    found = graph.call_function(aten.convolution_backward.default, (
        x, like, turned, None, [1, 1], [k - 1 - p for p, k in zip(_both(padding), kernel)], [1, 1], False, [0, 0], 1,
        [True, False, False]))
    result = graph.call_function(operator.getitem, (found, 0))
    if bias is None:
        return result
    return graph.call_function(aten.add.Tensor, (result, graph.call_function(aten.reshape.default, (bias, [1, -1, 1, 1]))))


def _by_patches(graph: fx.Graph, node: fx.Node) -> None:
    grad, x, weight, sizes, stride, padding, dilation, *rest, mask = node.args
    node.args = (grad, x, weight, sizes, stride, padding, dilation, *rest, [mask[0], False, mask[2]])
    kernel = _kernel(x, weight, grad)
    for user in [user for user in node.users if user.args[1] == 1]:
        with graph.inserting_before(user):
            _replaced(user, graph.call_function(kernel_gradient, (grad, x, kernel, *map(_both, (stride, padding, dilation)))))
        graph.erase_node(user)


def _both(sizes: Sequence[int]) -> tuple[int, int]:
    """Return a size for rows and one for columns: torch passes one number where they are alike, with padding="valid" for one."""
    return sizes[0], sizes[-1]


def _replaced(node: fx.Node, other: fx.Node) -> None:
    other.meta = dict(node.meta)
    node.replace_all_uses_with(other)
