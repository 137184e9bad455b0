"""Image lists: ImageNet-LT, iNaturalist 2018 and one's own, as files that say which image belongs to which class.

A list is a text of `path label` lines, labels from 0 (ImageNet-LT: Liu et al. 2019), or a JSON document with `images`,
`annotations` and `categories` (iNaturalist 2018: Van Horn et al.), where a label is the rank of its category's id. Paths
are relative to the folder of the list and stay inside it. Everything is checked before anything is trained: that each
line can be read, that no image stands twice in a list, that every file is there, and that each class has an image.
"""

import json
import os
import posixpath
import re
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tqdm import tqdm

from landscape.data.augment import Augmentation
from landscape.data.dataset import LongTailData, Split, readable_name
from landscape.data.imagefiles import DEFAULT_SIZE, ImageFiles
from landscape.data.location import data_root
from landscape.errors import InputError

# Mean and std of pixel / 255, from the literature and not computed here: ImageNet's are those of torchvision's models;
# iNaturalist's are in the codes of the long-tailed literature (Rangwani et al. 2022 among them).
NORMALIZATIONS = {
    "imagenet": ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
    "inaturalist18": ((0.466, 0.471, 0.380), (0.195, 0.194, 0.192)),
}
AUGMENTATION = Augmentation(flip=True, jitter=0.4)  # after the random part that `imagefiles` takes
LINE = re.compile(r"(\S|\S.*\S)\s+(-?[0-9]{1,9})")
KEYS = {"images": ("id", "file_name"), "annotations": ("image_id", "category_id"), "categories": ("id", "name")}


@dataclass(frozen=True)
class Published:
    """What a published data set is called, and what its lists are called and hold."""

    name: str
    lists: tuple[tuple[str, str], ...]  # (training list, test list), the first pair that is there is taken
    num_classes: int
    num_train: int
    normalization: str


PUBLISHED = {
    "imagenet-lt": Published(
        "imagenet-lt", (("ImageNet_LT_train.txt", "ImageNet_LT_test.txt"),), 1000, 115846, "imagenet"),
    "inaturalist18": Published(
        "inaturalist18", (("iNaturalist18_train.txt", "iNaturalist18_val.txt"), ("train2018.json", "val2018.json")),
        8142, 437513, "inaturalist18"),
}
OWN_LISTS = ("train.txt", "test.txt")


@dataclass(frozen=True, eq=False)
class Listing:
    """The images of one list, in its order."""

    file: Path
    names: list[str]                        # (N,) normalized paths, relative to the list's folder
    labels: np.ndarray                      # (N,) int64
    places: list[str]                       # (N,) where each of them stands in the file, for errors
    classes: tuple[str, ...] | None = None  # their names, where the file tells them


def load_published(name: str, data_dir: str | Path | None = None, image_size: int | None = None, **options: Any) -> LongTailData:
    """Return ImageNet-LT or iNaturalist 2018 from its list files and images in `data_dir`, or in the folder `name` there.

    `options`: workers, broken_images, progress; see `load_lists`. Lists that hold less than the published ones, such as
    excerpts for a trial, are taken with a note.
    """
    published = PUBLISHED[name]
    files = _find(published, data_root(data_dir))
    data = load_lists(name, *files, image_size, normalization=published.normalization,
                      num_classes=published.num_classes, **options)
    found, whole = (data.num_classes, len(data.train)), (published.num_classes, published.num_train)
    if found != whole:
        note = (f"{files[0].name} holds {found[0]} classes and {found[1]} images, {name} as published "
                f"{whole[0]} and {whole[1]}: results are not comparable")
        data = replace(data, notes=(*data.notes, note))
    return data


def load_own_lists(folder: str | Path, image_size: int | None = None, **options: Any) -> LongTailData:
    """Return one's own images as train.txt and test.txt in a folder list them; normalized as ImageNet."""
    root = Path(folder).expanduser()
    files = [root / file for file in OWN_LISTS]
    if not all(file.is_file() for file in files):
        raise InputError(f"{root} does not hold {' and '.join(OWN_LISTS)}: expected both, of lines 'path label'")
    return load_lists(f"list:{root.resolve().name}", *files, image_size, normalization="imagenet", **options)


def load_lists(name: str, train_file: Path, test_file: Path, image_size: int | None = None, *, normalization: str,
               num_classes: int | None = None, workers: int = 4, broken_images: str = "stop",
               progress: bool = True) -> LongTailData:
    """Return the images of two lists, left in their files; `image_size` in pixels, 224 where it is left out.

    `workers` processes decode (0: this one); a broken image is an error ("stop") or left out and counted ("skip").
    `num_classes` bounds the labels. Groups: many-shot above 100 training images, few-shot below 20 (Liu et al. 2019).
    """
    train, test = (_read(file) for file in (train_file, test_file))
    if train.classes != test.classes:
        raise InputError(f"{train.file} and {test.file} tell different categories: expected the same ids and names in both")
    _check_labels(train, num_classes or len(train.names))
    classes = train.classes or tuple(str(c) for c in range(int(train.labels.max()) + 1))
    _check_labels(test, len(classes))
    size = DEFAULT_SIZE if image_size is None else image_size
    splits = [_split(part, size, workers, broken_images, progress) for part in (train, test)]
    mean, std = NORMALIZATIONS[normalization]
    return LongTailData(name, *splits, classes, mean, std, AUGMENTATION, flip_average=True, notes=_notes(train, test))


def _find(published: Published, root: Path) -> tuple[Path, Path]:
    for folder in (root, root / published.name):
        for pair in published.lists:
            files = folder / pair[0], folder / pair[1]
            if all(file.is_file() for file in files):
                return files
    wanted = ", or ".join(" and ".join(pair) for pair in published.lists)
    raise InputError(f"{published.name} is not in {root}: expected {wanted}, with the images that they name beside them, in the "
                     f"folder that --data_dir or LANDSCAPE_DATA_DIR names, or in {published.name}/ there")


def _read(file: Path) -> Listing:
    try:
        text = file.read_text(encoding="utf-8-sig")
        listing = _from_json(file, json.loads(text)) if file.suffix == ".json" else _from_lines(file, text)
    except (OSError, UnicodeDecodeError, json.JSONDecodeError, RecursionError) as error:
        raise InputError(f"{file} cannot be read ({' '.join(str(error).split())}): expected a list of images as "
                         f"{'JSON' if file.suffix == '.json' else 'UTF-8 text'}") from None
    if not listing.names:
        raise InputError(f"{file} names no image: expected at least one a class")
    _check_duplicates(listing)
    return listing


def _from_lines(file: Path, text: str) -> Listing:
    names, labels, places = [], [], []
    for number, line in enumerate(text.split("\n"), start=1):
        if line.strip():
            if not (parts := LINE.fullmatch(line.strip())):
                raise InputError(f"{file}, line {number}: {readable_name(line)!r} is not 'path label': expected such as "
                                 "'train/cat/1.jpg 0'")
            places.append(f"line {number}")
            names.append(_inside(parts[1], f"{file}, {places[-1]}"))
            labels.append(int(parts[2]))
    return Listing(file, names, np.array(labels, dtype=np.int64), places)


def _from_json(file: Path, document: Any) -> Listing:
    entries = {key: _entries(file, document, key) for key in KEYS}
    categories = {entry["id"]: entry["name"] for entry in entries["categories"]}
    ranks = {category: rank for rank, category in enumerate(sorted(categories))}
    paths = {entry["id"]: entry["file_name"] for entry in entries["images"]}
    places = [f"annotations[{i}]" for i in range(len(entries["annotations"]))]
    for place, entry in zip(places, entries["annotations"]):
        for key, known, kind in (("image_id", paths, "images"), ("category_id", ranks, "categories")):
            if entry[key] not in known:
                raise InputError(f"{file}, {place}: {key} {entry[key]} is not among the {kind}")
    told = {entry["image_id"] for entry in entries["annotations"]}
    if untold := [path for image, path in paths.items() if image not in told]:
        raise InputError(f"{file} tells no category of {len(untold)} images, such as {readable_name(untold[0])!r}: "
                         "expected one each")
    names = [_inside(paths[entry["image_id"]], f"{file}, {place}") for place, entry in zip(places, entries["annotations"])]
    labels = np.array([ranks[entry["category_id"]] for entry in entries["annotations"]], dtype=np.int64)
    return Listing(file, names, labels, places, tuple(readable_name(categories[category]) for category in sorted(categories)))


def _entries(file: Path, document: Any, key: str) -> list[dict[str, Any]]:
    """Return one list of the document; ids are whole numbers, names and paths are texts."""
    entries = document.get(key) if isinstance(document, dict) else None
    if not isinstance(entries, list):
        raise InputError(f"{file} has no list {key!r}: expected a JSON document with {', '.join(KEYS)}")
    kinds = {name: str if "name" in name else int for name in KEYS[key]}
    for i, entry in enumerate(entries):
        for name, kind in kinds.items():
            if not isinstance(entry, dict) or type(entry.get(name)) is not kind:
                raise InputError(f"{file}, {key}[{i}] has no {name!r}: expected {'a text' if kind is str else 'a whole number'}")
    return entries


def _inside(path: str, place: str) -> str:
    """Return a path of a list without detours; one that leaves the folder is an error."""
    normal = posixpath.normpath(path)
    if posixpath.isabs(normal) or normal.split("/")[0] == ".." or normal == "." or "\0" in normal:
        raise InputError(f"{place}: {readable_name(path)!r} leads out of the folder of the list: expected a path of a file "
                         "below it")
    return normal


def _check_duplicates(listing: Listing) -> None:
    first = {}
    for name, place in zip(listing.names, listing.places):
        if first.setdefault(name, place) != place:
            raise InputError(f"{listing.file}, {place}: {readable_name(name)!r} stands in {first[name]} already: "
                             "expected each image once")


def _check_labels(listing: Listing, num_classes: int) -> None:
    wrong = np.flatnonzero((listing.labels < 0) | (listing.labels >= num_classes))
    if wrong.size:
        raise InputError(f"{listing.file}, {listing.places[wrong[0]]}: the label {listing.labels[wrong[0]]} is out of range "
                         f"(as are {wrong.size} in all): expected 0 ... {num_classes - 1}")


def _split(listing: Listing, size: int, workers: int, broken_images: str, progress: bool) -> Split:
    root = listing.file.parent
    files = ImageFiles(root, np.array([name.encode() for name in listing.names]), _file_sizes(listing, progress), size, workers,
                       broken_images)
    return Split(files, torch.from_numpy(listing.labels))


def _file_sizes(listing: Listing, progress: bool) -> np.ndarray:
    """Return the bytes of each file (N,); files that are missing are an error with the first of them and their number."""
    root, sizes, missing = str(listing.file.parent), np.zeros(len(listing.names), dtype=np.int64), []
    names = tqdm(listing.names, desc="finding images", unit=" images", disable=None if progress else True)
    for row, name in enumerate(names):
        try:
            sizes[row] = os.stat(os.path.join(root, name)).st_size
        except OSError:
            missing.append(row)
    if missing:
        raise InputError(f"{len(missing)} of the {len(sizes)} images of {listing.file} are not there, the first "
                         f"({listing.places[missing[0]]}) {os.path.join(root, listing.names[missing[0]])!r}: "
                         "put them beside the list, or take them off it")
    return sizes


def _notes(train: Listing, test: Listing) -> tuple[str, ...]:
    both = len(set(train.names) & set(test.names))
    return (f"{both} images stand in the training list and in the test list",) * (both > 0)
