from dataclasses import replace

import numpy as np
import pytest
import torch

from landscape.data import LongTailData, Split, load_data
from landscape.data.dataset import channel_statistics, readable_name
from landscape.errors import InputError


def split(labels, channels=1, size=4):
    generator = torch.Generator().manual_seed(len(labels))
    images = torch.randint(256, (len(labels), channels, size, size), dtype=torch.uint8, generator=generator)
    return Split(images, torch.tensor(labels))


def build(**changes):
    fields = {"name": "toy", "train": split([0, 0, 0, 0, 1, 2, 2]), "test": split([2, 1, 0]),
              "class_names": ("a", "b", "c"), "mean": (0.5,), "std": (0.25,)}
    return LongTailData(**(fields | changes))


def test_counts_sizes_and_factor_follow_from_the_images():
    data = build()
    assert data.counts.tolist() == [4, 1, 2] and data.counts.dtype == np.int64
    assert (data.num_classes, data.in_channels, data.image_size, data.imb_factor) == (3, 1, 4, 4.0)
    assert (len(data.train), len(data.test)) == (7, 3)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_inputs_are_pixel_over_255_minus_mean_over_std(dtype):
    data = build(train=split([0, 1, 2], channels=3), test=split([0], channels=3),
                 mean=(0.1, 0.2, 0.3), std=(1.0, 2.0, 4.0))
    seen = data.inputs(data.train.images, dtype)
    for c in range(3):
        by_hand = (data.train.images[:, c].double() / 255 - data.mean[c]) / data.std[c]
        torch.testing.assert_close(seen[:, c].double(), by_hand, rtol=0, atol=1e-6 if dtype == torch.float32 else 1e-15)
    assert seen.dtype == dtype


def test_floating_images_are_not_divided_and_not_changed():
    data = build()
    pixels = data.train.images.float() / 255
    copy = pixels.clone()
    torch.testing.assert_close(data.inputs(pixels), data.inputs(data.train.images))
    assert torch.equal(pixels, copy)


@pytest.mark.parametrize("name", ["digits", "synthetic"])
def test_the_whole_training_set_has_mean_0_and_std_1_for_the_network(name):
    data = load_data(name, imb_factor=1)
    seen = data.inputs(data.train.images, torch.float64)
    ones = torch.ones(data.in_channels, dtype=torch.float64)
    torch.testing.assert_close(seen.mean((0, 2, 3)), 0 * ones, rtol=0, atol=1e-12)
    torch.testing.assert_close(seen.std((0, 2, 3), correction=0), ones)


def test_statistics_of_bytes_and_of_floating_pixels_agree_and_a_constant_channel_has_std_1():
    images = split([0] * 20, channels=3).images
    images[:, 1] = 51
    mean, std = channel_statistics(images)
    assert mean[1] == pytest.approx(0.2) and std[1] == 1.0
    again = channel_statistics(images.double() / 255)
    assert mean == pytest.approx(again[0]) and (std[0], std[2]) == pytest.approx((again[1][0], again[1][2]))


def test_the_hash_is_that_of_content_and_of_nothing_else():
    data = build()
    assert data.hash == build(name="other", notes=("a note",), many=3, few=1).hash
    pixel = data.train.images.clone()
    pixel[0, 0, 0, 0] += 1
    changed = [build(train=Split(pixel, data.train.labels)), build(test=split([2, 1, 1])), build(mean=(0.4,)),
               build(train=Split(data.train.images, data.train.labels.flip(0)))]
    assert len({data.hash, *(other.hash for other in changed)}) == 5


def test_moving_to_a_device_keeps_the_content():
    moved = build().to("cpu")
    assert moved.hash == build().hash and moved.counts.tolist() == [4, 1, 2]


@pytest.mark.parametrize(("changes", "message"), [
    ({"class_names": ("a", "b")}, "training labels run from 0 to 2: expected 0 ... 1"),
    ({"class_names": ("a", "b", "c", "d")}, "class 3 .d. has no training image"),
    ({"test": split([-1, 0])}, "test labels run from -1 to 0"),
    ({"test": split([0], size=5)}, r"\(1, 4, 4\) and test images \(1, 5, 5\) differ"),
    ({"test": Split(torch.zeros(1, 1, 4, 4), torch.tensor([0]))}, "torch.uint8 and test images of type torch.float32"),
    ({"mean": (0.1, 0.2)}, "expected 1 values each"),
    ({"std": (0.0,)}, "std > 0"),
])
def test_parts_that_do_not_fit_are_one_clear_error(changes, message):
    with pytest.raises(InputError, match=message) as caught:
        build(**changes)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(("images", "labels", "message"), [
    (torch.zeros(3, 4, 4, dtype=torch.uint8), torch.zeros(3, dtype=torch.int64), "images of shape"),
    (torch.zeros(0, 1, 4, 4, dtype=torch.uint8), torch.zeros(0, dtype=torch.int64), "none of them 0"),
    (torch.zeros(3, 1, 4, 4, dtype=torch.int32), torch.zeros(3, dtype=torch.int64), "images of type torch.int32"),
    (torch.zeros(3, 1, 4, 4), torch.zeros(2, dtype=torch.int64), "labels of shape"),
    (torch.zeros(3, 1, 4, 4), torch.zeros(3), "labels of shape"),
])
def test_a_split_checks_shapes_and_types(images, labels, message):
    with pytest.raises(InputError, match=message):
        Split(images, labels)


def test_images_that_are_not_square_have_no_image_size():
    flat = Split(torch.zeros(3, 1, 4, 6), torch.tensor([0, 1, 2]))
    data = build(train=flat, test=flat)
    with pytest.raises(InputError, match="4 x 6 pixels are not square"):
        data.inputs(flat.images), data.image_size


def test_names_become_short_and_printable():
    assert readable_name("a\nb\x1b[31m" + "c" * 100) == "a?b?[31m" + "c" * 52


def test_digits_are_split_as_documented():
    data = load_data("digits")
    assert data.counts.tolist() == [120, 86, 61, 44, 31, 22, 16, 11, 8, 6]
    assert torch.bincount(data.test.labels).tolist() == [54] * 10
    assert data.train.images.shape[1:] == (1, 8, 8) and data.train.images.dtype == torch.uint8
    assert (data.many, data.few, data.flip_average, data.augmentation.flip) == (60, 20, False, False)
    assert (data.augmentation.shift, data.augmentation.padding, data.imb_factor) == (1, 0, 20)


def test_digits_are_the_images_of_scikit_learn_each_at_most_once():
    from sklearn.datasets import load_digits

    table = load_digits()
    known = {}
    for image, label in zip(table.images, table.target, strict=True):
        known.setdefault(((image * 255 / 16).round().astype(np.uint8).tobytes(), int(label)), []).append(1)
    data = load_data("digits", imb_factor=1)
    parts = [(image.numpy().tobytes(), int(label)) for part in (data.train, data.test)
             for image, label in zip(part.images, part.labels, strict=True)]
    assert len(parts) == 1200 + 540
    assert all(parts.count(part) <= len(known.get(part, [])) for part in set(parts))
    assert data.train.images.max() == 255 and data.train.images.min() == 0


def test_the_test_digits_are_the_same_for_every_seed():
    first, second = (load_data("digits", subset="seeded", seed=seed) for seed in (1, 2))
    assert torch.equal(first.test.images, second.test.images)
    assert first.hash != second.hash and first.counts.tolist() == second.counts.tolist()


def test_synthetic_is_small_balanced_before_thinning_and_repeats():
    data = load_data("synthetic")
    assert data.counts.tolist() == [60, 27, 12, 6] and data.train.images.shape[1:] == (3, 8, 8)
    assert data.hash == load_data("synthetic").hash


def test_synthetic_classes_can_be_told_apart_and_mirrored():
    data = load_data("synthetic", imb_factor=1)
    centers = torch.stack([data.train.images[data.train.labels == c].double().mean(0) for c in range(4)]).flatten(1)
    for images in (data.test.images, data.test.images.flip(3)):
        nearest = torch.cdist(images.double().flatten(1), centers).argmin(1)
        assert (nearest == data.test.labels).double().mean() > 0.95


@pytest.mark.parametrize("name", ["cifar", "digits:", "folder:", ":load", "no such/thing:x", None])
def test_an_unknown_name_is_an_error_that_names_the_choices(name):
    with pytest.raises(InputError, match="is unknown: expected digits, cifar10, cifar100, synthetic, imagenet-lt, .*folder:PATH"):
        load_data(name)


def test_normalization_of_another_data_set_can_be_asked_for():
    data = load_data("synthetic", normalization="cifar10")
    assert data.mean == (0.4914, 0.4822, 0.4465) and data.std == (0.2023, 0.1994, 0.2010)
    with pytest.raises(InputError, match="normalization='mnist' is unknown: expected cifar10 or cifar100 or imagenet"):
        load_data("synthetic", normalization="mnist")
    with pytest.raises(InputError, match="expected 1 values each"):
        load_data("digits", normalization="cifar10")


def test_replaced_fields_are_checked_again():
    with pytest.raises(InputError, match="std > 0"):
        replace(build(), std=(-1.0,))
