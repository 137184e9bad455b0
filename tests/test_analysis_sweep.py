"""Surfaces beyond one plain pass: statistics of BatchNorm, derivatives, forms, precision, named points, shared rows."""

import copy
import threading

import networks
import numpy as np
import pytest
import torch
from torch import nn

from analysis.findings.slices import predicted, trust_radius
from analysis.surfaces import sweep
from analysis.surfaces.directions import Direction, between, random_direction
from analysis.surfaces.statistics import recalibrate
from analysis.surfaces.surface import loss_surface
from analysis.surfaces.sweep import Samples, shared_rows
from landscape.batchnorm import evaluation_mode
from landscape.distributed import Processes
from landscape.errors import InputError
from landscape.groups import ClassGroups
from landscape.models import build_model
from landscape.parameters import moved_to, theta

COUNTS = [20, 8, 4]
GROUPS = ClassGroups.head_tail(COUNTS, 6).with_classes()


@pytest.fixture
def net():
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(2, 4, 3), nn.BatchNorm2d(4), nn.Tanh(), nn.Flatten(), nn.Linear(64, 3)).double()
    net(torch.randn(8, 2, 6, 6, dtype=torch.float64))
    return net


@pytest.fixture
def batches():
    generator = torch.Generator().manual_seed(1)
    labels = torch.arange(3).repeat_interleave(torch.tensor(COUNTS))[torch.randperm(32, generator=generator)]
    images = torch.randn(32, 2, 6, 6, generator=generator, dtype=torch.float64)
    return list(zip(images.split(16), labels.split(16)))


def losses(logits, labels):
    return networks.losses(logits, labels)


def line(net, batches, alpha=(-0.5, 0.0, 0.5), direction=None, **options):
    direction = direction or random_direction(net, torch.Generator().manual_seed(0))
    return loss_surface(net, losses, batches, [direction], (alpha,), GROUPS, **options)


def by_hand(net, batches, point, policy):
    """Mean loss over all samples at a point, with statistics computed here layer by layer."""
    conv, norm, head = net[0], net[1], net[4]
    with torch.no_grad(), moved_to(net, point):
        features = [conv(images) for images, _ in batches]
        means = [f.mean((0, 2, 3)) for f in features]
        variances = [f.var((0, 2, 3), unbiased=policy == "recalibrated") for f in features]
        if policy == "recalibrated":
            means, variances = [sum(means) / len(means)] * len(means), [sum(variances) / len(variances)] * len(variances)
        total = 0.0
        for (_, labels), f, mean, variance in zip(batches, features, means, variances):
            scaled = (f - mean[:, None, None]) / (variance[:, None, None] + norm.eps).sqrt()
            hidden = torch.tanh(scaled * norm.weight[:, None, None] + norm.bias[:, None, None])
            total += float(nn.functional.cross_entropy(head(hidden.flatten(1)), labels, reduction="sum"))
    return total / sum(len(labels) for _, labels in batches)


@pytest.mark.parametrize("policy", ["recalibrated", "batch"])
def test_statistics_are_those_of_the_point_and_come_back(net, batches, policy):
    direction = random_direction(net, torch.Generator().manual_seed(0))
    before = {name: value.clone() for name, value in net.state_dict().items()}
    surface = line(net, batches, direction=direction, batchnorm=policy, derivatives=True)
    wanted = [by_hand(net, batches, theta(net) + a * direction.vector, policy) for a in surface.alpha]
    whole = COUNTS @ surface.loss[[surface.groups.index(f"class:{c}") for c in range(3)]] / sum(COUNTS)
    np.testing.assert_allclose(whole, wanted, rtol=1e-10)
    assert surface.batchnorm == policy and surface.derivatives.size == 0     # the prediction is that of fixed statistics
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())
    assert net.training and net[1].training and net[1].momentum == 0.1 and net[1].track_running_stats


def test_the_three_policies_are_three_surfaces_and_one_where_nothing_is_normalized(net, batches):
    found = [line(net, batches, batchnorm=policy).loss for policy in ("fixed", "recalibrated", "batch")]
    assert all(np.abs(a - b).max() > 1e-3 for a, b in zip(found, found[1:]))
    bare = nn.Sequential(nn.Flatten(), nn.Linear(72, 3)).double()
    one, other = (line(bare, batches, batchnorm=policy, derivatives=True) for policy in ("fixed", "batch"))
    assert np.array_equal(one.loss, other.loss) and np.array_equal(one.derivatives, other.derivatives)


def test_recalibration_is_what_training_passes_without_momentum_leave(net, batches):
    reference = copy.deepcopy(net)
    reference[1].reset_running_stats()
    reference[1].momentum = None
    with torch.no_grad():
        for images, _ in batches:
            reference(images)
    with evaluation_mode(net):
        recalibrate(net, [images for images, _ in batches])
        assert not net[1].training
    for name in ("running_mean", "running_var"):
        torch.testing.assert_close(getattr(net[1], name), getattr(reference[1], name))


def test_statistics_of_batches_of_several_sizes_are_refused(net, batches):
    images, labels = (torch.cat(parts) for parts in zip(*batches))
    with pytest.raises(InputError, match="batches of 4 to 14 images: batchnorm='batch' needs batches of one size"):
        line(net, list(zip(images.split(14), labels.split(14))), batchnorm="batch")
    assert line(net, list(zip(images.split(14), labels.split(14)))).batchnorm == "fixed"
    with pytest.raises(InputError, match="batchnorm='own' is unknown: expected one of fixed, recalibrated, batch"):
        line(net, batches, batchnorm="own")


def test_a_slice_leaves_its_prediction_by_the_third_order_alone(net, batches):
    direction = random_direction(net, torch.Generator().manual_seed(3))
    errors = []
    for step in (4e-3, 2e-3):
        surface = line(net, batches, (-step, 0.0, step), direction, derivatives=True)
        errors.append([np.abs(predicted(surface, group) - surface.loss[i])[2] for i, group in enumerate(surface.groups)])
        for i, group in enumerate(surface.groups):
            assert predicted(surface, group)[1] == pytest.approx(surface.loss[i, 1], rel=1e-12)
    ratio = np.array(errors[0]) / np.array(errors[1])
    np.testing.assert_allclose(ratio, 8, rtol=0.1)
    assert surface.derivatives.shape == (3, len(GROUPS.names), 1) and "class:2" in surface.groups


def test_the_trust_radius_grows_as_what_is_left_out_shrinks(net, batches):
    """Walking an n-th of the way along the same line, the radius in coordinates is n times as large."""
    direction = between(theta(net), theta(net) + 3 * torch.randn(len(theta(net)), dtype=torch.float64,
                                                                 generator=torch.Generator().manual_seed(4)))
    alpha = np.linspace(-3, 3, 241)
    whole = trust_radius(line(net, batches, alpha, direction, derivatives=True), "head")
    half = Direction(direction.vector / 2, "half", units="filter norms")
    found = trust_radius(line(net, batches, 2 * alpha, half, derivatives=True), "head")
    for side in ("minus", "plus"):
        assert 0 < whole[side].low < whole[side].high < 3
        assert found[side].low == pytest.approx(2 * whole[side].low, rel=1e-9)


def test_groups_are_unions_of_classes_in_loss_and_derivatives(net, batches):
    surface = line(net, batches, derivatives=True)
    parts = [surface.groups.index(f"class:{c}") for c in (0, 1)]
    share = np.array(COUNTS[:2]) / sum(COUNTS[:2])
    head = surface.groups.index("head")
    np.testing.assert_allclose(share @ surface.loss[parts], surface.loss[head], rtol=1e-13)
    np.testing.assert_allclose(share @ surface.accuracy[parts], surface.accuracy[head], rtol=1e-13)
    np.testing.assert_allclose(np.einsum("g,tgk->tk", share, surface.derivatives[:, parts]), surface.derivatives[:, head],
                               rtol=1e-11)


def test_a_network_without_derivatives_has_a_surface_that_says_why():
    net, (x, y) = networks.make(networks.Detached), networks.images(30)
    groups = ClassGroups(np.bincount(y), {"all": (0, 1, 2)})
    surface = loss_surface(net, losses, [(x, y)], [random_direction(net, torch.Generator())], ([0.0],), groups, derivatives=True)
    assert surface.derivatives.size == 0 and "detaches" in surface.about["no_prediction"]


def test_folded_and_plain_passes_give_one_surface_and_the_difference_is_measured(net, batches):
    plain, folded = (line(net, batches, form=form) for form in ("plain", "auto"))
    assert plain.about == {"form": "plain"} and folded.about["form"] == "folded" and folded.about["form_rounding"] < 1e-13
    np.testing.assert_allclose(folded.loss, plain.loss, rtol=1e-12)
    assert np.array_equal(folded.accuracy, plain.accuracy)


def test_a_form_that_rounds_too_much_somewhere_is_given_up(net, batches, monkeypatch):
    monkeypatch.setattr(sweep, "difference", lambda plain, other, images: 2e-9)
    surface = line(net, batches)
    assert surface.about == {"form": "plain"}
    assert np.array_equal(surface.loss, line(net, batches, form="plain").loss)


def test_lower_precision_is_measured_against_float32_for_every_group():
    net = build_model("digitnet", 3, 1, 8)
    images, labels = torch.randn(32, 1, 8, 8, generator=torch.Generator().manual_seed(0)), torch.arange(3).repeat(11)[:32]
    exact, low = (line(net, [(images, labels)], (-0.2, 0.0, 0.2), precision=precision) for precision in (None, "bfloat16"))
    error = low.about["precision_error"]
    assert (exact.precision, low.precision) == ("float32", "bfloat16") and "precision_error" not in exact.about
    assert error["against"] == "float32" and error["points"] == 3 and set(error["loss"]) == set(GROUPS.names)
    # The corners and the middle are all of this line: what was measured is what parts the two records.
    for i, group in enumerate(low.groups):
        assert np.abs(low.loss[i] - exact.loss[i]).max() == pytest.approx(error["loss"][group], rel=1e-3, abs=1e-6)
    assert 1e-6 < max(error["loss"].values()) < 0.5


def test_named_points_are_stored_where_they_lie(net, batches):
    start, other = theta(net), theta(net) + 0.1
    way = between(start, other)
    surface = line(net, batches, (0.0, 0.5), way, points={"epoch 3": start, "epoch 1": other}, about={"distance": 1})
    assert surface.point_names == ("epoch 3", "epoch 1") and surface.about["distance"] == 1
    np.testing.assert_allclose(surface.point_coordinates[:, 0], [0, float((other - start).norm())], atol=1e-12)
    np.testing.assert_allclose(surface.point_distances, 0, atol=1e-12)
    assert line(net, batches).point_names == ()


class Meeting(Processes):
    """Processes of one test that are threads, meeting for sums; written without torch.distributed."""

    boards: dict = {}
    barrier: threading.Barrier

    def sum_together(self, values):
        self.boards[self.rank] = [value.clone() for value in values]
        self.barrier.wait()
        total = [sum(parts) for parts in zip(*self.boards.values())]
        self.barrier.wait()
        return total

    def together(self, compute, mark=0):
        return compute()


@pytest.mark.parametrize("count, rows", [(2, [0, 1, 2, 3, 4]), (3, [1, 4, 5]), (3, [2]), (2, [])])
def test_rows_are_shared_and_every_process_has_all(monkeypatch, count, rows):
    monkeypatch.setattr(Meeting, "boards", {})
    monkeypatch.setattr(Meeting, "barrier", threading.Barrier(count), raising=False)
    found, computed, counted = {}, [], []

    def work(rank):
        def compute(i):
            computed.append(i)
            return np.full((2, 1), np.nan if i == 4 else float(i))
        found[rank] = shared_rows(compute, (2, 1), rows, None, counted.append, Meeting(rank, count))
    threads = [threading.Thread(target=work, args=(rank,)) for rank in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(computed) == rows and sum(counted) == (count - 1) * len(rows)
    for result in found.values():
        assert sorted(result) == rows
        for i in rows:
            np.testing.assert_array_equal(result[i], np.full((2, 1), np.nan if i == 4 else float(i)))


def test_means_over_groups_keep_nan_to_its_class(batches):
    samples = Samples.of(batches, GROUPS, torch.device("cpu"))
    values = np.where(samples.labels == 2, np.nan, samples.labels)
    means = dict(zip(samples.names, samples.means([values])[0]))
    assert means["class:1"] == 1 and means["head"] == pytest.approx(8 / 28)
    assert np.isnan(means["tail"]) and np.isnan(means["class:2"])
