"""Accuracy and loss by group against counting by hand; the model is left as it was."""

import numpy as np
import pytest
import torch
from torch import nn

from landscape.data import load_data
from landscape.errors import InputError
from landscape.evaluation import evaluate, outcome
from landscape.groups import ClassGroups
from landscape.models import build_model


@pytest.fixture(scope="module")
def data():
    return load_data("synthetic", imb_factor=10)


@pytest.fixture
def groups(data):
    return ClassGroups.standard(data.counts, eta=20, many=30, few=10).with_classes()


@pytest.fixture
def net(data):
    return build_model("mlp", data.num_classes, data.in_channels, data.image_size, generator_seed=3).double()


@torch.no_grad()
def by_hand(net, data, classes, flip):
    right, losses = [], []
    net.eval()
    for image, label in zip(data.test.images, data.test.labels):
        x = data.inputs(image[None], torch.float64)
        logits = net(x)[0]
        losses.append(float(torch.logsumexp(logits, 0) - logits[label]))
        if flip:
            logits = (logits + net(x.flip(3))[0]) / 2
        right.append(int(logits.argmax()) == int(label))
    chosen = np.isin(data.test.labels.numpy(), classes)
    return np.mean(np.array(right)[chosen]), np.mean(np.array(losses)[chosen])


@pytest.mark.parametrize("batch_size", [1, 7, 250])
def test_every_groups_numbers_equal_those_counted_image_by_image(data, groups, net, batch_size):
    found = evaluate(net, data, groups, batch_size=batch_size)
    for group in ("all", "head", "tail", "class:3"):
        accuracy, loss = by_hand(net, data, groups.classes[group], flip=False)
        assert found[f"test_accuracy/{group}"] == accuracy
        assert abs(found[f"test_loss/{group}"] - loss) < 1e-12
        assert found[f"test_accuracy_flip/{group}"] == by_hand(net, data, groups.classes[group], flip=True)[0]


def test_the_training_images_are_evaluated_on_request_without_augmentation(data, groups, net):
    found = evaluate(net, data, groups, split="train", flip=False)
    assert set(found) == {f"train_{m}/{g}" for m in ("accuracy", "loss") for g in groups.names}
    logits = net(data.inputs(data.train.images, torch.float64))
    assert found["train_accuracy/all"] == (logits.argmax(1) == data.train.labels).double().mean()


def test_an_absent_group_has_no_entry(data, net):
    groups = ClassGroups.standard(data.counts, eta=0, many=30, few=0)
    found = evaluate(net, data, groups)
    assert not any(name.endswith(("/tail", "/few")) for name in found)
    assert "test_accuracy/head" in found


def test_flip_averaging_is_left_out_where_a_mirrored_image_changes_its_label(data, groups, net):
    from dataclasses import replace
    found = evaluate(net, replace(data, flip_average=False), groups)
    assert not any("flip" in name for name in found)


class Spy(nn.Module):
    """Counts the images it is shown, and has state that a careless evaluation would move."""

    def __init__(self, num_classes):
        super().__init__()
        self.norm, self.drop, self.head = nn.BatchNorm2d(3), nn.Dropout(0.5), nn.LazyLinear(num_classes)
        self.seen = 0

    def forward(self, x):
        self.seen += len(x)
        return self.head(self.drop(self.norm(x)).flatten(1))


@pytest.mark.parametrize("flip, passes", [(False, 1), (True, 2)])
def test_one_pass_over_the_images_and_one_more_over_their_mirror_images(data, groups, flip, passes):
    spy = Spy(data.num_classes)
    spy(torch.zeros(2, 3, 8, 8))
    spy.seen = 0
    evaluate(spy, data, groups, flip=flip)
    assert spy.seen == passes * len(data.test)


def test_evaluation_leaves_mode_buffers_gradients_and_random_state_alone(data, groups):
    spy = Spy(data.num_classes)
    spy(torch.zeros(2, 3, 8, 8))
    spy.norm.eval()
    before = {name: value.clone() for name, value in spy.state_dict().items()}
    random = torch.get_rng_state()
    evaluate(spy, data, groups)
    assert spy.training and not spy.norm.training
    assert all(torch.equal(value, before[name]) for name, value in spy.state_dict().items())
    assert all(p.grad is None for p in spy.parameters())
    assert torch.equal(random, torch.get_rng_state())


def test_an_outcome_holds_one_entry_an_image(data, net):
    found = outcome(net, data, flip=True)
    assert found.loss.shape == found.correct.shape == found.correct_flip.shape == (len(data.test),)
    assert outcome(net, data).correct_flip is None


def test_bad_arguments_are_refused(data, groups, net):
    with pytest.raises(InputError, match="split='val' is unknown: expected one of train, test"):
        evaluate(net, data, groups, split="val")
    with pytest.raises(InputError, match="batch_size=0 is out of range"):
        evaluate(net, data, groups, batch_size=0)
