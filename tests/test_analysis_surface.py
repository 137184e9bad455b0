import math

import numpy as np
import pytest
import torch
from torch import nn

from analysis.surfaces.directions import Direction, directions_hash, random_direction
from analysis.surfaces.surface import loss_surface
from landscape.errors import InputError
from landscape.groups import ClassGroups
from landscape.parameters import moved_to, theta

COUNTS = [9, 5, 2]


def cross_entropy(logits, labels):
    return nn.functional.cross_entropy(logits, labels, reduction="none")


@pytest.fixture
def net():
    """A small smooth network with BatchNorm, whose running statistics are not the batch's."""
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(4, 3), nn.BatchNorm1d(3), nn.Tanh(), nn.Linear(3, 3)).double()
    net(torch.randn(8, 4, dtype=torch.float64))
    net[0].eval()
    return net


@pytest.fixture
def samples():
    generator = torch.Generator().manual_seed(1)
    labels = torch.repeat_interleave(torch.arange(3), torch.tensor(COUNTS))
    return torch.randn(16, 4, generator=generator, dtype=torch.float64), labels


@pytest.fixture
def batches(samples):
    return list(zip(samples[0].split([7, 7, 2]), samples[1].split([7, 7, 2])))


@pytest.fixture
def groups():
    return ClassGroups(np.array(COUNTS), {"all": (0, 1, 2), "head": (0, 1), "tail": (2,), "absent": ()})


def directions_of(net, *seeds):
    return [random_direction(net, torch.Generator().manual_seed(seed)) for seed in seeds]


def mean_loss(net, samples, classes=(0, 1, 2)):
    """Mean loss and accuracy over some classes in evaluation mode, written without the code under test."""
    modes = [m.training for m in net.modules()]
    chosen = torch.isin(samples[1], torch.tensor(classes))
    with torch.no_grad():
        logits = net.eval()(samples[0][chosen])
    for module, mode in zip(net.modules(), modes):
        module.training = mode
    labels = samples[1][chosen]
    log_softmax = logits - logits.logsumexp(1, keepdim=True)
    return float(-log_softmax[range(len(labels)), labels].mean()), float((logits.argmax(1) == labels).double().mean())


def test_at_the_origin_the_surface_is_the_mean_loss(net, samples, batches, groups):
    surface = loss_surface(net, cross_entropy, batches, directions_of(net, 0, 1), ([-1, 0, 1], [0, 2]), groups)
    for g, classes in enumerate([(0, 1, 2), (0, 1), (2,)]):
        loss, accuracy = mean_loss(net, samples, classes)
        assert surface.loss[g, 1, 0] == pytest.approx(loss, rel=1e-13)
        assert surface.accuracy[g, 1, 0] == pytest.approx(accuracy, rel=1e-13)


def test_every_point_lies_at_its_coordinates(net, samples, batches, groups):
    first, second = directions_of(net, 0, 1)
    alpha, beta = [-1.0, 0.25], [-0.5, 0.0, 2.0]
    surface = loss_surface(net, cross_entropy, batches, [first, second], (alpha, beta), groups)
    assert surface.loss.shape == surface.accuracy.shape == (3, 2, 3)
    for i, a in enumerate(alpha):
        for j, b in enumerate(beta):
            with moved_to(net, theta(net) + a * first.vector + b * second.vector):
                expected = mean_loss(net, samples, (0, 1))
            np.testing.assert_allclose((surface.loss[1, i, j], surface.accuracy[1, i, j]), expected, rtol=1e-12)


def test_a_line_is_the_plane_at_beta_zero(net, batches, groups):
    first, second = directions_of(net, 0, 1)
    line = loss_surface(net, cross_entropy, batches, [first], ([-1, 0, 0.5],), groups)
    plane = loss_surface(net, cross_entropy, batches, [first, second], ([-1, 0, 0.5], [0]), groups)
    assert line.loss.shape == (3, 3) and line.beta.shape == (0,) and line.directions.shape == (1, len(theta(net)))
    np.testing.assert_array_equal(line.loss, plane.loss[..., 0])
    np.testing.assert_array_equal(line.accuracy, plane.accuracy[..., 0])


def smooth_hessian(net, samples):
    parameters = {name: p.detach() for name, p in net.named_parameters()}
    shapes = [p.shape for p in parameters.values()]

    def loss(vector):
        pieces = [v.reshape(s) for v, s in zip(vector.split([s.numel() for s in shapes]), shapes)]
        logits = torch.func.functional_call(net, dict(zip(parameters, pieces)), (samples[0],))
        return nn.functional.cross_entropy(logits, samples[1])

    return torch.autograd.functional.hessian(loss, theta(net))


@pytest.mark.parametrize("index", [0, -1])
def test_a_line_along_an_eigenvector_curves_by_its_eigenvalue(net, samples, batches, groups, index):
    values, vectors = torch.linalg.eigh(smooth_hessian(net.eval(), samples))
    direction = Direction(vectors[:, index].contiguous(), "eigenvector", float(values[index]))
    h = 1e-3
    surface = loss_surface(net, cross_entropy, batches, [direction], ([-h, 0, h],), groups)
    second_difference = surface.loss[0] @ [1, -2, 1] / h ** 2
    assert second_difference == pytest.approx(float(values[index]), abs=1e-5 * float(values.abs().max()))
    assert surface.direction_curvatures.tolist() == [float(values[index])]


def test_groups_from_one_sweep_equal_separate_sweeps(net, samples, batches, groups):
    directions = directions_of(net, 0)
    together = loss_surface(net, cross_entropy, batches, directions, ([-1, 0, 1],), groups)
    assert together.groups == ("all", "head", "tail") and together.num_samples.tolist() == [16, 14, 2]
    for g, name in enumerate(together.groups):
        chosen = torch.isin(samples[1], torch.tensor(groups.classes[name]))
        only = ClassGroups(groups.counts, {name: groups.classes[name]})
        part = [(samples[0][chosen], samples[1][chosen])]
        alone = loss_surface(net, cross_entropy, part, directions, ([-1, 0, 1],), only)
        np.testing.assert_allclose(together.loss[g], alone.loss[0], rtol=1e-13)
        np.testing.assert_allclose(together.accuracy[g], alone.accuracy[0], rtol=1e-13)


def test_the_split_into_batches_does_not_matter(net, samples, batches, groups):
    directions = directions_of(net, 0)
    ragged, whole = (loss_surface(net, cross_entropy, b, directions, ([-1, 1],), groups) for b in (batches, [samples]))
    np.testing.assert_allclose(ragged.loss, whole.loss, rtol=1e-13)


@pytest.mark.parametrize("beta", [None, [-1, 0, 1, 2]])
def test_each_point_costs_one_forward_pass_a_batch(net, batches, groups, beta):
    calls = []
    net.register_forward_hook(lambda *_: calls.append(1))
    coordinates = ([-1, 0, 1],) if beta is None else ([-1, 0, 1], beta)
    loss_surface(net, cross_entropy, batches, directions_of(net, *range(len(coordinates))), coordinates, groups)
    assert len(calls) == len(batches) * math.prod(map(len, coordinates))


def state_of(net):
    tensors = {k: v.clone() for k, v in net.state_dict().items()}
    return tensors, [m.training for m in net.modules()], torch.get_rng_state()


def assert_unchanged(net, before):
    tensors, modes, generator = before
    assert all(torch.equal(v, tensors[k]) for k, v in net.state_dict().items())
    assert modes == [m.training for m in net.modules()] and torch.equal(generator, torch.get_rng_state())
    assert all(p.grad is None and p.requires_grad for p in net.parameters())


def test_the_model_is_unchanged_bit_for_bit(net, batches, groups):
    net = net.float()
    batches = [(x.float(), y) for x, y in batches]
    before = state_of(net)
    loss_surface(net, cross_entropy, batches, directions_of(net, 0, 1), ([-0.3, 1e8], [-0.7, 0.1]), groups)
    assert_unchanged(net, before)


def test_the_model_is_unchanged_after_an_exception(net, batches, groups):
    before = state_of(net)
    calls = []

    def interrupted(logits, labels):
        calls.append(1)
        if len(calls) == 5:
            raise KeyboardInterrupt
        return cross_entropy(logits, labels)

    with pytest.raises(KeyboardInterrupt):
        loss_surface(net, interrupted, batches, directions_of(net, 0), ([-1, 0, 1],), groups)
    assert_unchanged(net, before)


def test_nan_and_infinity_stay_and_do_not_reach_other_groups(net, batches, groups):
    def poisoned(logits, labels):
        bad = torch.where(labels == 0, math.nan, math.inf)
        return torch.where(labels == 1, cross_entropy(logits, labels), bad)

    four = ClassGroups(groups.counts, {"all": (0, 1, 2), "class:0": (0,), "class:1": (1,), "class:2": (2,)})
    surface = loss_surface(net, poisoned, batches, directions_of(net, 0), ([0, 1],), four)
    assert np.isnan(surface.loss[:2]).all() and np.isfinite(surface.loss[2]).all() and (surface.loss[3] == np.inf).all()


def test_a_sample_with_nan_logits_counts_as_wrong(groups):
    class Broken(nn.Module):
        def __init__(self):
            super().__init__()
            self.weight = nn.Parameter(torch.eye(3))

        def forward(self, x):
            return x @ self.weight + math.nan

    images, labels = torch.eye(3), torch.arange(3)
    surface = loss_surface(Broken(), cross_entropy, [(images, labels)], directions_of(Broken(), 0), ([0],), groups)
    assert np.isnan(surface.loss).all() and not surface.accuracy.any()


def test_points_are_computed_from_the_origin_and_not_from_the_last_one(batches, groups):
    net = nn.Linear(4, 3, bias=False)
    batches = [(x.float(), y) for x, y in batches]
    direction, = directions_of(net, 0)
    alpha = np.arange(-300, 301) / 7
    dense = loss_surface(net, cross_entropy, batches, [direction], (alpha,), groups)
    alone = loss_surface(net, cross_entropy, batches, [direction], (alpha[-1:],), groups)
    np.testing.assert_array_equal(dense.loss[:, -1:], alone.loss)


def test_finished_rows_are_handed_out_and_not_computed_again(net, batches, groups):
    directions, coordinates = directions_of(net, 0, 1), ([-1, 0, 1], [0, 2])
    rows = {}
    whole = loss_surface(net, cross_entropy, batches, directions, coordinates, groups, on_row=rows.__setitem__)
    assert sorted(rows) == [0, 1, 2] and rows[0].shape == (2, 3, 2)
    calls, handed = [], {}
    net.register_forward_hook(lambda *_: calls.append(1))
    resumed = loss_surface(net, cross_entropy, batches, directions, coordinates, groups,
                           done={0: rows[0], 1: rows[1]}, on_row=handed.__setitem__)
    assert len(calls) == 2 * len(batches) and list(handed) == [2]
    np.testing.assert_array_equal(resumed.loss, whole.loss)
    np.testing.assert_array_equal(resumed.accuracy, whole.accuracy)


@pytest.mark.parametrize("index, shape", [(0, (2, 3, 1)), (3, (2, 3, 2))])
def test_a_finished_row_of_another_surface_is_refused(net, batches, groups, index, shape):
    with pytest.raises(InputError, match=f"finished row {index} of shape .* is from another surface"):
        loss_surface(net, cross_entropy, batches, directions_of(net, 0, 1), ([-1, 0, 1], [0, 2]), groups,
                     done={index: np.zeros(shape)})


def test_progress_counts_every_point_also_the_resumed_ones(net, batches, groups):
    class Count:
        done = 0

        def update(self, n=1):
            self.done += n

    progress = Count()
    loss_surface(net, cross_entropy, batches, directions_of(net, 0, 1), ([-1, 0, 1], [0, 2]), groups,
                 done={1: np.zeros((2, 3, 2))}, progress=progress)
    assert progress.done == 6


def test_the_record_says_along_what_it_was_computed(net, batches, groups):
    directions = directions_of(net, 0, 1)
    surface = loss_surface(net, cross_entropy, batches, directions, ([0], [0, 1]), groups, name="plane", epoch=4,
                           provenance={"seed": 3})
    assert (surface.name, surface.epoch, surface.provenance) == ("plane", 4, {"seed": 3})
    assert surface.direction_names == ("random filter",) * 2 and surface.coordinate_units == "filter norms"
    np.testing.assert_array_equal(surface.directions, [d.vector.numpy() for d in directions])
    assert surface.directions_hash == directions_hash([d.vector for d in directions])
    assert np.isnan(surface.direction_curvatures).all()


@pytest.mark.parametrize("change, message", [
    ({"coordinates": ([0], [0])}, "directions and coordinates are out of range"),
    ({"directions": []}, "directions and coordinates are out of range"),
    ({"coordinates": ([1, 0],)}, "coordinates alpha are out of range: .*in ascending order"),
    ({"coordinates": ([],)}, "coordinates alpha are out of range"),
    ({"coordinates": ([0, math.nan],)}, "coordinates alpha are out of range"),
    ({"batches": []}, "batches is empty"),
    ({"batches": iter([])}, "batches is a list_iterator: expected a list"),
    ({"batches": [(torch.zeros(2, 4), torch.tensor([0, 3]))]}, "labels are out of range: .* 0 <= label < 3"),
    ({"batches": [(torch.zeros(2, 4), torch.tensor([0, 1]))]}, "group 'tail' has no sample in the batches"),
    ({"loss": nn.CrossEntropyLoss()}, r"the loss has shape \(\): expected .*, \(7,\); .*reduction='none'"),
    ({"directions": [Direction(torch.tensor([1.0]), "short")]}, "direction 'short' has 1 entries: expected 33"),
])
def test_what_cannot_be_evaluated_is_refused(net, batches, groups, change, message):
    arguments = {"model": net, "loss": cross_entropy, "batches": batches, "directions": directions_of(net, 0),
                 "coordinates": ([0, 1],), "groups": groups}
    with pytest.raises(InputError, match=message):
        loss_surface(**(arguments | change))


def test_two_units_in_one_plane_are_refused(net, batches, groups):
    directions = directions_of(net, 0) + [random_direction(net, torch.Generator().manual_seed(1), "none")]
    with pytest.raises(InputError, match="directions are in different units .filter norms, parameter units."):
        loss_surface(net, cross_entropy, batches, directions, ([0], [0]), groups)
