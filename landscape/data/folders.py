"""Own data as images (`folder:PATH`): PATH/train/CLASS and PATH/test/CLASS, or PATH/CLASS alone, one folder a class.

Without train and test, a fifth of each class, drawn with a fixed seed, is for testing. Labels follow the names of the
class folders, in order of number where all are numbers, else of the alphabet. Images that are not all of one square
size are cut to a square around their middle and resized. All of them are held in memory.
"""

from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageOps, UnidentifiedImageError
from tqdm import tqdm

from landscape.data.dataset import LongTailData, Split, readable_name
from landscape.data.imagefiles import CHANNELS
from landscape.data.longtail import split_test
from landscape.data.own import own_data
from landscape.errors import InputError

TEST_SHARE = 0.2
DEFAULT_SIZE = 32  # pixels, where the images do not agree on a size
SUFFIXES = {".bmp", ".gif", ".jpeg", ".jpg", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp"}
Headers = dict[Path, tuple[str, tuple[int, int]]]  # file -> L or RGB, (width, height)
UNREADABLE = (OSError, ValueError, SyntaxError, EOFError, UnidentifiedImageError, Image.DecompressionBombError)


def load_folder(path: str | Path, image_size: int | None = None, progress: bool = True) -> LongTailData:
    """Return the images under `path`, all gray or all color, as uint8 of one square size.

    `image_size` in pixels; left out, it is that of the images where they agree, else 32, with a note.
    """
    root = Path(path).expanduser()
    parts = _parts(root)
    names = _class_folders(parts[0])
    if any(_class_folders(part) != names for part in parts):
        raise InputError(f"{root}/train and {root}/test hold different classes: expected the same folder names in both")
    listings = [_list_images(part, names) for part in parts]
    headers = {file: _header(file) for files, _ in listings for file in files}
    mode = _common_mode(headers)
    size, notes = _common_size(headers, image_size)
    splits = [_read(files, labels, mode, size, progress) for files, labels in listings]
    train, test = splits if len(splits) == 2 else _hold_out(root, splits[0])
    return own_data(f"folder:{root.resolve().name}", train, test, tuple(readable_name(name) for name in names), notes)


def _parts(root: Path) -> list[Path]:
    if not root.is_dir():
        raise InputError(f"{root} is not a folder: expected train/ and test/, or one folder a class")
    parts = [root / "train", root / "test"]
    present = [part for part in parts if part.is_dir()]
    if len(present) == 1:
        raise InputError(f"{root} holds {present[0].name}/ alone: expected train/ and test/, or one folder a class")
    return present or [root]


def _class_folders(part: Path) -> list[str]:
    names = sorted(entry.name for entry in part.iterdir() if entry.is_dir() and not entry.name.startswith("."))
    if not names:
        raise InputError(f"{part} holds no folder: expected one a class, with images in it")
    return sorted(names, key=int) if all(name.isdecimal() for name in names) else names


def _list_images(part: Path, names: list[str]) -> tuple[list[Path], list[int]]:
    files, labels = [], []
    for label, name in enumerate(names):
        visible = [file for file in (part / name).iterdir() if not file.name.startswith(".")]
        found = sorted(file for file in visible if file.suffix.lower() in SUFFIXES)
        if not found:
            raise InputError(f"{part / name} holds no image: expected files ending in {', '.join(sorted(SUFFIXES))}")
        files += found
        labels += [label] * len(found)
    return files, labels


def _common_mode(headers: Headers) -> str:
    by_mode = {mode: file for file, (mode, _) in headers.items()}
    if len(by_mode) > 1:
        raise InputError(f"gray and color images are mixed ({by_mode['L']} is gray, {by_mode['RGB']} is not): "
                         "expected one kind; convert either")
    return next(iter(by_mode))


def _common_size(headers: Headers, image_size: int | None) -> tuple[int, tuple[str, ...]]:
    if image_size is not None:
        if isinstance(image_size, bool) or not isinstance(image_size, int) or image_size < 1:
            raise InputError(f"image_size={image_size!r} is out of range: expected a whole number of pixels >= 1")
        return image_size, ()
    width, height = next(iter(headers.values()))[1]
    if width == height and all(size == (width, height) for _, size in headers.values()):
        return width, ()
    return DEFAULT_SIZE, (f"images are not of one square size: resized to {DEFAULT_SIZE} x {DEFAULT_SIZE} pixels",)


def _header(file: Path) -> tuple[str, tuple[int, int]]:
    try:
        with Image.open(file) as image:
            mode, size = image.mode, image.size
    except UNREADABLE as error:
        raise InputError(f"{file} cannot be read as an image ({error}): repair or remove it") from None
    if mode not in CHANNELS:
        raise InputError(f"{file} has pixels of mode {mode}: expected 8-bit gray or color")
    return CHANNELS[mode], size


def _read(files: list[Path], labels: list[int], mode: str, size: int, progress: bool) -> Split:
    channels = 1 if mode == "L" else 3
    pixels = np.empty((len(files), size, size, channels), dtype=np.uint8)
    for row, file in enumerate(tqdm(files, desc="reading images", unit=" images", disable=None if progress else True)):
        pixels[row] = _read_one(file, mode, size).reshape(size, size, channels)
    return Split(torch.from_numpy(pixels).permute(0, 3, 1, 2).contiguous(), torch.tensor(labels))


def _read_one(file: Path, mode: str, size: int) -> np.ndarray:
    try:
        with Image.open(file) as image:
            image = image.convert(mode)
            return np.asarray(image if image.size == (size, size) else ImageOps.fit(image, (size, size)))
    except UNREADABLE as error:
        raise InputError(f"{file} cannot be read as an image ({error}): repair or remove it") from None


def _hold_out(root: Path, whole: Split) -> tuple[Split, Split]:
    sizes = np.bincount(whole.labels.numpy())
    if sizes.min() < 2:
        raise InputError(f"{root} has a class with a single image: expected two, one to train and one to test with")
    train, test = split_test(whole.labels, np.maximum(np.rint(sizes * TEST_SHARE), 1).astype(int))
    return whole.take(train), whole.take(test)
