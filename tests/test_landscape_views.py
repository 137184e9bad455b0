"""Views of an image: the same for the same seed, each drawn on its own, and nobody else's random numbers touched."""

import ast
import colorsys
import sys
from copy import copy
from pathlib import Path

import pytest
import torch

import landscape
from landscape.data import load_data
from landscape.data.augment import Augmentation
from landscape.data.batches import batch_sizes, shuffled_batches
from landscape.data.views import OwnViews, PolicyViews, cutout, views_of
from landscape.errors import InputError

SIZES = batch_sizes(405, 60)


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def images(count=40, size=32, channels=3):
    return torch.randint(256, (count, channels, size, size), generator=seeded(9), dtype=torch.uint8)


@pytest.fixture(scope="module")
def policy():
    pytest.importorskip("kornia")
    return PolicyViews((32, 32))


def test_a_seed_stands_for_the_views_and_the_global_generator_is_left_alone(policy):
    state = torch.get_rng_state()
    first, again, other = (policy(images(), seeded(seed)) for seed in (1, 1, 2))
    assert torch.equal(first, again) and not any(torch.equal(first[:, v], other[:, v]) for v in range(3))
    assert torch.equal(state, torch.get_rng_state())
    assert first.shape == (40, 3, 3, 32, 32) and first.dtype == torch.float32
    assert first.min() >= 0 and first.max() <= 1


def test_the_views_of_an_image_differ_and_its_neighbors_do_not_enter(policy):
    found = policy(images(), seeded(1))
    assert all(not torch.equal(found[:, a], found[:, b]) for a, b in ((0, 1), (0, 2), (1, 2)))
    changed = images()
    changed[1:] = 0
    assert torch.equal(policy(changed, seeded(1))[0], found[0])


def test_the_first_view_is_cropped_and_mirrored_before_its_sub_policy(policy):
    plain = copy(policy)
    plain.policies, plain.cutout = [lambda images: images], 0
    cropped = Augmentation(padding=4, flip=True)(images().float() / 255, seeded(1))
    assert torch.equal(plain(images(), seeded(1))[:, 0], cropped)


def test_a_sub_policy_is_drawn_for_each_image(policy):
    same = images(1).expand(200, -1, -1, -1).float() / 255
    chosen = torch.arange(200) % 25
    found = policy._by_policy(same, chosen)
    assert len({found[i].numpy().tobytes() for i in range(200)}) > 25


def test_some_contrasted_views_are_gray(policy):
    other = policy(images(200), seeded(1))[:, 1]
    gray = (other.amax(1) - other.amin(1) < 1e-5).all(2).all(1)
    assert 0.08 < gray.float().mean() < 0.35        # 0.2, and three standard deviations of 200 draws


FIRST_TWO = {32: [["Invert", "Contrast"], ["Rotate", "TranslateX"]],        # Cubuk et al. 2019
             96: [["Posterize", "Rotate"], ["Solarize", "AutoContrast"]]}


@pytest.mark.parametrize("size", FIRST_TWO)
def test_small_images_have_the_cifar_policy_and_large_ones_imagenets(size):
    pytest.importorskip("kornia")
    policies = PolicyViews((size, size)).policies
    assert len(policies) == 25
    assert [[type(change).__name__ for change in policy.children()] for policy in policies[:2]] == FIRST_TWO[size]


def test_the_first_view_of_a_small_image_loses_a_square_of_half_its_side(policy):
    plain = copy(policy)
    plain.policies = [lambda images: images]
    pixels = images(200).clamp(min=1)
    before = copy(plain)
    before.cutout = 0
    lost = (plain(pixels, seeded(1))[:, 0] != before(pixels, seeded(1))[:, 0]).any(1)      # (B, H, W)
    assert (lost.any(1).sum(1) <= 16).all() and (lost.any(2).sum(1) <= 16).all()
    assert lost.any(1).sum(1).max() == 16 and lost.any(2).sum(1).max() == 16 and lost.flatten(1).any(1).all()


def halves(axis, size=32, count=400):
    """Return gray images, dark in the first half along an axis and light in the second."""
    light = (torch.arange(size) >= size // 2) * 120 + 60
    return (light[:, None] if axis == "rows" else light).expand(count, 3, size, size).to(torch.uint8)


def test_contrasted_views_are_parts_of_the_image_resized(policy):
    """The border between the halves stays in its place unless a part is cut out; colors and mirrors do not move it."""
    views = policy(halves("rows"), seeded(1))[:, 1].mean((1, 3))                            # (B, H)
    middle = (views.amax(1) + views.amin(1)) / 2
    two = views.amax(1) - views.amin(1) > 0.05
    border = (views > middle[:, None]).int().argmax(1)[two]
    assert len(set(border.tolist())) > 10 and (border != 16).float().mean() > 0.5


def test_parts_have_a_fifth_of_the_area_at_least(policy):
    crop = copy(policy)
    crop.others = crop.others[:1]
    ramp = torch.linspace(0, 1, 32)
    places = torch.stack([ramp.expand(32, 32), ramp[:, None].expand(32, 32)], 0)
    found = crop._other(torch.cat([places, places[:1]])[None].expand(400, -1, -1, -1).clone())
    height, width = ((found[:, c].amax((1, 2)) - found[:, c].amin((1, 2))) for c in (1, 0))
    areas = height * width
    assert 0.1 < areas.min() < 0.25 and 0.85 < areas.max() <= 1.0001      # the ends of a ramp are half a pixel inside


def test_most_contrasted_views_have_other_colors_in_the_ranges_named(policy):
    color = torch.tensor([90, 120, 150], dtype=torch.uint8)
    views = policy(color[:, None, None].expand(400, 3, 32, 32), seeded(1))[:, 1].mean((2, 3))      # (B, 3)
    same = (views - color / 255).abs().amax(1) < 1e-3
    assert same.float().mean() == pytest.approx(0.2 * 0.8, abs=0.055)      # neither jittered nor gray
    moved = views[~same & (views.amax(1) - views.amin(1) > 1e-3)].double()
    hue, saturation, value = zip(*(colorsys.rgb_to_hsv(*row) for row in moved.tolist()))
    start = colorsys.rgb_to_hsv(*(color / 255).tolist())
    hue, saturation, value = (torch.tensor(x) - x0 for x, x0 in zip((hue, saturation, value), start))
    assert 0.08 < hue.abs().max() <= 0.1 + 1e-3 and saturation.abs().max() > 0.1 and value.abs().max() > 0.15


@pytest.mark.parametrize("flip", [True, False])
def test_half_of_the_contrasted_views_are_mirror_images_where_mirrors_are_allowed(flip):
    pytest.importorskip("kornia")
    views = PolicyViews((32, 32), flip)(halves("columns"), seeded(1))[:, 1].mean((1, 2))        # (B, W)
    mirrored = (views[:, 0] - views[:, -1])[(views[:, 0] - views[:, -1]).abs() > 0.02] > 0
    assert 0.4 < mirrored.float().mean() < 0.6 if flip else not mirrored.any()


def test_large_images_keep_their_size_and_their_first_view_is_neither_padded_nor_cut():
    pytest.importorskip("kornia")
    large, pixels = PolicyViews((96, 96)), images(20, 96)
    assert large(pixels, seeded(1)).shape == (20, 3, 3, 96, 96)
    large.policies = [lambda images: images]
    first, plain = large(pixels, seeded(1))[:, 0], pixels.float() / 255
    same, mirrored = ((first == other).flatten(1).all(1) for other in (plain, plain.flip(3)))
    assert (same | mirrored).all() and same.any() and mirrored.any()


def test_cutout_blackens_a_square_whose_center_may_be_anywhere():
    found = cutout(torch.ones(3000, 1, 8, 8), 4, seeded()) == 0
    sizes = found.flatten(1).sum(1)
    assert set(sizes.tolist()) <= {a * b for a in (2, 3, 4) for b in (2, 3, 4)}
    # Along an axis of 8, centers 0 and 1 lose two and one of the square's four places, 7 loses one.
    assert (sizes == 16).float().mean() == pytest.approx((5 / 8) ** 2, abs=0.03)
    assert torch.equal(cutout(torch.ones(2, 1, 8, 8), 0, seeded()), torch.ones(2, 1, 8, 8))


def test_digits_are_seen_in_draws_of_their_own_augmentation():
    data = load_data("digits")
    views = views_of(data)
    assert isinstance(views, OwnViews) and views.augmentation == Augmentation(shift=1)
    found = views(data.train.images[:50], seeded())
    assert found.shape == (50, 3, 1, 8, 8) and found.dtype == torch.uint8
    assert torch.equal(found[:, 0], data.augmentation(data.train.images[:50], seeded()))
    assert not torch.equal(found[:, 1], found[:, 2])


def test_batches_of_views_are_normalized_and_without_augmentation_all_views_are_the_image():
    data = load_data("digits")
    (batch, labels), *_ = shuffled_batches(data, SIZES, 1, 2, torch.float64, views_of(data))
    assert batch.shape == (60, 3, 1, 8, 8) and batch.dtype == torch.float64
    plain, _ = next(shuffled_batches(data, SIZES, 1, None, torch.float64))
    still, again = next(shuffled_batches(data, SIZES, 1, None, torch.float64, views_of(data)))
    assert torch.equal(labels, again) and all(torch.equal(still[:, v], plain) for v in range(3))


def test_what_views_cannot_be_made_of_is_one_line(monkeypatch):
    data = load_data("digits")
    with pytest.raises(InputError, match="views=policy is for color images of 32 pixels or more, not for 1 channels of 8 x 8"):
        views_of(data, "policy")
    with pytest.raises(InputError, match="views='both' is unknown: expected one of auto, policy, own"):
        views_of(data, "both")
    monkeypatch.setitem(sys.modules, "kornia.augmentation", None)
    with pytest.raises(InputError, match="pip install kornia"):
        PolicyViews((32, 32))


def test_kornia_and_scikit_learn_wait_until_they_are_asked_for():
    for path in Path(landscape.__file__).parent.glob("*.py"):
        body = ast.parse(path.read_text(encoding="utf-8")).body
        tops = [node for node in body if isinstance(node, (ast.Import, ast.ImportFrom))]
        names = {alias.name for node in tops for alias in node.names} | {getattr(node, "module", None) or "" for node in tops}
        assert not {name.partition(".")[0] for name in names} & {"kornia", "sklearn"}, path
