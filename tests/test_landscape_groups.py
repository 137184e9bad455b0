import math

import numpy as np
import pytest
import torch

from landscape.errors import InputError
from landscape.groups import ClassGroups

COUNTS = [500, 101, 100, 50, 20, 19, 5]


def test_tail_holds_the_classes_strictly_below_eta():
    groups = ClassGroups.head_tail(COUNTS, 20)
    assert groups.classes == {"head": (0, 1, 2, 3, 4), "tail": (5, 6)}


def test_many_is_strictly_above_and_few_strictly_below_their_thresholds():
    groups = ClassGroups.many_medium_few(COUNTS)
    assert groups.classes == {"many": (0, 1), "medium": (2, 3, 4), "few": (5, 6)}


def test_head_tail_and_many_medium_few_are_partitions_for_any_threshold():
    for eta in (0, 5, 19.5, 100, 501, math.inf):
        classes = ClassGroups.standard(COUNTS, eta, many=max(eta, 3), few=3).classes
        for names in (("head", "tail"), ("many", "medium", "few")):
            assert sorted(c for name in names for c in classes[name]) == list(range(7))
        assert classes["all"] == tuple(range(7))


def test_standard_lists_all_groups_in_the_order_of_the_tables():
    groups = ClassGroups.standard(COUNTS, 20)
    assert tuple(groups.classes) == groups.names == ("all", "head", "tail", "many", "medium", "few")
    assert groups.absent == ()


def test_equal_thresholds_leave_medium_to_the_classes_of_exactly_that_size():
    assert ClassGroups.many_medium_few(COUNTS, 20, 20).classes["medium"] == (4,)


def test_groups_without_a_class_are_absent_and_not_named():
    groups = ClassGroups.standard([5000, 2000, 50], 20, many=1000, few=20)  # as CIFAR-10-LT at factor 100 with eta 20
    assert groups.names == ("all", "head", "many", "medium") and groups.absent == ("tail", "few")


def test_masks_say_which_samples_belong():
    labels = torch.tensor([6, 0, 4, 5, 0])
    masks = ClassGroups.standard(COUNTS, 20).masks(labels)
    assert masks["all"].tolist() == [True] * 5 and masks["tail"].tolist() == [True, False, False, True, False]
    assert all(mask.dtype == torch.bool and mask.shape == labels.shape for mask in masks.values())
    assert torch.equal(masks["head"], ~masks["tail"])
    assert (masks["many"].int() + masks["medium"].int() + masks["few"].int()).tolist() == [1] * 5


def test_masks_of_an_absent_group_and_of_an_empty_batch_are_false_and_empty():
    groups = ClassGroups.head_tail(COUNTS, 0)
    assert groups.masks(torch.tensor([0, 6]))["tail"].tolist() == [False, False]
    assert groups.masks(torch.tensor([], dtype=torch.int64))["head"].shape == (0,)


def test_membership_indexed_by_labels_is_the_masks():
    groups, labels = ClassGroups.standard(COUNTS, 20), torch.tensor([1, 3, 5])
    for name, table in groups.membership().items():
        assert table.shape == (7,) and torch.equal(table[labels], groups.masks(labels)[name])


def test_single_classes_can_be_added_and_are_always_selected():
    groups = ClassGroups.head_tail(COUNTS, 20)
    assert groups.with_classes().classes["class:3"] == (3,) and len(groups.with_classes().classes) == 2 + 7
    assert groups.select("class:6") == (6,) and groups.select("tail") == (5, 6)
    assert "class:3" not in groups.classes


def test_an_empty_group_is_an_error_that_names_the_class_sizes():
    with pytest.raises(InputError, match="group 'tail' is empty: class sizes run from 5 to 500; move eta"):
        ClassGroups.head_tail(COUNTS, 5).select("tail")


@pytest.mark.parametrize("name", ["tails", "class:7", "class:-1", "class:", ""])
def test_an_unknown_group_is_an_error_that_names_the_known_ones(name):
    with pytest.raises(InputError, match="is unknown: expected one of head, tail, or class:0 ... class:6"):
        ClassGroups.head_tail(COUNTS, 20).select(name)


@pytest.mark.parametrize("build", [
    lambda: ClassGroups.head_tail(COUNTS, -1),
    lambda: ClassGroups.head_tail(COUNTS, math.nan),
    lambda: ClassGroups.many_medium_few(COUNTS, 10, 20),
    lambda: ClassGroups.many_medium_few(COUNTS, math.nan, 20),
    lambda: ClassGroups.head_tail([], 20),
    lambda: ClassGroups.head_tail([3, -1], 20),
    lambda: ClassGroups.head_tail([[3, 1]], 20),
])
def test_impossible_thresholds_and_counts_are_errors(build):
    with pytest.raises(InputError, match="out of range: expected"):
        build()


def test_classes_of_no_image_belong_to_the_tail():
    assert ClassGroups.head_tail(np.array([3, 0]), 1).classes == {"head": (0,), "tail": (1,)}
