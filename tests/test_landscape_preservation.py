"""What is preserved: quality, memory, groups, anchors and Fisher information, each against its formula, and the penalty."""

from itertools import product

import networks
import numpy as np
import pytest
import torch
from torch import nn
from torch.nn.functional import cross_entropy

from landscape.data import load_data
from landscape.data.dataset import LongTailData, Split
from landscape.errors import InputError
from landscape.optimizers.clustering import by_mean_size, groups_by_size, similarity, spectral_groups
from landscape.optimizers.fisher import diagonal_fisher, squared_batch_gradients
from landscape.optimizers.memory import ClassMemory, class_statistics, feature_quality
from landscape.optimizers.preservation import Preservation, PreservationRule
from landscape.parameters import flatten, trainable

COUNTS = [12, 9, 5, 4]


class Net(nn.Module):
    """BatchNorm, whose statistics must stand still; a bias; a last layer that is not preserved."""

    def __init__(self, seed=0):
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            self.body = nn.Sequential(nn.Conv2d(1, 3, 2), nn.BatchNorm2d(3), nn.Tanh(), nn.Flatten())
            self.last = nn.Linear(12, 4)
            self.body[1].running_mean.normal_()
            self.body[1].running_var.uniform_(0.5, 2)

    def forward(self, x):
        return self.last(self.body(x))


@pytest.fixture(scope="module")
def data():
    draw = torch.Generator().manual_seed(5)
    labels = torch.cat([torch.full((n,), c) for c, n in enumerate(COUNTS)])[torch.randperm(sum(COUNTS), generator=draw)]
    images = torch.rand(len(labels), 1, 3, 3, generator=draw, dtype=torch.float64) + 0.3 * labels[:, None, None, None]
    other = torch.rand(8, 1, 3, 3, generator=draw, dtype=torch.float64)     # test images, of which nothing may be measured
    test = Split(other, torch.arange(4).repeat(2))
    return LongTailData("four", Split(images, labels), test, tuple("abcd"), (0.5,), (0.7,))


def net(seed=0):
    return Net(seed).double().train()


def test_class_statistics_are_means_and_mean_squares_about_them(data):
    model = net()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    mean, variance = class_statistics(model, data, batch_size=7)
    with torch.no_grad():
        features = model.eval().body(data.inputs(data.train.images, torch.float64))
    for c in range(4):
        mine = features[data.train.labels == c]
        torch.testing.assert_close(mean[c], mine.mean(0))
        torch.testing.assert_close(variance[c], (mine - mine.mean(0)).square().sum(1).mean())
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())


@pytest.mark.parametrize("form, beta", [("paper", 0.5), ("released", 1.0)])
def test_quality_is_its_formula(form, beta):
    mean = torch.tensor([[0.0, 0], [3, 4], [0, 1]], dtype=torch.float64)
    variance = torch.tensor([0.5, 2.0, 3.0], dtype=torch.float64)
    near = np.array([1.0, np.sqrt(18), 1.0])
    expected = (near if form == "paper" else -1 / near) - beta * np.log([0.5, 2.0, 3.0])
    np.testing.assert_allclose(feature_quality(mean, variance, beta, form), expected, rtol=1e-14)


def test_quality_is_undefined_where_all_images_have_the_same_features_or_there_is_none():
    mean = torch.tensor([[1.0, 0], [3, 4], [0, 1], [torch.nan, torch.nan]], dtype=torch.float64)
    found = feature_quality(mean, torch.tensor([1.0, 0.0, 1e-14, torch.nan], dtype=torch.float64))
    assert np.isfinite(found[0]) and np.isnan(found[1:]).all()


def test_a_class_keeps_the_parameters_of_its_best_epoch_and_shares_them():
    memory, vectors = ClassMemory.empty(3), {e: torch.full((2,), float(e)) for e in range(1, 5)}
    assert memory.update(1, np.array([0.0, 0.0, np.nan]), vectors[1]) == 3      # the first is kept whatever it is worth
    assert memory.update(2, np.array([1.0, -1.0, np.nan]), vectors[2]) == 1
    assert memory.update(3, np.array([0.5, 0.0, -9.0]), vectors[3]) == 1
    assert memory.epoch.tolist() == [2, 1, 3] and memory.quality.tolist() == [1, 0, -9]
    assert list(memory.snapshots) == [1, 2, 3]
    assert memory.update(4, np.array([2.0, 2.0, -10]), vectors[4]) == 2
    assert memory.epoch.tolist() == [4, 4, 3] and list(memory.snapshots) == [3, 4]
    assert memory.rows[1].tolist() == [1, 1, 0]
    torch.testing.assert_close(memory.anchor(np.array([0, 2])), torch.full((2,), 3.5, dtype=torch.float64))
    again = ClassMemory.of_arrays(memory.arrays())
    assert again.epoch.tolist() == [4, 4, 3] and all(torch.equal(again.snapshots[e], memory.snapshots[e]) for e in (3, 4))


def normalized_cut(graph, groups):
    parts = [groups == g for g in np.unique(groups)]
    return sum(graph[part][:, ~part].sum() / graph[part].sum() for part in parts)


@pytest.mark.parametrize("kind", ["rbf", "cosine"])
def test_groups_are_the_best_normalized_cut_of_a_small_graph(kind):
    draw = np.random.default_rng(2)
    centers = np.array([[4.0, 0, 0], [0, 4, 0], [0, 0, 4]])
    rows = [torch.from_numpy(centers[i // 2] + 0.3 * draw.normal(size=3)) for i in range(6)]
    graph = similarity(rows, kind)
    cuts = [np.array(cut) for cut in product(range(3), repeat=6) if set(cut) == {0, 1, 2}]
    best = min(cuts, key=lambda cut: normalized_cut(graph, cut))
    found = spectral_groups(graph, 3)
    assert normalized_cut(graph, found) == pytest.approx(normalized_cut(graph, best), rel=1e-12)
    assert len({frozenset(np.flatnonzero(found == g)) for g in range(3)} & {frozenset((0, 1)), frozenset((2, 3))}) == 2


def test_similarities_are_their_formulas_and_know_no_scale():
    rows = [torch.tensor(v, dtype=torch.float64) for v in ([1.0, 0], [0, 2], [3, 0])]
    np.testing.assert_allclose(similarity(rows, "cosine"), [[1, 0.5, 1], [0.5, 1, 0.5], [1, 0.5, 1]], atol=1e-15)
    squares = np.array([[0, 5, 4], [5, 0, 13], [4, 13, 0]])
    np.testing.assert_allclose(similarity(rows), np.exp(-squares / 10), rtol=1e-14)
    np.testing.assert_allclose(similarity([1e-3 * row for row in rows]), similarity(rows), rtol=1e-12)
    assert similarity([rows[0], rows[0]]).tolist() == [[1, 1], [1, 1]]


def test_what_cannot_be_cut_is_said_and_trivial_cuts_need_no_solver():
    equal = np.ones((4, 4))
    assert spectral_groups(equal, 2) is None and spectral_groups(equal, 1).tolist() == [0, 0, 0, 0]
    graph = similarity([torch.tensor([float(i)]) for i in range(4)])
    assert spectral_groups(graph, 4).tolist() == [0, 1, 2, 3]
    with pytest.raises(InputError, match="num_groups=5 is out of range: expected an integer, 1 <= num_groups <= 4"):
        spectral_groups(graph, 5)


def test_without_a_memory_groups_are_runs_of_classes_by_size():
    assert groups_by_size([3, 9, 1, 9, 5], 2).tolist() == [1, 0, 1, 0, 0]
    assert groups_by_size([3, 9, 1], 3).tolist() == [1, 0, 2]
    assert by_mean_size(np.array([1, 1, 0, 2]), [1, 2, 9, 5]).tolist() == [2, 2, 0, 1]


def loop(model, images, labels, names):
    """The diagonal Fisher information, one backward a sample."""
    parameters, total = [trainable(model)[name] for name in names], 0.0
    model.eval()
    for image, label in zip(images, labels):
        loss = cross_entropy(model(image[None]), label[None])
        total = total + flatten(torch.autograd.grad(loss, parameters, materialize_grads=True)).square()
    return total / len(labels)


def test_the_fisher_information_is_that_of_a_loop_over_samples(data):
    model, names = net(), ["body.0.weight", "body.1.bias", "last.weight"]
    images, labels = data.inputs(data.train.images, torch.float64), data.train.labels
    found = diagonal_fisher(model, [(images[:20], labels[:20]), (images[20:], labels[20:])], names)
    assert model.training and all(p.grad is None for p in model.parameters())
    torch.testing.assert_close(found, loop(model, images, labels, names), rtol=1e-10, atol=1e-14)


@pytest.mark.filterwarnings("ignore")       # torch's own of what it does with unusual networks
@pytest.mark.parametrize("kind", networks.EXACT)
def test_any_network_is_served(kind):
    model, (images, labels) = networks.make(kind), networks.images(5)
    names = list(trainable(model))
    found = diagonal_fisher(model, [(images, labels)], names)
    torch.testing.assert_close(found, loop(model, images, labels, names), rtol=1e-9, atol=1e-14)


def test_the_released_squares_are_of_batch_means_and_smaller(data):
    model, names = net(), ["body.0.weight"]
    images, labels = data.inputs(data.train.images, torch.float64), data.train.labels
    found = squared_batch_gradients(model, [(images[:20], labels[:20]), (images[20:], labels[20:])], names)
    model.eval()
    slopes = [torch.autograd.grad(cross_entropy(model(x), y), model.body[0].weight)[0]
              for x, y in ((images[:20], labels[:20]), (images[20:], labels[20:]))]
    torch.testing.assert_close(found, sum(s.flatten() ** 2 for s in slopes) / 30)
    assert found.sum() < 0.2 * diagonal_fisher(model, [(images, labels)], names).sum()


def test_of_no_sample_there_is_no_fisher_information():
    with pytest.raises(InputError, match="has no sample"):
        diagonal_fisher(net(), [], ["last.weight"])


def preserved(data, **rule):
    """Four classes that each had their best epoch under other parameters, grouped in two."""
    model = net()
    kept = Preservation(model, COUNTS, PreservationRule(**{"num_groups": 2, "regroup_every": 1} | rule))
    for epoch, (seed, best) in enumerate(((0, [1, 1, 0, 0]), (1, [0, 0, 1, 0]), (2, [0, 0, 0, 1])), start=1):
        other = net(seed).state_dict()
        model.load_state_dict({name: value + 0.05 * epoch for name, value in other.items()})
        kept.memory.update(epoch, np.array(best, float), kept._vector())
    kept.regroup(data, 1)
    return kept


@pytest.mark.parametrize("at", ["anchor", "current"])
def test_anchors_are_means_of_members_and_differ_and_fisher_is_the_groups(data, at):
    kept = preserved(data, fisher_at=at)
    assert set(kept.groups) == {0, 1} and kept.names == ["body.0.weight", "body.0.bias", "body.1.weight", "body.1.bias"]
    assert not torch.equal(kept.anchors[0], kept.anchors[1]) and not torch.equal(kept.fisher[0], kept.fisher[1])
    size, state = kept.anchors.shape[1], {name: value.clone() for name, value in kept.model.state_dict().items()}
    for g in range(2):
        members = np.flatnonzero(kept.groups == g)
        whole = torch.stack([kept.memory.snapshots[e] for e in kept.memory.epoch[members]]).mean(0)
        torch.testing.assert_close(kept.anchors[g], whole[:size])
        rows = np.isin(data.train.labels.numpy(), members)
        with torch.no_grad():
            if at == "anchor":      # parameters and running statistics of the anchor, the present classifier
                pieces = iter(whole.split([t.numel() for t in kept._tensors()]))
                for place in kept._tensors():
                    place.copy_(next(pieces).view(place.shape))
        expected = loop(kept.model, data.inputs(data.train.images, torch.float64)[rows], data.train.labels[rows], kept.names)
        torch.testing.assert_close(kept.fisher[g], expected, rtol=1e-9, atol=1e-14)
        kept.model.load_state_dict(state)


def test_what_is_measured_leaves_the_model_as_it_was(data):
    model = net()
    kept = Preservation(model, COUNTS, PreservationRule(num_groups=2, regroup_every=1))
    state = {name: value.clone() for name, value in model.state_dict().items()}
    kept.observe(data, 0)
    assert kept.fisher is None and (kept.memory.epoch == -1).all()
    kept.observe(data, 1)
    assert kept.fisher is not None and model.training
    assert all(torch.equal(state[name], value) for name, value in model.state_dict().items())
    assert kept.groups.tolist() == [0, 0, 1, 1]     # one epoch is nothing to cut: by size, as before


@pytest.mark.parametrize("size", ["classes", "samples"])
@pytest.mark.parametrize("weights", [None, torch.tensor([0.3, 0.7], dtype=torch.float64)])
def test_the_penalty_and_its_gradient_are_equation_six(data, size, weights):
    kept = preserved(data, penalty_size=size, strength=7.0)
    w = torch.ones(2, dtype=torch.float64) if weights is None else weights
    number = {"classes": [(kept.groups == g).sum() for g in range(2)],
              "samples": [np.array(COUNTS)[kept.groups == g].sum() for g in range(2)]}[size]
    theta = flatten(kept.parameters).detach().requires_grad_()
    total = sum(w[g] * 7.0 / 2 * (kept.fisher[j] * (theta - kept.anchors[j]) ** 2).sum() / int(number[j])
                for g in range(2) for j in range(2) if j != g)
    assert kept.value(weights) == pytest.approx(float(total.detach()), rel=1e-12)
    expected, = torch.autograd.grad(total, theta)
    torch.testing.assert_close(flatten(kept.gradient(weights).values()), expected)


def test_without_anchors_or_strength_or_with_one_group_there_is_no_penalty(data):
    fresh = Preservation(net(), COUNTS, PreservationRule(num_groups=2))
    for kept in (fresh, preserved(data, strength=0.0), preserved(data, num_groups=1)):
        assert kept.gradient() == {} and kept.value() == 0.0
    assert preserved(data, num_groups=1)._factors(None).tolist() == [0.0]       # equation 6 sums over nothing


def test_a_state_comes_back_bit_by_bit(data):
    kept, again = preserved(data), Preservation(net(), COUNTS, PreservationRule(num_groups=2, regroup_every=1))
    again.load_arrays(kept.arrays())
    assert again.groups.tolist() == kept.groups.tolist() and again.memory.epoch.tolist() == kept.memory.epoch.tolist()
    assert torch.equal(again.anchors, kept.anchors) and torch.equal(again.fisher, kept.fisher)
    assert again.arrays().keys() == kept.arrays().keys()


def test_large_groups_are_sampled_for_their_fisher_information(data):
    full, part, again = (preserved(data, fisher_samples=n).fisher for n in (1000, 3, 3))
    assert torch.equal(part, again) and not torch.equal(full, part)


@pytest.mark.parametrize("call, words", [
    (lambda: Preservation(net(), [5, 4, 1, 2]), "class 2 has 1 training image: the variance of its features is undefined"),
    (lambda: Preservation(net(), [5, 4], PreservationRule(num_groups=3)), "num_groups=3 is out of range: .* <= 2, the number"),
    (lambda: PreservationRule(strength=-1.0), "strength=-1.0 is out of range: the lambda of the penalty"),
    (lambda: PreservationRule(similarity="dot"), "similarity='dot' is unknown: expected one of rbf, cosine"),
    (lambda: PreservationRule(regroup_every=-1), "regroup_every=-1 is out of range"),
    (lambda: Preservation(nn.Sequential(nn.Flatten(), nn.Linear(9, 4)), COUNTS), "no trained parameter below its classifier"),
])
def test_what_cannot_be_preserved_is_one_line(call, words):
    with pytest.raises(InputError, match=words):
        call()


def test_digits_fill_a_memory_that_never_sees_the_test_images():
    data = load_data("digits")
    blind = LongTailData(data.name, data.train, Split(data.test.images[:10] * 0, torch.arange(10)), data.class_names, data.mean,
                         data.std)
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 8), nn.Tanh(), nn.Linear(8, 10))
    found = [class_statistics(model, one) for one in (data, blind)]
    assert all(torch.equal(a, b) for a, b in zip(*found))
