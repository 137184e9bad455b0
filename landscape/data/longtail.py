"""Long-tailed profiles: how many training images each class keeps, and which.

Exponential: n_k = floor(n_max * imb_factor^(-k / (C - 1))) for k = 0 ... C - 1; step: n_max for the first half of the
classes and floor(n_max / imb_factor) for the second (Cui et al. 2019; Cao et al. 2019, LDAM-DRW). Classes keep their
label order. n_max is the size of the smallest class, so that every count can be met. Differences from the SSE-SAM
release: its step profile multiplies by imb_factor; an odd number of classes gives the middle one to the first half.
"""

import math
from dataclasses import replace

import numpy as np
import torch

from landscape.data.dataset import LongTailData
from landscape.errors import InputError

PROFILES = ("exp", "step")
SUBSETS = ("first", "seeded")


def class_counts(n_max: int, num_classes: int, imb_factor: float, profile: str = "exp") -> np.ndarray:
    """Return the training images of each class (C,), int64, descending from `n_max` to floor(n_max / imb_factor).

    A class that would be left without an image is an error.
    """
    check_choice("profile", profile, PROFILES)
    if not math.isfinite(imb_factor) or imb_factor < 1:
        raise InputError(f"imb_factor={imb_factor} is out of range: expected a finite n_max / n_min >= 1")
    rank = np.arange(num_classes)
    if profile == "exp":
        exponents = rank / max(num_classes - 1, 1)
    else:
        exponents = (rank >= (num_classes + 1) // 2).astype(float)
    counts = _floor(n_max * float(imb_factor) ** -exponents)
    if not counts.all():
        empty = int(np.flatnonzero(counts == 0)[0])
        raise InputError(f"imb_factor={imb_factor:g} leaves class {empty} without a training image: "
                         f"expected at most {n_max}, the images of the largest class")
    return counts


def read_imb_factor(value: float) -> tuple[float, str | None]:
    """Return n_max / n_min >= 1, and a note where a value in (0, 1) was read as the inverse that some releases pass."""
    if not _is_factor(value):
        raise InputError(f"imb_factor={value} is out of range: expected n_max / n_min, a finite number >= 1 "
                         "(or its inverse, above 0)")
    if value >= 1:
        return float(value), None
    factor = 1 / float(value)
    if math.isclose(factor, round(factor), rel_tol=1e-9):  # 1 / (1 / 49) is not 49
        factor = float(round(factor))
    return factor, f"imb_factor={value:g} read as its inverse {factor:g} (n_max / n_min)"


def subset_indices(labels: np.ndarray, counts: np.ndarray, subset: str = "first", seed: int = 0) -> np.ndarray:
    """Return the positions of counts[c] images of each class c, class after class.

    `first` takes them in the order of the data (SSE-SAM and ImbSAM releases). `seeded` shuffles each class in turn with
    NumPy's legacy generator, whose stream never changes: seed 0 on the official files is the subset of LDAM-DRW (Cao et
    al. 2019), which Rangwani et al. (2022) use. More images than a class has are an error.
    """
    check_choice("subset", subset, SUBSETS)
    random = _legacy_generator(seed)
    labels, chosen = np.asarray(labels), []
    for label, count in enumerate(counts):
        members = np.flatnonzero(labels == label)
        if count > len(members):
            raise InputError(f"class {label} has {len(members)} training images, {count} asked for: "
                             "expected no more than it has; lower n_max or add images")
        if subset == "seeded":
            random.shuffle(members)
        chosen.append(members[:count])
    return np.concatenate(chosen)


def make_long_tailed(data: LongTailData, imb_factor: float, profile: str, subset: str, seed: int) -> LongTailData:
    """Keep of a data set's training images what the profile asks for; the test images stay."""
    factor, note = read_imb_factor(imb_factor)
    smallest, largest = int(data.counts.min()), int(data.counts.max())
    counts = class_counts(smallest, data.num_classes, factor, profile)
    train = data.train.take(subset_indices(data.train.labels.cpu().numpy(), counts, subset, seed))
    uneven = f"classes hold {smallest} to {largest} training images: the profile starts at {smallest}"
    notes = [note] * (note is not None) + [uneven] * (smallest < largest)
    return replace(data, train=train, imb_factor=factor, subset=subset, notes=data.notes + tuple(notes))


def split_test(labels: torch.Tensor, test_counts: np.ndarray, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Return positions of training and test images: each class is shuffled, its first test_counts[c] are for testing.

    The seed is that of the data set, not of a run: runs are compared on the same test images.
    """
    everything = np.bincount(labels.numpy(), minlength=len(test_counts))
    shuffled = np.split(subset_indices(labels.numpy(), everything, "seeded", seed), np.cumsum(everything)[:-1])
    train = [members[count:] for members, count in zip(shuffled, test_counts, strict=True)]
    test = [members[:count] for members, count in zip(shuffled, test_counts, strict=True)]
    return np.concatenate(train), np.concatenate(test)


def check_choice(name: str, value: str, choices: tuple[str, ...]) -> None:
    """Refuse a value that is not among `choices`, naming them."""
    if value not in choices:
        raise InputError(f"{name}={value!r} is unknown: expected {' or '.join(choices)}")


def _is_factor(value: object) -> bool:
    if isinstance(value, bool) or not isinstance(value, (int, float, np.number)):
        return False
    return 0 < value < math.inf and math.isfinite(1 / float(value))


def _floor(values: np.ndarray) -> np.ndarray:
    # A count that is whole on paper may come out just below: 1000 * 1000^(-2/3) is 10, not 9.999999999999998.
    return np.floor(values * (1 + 1e-12)).astype(np.int64)


def _legacy_generator(seed: int) -> np.random.RandomState:
    if isinstance(seed, bool) or not isinstance(seed, (int, np.integer)) or not 0 <= seed < 2**32:
        raise InputError(f"seed={seed!r} is out of range: expected a whole number, 0 <= seed < 2^32")
    return np.random.RandomState(seed)
