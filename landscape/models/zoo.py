"""Models: a small perceptron, a small residual net for digits, the CIFAR residual nets, and any other by name.

`digitnet` is the testbed of the embedded data set: it has what makes large nets interesting here (residual sums,
strides, BatchNorm, relu) in 13,834 parameters, and reaches about 98 % on the balanced digits within 30 epochs.

Residual nets: He et al. 2016a, section 4.2 for CIFAR (three stages of n blocks, 6n + 2 layers, parameter-free shortcuts
"A") and table 1 for resnet34 (projection shortcuts "B"); resnet34 has the SSE-SAM release's 3x3 stride-1 stem without
max-pool. Initialization: He et al. 2015 with the fan of the reference code of each family (fan-in for CIFAR, fan-out
for resnet34); linear biases and the resnet34's head as torch leaves them.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from landscape.errors import InputError
from landscape.models.foreign import build_foreign


def build_model(arch: str, num_classes: int, in_channels: int = 3, image_size: int = 32, *,
                cosine: bool = False, generator_seed: int = 0) -> nn.Module:
    """Build a freshly initialized model on the CPU: images (B, in_channels, image_size, image_size) -> logits (B, C).

    `arch` is a name in ARCHITECTURES, "timm:NAME", "torchvision:NAME" or "module:callable". `cosine` replaces the
    linear head by CosineHead, which LDAM needs. The same `generator_seed` gives the same bits. The global generators
    are left alone, except that a foreign callable may draw on CUDA's, NumPy's or Python's own.
    """
    for name, value in (("num_classes", num_classes), ("in_channels", in_channels), ("image_size", image_size)):
        if value < 1:
            raise InputError(f"{name}={value} is out of range: expected an integer >= 1")
    if arch not in ARCHITECTURES and ":" not in arch:
        raise InputError(f"arch={arch!r} is unknown: expected one of {', '.join(ARCHITECTURES)}, "
                         "or timm:NAME, torchvision:NAME, module:callable")
    with _seeded(generator_seed):
        if arch in ARCHITECTURES:
            return ARCHITECTURES[arch](num_classes, in_channels, image_size, cosine)
        if cosine:
            raise InputError(f"cosine=True is not available for arch={arch!r}: build a cosine head inside the "
                             "callable, or use LDAM's release form")
        return build_foreign(arch, num_classes, in_channels, image_size)


@contextmanager
def _seeded(seed: int) -> Iterator[None]:
    # Not torch.manual_seed: it would also reseed every CUDA device, and forking those starts a context on each.
    with torch.random.fork_rng(devices=[]), torch.device("cpu"):
        torch.random.default_generator.manual_seed(seed)
        yield


class CosineHead(nn.Module):
    """Logits scale * cos(angle of feature and class weight), without bias: (B, F) -> (B, C). LDAM brings its own s."""

    def __init__(self, num_features: int, num_classes: int, scale: float = 1.0):
        super().__init__()
        self.scale = scale
        # Isotropic rows: only their directions count, and the gradient goes as 1 / ||w||, so they start at unit length.
        self.weight = nn.Parameter(F.normalize(torch.randn(num_classes, num_features), dim=1))  # (C, F)

    def forward(self, features: Tensor) -> Tensor:
        return self.scale * F.linear(F.normalize(features, dim=1), F.normalize(self.weight, dim=1))


class Classifier(nn.Module):
    """A network whose logits are a head `fc` on `features(x)`, the penultimate activations (B, F)."""

    fc: nn.Module

    def features(self, x: Tensor) -> Tensor:
        raise NotImplementedError

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.features(x))


class MLP(Classifier):
    """Flattened pixels, hidden layers with relu, a head; no normalization."""

    def __init__(self, widths: Sequence[int], num_classes: int, cosine: bool):
        super().__init__()
        self.hidden = nn.ModuleList(nn.Linear(a, b) for a, b in zip(widths, widths[1:]))
        self.fc = _head(widths[-1], num_classes, cosine)
        _initialize(self, "fan_in", linear=True)

    def features(self, x: Tensor) -> Tensor:
        x = x.flatten(1)
        for layer in self.hidden:
            x = F.relu(layer(x))
        return x


class ResNet(Classifier):
    """A 3x3 stem, stages of residual blocks (each after the first halves the image), global average pooling, a head.

    State names are those of the reference codes: conv1, bn1, layer1.0.conv1, ..., fc.
    """

    def __init__(self, blocks: Sequence[int], widths: Sequence[int], num_classes: int, in_channels: int, *,
                 shortcut: str, cosine: bool, stem_stride: int = 1):
        super().__init__()
        self.conv1, self.bn1 = _conv3x3(in_channels, widths[0], stem_stride), nn.BatchNorm2d(widths[0])
        self.stages = [f"layer{i + 1}" for i in range(len(blocks))]
        before = widths[0]
        for stage, depth, width in zip(self.stages, blocks, widths):
            self.add_module(stage, _stage(depth, before, width, 1 if stage == "layer1" else 2, shortcut))
            before = width
        self.fc = _head(before, num_classes, cosine)

    def features(self, x: Tensor) -> Tensor:
        x = F.relu(self.bn1(self.conv1(x)))
        for stage in self.stages:
            x = getattr(self, stage)(x)
        return x.mean((2, 3))  # (B, F, H, W) -> (B, F)


class ResidualBlock(nn.Module):
    """relu(x' + bn(conv(relu(bn(conv(x)))))), x' being x itself or, where the shape changes, its shortcut."""

    def __init__(self, before: int, width: int, stride: int, shortcut: str):
        super().__init__()
        self.conv1, self.bn1 = _conv3x3(before, width, stride), nn.BatchNorm2d(width)
        self.conv2, self.bn2 = _conv3x3(width, width), nn.BatchNorm2d(width)
        same = before == width and stride == 1
        self.downsample = nn.Identity() if same else SHORTCUTS[shortcut](before, width, stride)

    def forward(self, x: Tensor) -> Tensor:
        out = F.relu(self.bn1(self.conv1(x)))
        return F.relu(self.bn2(self.conv2(out)) + self.downsample(x))


class PadShortcut(nn.Module):
    """Shortcut "A": take every stride-th pixel and add zero channels on both sides; no parameters."""

    def __init__(self, before: int, width: int, stride: int):
        super().__init__()
        self.stride, self.low = stride, (width - before) // 2
        self.high = width - before - self.low

    def forward(self, x: Tensor) -> Tensor:
        return F.pad(x[:, :, ::self.stride, ::self.stride], (0, 0, 0, 0, self.low, self.high))


def _projection(before: int, width: int, stride: int) -> nn.Module:
    return nn.Sequential(nn.Conv2d(before, width, 1, stride, bias=False), nn.BatchNorm2d(width))


SHORTCUTS: dict[str, Callable[[int, int, int], nn.Module]] = {"A": PadShortcut, "B": _projection}


def _stage(depth: int, before: int, width: int, stride: int, shortcut: str) -> nn.Sequential:
    first = ResidualBlock(before, width, stride, shortcut)
    return nn.Sequential(first, *(ResidualBlock(width, width, 1, shortcut) for _ in range(depth - 1)))


def _conv3x3(before: int, width: int, stride: int = 1) -> nn.Conv2d:
    return nn.Conv2d(before, width, 3, stride, padding=1, bias=False)


def _head(num_features: int, num_classes: int, cosine: bool) -> nn.Module:
    return (CosineHead if cosine else nn.Linear)(num_features, num_classes)


def _initialize(model: nn.Module, fan: str, linear: bool) -> None:
    kinds = (nn.Conv2d, nn.Linear) if linear else nn.Conv2d
    for module in model.modules():
        if isinstance(module, kinds):
            nn.init.kaiming_normal_(module.weight, mode=fan, nonlinearity="relu")


def _mlp(num_classes: int, in_channels: int, image_size: int, cosine: bool) -> MLP:
    return MLP((in_channels * image_size ** 2, 32, 32), num_classes, cosine)


def _digitnet(num_classes: int, in_channels: int, image_size: int, cosine: bool) -> ResNet:
    model = ResNet((1, 1), (16, 24), num_classes, in_channels, shortcut="A", cosine=cosine, stem_stride=2)
    _initialize(model, "fan_in", linear=True)
    return model


def _cifar_resnet(depth: int):
    def build(num_classes: int, in_channels: int, image_size: int, cosine: bool) -> ResNet:
        model = ResNet((depth // 6,) * 3, (16, 32, 64), num_classes, in_channels, shortcut="A", cosine=cosine)
        _initialize(model, "fan_in", linear=True)
        return model
    return build


def _resnet34(num_classes: int, in_channels: int, image_size: int, cosine: bool) -> ResNet:
    model = ResNet((3, 4, 6, 3), (64, 128, 256, 512), num_classes, in_channels, shortcut="B", cosine=cosine)
    _initialize(model, "fan_out", linear=False)
    return model


ARCHITECTURES: dict[str, Callable[[int, int, int, bool], nn.Module]] = {
    "mlp": _mlp,
    "digitnet": _digitnet,
    "resnet20": _cifar_resnet(20),
    "resnet32": _cifar_resnet(32),
    "resnet56": _cifar_resnet(56),
    "resnet34": _resnet34,
}
