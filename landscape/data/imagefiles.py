"""Images that stay in their files: decoded when they are asked for, ahead of time in worker processes, never all at once.

In evaluation the shorter side of an image is resized to 256/224 of the size asked for, and the middle square of that
size is kept. In training a random part is resized to the square: 8 to 100 % of the area, width / height from 3/4 to 4/3
(Szegedy et al. 2015, the recipe of all published large-scale results here). The part follows from the seed and the
image's position alone, so neither the number of workers, nor the batches, nor an interruption changes a pixel.
Resampling is Pillow's bilinear, which averages where it shrinks; gray and CMYK images become RGB, and a rotation noted
in a photograph's EXIF is not applied, as in the published codes.
"""

import math
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from multiprocessing import current_process
from pathlib import Path
from signal import SIG_IGN, SIGINT, signal

import numpy as np
import torch
from PIL import Image, UnidentifiedImageError
from torch import Tensor
from torch.utils.data import DataLoader

from landscape.errors import InputError, one_line

BROKEN_IMAGES = ("stop", "skip")
DEFAULT_SIZE = 224          # pixels
RESIZED = 256 / 224         # shorter side over the part kept, in evaluation
AREAS, ASPECTS, TRIES = (0.08, 1.0), (3 / 4, 4 / 3), 10
# Pillow's modes of 8-bit gray and color -> what they are read as.
CHANNELS = {"1": "L", "L": "L", "LA": "L", "CMYK": "RGB", "P": "RGB", "RGB": "RGB", "RGBA": "RGB", "YCbCr": "RGB"}
FORMATS = ("BMP", "GIF", "JPEG", "PNG", "PPM", "TIFF", "WEBP")  # others of Pillow's start other programs
CHUNK = 32                  # images a request: what waits in memory is bounded whatever the batch
LONGEST_REASON = 120
Request = tuple[np.ndarray, int | None]                     # positions (k,), seed of their parts
Answer = tuple[Tensor, list[int], list[tuple[int, str]]]    # images (k', 3, S, S), their rows, broken: position, reason


@dataclass(frozen=True, eq=False)
class ImageFiles:
    """N images in files, as a tensor (N, 3, S, S) of bytes would show itself: shape, dtype, length, indexing."""

    root: Path
    names: np.ndarray           # (N,) paths below root, UTF-8: one block of memory, which worker processes share
    sizes: np.ndarray           # (N,) int64, bytes of each file
    image_size: int = DEFAULT_SIZE
    workers: int = 4            # processes that decode, at most one a core; 0 decodes in this one
    broken_images: str = "stop"
    skipped: dict[str, str] = field(default_factory=dict)   # broken files left out so far, and why; also of parts

    def __post_init__(self):
        if self.broken_images not in BROKEN_IMAGES:
            raise InputError(f"broken_images={self.broken_images!r} is unknown: expected {' or '.join(BROKEN_IMAGES)}")
        for name, least in (("image_size", 1), ("workers", 0)):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int) or value < least:
                raise InputError(f"{name}={value!r} is out of range: expected a whole number >= {least}")

    def __len__(self) -> int:
        return len(self.names)

    @property
    def shape(self) -> torch.Size:
        return torch.Size((len(self), 3, self.image_size, self.image_size))

    @property
    def dtype(self) -> torch.dtype:
        return torch.uint8

    def __getitem__(self, positions: Tensor | slice) -> Tensor:
        """Return the images (B, 3, S, S) at these positions as evaluation sees them; a broken one is an error."""
        positions = torch.arange(len(self))[positions]
        (images, rows), = self.read([positions])
        if len(rows) < len(positions):
            raise InputError(f"{len(positions) - len(rows)} of {len(positions)} images are broken: "
                             f"{next(iter(self.skipped))} ({next(iter(self.skipped.values()))})")
        return images

    def take(self, positions: Tensor) -> "ImageFiles":
        """Return some of the images, in that order, still in their files."""
        chosen = positions.cpu().numpy()
        return replace(self, names=self.names[chosen], sizes=self.sizes[chosen])

    def read(self, pieces: Sequence[Tensor], seed: int | None = None) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield of each piece of positions (B,) the images (B', 3, S, S) on the CPU, and their rows in the piece (B',).

        With a seed, random parts as in training. B' < B where broken images are left out; else they are an InputError.
        """
        pieces = [piece.cpu() for piece in pieces]
        answers = self._answers([(chunk.numpy(), seed) for piece in pieces for chunk in piece.split(CHUNK)])
        for piece in pieces:
            starts = range(0, len(piece), CHUNK)
            found = [(start, *self._checked(next(answers))) for start in starts]
            images = torch.cat([images for _, images, _ in found])
            yield images, torch.tensor([start + row for start, _, rows in found for row in rows], dtype=torch.int64)

    @property
    def content(self) -> bytes:
        """What stands for the images in a hash: paths and file sizes, not pixels, which would take a whole epoch."""
        return b"\0".join(self.names.tolist()) + self.sizes.astype("<i8").tobytes()

    def _checked(self, answer: Answer) -> tuple[Tensor, list[int]]:
        images, rows, broken = answer
        for position, reason in broken:
            file = str(self.root / self.names[position].decode())
            if self.broken_images == "stop":
                raise InputError(f"{file} cannot be read as an image ({reason}): repair it, take it off the list, or "
                                 "pass broken_images=skip")
            self.skipped[file] = reason
        return images, rows

    def _answers(self, requests: list[Request]) -> Iterator[Answer]:
        self._plan.requests = requests
        answers = iter(self._pool)
        while True:
            if self._plan.requests is not requests:     # the workers now serve somebody else
                raise RuntimeError("images are read twice at the same time: finish one reading before the next")
            try:
                yield next(answers)
            except StopIteration:
                return
            except RuntimeError as error:
                if "DataLoader worker" not in str(error):
                    raise
                raise InputError(f"a worker process that decodes images died ({one_line(error, LONGEST_REASON)}): it may lack "
                                 "memory or space in /dev/shm; pass fewer workers, or workers=0") from None

    @cached_property
    def _plan(self) -> "_Plan":
        return _Plan()

    @cached_property
    def _pool(self) -> DataLoader:
        cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
        workers = 0 if current_process().daemon else min(self.workers, cores)   # a daemon may not have children
        # A generator of its own: a loader draws a number for each pass, which must not come from the network's.
        return DataLoader(_Decoder(self.root, self.names, self.image_size), sampler=self._plan, batch_size=None,
                          num_workers=workers, persistent_workers=workers > 0, collate_fn=_unchanged,
                          worker_init_fn=_start_worker, generator=torch.Generator())


class _Plan:
    """What is to be decoded next, in order."""

    requests: list[Request] = []

    def __iter__(self) -> Iterator[Request]:
        return iter(self.requests)


class _Decoder:
    """Decodes requests; a copy of it lives in each worker process."""

    def __init__(self, root: Path, names: np.ndarray, size: int):
        self.root, self.names, self.size = root, names, size

    def __getitem__(self, request: Request) -> Answer:
        positions, seed = request
        images = torch.empty(len(positions), 3, self.size, self.size, dtype=torch.uint8)
        rows, broken = [], []
        for row, position in enumerate(positions.tolist()):
            random = None if seed is None else np.random.default_rng((seed, position))
            try:
                images[len(rows)] = decoded(self.root / self.names[position].decode(), self.size, random)
                rows.append(row)
            except Exception as error:  # Pillow's readers raise almost anything at damaged bytes
                broken.append((position, _reason(error)))
        return images[:len(rows)], rows, broken


def decoded(path: Path, size: int, random: np.random.Generator | None = None) -> Tensor:
    """Return an image as bytes (3, size, size): its middle, or with a generator a random part of it."""
    with Image.open(path, formats=FORMATS) as image:
        if image.mode not in CHANNELS:
            raise ValueError(f"pixels of mode {image.mode}, expected 8-bit gray or color")
        image = image.convert("RGB")
    if random is None:
        image = image.resize((size, size), Image.Resampling.BILINEAR, box=middle(*image.size, size))
    else:
        # Cut before it is resized, as published: the pixels beside the part do not enter.
        image = image.crop(random_part(*image.size, random)).resize((size, size), Image.Resampling.BILINEAR)
    return torch.from_numpy(np.array(image).transpose(2, 0, 1))


def middle(width: int, height: int, size: int) -> tuple[float, float, float, float]:
    """Return left, upper, right, lower of what evaluation keeps, in pixels of the image before it is resized.

    Equal to resizing the shorter side to round(size * 256 / 224) pixels and cutting out the middle, in one pass: no
    image, however long and thin, is blown up.
    """
    short = round(size * RESIZED)
    resized = [side * short // min(width, height) for side in (width, height)]
    scales = [side / new for side, new in zip((width, height), resized)]
    corner = [round((new - size) / 2) for new in resized]
    (left, upper), (right, lower) = ([(c + more) * scale for c, scale in zip(corner, scales)] for more in (0, size))
    return left, upper, min(right, width), min(lower, height)


def random_part(width: int, height: int, random: np.random.Generator) -> tuple[int, int, int, int]:
    """Draw left, upper, right, lower of a part: area uniform, aspect log-uniform, place uniform.

    Where ten draws do not fit into the image, the largest middle part of a permitted aspect is taken.
    """
    for _ in range(TRIES):
        area = width * height * random.uniform(*AREAS)
        aspect = math.exp(random.uniform(*map(math.log, ASPECTS)))
        w, h = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
        if 0 < w <= width and 0 < h <= height:
            left, upper = int(random.integers(width - w + 1)), int(random.integers(height - h + 1))
            return left, upper, left + w, upper + h
    w, h = min(width, max(round(height * ASPECTS[1]), 1)), min(height, max(round(width / ASPECTS[0]), 1))
    left, upper = (width - w) // 2, (height - h) // 2
    return left, upper, left + w, upper + h


def _unchanged(answer: Answer) -> Answer:
    return answer


def _start_worker(number: int) -> None:
    signal(SIGINT, SIG_IGN)     # the process that trains is interrupted, and ends its workers


def _reason(error: Exception) -> str:
    # Pillow's and the system's messages repeat the path, which stands in ours.
    if isinstance(error, UnidentifiedImageError):
        return "not an image of a known format"
    return getattr(error, "strerror", None) or one_line(error, LONGEST_REASON)
