"""Random crops, shifts, mirror images and colors of whole batches, on the images' device.

A crop from an image padded by p pixels is a displacement by a whole number of pixels, uniform in [-p, p] for each
axis, with zeros moving in. The zeros are pixel values, set before normalization, as in the SSE-SAM release (Lyu et al.
2025), which pads the image and normalizes the crop. Difference: a batch is cropped by one gather instead of image by
image, so the random numbers are not the release's.

Color jitter j scales brightness, contrast and saturation by b, c, s, each uniform in [1 - j, 1 + j]: with luma
g = 0.299 R + 0.587 G + 0.114 B of a pixel and its mean m over the image, b (c (s x + (1 - s) g) + (1 - c) m). The three
commute, so their order does not matter; bytes are rounded and clipped once, at the end. Difference from the published
codes: they clip after each of the three, and so draw an order.
"""

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from landscape.errors import InputError

LUMA = (0.299, 0.587, 0.114)    # ITU-R BT.601, of red, green and blue


@dataclass(frozen=True)
class Augmentation:
    """What may happen to a training image. All zero and False leaves every image as it is.

    `padding` and `shift` both displace: the first is the literature's crop, the second names a displacement of a pixel
    or two of small images. At most one of them may be positive.
    """

    padding: int = 0    # random crop from the image with this many zero pixels around it
    flip: bool = False  # mirror left and right with probability 1/2
    shift: int = 0      # displace by at most this many pixels along each axis
    jitter: float = 0   # scale brightness, contrast and saturation by up to 1 -+ this, of color images

    def __post_init__(self):
        for name in ("padding", "shift"):
            pixels = getattr(self, name)
            if not isinstance(pixels, int) or pixels < 0:
                raise InputError(f"{name}={pixels!r} is out of range: expected a whole number of pixels >= 0")
        if self.padding and self.shift:
            raise InputError(f"padding={self.padding} and shift={self.shift} both displace the image: "
                             "set one of them to 0")
        if not 0 <= self.jitter <= 1:
            raise InputError(f"jitter={self.jitter!r} is out of range: expected 0 <= jitter <= 1")

    def __call__(self, images: Tensor, generator: torch.Generator) -> Tensor:
        """Return a batch (B, C, H, W) of any dtype with each image displaced, mirrored and colored on its own.

        The random numbers are drawn on the generator's device, so a CPU generator gives the same images everywhere.
        """
        reach = self.padding or self.shift
        if reach or self.flip:
            rows, columns = self._sources(images.shape, reach, generator)
            images = _gather(functional.pad(images, [reach] * 4), rows.to(images.device), columns.to(images.device))
        return self._colored(images, generator) if self.jitter and images.shape[1] == len(LUMA) else images

    def _sources(self, shape: torch.Size, reach: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Draw the row (B, H) and the column (B, W) of the padded image that each pixel comes from."""
        size, _, height, width = shape
        draw = {"generator": generator, "device": generator.device}
        corner = torch.randint(2 * reach + 1, (size, 2), **draw)
        rows = torch.arange(height, device=generator.device).expand(size, -1)
        columns = torch.arange(width, device=generator.device).expand(size, -1)
        if self.flip:
            mirrored = torch.randint(2, (size, 1), **draw).bool()
            columns = torch.where(mirrored, columns.flip(1), columns)
        return corner[:, :1] + rows, corner[:, 1:] + columns

    def _colored(self, images: Tensor, generator: torch.Generator) -> Tensor:
        draws = torch.rand(3, len(images), 1, 1, 1, generator=generator, device=generator.device)
        pixels = images.to(torch.promote_types(images.dtype, torch.float32))
        brightness, contrast, saturation = 1 + self.jitter * (2 * draws.to(pixels) - 1)
        luma = sum(weight * pixels[:, c:c + 1] for c, weight in enumerate(LUMA))    # (B, 1, H, W)
        pixels = contrast * luma.lerp(pixels, saturation) + (1 - contrast) * luma.mean((2, 3), keepdim=True)
        pixels = brightness * pixels
        return (pixels if images.is_floating_point() else pixels.round_().clamp_(0, 255)).to(images.dtype)


def _gather(images: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
    size, channels, _, width = images.shape
    places = rows[:, :, None] * width + columns[:, None, :]                 # (B, H, W) in the flattened padded image
    places = places.flatten(1).unsqueeze(1).expand(-1, channels, -1)        # (B, C, H W)
    return images.flatten(2).gather(2, places).view(size, channels, rows.shape[1], columns.shape[1])
