"""Several views of an image: one for the logits, two to contrast, each augmented on its own.

    policy   first: crop (padding 4), mirror image, an AutoAugment sub-policy, Cutout of half the image's side
             others: a part of 0.2 to 1 of the area, resized; mirror image; with probability 0.8 brightness, contrast and
             saturation by up to 1 -+ 0.4 and hue by up to 0.1; with probability 0.2 gray
    own      three draws of the data set's own augmentation: for digits, 8 x 8 gray images, shifts by one pixel and nothing
             photometric

Source of `policy`: BCL (Zhu et al. 2022) and the GKP-GSA release (Chen et al. 2026); AutoAugment: Cubuk et al. 2019, its
CIFAR-10 policy, and its ImageNet policy for images above 64 pixels, which get no Cutout (DeVries and Taylor 2017) either.
kornia computes all but Cutout, crop and mirror image of the first view, with its magnitudes: ten steps from end to end of
the range, where Cubuk et al. draw a sign. A sub-policy is drawn for each image here; kornia would draw one for the batch.

Images that are files come as one random part each, of which all views are made.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from landscape.callables import import_named
from landscape.data import LongTailData
from landscape.data.augment import Augmentation
from landscape.errors import InputError
from landscape.seeding import global_seed

Views = Callable[[Tensor, torch.Generator], Tensor]     # images (B, C, H, W) -> (B, V, C, H, W)
NUM_VIEWS = 3
SOURCES = ("auto", "policy", "own")
SMALLEST, SMALL = 32, 64    # pixels: below, a policy leaves nothing to recognize; above, images are ImageNet's
PARTS, JITTER, JITTERED, GRAY = (0.2, 1.0), (0.4, 0.4, 0.4, 0.1), 0.8, 0.2


def views_of(data: LongTailData, source: str = "auto") -> Views:
    """Return what makes views of a data set's images: by its policy where they are in color and of 32 pixels or more."""
    if source not in SOURCES:
        raise InputError(f"views={source!r} is unknown: expected one of {', '.join(SOURCES)}")
    height, width = data.train.images.shape[2:]
    able = data.in_channels == 3 and min(height, width) >= SMALLEST
    if source == "policy" and not able:
        raise InputError(f"views=policy is for color images of {SMALLEST} pixels or more, not for {data.in_channels} channels of "
                         f"{height} x {width}: expected views=own")
    return PolicyViews((height, width), data.augmentation.flip) if able and source != "own" else OwnViews(data.augmentation)


class OwnViews:
    """Draws of one augmentation."""

    def __init__(self, augmentation: Augmentation):
        self.augmentation = augmentation

    def __call__(self, images: Tensor, generator: torch.Generator) -> Tensor:
        """Return views (B, V, C, H, W) in the type of the images (B, C, H, W)."""
        return torch.stack([self.augmentation(images, generator) for _ in range(NUM_VIEWS)], 1)


class PolicyViews:
    """AutoAugment and Cutout for the first view; resized parts, colors and gray for the others."""

    def __init__(self, size: tuple[int, int], flip: bool = True):
        kornia = import_named("kornia.augmentation", "views=policy", "pip install kornia, or this package with its extra views; "
                              "--loss_options views=own does without")
        auto = import_named("kornia.augmentation.auto", "views=policy", "pip install kornia")
        small = min(size) <= SMALL
        self.cutout = min(size) // 2 if small else 0
        self.first = Augmentation(padding=4 if small else 0, flip=flip)
        self.policies = list(auto.AutoAugment("cifar10" if small else "imagenet").children())
        parts = [kornia.RandomResizedCrop(size, scale=PARTS), kornia.ColorJitter(*JITTER, p=JITTERED),
                 kornia.RandomGrayscale(p=GRAY)]
        self.others = [*parts, kornia.RandomHorizontalFlip()] if flip else parts

    @torch.no_grad()
    def __call__(self, images: Tensor, generator: torch.Generator) -> Tensor:
        """Return views (B, V, C, H, W) in units of pixel / 255, float32, of images (B, C, H, W) of bytes or in these units."""
        pixels = images.float() / 255 if images.dtype == torch.uint8 else images.float()
        first = self.first(pixels, generator)
        chosen = torch.randint(len(self.policies), (len(images),), generator=generator, device=generator.device).to(images.device)
        seed = int(torch.randint(2 ** 62, (), generator=generator, device=generator.device))
        with global_seed(seed, images.device):      # from which kornia draws
            views = [cutout(self._by_policy(first, chosen), self.cutout, generator)]
            views += [self._other(pixels) for _ in range(NUM_VIEWS - 1)]
        return torch.stack(views, 1).clamp_(0, 1)

    def _by_policy(self, images: Tensor, chosen: Tensor) -> Tensor:
        result = images.clone()
        for index, policy in enumerate(self.policies):
            rows = (chosen == index).nonzero()[:, 0]
            if len(rows):
                result[rows] = policy(images[rows])
        return result

    def _other(self, images: Tensor) -> Tensor:
        for change in self.others:
            images = change(images)
        return images


def cutout(images: Tensor, length: int, generator: torch.Generator) -> Tensor:
    """Return images (B, C, H, W) with a black square each, its center anywhere, so that a part of it may lie outside."""
    if not length:
        return images
    size, _, height, width = images.shape
    inside = []
    for extent in (height, width):
        center = torch.randint(extent, (size, 1), generator=generator, device=generator.device).to(images.device)
        places = torch.arange(extent, device=images.device)
        inside.append((places >= center - length // 2) & (places < center - length // 2 + length))      # (B, extent)
    return images.masked_fill((inside[0][:, :, None] & inside[1][:, None, :])[:, None], 0.0)
