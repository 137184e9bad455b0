import math
from fractions import Fraction

import numpy as np
import pytest
import torch

from landscape.data import load_data
from landscape.data.longtail import class_counts, read_imb_factor, split_test, subset_indices
from landscape.errors import InputError
from landscape.groups import ClassGroups

# imb_factor -> images, classes with many, medium and few: the published tables, counted with 1000/200 and 100/20.
CIFAR10_TABLE = {10: (20431, 7, 3, 0), 50: (13996, 4, 4, 2), 100: (12406, 4, 3, 3), 200: (11203, 3, 3, 4)}
CIFAR100_TABLE = {10: (19573, 69, 31, 0), 50: (12608, 41, 41, 18), 100: (10847, 35, 35, 30), 200: (9502, 30, 31, 39)}


def summary(counts, many, few):
    groups = ClassGroups.many_medium_few(counts, many, few).classes
    return (int(counts.sum()), *(len(groups[name]) for name in ("many", "medium", "few")))


@pytest.mark.parametrize("imb_factor", CIFAR10_TABLE)
def test_cifar10_counts_equal_the_published_table(imb_factor):
    assert summary(class_counts(5000, 10, imb_factor), 1000, 200) == CIFAR10_TABLE[imb_factor]


@pytest.mark.parametrize("imb_factor", CIFAR100_TABLE)
def test_cifar100_counts_equal_the_published_table(imb_factor):
    assert summary(class_counts(500, 100, imb_factor), 100, 20) == CIFAR100_TABLE[imb_factor]


def test_cifar10_class_sizes_equal_the_published_ones():
    assert class_counts(5000, 10, 10).tolist() == [5000, 3871, 2997, 2320, 1796, 1391, 1077, 834, 645, 500]
    assert class_counts(5000, 10, 100).tolist() == [5000, 2997, 1796, 1077, 645, 387, 232, 139, 83, 50]


def test_cifar100_runs_from_500_to_5_and_its_tails_have_the_published_sizes():
    counts = class_counts(500, 100, 100)
    assert (counts[0], counts[-1], class_counts(500, 100, 200)[-1]) == (500, 5, 2)
    for eta, classes, samples in ((20, 30, 305), (100, 65, 2023)):
        tail = counts[list(ClassGroups.head_tail(counts, eta).classes["tail"])]
        assert (len(tail), tail.sum()) == (classes, samples)


@pytest.mark.parametrize("n_max", [64, 120, 1000, 4096])
@pytest.mark.parametrize("num_classes", [2, 3, 4, 6, 7, 10, 100])
def test_exponential_counts_are_floors_in_exact_arithmetic(n_max, num_classes):
    for imb_factor in (1, 2, 8, 10, 27, 32, 50, 64, 81, 100, 125, 200, 256, 512, 1000):
        if imb_factor > n_max:
            continue
        for k, count in enumerate(class_counts(n_max, num_classes, imb_factor).tolist()):
            power = Fraction(n_max) ** (num_classes - 1) / Fraction(imb_factor) ** k  # n_k^(C-1) on paper
            assert count ** (num_classes - 1) <= power < (count + 1) ** (num_classes - 1)


def test_step_profile_halves_the_classes_and_gives_the_middle_one_to_the_head():
    assert class_counts(500, 4, 100, "step").tolist() == [500, 500, 5, 5]
    assert class_counts(50, 5, 20, "step").tolist() == [50, 50, 50, 2, 2]


def test_imb_factor_1_is_balanced_and_one_class_keeps_all():
    assert class_counts(7, 3, 1).tolist() == class_counts(7, 3, 1, "step").tolist() == [7, 7, 7]
    assert class_counts(7, 1, 5).tolist() == [7]


def test_a_class_without_images_is_an_error_that_names_it():
    with pytest.raises(InputError, match="class 9 without a training image: expected at most 120"):
        class_counts(120, 10, 121)
    assert class_counts(120, 10, 120)[-1] == 1


@pytest.mark.parametrize("value", [1, 1.5, 100, np.float32(20), np.int64(3)])
def test_a_factor_from_1_upward_is_taken_as_it_is(value):
    assert read_imb_factor(value) == (float(value), None)


def test_a_factor_below_1_is_read_as_its_inverse_and_says_so():
    for whole in range(2, 2000):
        assert read_imb_factor(1 / whole)[0] == whole
    factor, note = read_imb_factor(0.01)
    assert factor == 100 and "0.01" in note and "inverse 100" in note


@pytest.mark.parametrize("value", [0, -1, -0.01, math.inf, -math.inf, math.nan, 5e-324, True, "100", None])
def test_other_factors_are_errors(value):
    with pytest.raises(InputError, match="imb_factor=.* is out of range"):
        read_imb_factor(value)


@pytest.fixture
def labels():
    return np.random.RandomState(3).permutation(np.repeat(np.arange(4), 25))


def test_first_takes_the_first_images_of_each_class(labels):
    chosen = subset_indices(labels, [20, 10, 5, 1], "first", seed=8)
    expected = [[i for i, label in enumerate(labels) if label == c][:n] for c, n in enumerate([20, 10, 5, 1])]
    assert chosen.tolist() == sum(expected, [])


def test_seeded_is_the_subset_of_ldam_drw(labels):
    random = np.random.RandomState(0)
    expected = []
    for c, count in enumerate([20, 10, 5, 1]):
        members = np.where(labels == c)[0]
        random.shuffle(members)
        expected += members[:count].tolist()
    assert subset_indices(labels, [20, 10, 5, 1], "seeded", seed=0).tolist() == expected


def test_seeded_subsets_repeat_with_their_seed_and_are_nested_in_the_factor(labels):
    large, small, other = (set(subset_indices(labels, counts, "seeded", seed).tolist())
                           for counts, seed in (([20] * 4, 1), ([20, 10, 5, 1], 1), ([20] * 4, 2)))
    assert small < large and other != large
    assert large == set(subset_indices(labels, [20] * 4, "seeded", 1).tolist())


def test_more_images_than_a_class_has_are_an_error(labels):
    with pytest.raises(InputError, match="class 2 has 25 training images, 26 asked for"):
        subset_indices(labels, [1, 1, 26, 1])


@pytest.mark.parametrize("seed", [-1, 2**32, 0.5, True])
def test_a_seed_out_of_range_is_an_error(labels, seed):
    with pytest.raises(InputError, match="seed=.* is out of range"):
        subset_indices(labels, [1] * 4, "seeded", seed)


@pytest.mark.parametrize(("option", "value"), [("profile", "linear"), ("subset", "random")])
def test_an_unknown_choice_is_an_error_that_names_the_choices(option, value):
    with pytest.raises(InputError, match=f"{option}='{value}' is unknown: expected \\w+ or \\w+"):
        load_data("synthetic", **{option: value})


def test_a_test_split_is_disjoint_complete_and_exact(labels):
    train, test = split_test(torch.from_numpy(labels), np.array([5, 4, 3, 2]))
    assert sorted([*train, *test]) == list(range(100))
    assert np.bincount(labels[test]).tolist() == [5, 4, 3, 2]


def test_a_data_set_is_thinned_by_the_profile_and_its_test_part_stays():
    whole, thin = load_data("synthetic", imb_factor=1), load_data("synthetic", imb_factor=0.05, profile="step")
    assert thin.counts.tolist() == [60, 60, 3, 3] and thin.imb_factor == 20 and thin.subset == "first"
    assert any("inverse 20" in note for note in thin.notes) and not whole.notes
    assert torch.equal(thin.test.images, whole.test.images)
    for c in range(4):
        members = whole.train.images[whole.train.labels == c][:thin.counts[c]]
        assert torch.equal(thin.train.images[thin.train.labels == c], members)
