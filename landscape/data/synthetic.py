"""Synthetic: a small set for tests, ready in milliseconds: one random pattern a class under noise.

Patterns are symmetric left to right, so that a mirrored image keeps its label.
"""

import numpy as np
import torch

from landscape.data.augment import Augmentation
from landscape.data.dataset import LongTailData, Split, channel_statistics

NOISE = 40.0  # standard deviation in gray levels, against patterns spread over 40 ... 215


def load_synthetic(num_classes: int = 4, train_per_class: int = 60, test_per_class: int = 20, channels: int = 3,
                   size: int = 8, seed: int = 0) -> LongTailData:
    """Return a balanced set of uint8 images (N, channels, size, size), the same for the same arguments."""
    random = np.random.RandomState(seed)
    half = random.uniform(40, 215, (num_classes, channels, size, (size + 1) // 2))
    patterns = np.concatenate([half, half[..., :size // 2][..., ::-1]], axis=-1)
    train, test = (_draw(patterns, count, random) for count in (train_per_class, test_per_class))
    names = tuple(f"pattern {c}" for c in range(num_classes))
    mean, std = channel_statistics(train.images)
    return LongTailData("synthetic", train, test, names, mean, std, Augmentation(padding=1, flip=True),
                        flip_average=True, many=30, few=10)


def _draw(patterns: np.ndarray, per_class: int, random: np.random.RandomState) -> Split:
    labels = np.repeat(np.arange(len(patterns)), per_class)
    noisy = patterns[labels] + random.normal(0, NOISE, (len(labels), *patterns.shape[1:]))
    return Split(torch.from_numpy(np.clip(noisy, 0, 255).astype(np.uint8)), torch.from_numpy(labels))
