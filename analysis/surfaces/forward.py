"""A network's logits at many parameter vectors, each pass cheaper than a plain one and giving the same numbers to rounding.

    channels_last   images with the channels innermost, which CPU convolutions are fastest with, in pieces that stay in a cache
    folded          the same, and BatchNorm folded into the convolution in front of it: with fixed statistics m, s^2, scale g and
                    shift b, BN(Wx + c) = (g/s) Wx + (g/s)(c - m) + b, equal in exact arithmetic; relu and sums in place

Folding needs the network's graph (torch.fx); one that cannot be traced, or whose folded logits differ from its own by more than
rounding, is left as it is. What each form costs is what scripts/bench_surface.py measures. Most of a folded pass is convolution,
so that torch.compile would save little beyond it, for half a minute of compiling.
"""

import operator
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext

import torch
from torch import Tensor, fx, nn
from torch.nn import functional as F

from landscape.errors import InputError, first_line

FORMS = ("auto", "folded", "channels_last", "plain")
PIXELS = 2**16      # of a piece: the activations of so many fit a core's cache
LEAST = 8           # images of a piece
_TOLERANCE = {torch.float64: 1e-9, torch.float32: 1e-3}     # of logits, relative to the largest: far from theta0 rounding grows
_FRESH = (nn.Conv2d, nn.BatchNorm2d, nn.Linear)     # modules whose output nobody else holds


class Forward:
    """A network's logits at its present parameters, as it computes them by itself."""

    name = "plain"

    def __init__(self, model: nn.Module, precision: str | None = None):
        self.model, self.precision = model, precision

    def refresh(self) -> None:
        """Take over the parameters and statistics that the model has now."""

    def pieces(self, images: Tensor) -> list[Tensor]:
        """Return a batch as this form wants it."""
        return [images]

    def __call__(self, images: Tensor) -> Tensor:
        with _autocast(self.precision, images.device):
            logits = self._logits(images)
        return logits.float() if self.precision else logits

    def _logits(self, images: Tensor) -> Tensor:
        return self.model(images)


class ChannelsLast(Forward):
    """The network on images with the channels innermost; whole batches where their statistics count."""

    name = "channels_last"

    def __init__(self, model: nn.Module, precision: str | None = None, whole: bool = False):
        super().__init__(model, precision)
        self.whole = whole

    def pieces(self, images: Tensor) -> list[Tensor]:
        """Return a batch in pieces, channels innermost."""
        if images.ndim != 4:
            return [images]
        size = len(images) if self.whole or images.is_cuda else max(PIXELS // images[0, 0].numel(), LEAST)
        return [piece.contiguous(memory_format=torch.channels_last) for piece in images.split(size)]


class Folded(ChannelsLast):
    """The network with every BatchNorm folded into the convolution in front of it. InputError where there is none."""

    name = "folded"

    def __init__(self, model: nn.Module, precision: str | None = None):
        super().__init__(model, precision)
        self.graph, self.pairs = _folded(model)
        self.refresh()

    def refresh(self) -> None:
        """Fold the parameters and statistics that the model has now."""
        for conv, norm, folded in self.pairs:
            scale = (norm.running_var.double() + norm.eps).rsqrt()
            scale = scale if norm.weight is None else scale * norm.weight.double()
            shift = -norm.running_mean.double() if conv.bias is None else conv.bias.double() - norm.running_mean
            shift = scale * shift if norm.bias is None else scale * shift + norm.bias
            folded.weight.copy_(conv.weight.double() * scale[:, None, None, None])
            folded.bias.copy_(shift)

    def _logits(self, images: Tensor) -> Tensor:
        return self.graph(images)


def build_forward(model: nn.Module, form: str = "auto", *, images: Sequence[Tensor], precision: str | None = None,
                  whole: bool = False) -> Forward:
    """Return a form of the network, by default the fastest that gives its own logits on some images.

    The model is in evaluation mode. whole: batches are not to be cut, since their statistics are used; nothing is folded then.
    A form asked for by name that this network does not take is an InputError.
    """
    if form not in FORMS:
        raise InputError(f"form={form!r} is unknown: expected one of {', '.join(FORMS)}")
    plain = Forward(model, precision)
    if form == "plain" or form == "auto" and not any(isinstance(module, nn.Conv2d) for module in model.modules()):
        return plain
    if form != "channels_last" and not whole:
        try:
            folded = Folded(model, precision)
            if all(_same(plain, folded, batch) for batch in images):
                return folded
            raise InputError("its logits differ from the network's own")
        except Exception as reason:     # torch.fx raises whatever a network's own code raises when it is handed a proxy
            if form == "folded":
                raise InputError(f"form='folded' is not for this network: {first_line(reason)}; leave it at auto") from reason
    return ChannelsLast(model, precision, whole)


@contextmanager
def untouched(model: nn.Module) -> Iterator[None]:
    """Give the model its own parameters and buffers back at the end, bit by bit."""
    held = [*model.parameters(), *model.buffers()]
    saved = [tensor.detach().clone() for tensor in held]
    try:
        yield
    finally:
        with torch.no_grad():
            for tensor, own in zip(held, saved):
                tensor.copy_(own)


def difference(one: Forward, other: Forward, images: Tensor) -> float:
    """Return the largest difference between the logits of two forms, relative to the largest; NaN in both is no difference."""
    first, second = (torch.cat([form(piece) for piece in form.pieces(images)]).double() for form in (one, other))
    apart = torch.where((first == second) | (first.isnan() & second.isnan()), 0.0, (first - second).abs())
    largest = first[first.isfinite()].abs().amax() if first.isfinite().any() else first.new_ones(())
    return float(apart.amax() / largest.clamp(min=torch.finfo(first.dtype).tiny))


def _same(plain: Forward, other: Forward, images: Tensor) -> bool:
    if plain.precision:
        return True     # measured against float32 by whoever asked for it
    return difference(plain, other, images) <= _TOLERANCE[next(plain.model.parameters()).dtype]


def _folded(model: nn.Module) -> tuple[fx.GraphModule, list[tuple[nn.Conv2d, nn.BatchNorm2d, nn.Conv2d]]]:
    """Return the network's graph without the BatchNorms that follow a convolution, and each such pair with what replaces it."""
    traced = fx.symbolic_trace(model)
    modules, pairs = dict(traced.named_modules()), []
    for node in list(traced.graph.nodes):
        conv, norm = _pair(node, modules)
        if norm is not None:
            name = f"folded_{len(pairs)}"
            pairs.append((conv, norm, _like(conv)))
            traced.add_submodule(name, pairs[-1][2])
            node.args[0].target = name
            node.replace_all_uses_with(node.args[0])
            traced.graph.erase_node(node)
    if not pairs:
        raise InputError("no BatchNorm follows a convolution")
    _work_in_place(traced)
    traced.recompile()
    return traced, pairs


def _pair(node: fx.Node, modules: dict[str, nn.Module]) -> tuple[nn.Conv2d | None, nn.BatchNorm2d | None]:
    """Return the convolution and the BatchNorm that a node applies to it, where nobody else reads the convolution."""
    if node.op == "call_module" and type(norm := modules.get(node.target)) is nn.BatchNorm2d and norm.running_mean is not None:
        before = node.args[0] if node.args else None
        if isinstance(before, fx.Node) and before.op == "call_module" and len(before.users) == 1:
            if type(conv := modules.get(before.target)) is nn.Conv2d:
                return conv, norm
    return None, None


def _like(conv: nn.Conv2d) -> nn.Conv2d:
    made = nn.utils.skip_init(nn.Conv2d, conv.in_channels, conv.out_channels, conv.kernel_size, stride=conv.stride,
                              padding=conv.padding, dilation=conv.dilation, groups=conv.groups, padding_mode=conv.padding_mode,
                              device=conv.weight.device, dtype=conv.weight.dtype)
    return made.to(memory_format=torch.channels_last).requires_grad_(False).eval()


def _work_in_place(traced: fx.GraphModule) -> None:
    """Let relu and sums write where their first operand lay, if that is fresh and nobody else reads it."""
    modules = dict(traced.named_modules())

    def is_free(value: object) -> bool:
        return (isinstance(value, fx.Node) and len(value.users) == 1
                and (value.op == "call_module" and isinstance(modules.get(value.target), _FRESH)
                     or value.op == "call_function" and value.target in (operator.add, operator.iadd, torch.add)))
    for node in traced.graph.nodes:
        first = node.args[0] if node.args else None
        if node.op == "call_function" and node.target is operator.add and first is not node.args[1] and is_free(first):
            node.target = operator.iadd
        is_relu = (node.op == "call_function" and node.target in (F.relu, torch.relu)
                   or node.op == "call_method" and node.target == "relu"
                   or node.op == "call_module" and isinstance(modules.get(node.target), nn.ReLU))
        if is_relu and is_free(first):
            node.op, node.target, node.args, node.kwargs = "call_function", torch.relu_, (first,), {}


def _autocast(precision: str | None, device: torch.device) -> AbstractContextManager:
    return torch.autocast(device.type, getattr(torch, precision)) if precision else nullcontext()
