"""Feature quality against hand-made features, brute force, and networks whose features are known."""

import numpy as np
import pytest
import torch
from torch import nn

from analysis.measures.features import MEASURES, classifier_features, feature_quality
from landscape.errors import InputError
from landscape.models import ARCHITECTURES, build_model


def table(features, labels, groups=None, **options):
    """Return {(group, measure): Quality}."""
    groups = groups or {f"class:{c}": (c,) for c in range(max(labels) + 1)}
    return {(q.group, q.measure): q for q in feature_quality(np.array(features, float), np.array(labels), groups, **options)}


def by_hand(features, labels, classes, measure):
    """The mean of Q over some classes, from the definition."""
    means = {c: features[labels == c].mean(0) for c in np.unique(labels)}
    values = []
    for c in classes:
        distance = min(np.sqrt(((means[c] - mean) ** 2).sum()) for k, mean in means.items() if k != c)
        variance = ((features[labels == c] - means[c]) ** 2).sum(1).mean()
        values.append(distance - 0.5 * np.log(variance) if measure == "quality" else -1 / distance - np.log(variance))
    return np.mean(values)


@pytest.fixture
def drawn():
    rng = np.random.default_rng(0)
    labels = np.repeat([0, 1, 2], [9, 6, 4])
    return rng.normal(size=(19, 5)) + 3 * np.eye(5)[labels], labels


def test_a_hand_made_feature_set():
    # Means (0, 0), (3, 4), (0, 12); class 0 spreads by 1 along x, class 1 by 2 along y, class 2 by 0.5 along x.
    features = [(-1, 0), (1, 0), (3, 2), (3, 6), (-0.5, 12), (0.5, 12)]
    found = table(features, [0, 0, 1, 1, 2, 2])
    assert found["class:0", "quality"].value == pytest.approx(5.0)
    assert found["class:1", "quality"].value == pytest.approx(5 - 0.5 * np.log(4))
    assert found["class:2", "quality"].value == pytest.approx(np.sqrt(73) - 0.5 * np.log(0.25))
    assert found["class:1", "released"].value == pytest.approx(-1 / 5 - np.log(4))
    assert found["class:1", "quality"].distance == pytest.approx(5) and found["class:1", "quality"].variance == pytest.approx(4)


def test_a_group_is_the_mean_of_its_classes(drawn):
    found = table(*drawn, {"some": (0, 2), "all": (0, 1, 2)})
    for (group, measure), quality in found.items():
        classes = (0, 2) if group == "some" else (0, 1, 2)
        assert quality.value == pytest.approx(by_hand(*drawn, classes, measure), rel=1e-12)
    assert found["some", "quality"].images == 13 and found["some", "quality"].classes == 2


@pytest.mark.parametrize("measure", MEASURES)
def test_the_interval_is_the_jackknife_by_brute_force(drawn, measure):
    features, labels = drawn
    variance = 0.0
    for c in range(3):
        left = [by_hand(np.delete(features, i, 0), np.delete(labels, i), (0, 2), measure) for i in np.flatnonzero(labels == c)]
        variance += (len(left) - 1) / len(left) * ((left - np.mean(left)) ** 2).sum()
    quality = table(features, labels, {"some": (0, 2)}, level=0.6826895)["some", measure]
    half = (quality.high - quality.low) / 2
    assert 1.0 <= half / np.sqrt(variance) <= 1.2           # t at 68.27 % is 1 for many, 1.2 for 3 degrees of freedom
    assert quality.high - quality.value == pytest.approx(half)


def test_intervals_hold_the_true_spread_about_as_often_as_they_say():
    # n Gaussian images far from a class that does not move: F n Var is chi-squared with F (n - 1) degrees of freedom.
    rng, held, n, size = np.random.default_rng(1), 0, 8, 6
    k = size * (n - 1)
    true = 1e3 * np.sqrt(size) - 0.5 * (np.log(k / n) - 1 / k)      # E log chi2_k = log k - 1 / k + O(k^-2)
    for _ in range(300):
        features = np.concatenate([rng.normal(size=(n, size)), 1e3 + 1e-9 * rng.normal(size=(3, size))])
        found = table(features, [0] * n + [1] * 3)["class:0", "quality"]
        held += found.low <= true <= found.high
    assert 0.92 <= held / 300 <= 0.98


def test_a_class_of_one_image_has_no_quality_and_stays_out_of_its_group():
    features, labels = [(0, 0), (0, 2), (0, 1), (9, 9)], [0, 0, 0, 1]
    found = table(features, labels, {"class:1": (1,), "all": (0, 1)})
    assert np.isnan(found["class:1", "quality"].value) and found["class:1", "quality"].classes == 0
    assert found["all", "quality"].value == pytest.approx(np.sqrt(81 + 64) - 0.5 * np.log(2 / 3))
    assert found["all", "quality"].undefined == (1,)


def test_a_class_of_two_images_has_a_value_but_no_interval():
    found = table([(0, 0), (0, 2), (5, 0), (5, 1), (5, 3)], [0, 0, 1, 1, 1])
    assert np.isfinite(found["class:0", "quality"].value) and np.isnan(found["class:0", "quality"].low)
    assert np.isfinite(found["class:1", "quality"].low)


def test_one_class_alone_lies_apart_from_nothing():
    assert np.isnan(table([(0, 0), (0, 2), (1, 1)], [0, 0, 0])["class:0", "quality"].value)


def test_classes_without_an_image_are_passed_over():
    found = table([(0, 0), (0, 2), (5, 0), (5, 1)], [0, 0, 2, 2])
    assert np.isnan(found["class:1", "quality"].value) and np.isfinite(found["class:2", "quality"].value)


def test_images_that_are_all_alike_are_infinitely_good():
    found = table([(0, 0)] * 3 + [(4, 3), (4, 3.5), (4, 2.5)], [0] * 3 + [1] * 3)
    assert found["class:0", "quality"].value == np.inf and np.isnan(found["class:0", "quality"].high)
    assert found["class:0", "released"].value == np.inf


@pytest.mark.parametrize("arch", ["mlp", "digitnet"])
@pytest.mark.parametrize("cosine", [False, True])
def test_features_are_the_classifiers_input(arch, cosine):
    model = build_model(arch, 4, 1, 8, cosine=cosine).train()
    assert arch in ARCHITECTURES
    images = torch.randn(7, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    labels = torch.arange(7) % 4
    features, found = classifier_features(model, [(images[:4], labels[:4]), (images[4:], labels[4:])])
    assert model.training
    with torch.no_grad():
        expected = model.eval().features(images)
    np.testing.assert_allclose(features, expected.double().numpy(), rtol=1e-5, atol=1e-6)
    assert features.dtype == np.float64 and (found == labels.numpy()).all()


class Reused(nn.Module):
    """The layer that is called last is neither registered last nor a direct child."""

    def __init__(self):
        super().__init__()
        self.parts = nn.ModuleDict({"head": nn.Linear(3, 2), "body": nn.Linear(4, 3)})

    def forward(self, x):
        return 2 * self.parts["head"](torch.tanh(self.parts["body"](x)))


def test_the_last_layer_is_that_of_the_forward():
    model = Reused()
    images = torch.randn(5, 4)
    features, _ = classifier_features(model, [(images, torch.zeros(5, dtype=torch.long))])
    np.testing.assert_allclose(features, torch.tanh(model.parts["body"](images)).detach().double().numpy(), rtol=1e-6)
    assert not model.parts["head"]._forward_pre_hooks and not model.parts["head"]._forward_hooks


@pytest.mark.parametrize("model, said", [
    (nn.Sequential(nn.Conv2d(1, 2, 4), nn.Flatten()), "calls no nn.Linear"),
    (nn.Sequential(nn.Linear(4, 2), nn.Flatten()), "one vector an image"),
])
def test_a_network_without_features_is_one_clear_error(model, said):
    with pytest.raises(InputError, match=said):
        classifier_features(model, [(torch.zeros(3, 1, 4, 4), torch.zeros(3, dtype=torch.long))])


def test_features_and_labels_must_fit():
    with pytest.raises(InputError, match=r"expected \(N, F\) and \(N,\)"):
        feature_quality(np.zeros((3, 2)), np.zeros(4, int), {"all": (0,)})
