"""An epoch's batches: all training images once, shuffled, augmented and normalized on their device.

A last batch smaller than the others is kept; one of a single image joins the batch before it, since BatchNorm cannot
normalize one value a channel. Images in memory are gathered, augmented and normalized many at a time, so that neither
launches nor copies are paid for each batch; images in files come batch by batch.
"""

from collections.abc import Iterator

import torch
from torch import Tensor

from landscape.data import LongTailData
from landscape.data.views import NUM_VIEWS, Views
from landscape.errors import InputError

BLOCK = 2048  # images at a time; part of what a seed stands for, since augmentation is drawn block by block


def batch_sizes(num_images: int, batch_size: int) -> list[int]:
    """Return the sizes of an epoch's batches: all images, the last batch ragged but never of one image."""
    full, rest = divmod(num_images, batch_size)
    if rest == 1 and full:
        return [batch_size] * (full - 1) + [batch_size + 1]
    return [batch_size] * full + [rest] * (rest > 0)


def shuffled_batches(data: LongTailData, sizes: list[int], order_seed: int, augmentation_seed: int | None,
                     dtype: torch.dtype, views: Views | None = None) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield normalized training images (B, C, H, W) and their labels (B,) in batches of the given sizes.

    The order is drawn on the CPU, the augmentation on the images' device; without a seed there is none. With `views`
    images come as (B, V, C, H, W), each augmented in V ways. A batch lacks the broken images that are to be skipped; one that
    has no other is an InputError.
    """
    device = data.train.labels.device
    order = torch.randperm(len(data.train), generator=torch.Generator().manual_seed(order_seed)).to(device)
    draws = None if augmentation_seed is None else torch.Generator(device).manual_seed(augmentation_seed)
    blocks = _blocks(sizes) if data.train.in_memory else [[size] for size in sizes]
    pieces = order.split([sum(parts) for parts in blocks])
    for (images, labels), parts in zip(data.train.batches(pieces, augmentation_seed), blocks):
        parts = parts if len(labels) == sum(parts) else [_rest(len(labels), *parts, data)]
        images = _augmented(images, data, draws, views)
        yield from zip(data.inputs(images, dtype).split(parts), labels.split(parts))


def _augmented(images: Tensor, data: LongTailData, draws: torch.Generator | None, views: Views | None) -> Tensor:
    if draws is None:
        return images if views is None else images.unsqueeze(1).expand(-1, NUM_VIEWS, -1, -1, -1)
    return data.augmentation(images, draws) if views is None else views(images, draws)


def _rest(found: int, size: int, data: LongTailData) -> int:
    if not found:
        raise InputError(f"all {size} images of a batch are broken, such as {next(iter(data.skipped))}: "
                         "mend the images, or raise batch_size")
    return found


def _blocks(sizes: list[int]) -> list[list[int]]:
    count = max(BLOCK // sizes[0], 1)
    return [sizes[i:i + count] for i in range(0, len(sizes), count)]
