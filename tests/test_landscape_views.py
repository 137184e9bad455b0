"""Views of an image: the same for the same seed, each drawn on its own, and nobody else's random numbers touched."""

import ast
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
