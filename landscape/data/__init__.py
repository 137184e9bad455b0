"""Data sets with long-tailed training sets: embedded digits, CIFAR, image lists, one's own, a synthetic one for tests."""

from dataclasses import replace
from pathlib import Path
from typing import Any

from landscape.data import cifar, imagelist
from landscape.data.augment import Augmentation
from landscape.data.cifar import CIFAR10, CIFAR100, load_cifar
from landscape.data.dataset import LongTailData, Split
from landscape.data.digits import load_digits
from landscape.data.folders import load_folder
from landscape.data.imagelist import PUBLISHED, load_own_lists, load_published
from landscape.data.longtail import PROFILES, SUBSETS, check_choice, make_long_tailed
from landscape.data.own import load_callable, load_npz
from landscape.data.synthetic import load_synthetic
from landscape.errors import InputError

__all__ = ["Augmentation", "LongTailData", "Split", "load_data"]

DEFAULT_IMB_FACTORS = {"digits": 20, "cifar10": 100, "cifar100": 100, "synthetic": 10}
NORMALIZATIONS = cifar.NORMALIZATIONS | imagelist.NORMALIZATIONS


def load_data(name: str, *, imb_factor: float | None = None, profile: str = "exp", subset: str = "first", seed: int = 0,
              data_dir: str | Path | None = None, progress: bool = True, normalization: str | None = None,
              image_size: int | None = None, workers: int = 4, broken_images: str = "stop") -> LongTailData:
    """Return a data set by name, its training part long-tailed, its test part whole.

    name: digits, cifar10, cifar100, synthetic, imagenet-lt, inaturalist18, list:FOLDER, folder:PATH, npz:FILE or
    module:callable.
    imb_factor: n_max / n_min; a value in (0, 1) is read as its inverse, with a note. Left out: 20 for digits, 10 for
    synthetic, 100 for CIFAR; other data are then used as they are, and the published long-tailed lists always.
    profile: exp or step. subset: first or seeded (by `seed`), see `longtail.subset_indices`.
    normalization: whose mean and std: cifar10, cifar100, imagenet or inaturalist18; the SSE-SAM release uses cifar10's
    for CIFAR-100. Left out: the data's own.
    image_size: pixels, for folder:PATH and images in lists alone.
    workers, broken_images: of images in lists, see `imagelist.load_lists`.
    """
    check_choice("profile", profile, PROFILES)
    check_choice("subset", subset, SUBSETS)
    if name in PUBLISHED and imb_factor is not None:
        raise InputError(f"imb_factor={imb_factor} does not apply to {name}, whose training list is long-tailed as published: "
                         "leave it out, or thin lists of your own (list:FOLDER)")
    files = {"workers": workers, "broken_images": broken_images}
    data = _load_whole(name, data_dir, progress, image_size, files)
    if normalization is not None:
        data = _normalized_as(data, normalization)
    factor = DEFAULT_IMB_FACTORS.get(name) if imb_factor is None else imb_factor
    return data if factor is None else make_long_tailed(data, factor, profile, subset, seed)


def _load_whole(name: str, data_dir: str | Path | None, progress: bool, image_size: int | None,
                files: dict[str, Any]) -> LongTailData:
    kind, separator, place = str(name).partition(":")
    if name == "digits":
        return load_digits()
    if name == "synthetic":
        return load_synthetic()
    if name in ("cifar10", "cifar100"):
        return load_cifar(CIFAR10 if name == "cifar10" else CIFAR100, data_dir, progress)
    if name in PUBLISHED:
        return load_published(name, data_dir, image_size, progress=progress, **files)
    if not (separator and place and all(part.isidentifier() for part in kind.split("."))):
        raise InputError(f"dataset={name!r} is unknown: expected digits, cifar10, cifar100, synthetic, imagenet-lt, "
                         "inaturalist18, list:FOLDER, folder:PATH, npz:FILE or module:callable")
    if kind == "list":
        return load_own_lists(place, image_size, progress=progress, **files)
    if kind == "folder":
        return load_folder(place, image_size, progress)
    return load_npz(place) if kind == "npz" else load_callable(name)


def _normalized_as(data: LongTailData, normalization: str) -> LongTailData:
    check_choice("normalization", normalization, tuple(NORMALIZATIONS))
    mean, std = NORMALIZATIONS[normalization]
    return replace(data, mean=mean, std=std)
