"""A long-tailed data set: images, labels, and what a network and a table need to know of them.

Images stay as they were read, mostly bytes: a tensor in memory, or files that are decoded batch by batch (`imagefiles`).
`Split.batches` serves both, and nothing else here or above asks which of them it is. `LongTailData.inputs` turns a batch
into what the network sees, (pixel / 255 - mean) / std for each channel. Everything is checked once, here, whatever the
data came from.
"""

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
import torch
from torch import Tensor

from landscape.data.augment import Augmentation
from landscape.data.imagefiles import ImageFiles
from landscape.errors import InputError

LONGEST_NAME = 60


@dataclass(frozen=True, eq=False)
class Split:
    """Images and their labels."""

    images: Tensor | ImageFiles  # (N, C, H, W) uint8, or floating in units of pixel / 255
    labels: Tensor               # (N,) int64

    def __post_init__(self):
        shape = tuple(self.images.shape)
        if len(shape) != 4 or 0 in shape:
            raise InputError(f"images of shape {shape} cannot be used: expected (N, C, H, W), none of them 0")
        if self.images.dtype != torch.uint8 and not self.images.is_floating_point():
            raise InputError(f"images of type {self.images.dtype} cannot be used: expected uint8, or floating in units "
                             "of pixel / 255")
        if tuple(self.labels.shape) != shape[:1] or self.labels.dtype != torch.int64:
            raise InputError(f"labels of shape {tuple(self.labels.shape)} and type {self.labels.dtype} do not fit: "
                             f"expected ({shape[0]},) of torch.int64, one label an image")

    def __len__(self) -> int:
        return len(self.labels)

    def take(self, indices: np.ndarray) -> "Split":
        """Return the images at `indices`, in that order."""
        chosen = torch.as_tensor(indices, device=self.labels.device)
        return Split(self.images[chosen] if self.in_memory else self.images.take(chosen), self.labels[chosen])

    def to(self, device: torch.device | str) -> "Split":
        """Return the split on another device; images in files go there batch by batch."""
        return Split(self.images.to(device) if self.in_memory else self.images, self.labels.to(device))

    @property
    def in_memory(self) -> bool:
        """Whether the images are a tensor, and not files."""
        return isinstance(self.images, Tensor)

    @property
    def skipped(self) -> dict[str, str]:
        """The broken image files that were left out so far, and why."""
        return {} if self.in_memory else self.images.skipped

    def batches(self, pieces: Sequence[Tensor], part_seed: int | None = None) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield images (B, C, H, W) and labels (B,) of each piece of positions, on the labels' device.

        Files are decoded ahead of time: with a seed to random parts of the images, else as evaluation sees them. Broken
        ones, where they are to be skipped, are missing, so that a batch may be smaller than its piece, or empty.
        """
        if self.in_memory:
            yield from ((self.images[piece], self.labels[piece]) for piece in pieces)
            return
        device = self.labels.device
        for piece, (images, rows) in zip(pieces, self.images.read(pieces, part_seed)):
            yield sent(images, device), self.labels[sent(piece, device)[sent(rows, device)]]


@dataclass(frozen=True, eq=False)
class LongTailData:
    """Training and test images of C classes, with the statistics, switches and thresholds that belong to them."""

    name: str
    train: Split
    test: Split
    class_names: tuple[str, ...]    # C names, by label
    mean: tuple[float, ...]         # of pixel / 255, one a channel
    std: tuple[float, ...]          # > 0, one a channel
    augmentation: Augmentation = Augmentation()
    flip_average: bool = False      # whether a mirrored image keeps its label
    imb_factor: float | None = None  # n_max / n_min of the profile; left out: that of the training counts
    subset: str = "all"             # first | seeded | all: how the training images were chosen
    notes: tuple[str, ...] = ()     # what a reader of the results should know of the data
    many: int = 100                 # many-shot classes have more training images than this
    few: int = 20                   # few-shot classes have fewer

    def __post_init__(self):
        _check_labels("training", self.train, self.num_classes)
        _check_labels("test", self.test, self.num_classes)
        if self.train.images.shape[1:] != self.test.images.shape[1:]:
            raise InputError(f"training images (C, H, W) = {tuple(self.train.images.shape[1:])} and test images "
                             f"{tuple(self.test.images.shape[1:])} differ: expected one shape")
        if self.train.images.dtype != self.test.images.dtype:
            raise InputError(f"training images of type {self.train.images.dtype} and test images of type "
                             f"{self.test.images.dtype} differ: expected one type, since bytes are divided by 255")
        if not len(self.mean) == len(self.std) == self.in_channels or not all(s > 0 for s in self.std):
            raise InputError(f"mean={self.mean}, std={self.std} do not fit: expected {self.in_channels} values each, "
                             "std > 0")
        if not self.counts.all():
            empty = int(np.flatnonzero(self.counts == 0)[0])
            raise InputError(f"class {empty} ({self.class_names[empty]}) has no training image: "
                             "expected at least one a class")
        if self.imb_factor is None:
            object.__setattr__(self, "imb_factor", float(self.counts.max() / self.counts.min()))

    @cached_property
    def counts(self) -> np.ndarray:
        """Training images of each class (C,), int64."""
        return np.bincount(self.train.labels.cpu().numpy(), minlength=self.num_classes).astype(np.int64)

    @property
    def num_classes(self) -> int:
        return len(self.class_names)

    @property
    def in_channels(self) -> int:
        return self.train.images.shape[1]

    @property
    def image_size(self) -> int:
        """Height and width in pixels; images that are not square are an error."""
        height, width = self.train.images.shape[2:]
        if height != width:
            raise InputError(f"images of {height} x {width} pixels are not square: resize them, or pass a model of "
                             "your own")
        return height

    @cached_property
    def hash(self) -> str:
        """SHA-256 of images, labels, mean and std: of everything that decides what a network sees and is asked.

        Of images in files it takes the paths and the file sizes, not the pixels.
        """
        digest = hashlib.sha256(repr((self.mean, self.std)).encode())
        for values in (self.train.images, self.train.labels, self.test.images, self.test.labels):
            digest.update(f"{values.dtype}{tuple(values.shape)}".encode())
            digest.update(values.cpu().contiguous().numpy() if isinstance(values, Tensor) else values.content)
        return digest.hexdigest()

    @property
    def skipped(self) -> dict[str, str]:
        """The broken image files that were left out so far, and why."""
        return self.train.skipped | self.test.skipped

    def inputs(self, images: Tensor, dtype: torch.dtype = torch.float32) -> Tensor:
        """Return what the network sees of a batch (B, C, H, W): (pixel / 255 - mean) / std, on the images' device."""
        scaled = images.to(dtype, copy=True)
        if images.dtype == torch.uint8:
            scaled.div_(255)
        mean, std = self._statistics(images.device, dtype)
        return scaled.sub_(mean).div_(std)

    def _statistics(self, device: torch.device, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        """Return mean and std (C, 1, 1) on a device, copied there once: a GPU is waited for at each copy of Python's numbers."""
        if (device, dtype) not in self._placed:
            self._placed[device, dtype] = tuple(torch.tensor(values, dtype=dtype, device=device).view(-1, 1, 1)
                                                for values in (self.mean, self.std))
        return self._placed[device, dtype]

    @cached_property
    def _placed(self) -> dict[tuple[torch.device, torch.dtype], tuple[Tensor, Tensor]]:
        return {}

    def to(self, device: torch.device | str) -> "LongTailData":
        """Return the data on another device."""
        return replace(self, train=self.train.to(device), test=self.test.to(device))


def sent(values: Tensor, device: torch.device) -> Tensor:
    """Return a tensor on a device; to a GPU through pinned memory, so that nobody waits for the copy."""
    if device.type == "cuda" and values.device.type == "cpu":
        return values.pin_memory().to(device, non_blocking=True)
    return values.to(device)


def channel_statistics(images: Tensor) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Return mean and std of pixel / 255 for each channel of (N, C, H, W); a constant channel has std 1."""
    channels = images.transpose(0, 1).flatten(1)  # (C, N H W)
    moments = [_byte_moments(c) if c.dtype == torch.uint8 else _moments(c) for c in channels]
    return tuple(mean for mean, _ in moments), tuple(std or 1.0 for _, std in moments)


def readable_name(text: str) -> str:
    """Return a class name from a file as one short printable line: it is shown to people and used for nothing else."""
    return "".join(c if c.isprintable() else "?" for c in text)[:LONGEST_NAME]


def _check_labels(name: str, split: Split, num_classes: int) -> None:
    low, high = int(split.labels.min()), int(split.labels.max())
    if low < 0 or high >= num_classes:
        raise InputError(f"{name} labels run from {low} to {high}: expected 0 ... {num_classes - 1}, "
                         f"one of {num_classes} classes")


def _byte_moments(values: Tensor) -> tuple[float, float]:
    # By a histogram: exact, and no copy of all images in floating point.
    weights = torch.bincount(values, minlength=256).double().cpu()
    levels = torch.arange(256, dtype=torch.float64) / 255
    mean = (weights @ levels) / weights.sum()
    return float(mean), float(((weights @ (levels - mean) ** 2) / weights.sum()).sqrt())


def _moments(values: Tensor) -> tuple[float, float]:
    return float(values.double().mean()), float(values.double().std(correction=0))
