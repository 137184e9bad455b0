"""CIFAR-10 and CIFAR-100 from the official python archives (Krizhevsky 2009), already there or downloaded.

The files are sought in `data_dir`, else in the folder that LANDSCAPE_DATA_DIR names, else in ./datasets; each may be
the extracted folder itself, the folder that holds it, or the folder that holds the archive. Extracted files are checked
by shapes and label counts, since copies differ in order; where the order is not the official one, a note says so.
"""

import hashlib
import math
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from landscape.data.archive import download, unpack
from landscape.data.augment import Augmentation
from landscape.data.dataset import LongTailData, Split, readable_name
from landscape.data.location import data_root
from landscape.data.pickles import read_pickle, text_of
from landscape.errors import InputError

BASE_URL = "https://www.cs.toronto.edu/~kriz/"
SHAPE = (3, 32, 32)


@dataclass(frozen=True)
class Release:
    """What an official archive holds, and the hashes that its page and its users publish."""

    name: str
    folder: str
    archive: str
    md5: str                                    # of the archive
    train_files: tuple[tuple[str, str], ...]    # file name, MD5
    test_file: str
    names_file: str
    labels_key: str
    names_key: str
    train_per_class: int
    test_per_class: int
    num_classes: int
    many: int
    few: int


CIFAR10 = Release(
    name="cifar10", folder="cifar-10-batches-py",
    archive="cifar-10-python.tar.gz", md5="c58f30108f718f92721af3b95e74349a",
    train_files=(("data_batch_1", "c99cafc152244af753f735de768cd75f"),
                 ("data_batch_2", "d4bba439e000b95fd0a9bffe97cbabec"),
                 ("data_batch_3", "54ebc095f3ab1f0389bbae665268c751"),
                 ("data_batch_4", "634d18415352ddfa80567beed471001a"),
                 ("data_batch_5", "482c414d41f54cd18b22e5b47cb7c3cb")),
    test_file="test_batch", names_file="batches.meta", labels_key="labels", names_key="label_names",
    train_per_class=5000, test_per_class=1000, num_classes=10, many=1000, few=200)
CIFAR100 = Release(
    name="cifar100", folder="cifar-100-python",
    archive="cifar-100-python.tar.gz", md5="eb9058c3a382ffc7106e4002c42a8d85",
    train_files=(("train", "16019d7e3df5f24257cddd939b257f8d"),),
    test_file="test", names_file="meta", labels_key="fine_labels", names_key="fine_label_names",
    train_per_class=500, test_per_class=100, num_classes=100, many=100, few=20)

# Mean and std of pixel / 255. CIFAR-10's std is the mean of per-image values that the long-tailed literature has used
# since LDAM-DRW; over all pixels it is (0.2470, 0.2435, 0.2616). The SSE-SAM release applies it to CIFAR-100 too.
NORMALIZATIONS = {
    "cifar10": ((0.4914, 0.4822, 0.4465), (0.2023, 0.1994, 0.2010)),
    "cifar100": ((0.5071, 0.4865, 0.4409), (0.2673, 0.2564, 0.2762)),
}


def load_cifar(release: Release, data_dir: str | Path | None = None, progress: bool = True,
               base_url: str = BASE_URL) -> LongTailData:
    """Return the whole balanced data set; files that are wrong, or neither found nor to be downloaded, are an error."""
    folder = find_folder(release, data_dir, progress, base_url)
    files = [name for name, _ in release.train_files]
    train, hashes = _read_split(folder, files, release, release.train_per_class)
    test, _ = _read_split(folder, [release.test_file], release, release.test_per_class)
    official = hashes == [md5 for _, md5 in release.train_files]
    notes = () if official else (f"this copy of {release.name} is not in the official order: its subsets 'first' and "
                                 "'seeded' are not those of the published recipes",)
    mean, std = NORMALIZATIONS[release.name]
    return LongTailData(release.name, train, test, _class_names(folder / release.names_file, release), mean, std,
                        Augmentation(padding=4, flip=True), True, notes=notes, many=release.many, few=release.few)


def find_folder(release: Release, data_dir: str | Path | None = None, progress: bool = True,
                base_url: str = BASE_URL) -> Path:
    """Return the extracted folder of a release, unpacking or downloading its archive where the folder is not there."""
    root = data_root(data_dir)
    if root.exists() and not root.is_dir():
        raise InputError(f"data_dir={root} is a file: expected the folder that holds {release.folder}")
    if (root / release.folder).is_dir():
        return root / release.folder
    if (root / release.train_files[0][0]).is_file():
        return root
    archive = (root.parent if root.name == release.folder else root) / release.archive
    if not archive.is_file():
        _fetch(release, archive, progress, base_url)
    return unpack(archive, release.folder, release.md5)


def _fetch(release: Release, archive: Path, progress: bool, base_url: str) -> None:
    try:
        download(base_url + release.archive, archive, release.md5, progress)
    except InputError as error:
        raise InputError(f"{release.name} is not in {archive.parent}, and {error}: put {release.archive} or the "
                         f"extracted folder {release.folder} there, or name the folder that holds it by --data_dir or "
                         "LANDSCAPE_DATA_DIR") from None


def _read_split(folder: Path, files: list[str], release: Release, per_class: int) -> tuple[Split, list[str]]:
    """Read the files of one split; return it with the MD5 of each file."""
    size = per_class * release.num_classes // len(files)
    batches = [_read_batch(folder / file, release, size) for file in files]
    labels = np.concatenate([labels for _, labels, _ in batches])
    counts = np.bincount(labels, minlength=release.num_classes)
    if (counts != per_class).any():
        wrong = int(np.flatnonzero(counts != per_class)[0])
        place = f"{folder / files[0]}{f' ... {files[-1]}' if files[1:] else ''}"
        raise InputError(f"{place} holds {counts[wrong]} images of class {wrong}: "
                         f"expected {per_class} of each of {release.num_classes} classes")
    images = np.concatenate([images for images, _, _ in batches])
    return Split(torch.from_numpy(images), torch.from_numpy(labels)), [md5 for _, _, md5 in batches]


def _read_batch(path: Path, release: Release, size: int) -> tuple[np.ndarray, np.ndarray, str]:
    raw = _read_bytes(path)
    content = read_pickle(raw, str(path))
    images, labels = content.get("data"), content.get(release.labels_key)
    expected = (size, math.prod(SHAPE))
    if not isinstance(images, np.ndarray) or images.dtype != np.uint8 or images.shape != expected:
        found = f"{images.dtype} {images.shape}" if isinstance(images, np.ndarray) else type(images).__name__
        raise InputError(f"{path} holds the wrong 'data' ({found}): expected uint8 {expected}")
    if not _are_labels(labels, size, release.num_classes):
        raise InputError(f"{path} holds the wrong {release.labels_key!r}: expected a list of {size} whole numbers "
                         f"0 ... {release.num_classes - 1}")
    md5 = hashlib.md5(raw, usedforsecurity=False).hexdigest()
    return images.reshape(size, *SHAPE), np.asarray(labels, dtype=np.int64), md5


def _read_bytes(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise InputError(f"{path} cannot be read ({error.strerror}): expected a file of the official python archive; "
                         "delete the folder to have it fetched again, or complete it") from None


def _are_labels(labels: object, size: int, num_classes: int) -> bool:
    return isinstance(labels, list) and len(labels) == size and all(
        type(label) is int and 0 <= label < num_classes for label in labels)


def _are_texts(values: object) -> bool:
    return isinstance(values, list) and all(isinstance(value, (bytes, str)) for value in values)


def _class_names(path: Path, release: Release) -> tuple[str, ...]:
    names = read_pickle(_read_bytes(path), str(path)).get(release.names_key)
    if not _are_texts(names) or len(names) != release.num_classes:
        raise InputError(f"{path} holds no {release.names_key!r}: expected a list of {release.num_classes} class names")
    return tuple(readable_name(text_of(name)) for name in names)
