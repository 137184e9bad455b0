import numpy as np
import pytest
import torch
from PIL import Image, ImageEnhance

from landscape.data import Augmentation
from landscape.errors import InputError


def draw(seed=0):
    return torch.Generator().manual_seed(seed)


@pytest.fixture
def images():
    # No zeros inside, so that a zero can only have come from outside.
    return torch.randint(1, 256, (64, 3, 6, 5), dtype=torch.uint8, generator=draw(7))


def candidates(image, reach, flip):
    """Every image that may come of one: displaced by whole pixels with zeros moving in, mirrored or not."""
    _, height, width = image.shape
    padded = torch.zeros(image.shape[0], height + 2 * reach, width + 2 * reach, dtype=image.dtype)
    padded[:, reach:reach + height, reach:reach + width] = image
    crops = [padded[:, y:y + height, x:x + width] for y in range(2 * reach + 1) for x in range(2 * reach + 1)]
    return crops + [crop.flip(2) for crop in crops] if flip else crops


@pytest.mark.parametrize("options", [{"padding": 2, "flip": True}, {"padding": 1}, {"shift": 1}, {"flip": True}])
def test_every_image_becomes_one_of_its_displaced_or_mirrored_copies(images, options):
    augmentation = Augmentation(**options)
    reach = augmentation.padding or augmentation.shift
    changed = augmentation(images, draw())
    assert changed.shape == images.shape and changed.dtype == images.dtype
    seen = set()
    for before, after in zip(images, changed, strict=True):
        matches = [i for i, c in enumerate(candidates(before, reach, augmentation.flip)) if torch.equal(c, after)]
        assert len(matches) == 1
        seen.add(matches[0])
    assert len(seen) > 1


def test_displacements_and_mirror_images_are_uniform():
    image = torch.arange(1, 17, dtype=torch.uint8).reshape(1, 1, 4, 4)
    changed = Augmentation(padding=1, flip=True)(image.expand(18000, -1, -1, -1), draw())
    options = torch.stack(candidates(image[0], 1, True))
    times = (changed[:, None] == options).flatten(2).all(2).sum(0)
    # 18 outcomes of 1000 each: chi-square with 17 degrees of freedom exceeds 41 once in 1000 seeds.
    assert times.sum() == 18000 and ((times - 1000) ** 2 / 1000).sum() < 41


def test_the_same_seed_gives_the_same_bits_and_another_seed_others(images):
    augmentation = Augmentation(padding=2, flip=True)
    assert torch.equal(augmentation(images, draw(1)), augmentation(images, draw(1)))
    assert not torch.equal(augmentation(images, draw(1)), augmentation(images, draw(2)))


def test_floating_images_move_as_bytes_do(images):
    augmentation = Augmentation(padding=2, flip=True)
    assert torch.equal(augmentation(images.double(), draw()), augmentation(images, draw()).double())


def test_no_augmentation_draws_nothing_and_returns_the_images(images):
    generator = draw()
    before = generator.get_state()
    assert torch.equal(Augmentation()(images, generator), images)
    assert torch.equal(generator.get_state(), before)


def test_the_images_and_the_global_generator_stay_as_they_were(images):
    copy, state = images.clone(), torch.get_rng_state()
    Augmentation(shift=1, flip=True)(images, draw())
    assert torch.equal(images, copy) and torch.equal(torch.get_rng_state(), state)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device here")
def test_a_cpu_generator_gives_the_same_images_on_the_gpu(images):
    augmentation = Augmentation(padding=2, flip=True)
    assert torch.equal(augmentation(images.cuda(), draw()).cpu(), augmentation(images, draw()))


@pytest.mark.parametrize("dtype", [torch.uint8, torch.float64])
@pytest.mark.parametrize(("place", "enhance"), [(0, "Brightness"), (1, "Contrast"), (2, "Color")])
def test_each_color_change_is_that_of_pillow(images, monkeypatch, place, enhance, dtype):
    factors = torch.full((3, len(images), 1, 1, 1), 0.5)                # the middle of the range changes nothing
    factors[place, :, 0, 0, 0] = torch.linspace(0, 1, len(images))      # 0.6 ... 1.4
    monkeypatch.setattr(torch, "rand", lambda *shape, **options: factors)
    changed = Augmentation(jitter=0.4)(images.to(dtype), draw())
    assert changed.dtype == dtype
    for image, seen, draws in zip(images, changed, factors[place].flatten().tolist(), strict=True):
        picture = Image.fromarray(image.permute(1, 2, 0).numpy())
        expected = np.asarray(getattr(ImageEnhance, enhance)(picture).enhance(1 + 0.4 * (2 * draws - 1)))
        seen = seen.double().clamp(0, 255).permute(1, 2, 0).numpy()
        assert abs(seen - expected.astype(float)).max() <= 1.5          # Pillow rounds luma and result, downwards


def test_color_changes_are_drawn_for_each_image_and_leave_gray_ones_alone(images):
    same = images[:1].expand(8, -1, -1, -1)
    changed = Augmentation(jitter=0.4)(same, draw())
    assert len({image.numpy().tobytes() for image in changed}) == 8
    assert torch.equal(Augmentation(jitter=0.4)(same[:, :1], draw()), same[:, :1])
    assert torch.equal(Augmentation(flip=True, jitter=0.0)(images, draw()), Augmentation(flip=True)(images, draw()))
    with pytest.raises(InputError, match="jitter=2 is out of range"):
        Augmentation(jitter=2)


@pytest.mark.parametrize("options", [{"padding": -1}, {"shift": 1.5}, {"padding": 4, "shift": 1}])
def test_impossible_options_are_errors(options):
    with pytest.raises(InputError, match="expected a whole number|set one of them to 0"):
        Augmentation(**options)
