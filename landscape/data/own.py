"""Own data as arrays: from a file (`npz:FILE`) or from Python (`module:callable`).

Images are (N, H, W), (N, H, W, C) or (N, C, H, W) with 1 or 3 channels: whole numbers 0 ... 255, or floating numbers
of any scale. Labels are whole numbers from 0. Normalization uses the mean and std of the training images. Nothing in a
file becomes code: arrays are read without pickles, and `module:callable` comes from the command line or a call alone.
"""

import zipfile
import zlib
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from landscape.callables import call_named
from landscape.data.augment import Augmentation
from landscape.data.dataset import LongTailData, Split, channel_statistics
from landscape.errors import InputError

KEYS = ("x_train", "y_train", "x_test", "y_test")
CHANNELS = (1, 3)
UNREADABLE = (OSError, ValueError, EOFError, KeyError, MemoryError, zipfile.BadZipFile, zlib.error)


def load_npz(path: str | Path) -> LongTailData:
    """Return the data in an npz file with the arrays x_train, y_train, x_test and y_test."""
    path = Path(path).expanduser()
    try:
        arrays = _read_arrays(path)
    except UNREADABLE as error:
        raise InputError(f"{path} cannot be read ({error}): expected an npz file without pickled objects") from None
    missing = [key for key in KEYS if key not in arrays]
    if missing:
        raise InputError(f"{path} has no array {', '.join(missing)}: expected {', '.join(KEYS)}")
    return from_arrays(f"npz:{path.name}", *(arrays[key] for key in KEYS))


def load_callable(name: str) -> LongTailData:
    """Call `module:callable` without arguments; it returns a LongTailData or training and test images and labels.

    The four are (train_images, train_labels, test_images, test_labels), NumPy or torch. Modules in the working folder
    are found after installed ones. Errors inside the callable are its own and pass through.
    """
    answer = call_named(name, {})
    if isinstance(answer, LongTailData):
        return answer
    if not isinstance(answer, (tuple, list)) or len(answer) != 4:
        raise InputError(f"{name} returned {type(answer).__name__}: expected a LongTailData, or the four of "
                         "train_images, train_labels, test_images, test_labels")
    return from_arrays(name, *answer)


def from_arrays(name: str, *arrays: np.ndarray | Tensor) -> LongTailData:
    """Return data made of train_images, train_labels, test_images and test_labels, with crops and without flips."""
    train, test = (Split(_read_images(name, images), _read_labels(name, labels))
                   for images, labels in (arrays[:2], arrays[2:]))
    num_classes = int(max(train.labels.max(), test.labels.max())) + 1
    if num_classes > len(train):  # before a list of names is made for a label of 10^12
        raise InputError(f"{name} has the label {num_classes - 1} but {len(train)} training images: "
                         "expected labels 0 ... C - 1 and at least one training image a class")
    return own_data(name, train, test, tuple(str(c) for c in range(num_classes)))


def own_data(name: str, train: Split, test: Split, class_names: tuple[str, ...],
             notes: tuple[str, ...] = ()) -> LongTailData:
    """Return data with the defaults of own data: their own statistics, crops by an eighth, no flips.

    Whether a mirrored image keeps its label is not known, so it is left out; `dataclasses.replace` turns it on.
    """
    mean, std = channel_statistics(train.images)
    augmentation = Augmentation(padding=min(train.images.shape[2:]) // 8)
    return LongTailData(name, train, test, class_names, mean, std, augmentation, notes=notes)


def _read_arrays(path: Path) -> dict[str, np.ndarray]:
    with open(path, "rb") as file:
        archive = np.load(file, allow_pickle=False)
        if not isinstance(archive, np.lib.npyio.NpzFile):
            raise ValueError("it is a single array")
        return {key: archive[key] for key in KEYS if key in archive}


def _read_images(name: str, values: np.ndarray | Tensor) -> Tensor:
    images = _channels_first(name, _as_array(name, values))
    if images.dtype.kind == "f":
        with np.errstate(over="ignore"):
            images = images.astype(np.float32)
        if not np.isfinite(images).all():
            raise InputError(f"{name} has images with NaN or infinite values: expected finite numbers")
    elif images.size and not 0 <= images.min() <= images.max() <= 255:
        raise InputError(f"{name} has images with values {images.min()} ... {images.max()}: expected whole numbers "
                         "0 ... 255, or floating numbers")
    return torch.from_numpy(np.array(images, dtype=np.float32 if images.dtype.kind == "f" else np.uint8, order="C"))


def _channels_first(name: str, images: np.ndarray) -> np.ndarray:
    if images.ndim == 3:
        return images[:, None]  # (N, 1, H, W)
    first, last = (images.ndim == 4 and images.shape[axis] in CHANNELS for axis in (1, 3))
    if first == last:
        raise InputError(f"{name} has images of shape {images.shape}: expected (N, H, W), (N, H, W, C) or (N, C, H, W) "
                         "with C = 1 or 3, and a single axis that can be C")
    return images if first else images.transpose(0, 3, 1, 2)


def _read_labels(name: str, values: np.ndarray | Tensor) -> Tensor:
    labels = _as_array(name, values)
    if labels.ndim == 2 and labels.shape[1] == 1:
        labels = labels[:, 0]
    if labels.dtype.kind == "f" or labels.ndim != 1 or not labels.size:
        raise InputError(f"{name} has labels of type {labels.dtype} and shape {labels.shape}: expected whole numbers "
                         "of shape (N,)")
    return torch.from_numpy(labels.astype(np.int64))


def _as_array(name: str, values: np.ndarray | Tensor) -> np.ndarray:
    if isinstance(values, Tensor):
        values = values.detach().cpu()
        values = (values.float() if values.is_floating_point() else values).numpy()  # NumPy has no bfloat16
    if not isinstance(values, np.ndarray) or values.dtype.kind not in "uif":
        found = f"an array of type {values.dtype}" if isinstance(values, np.ndarray) else type(values).__name__
        raise InputError(f"{name} has {found} among its images and labels: expected arrays of whole or floating "
                         "numbers")
    return values
