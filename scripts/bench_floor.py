"""What no product with a network's Hessian can be faster than, on one machine with torch's kernels: its convolutions alone.

With everything kept that does not depend on v, an exact product still convolves six times a layer, each of them a sum of
products of as many terms: y' = W' x + W x', the gradient of the input W' g + W g', that of the kernel x' g + x g'. The first
layer has no x' and no gradient of its input. Here they are run one after another on tensors of their shapes, channels last,
and nothing else: no activation, no normalization, no sum.
"""

from collections.abc import Callable

import torch
from torch import Tensor, nn

from landscape.batchnorm import evaluation_mode

_BACKWARD = torch.ops.aten.convolution_backward


def convolutions_alone(model: nn.Module, x: Tensor) -> tuple[Callable[[], None], int]:
    """Return a function that makes every convolution of one product of a batch, and how many they are."""
    passes = [one for place, layer in enumerate(_layers(model, x)) for one in _passes(*layer, first=place == 0)]

    @torch.no_grad()
    def run() -> None:
        for one in passes:
            one()
    return run, len(passes)


def _layers(model: nn.Module, x: Tensor) -> list[tuple[nn.Module, Tensor, Tensor]]:
    """Return every convolution with what enters and leaves it, in the order of the forward pass."""
    found: list[tuple[nn.Module, Tensor, Tensor]] = []
    hooks = [module.register_forward_hook(lambda m, given, out: found.append((m, _laid(given[0]), _laid(out))))
             for module in model.modules() if isinstance(module, nn.Conv2d)]
    with torch.no_grad(), evaluation_mode(model):
        model(x)
    for hook in hooks:
        hook.remove()
    return found


def _passes(layer: nn.Conv2d, x: Tensor, out: Tensor, *, first: bool) -> list[Callable[[], Tensor]]:
    weight, how = _laid(layer.weight.detach()), (layer.stride, layer.padding, layer.dilation)

    def forward():
        return torch.nn.functional.conv2d(x, weight, None, *how, layer.groups)

    def backward(*mask: bool):
        return lambda: _BACKWARD(out, x, weight, None, *how, False, [0, 0], layer.groups, mask)
    forwards, inputs, kernels = (1, 0, 1) if first else (2, 2, 2)
    return [forward] * forwards + [backward(True, False, False)] * inputs + [backward(False, True, False)] * kernels


def _laid(tensor: Tensor) -> Tensor:
    return tensor.detach().contiguous(memory_format=torch.channels_last)
