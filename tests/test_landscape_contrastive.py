"""Balanced contrastive learning: the loss against its formula written out, and what is added to a network for it."""

import math

import pytest
import torch
from torch import nn
from torch.nn.functional import normalize

from landscape.errors import InputError
from landscape.losses import LOSSES, build_loss, needs_views
from landscape.losses.contrastive import (HEADS, ContrastiveForward, ContrastiveOutputs, add_contrastive_heads,
                                          balanced_contrastive, freeze_contrastive_heads)
from landscape.models import build_model
from landscape.models.features import classifier_layer, features_and_logits
from landscape.parameters import trainable

LABELS = torch.tensor([0, 2, 0, 1, 0, 2])
COUNTS = [30, 12, 6, 3]     # a class is absent from the batch


@pytest.fixture
def vectors():
    draw = torch.Generator().manual_seed(0)
    views = normalize(torch.randn(2, 6, 5, generator=draw, dtype=torch.float64), dim=2)
    return views, normalize(torch.randn(4, 5, generator=draw, dtype=torch.float64), dim=1)


def written_out(views, centers, labels, temperature):
    """The formula, sample by sample: -mean over P(i) of log(exp(s_ip) / sum over k != i of exp(s_ik) / (N - 1[k in P(i)]))."""
    points = [*views[0], *views[1], *centers]
    classes = [*labels.tolist(), *labels.tolist(), *range(len(centers))]
    losses = []
    for i in range(2 * len(labels)):
        positives = [k for k in range(len(points)) if k != i and classes[k] == classes[i]]
        total = sum(math.exp(points[i] @ points[k] / temperature) / (classes.count(classes[k]) - (k in positives))
                    for k in range(len(points)) if k != i)
        terms = [math.log(math.exp(points[i] @ points[p] / temperature) / total) for p in positives]
        losses.append(-sum(terms) / len(terms))
    return torch.tensor([(a + b) / 2 for a, b in zip(losses, losses[len(labels):])], dtype=torch.float64)


@pytest.mark.parametrize("temperature", [0.1, 1.0])
def test_the_contrastive_loss_is_its_formula_written_out(vectors, temperature):
    found = balanced_contrastive(*vectors, LABELS, temperature)
    torch.testing.assert_close(found, written_out(*vectors, LABELS, temperature), rtol=1e-12, atol=0)


def test_every_class_counts_once_so_that_equal_vectors_lose_log_c(vectors):
    same = torch.ones(2, 6, 5, dtype=torch.float64), torch.ones(4, 5, dtype=torch.float64)
    torch.testing.assert_close(balanced_contrastive(*same, LABELS), torch.full((6,), math.log(4), dtype=torch.float64))


def test_scores_far_apart_stay_finite(vectors):
    views, centers = (v.float() for v in vectors)
    assert balanced_contrastive(views, centers, LABELS, 1e-3).isfinite().all()


def test_bcl_is_a_la_and_b_contrast(vectors):
    logits = torch.randn(6, 4, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    outputs = ContrastiveOutputs(logits, *vectors)
    adjusted, contrast = build_loss("LA", COUNTS)(logits, LABELS), balanced_contrastive(*vectors, LABELS, 0.1)
    torch.testing.assert_close(build_loss("BCL", COUNTS)(outputs, LABELS), 2.0 * adjusted + 0.6 * contrast)
    torch.testing.assert_close(build_loss("BCL", COUNTS, a=1.0, b=0.0)(outputs, LABELS), adjusted)
    torch.testing.assert_close(build_loss("BCL", COUNTS)(logits, LABELS), 2.0 * adjusted)
    assert [name for name in LOSSES if needs_views(name)] == ["BCL"]


def test_with_its_heads_the_cifar_network_has_the_releases_number_of_parameters():
    model = add_contrastive_heads(build_model("resnet32", 100))
    assert sum(p.numel() for p in model.parameters()) == 669_840


def network(**options):
    return add_contrastive_heads(build_model("digitnet", 4, 1, 8), hidden=16, dim=5, **options).eval()


def test_heads_are_in_the_state_and_in_no_logit():
    model, images = network(), torch.randn(3, 1, 8, 8)
    logits = model(images)
    with torch.no_grad():
        for head in HEADS:
            for p in getattr(model, head).parameters():
                p.mul_(7.0)
    assert torch.equal(model(images), logits) and logits.abs().max() <= 30
    assert {name.partition(".")[0] for name in model.state_dict()} > set(HEADS)
    names = set(trainable(freeze_contrastive_heads(model)))
    assert not any(name.startswith(HEADS) for name in names) and "fc.weight" in names


def test_the_same_seed_gives_the_same_heads_and_leaves_the_global_generator_alone():
    state = torch.get_rng_state()
    first, again, other = (network(seed=seed).projection[0].weight for seed in (3, 3, 4))
    assert torch.equal(first, again) and not torch.equal(first, other) and torch.equal(state, torch.get_rng_state())


def test_one_pass_over_all_views_gives_logits_of_the_first_and_unit_vectors_of_the_others():
    model, images = network(), torch.randn(3, 4, 1, 8, 8)                    # three views of four images
    outputs = ContrastiveForward(model)(images.flatten(0, 1))
    torch.testing.assert_close(outputs.logits, model(images[0]))
    torch.testing.assert_close(outputs.views[1], normalize(model.projection(model.features(images[2])), dim=1))
    assert outputs.views.shape == (2, 4, 5) and outputs.centers.shape == (4, 5)
    torch.testing.assert_close(outputs.centers.norm(dim=1), torch.ones(4))


class Foreign(nn.Module):
    def __init__(self):
        super().__init__()
        self.body, self.last = nn.Sequential(nn.Flatten(), nn.Linear(12, 6), nn.Tanh()), nn.Linear(6, 4)

    def forward(self, x):
        return self.last(self.body(x)) * 1.0


def test_a_network_of_ones_own_is_served_by_what_its_last_linear_layer_is_given():
    model, images = Foreign(), torch.randn(5, 3, 2, 2)
    features, logits = features_and_logits(model, images)
    assert torch.equal(features, model.body(images)) and torch.equal(logits, model(images))
    assert classifier_layer(add_contrastive_heads(model, hidden=8, dim=3), apart=HEADS)[0] == "last"
    assert ContrastiveForward(model)(torch.randn(6, 3, 2, 2)).views.shape == (2, 2, 3)
    assert not model.last._forward_pre_hooks


@pytest.mark.parametrize("call, words", [
    (lambda: build_loss("BCL", COUNTS, temperature=0.0), "temperature=0.0 is out of range"),
    (lambda: build_loss("BCL", COUNTS, a=-1.0), "a=-1.0 is out of range"),
    (lambda: build_loss("BCL", COUNTS, views="both"), "views='both' is unknown"),
    (lambda: add_contrastive_heads(Foreign(), hidden=0), "hidden=0 is out of range: expected an integer"),
    (lambda: add_contrastive_heads(nn.Sequential(nn.Conv2d(1, 1, 1))), "has no nn.Linear"),
    (lambda: ContrastiveForward(Foreign()), "has no projection heads"),
])
def test_bad_options_and_networks_are_one_line(call, words):
    with pytest.raises(InputError, match=words):
        call()


def test_a_network_whose_classifier_is_not_declared_last_is_refused():
    class Turned(nn.Module):
        """Layers of equal widths, so that nothing else would tell."""

        def __init__(self):
            super().__init__()
            self.fc, self.body = nn.Linear(4, 4), nn.Linear(4, 4)

        def forward(self, x):
            return self.fc(torch.tanh(self.body(x)))

    model = add_contrastive_heads(Turned(), hidden=8, dim=3)
    with pytest.raises(InputError, match="declare its classifier last"):
        ContrastiveForward(model)(torch.randn(6, 4))
