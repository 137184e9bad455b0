"""Walks along extreme eigenvectors: exact on quadratics, as the dense Hessian says on a smooth network."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

from analysis.findings.slices import predicted, trust_radius
from analysis.measures.escape import POINTS, Sample, joined, losses_at, lowest_point, walk
from analysis.surfaces.directions import Direction
from landscape.errors import InputError
from landscape.parameters import moved_to, theta


def squares(outputs, labels):
    """A loss quadratic in the outputs, concave where labels are 1."""
    return (1 - 2 * labels) * (outputs[:, 0] - 0.3) ** 2 / 2


def cross_entropy(outputs, labels):
    return nn.functional.cross_entropy(outputs, labels, reduction="none")


def unit(vector):
    return Direction(vector / vector.norm(), "v")


@pytest.fixture
def linear():
    """Outputs linear in the weights: every loss is quadratic along every line."""
    torch.manual_seed(0)
    model = nn.Linear(2, 1, bias=False).double()
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(9, 2, generator=generator, dtype=torch.float64)
    zeros, ones = torch.zeros(5, dtype=torch.long), torch.ones(4, dtype=torch.long)
    samples = {"head": Sample((0,), [(x[:3], zeros[:3]), (x[3:5], zeros[3:])], squares),
               "tail": Sample((1,), [(x[5:], ones)], squares)}
    return model, samples


@pytest.fixture
def smooth():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Tanh(), nn.Linear(4, 3)).double()
    model[1].running_mean.normal_()
    generator = torch.Generator().manual_seed(1)
    x, y = torch.randn(12, 3, generator=generator, dtype=torch.float64), torch.arange(12) % 3
    chosen = {"head": (0, 1), "tail": (2,)}
    samples = {name: Sample(classes, [(x[torch.isin(y, torch.tensor(classes))], y[torch.isin(y, torch.tensor(classes))])],
                            cross_entropy) for name, classes in chosen.items()}
    return model, samples


def dense(model, sample):
    """Gradient and Hessian of a group's mean loss at the model's parameters, by autograd on the flat vector."""
    start, (x, y) = theta(model), sample.batches[0]

    def loss(vector):
        pieces, place = {}, 0
        for name, p in model.named_parameters():
            pieces[name] = vector[place:place + p.numel()].view_as(p)
            place += p.numel()
        return cross_entropy(torch.func.functional_call(model.eval(), pieces, (x,)), y).mean()
    return torch.func.grad(loss)(start), torch.func.hessian(loss)(start)


def test_a_quadratic_is_predicted_everywhere_and_its_lowest_point_is_its_vertex(linear):
    model, samples = linear
    v = unit(torch.tensor([0.6, 0.8], dtype=torch.float64))
    line = walk(model, samples, "head", v)
    np.testing.assert_allclose(line.loss[0], predicted(line, "head"), rtol=1e-9, atol=1e-12)
    assert all(radius.high == np.inf for radius in trust_radius(line, "head").values())
    loss, slope, curvature = line.derivatives[:, 0, 0]
    found = lowest_point(model, samples, "head", v, line)
    assert found.bounded and found.alpha == pytest.approx(-slope / curvature, rel=0.1)
    assert found.drop == pytest.approx(slope ** 2 / (2 * curvature), rel=0.02)
    assert found.drop == pytest.approx(found.predicted_drop) and found.rounding == 0


def test_down_a_concave_quadratic_the_walk_goes_on_to_the_length_of_theta_and_says_that_it_was_not_enough(linear):
    model, samples = linear
    with torch.no_grad():
        model.weight.mul_(20)
    v = unit(torch.tensor([0.6, 0.8], dtype=torch.float64))
    line = walk(model, samples, "tail", v)
    found = lowest_point(model, samples, "tail", v, line)
    assert not found.bounded and abs(found.alpha) >= model.weight.norm() and abs(found.alpha) < 3 * model.weight.norm()
    assert found.drop > 0 and found.drop == pytest.approx(found.predicted_drop)


def test_changes_are_those_of_every_group_at_the_lowest_point(linear):
    model, samples = linear
    v = unit(torch.tensor([1.0, -2.0], dtype=torch.float64))
    found = lowest_point(model, samples, "head", v, walk(model, samples, "head", v))
    for name, sample in samples.items():
        x, y = (torch.cat(parts) for parts in zip(*sample.batches))
        before = squares(model(x), y).mean()
        with moved_to(model, theta(model) + found.alpha * v.vector):
            assert found.changes[name] == pytest.approx((squares(model(x), y).mean() - before).item(), abs=1e-12)
    assert found.drop == -found.changes["head"]


def test_slope_and_curvature_are_the_dense_ones(smooth):
    model, samples = smooth
    gradient, hessian = dense(model, samples["tail"])
    values, vectors = torch.linalg.eigh(hessian)
    assert values[0] < -1e-3        # there is something to escape along
    line = walk(model.train(), samples, "tail", unit(vectors[:, 0]))
    assert model.training
    assert line.derivatives[1, 1, 0] == pytest.approx((gradient @ vectors[:, 0]).item(), rel=1e-9)
    assert line.derivatives[2, 1, 0] == pytest.approx(values[0].item(), rel=1e-9)
    assert np.isnan(line.derivatives[:, 0]).all()
    small = np.abs(line.alpha) < 2e-3
    np.testing.assert_allclose(line.loss[1, small], predicted(line, "tail")[small], atol=1e-7)
    radius = trust_radius(line, "tail")
    assert all(0 < side.low < side.high for side in radius.values())


def test_a_direction_of_negative_curvature_is_downhill_at_least_one_way(smooth):
    model, samples = smooth
    _, hessian = dense(model, samples["tail"])
    v = unit(torch.linalg.eigh(hessian)[1][:, 0])
    line = walk(model, samples, "tail", v)
    found = lowest_point(model, samples, "tail", v, line)
    assert found.alpha != 0 and found.drop > 0
    assert found.drop == pytest.approx(line.loss[1, line.alpha == 0][0] - line.loss[1].min(), rel=1e-12)


def test_points_are_finer_about_the_lowest_and_their_number_is_forecast(linear):
    model, samples = linear
    counted = []
    line = walk(model, samples, "head", unit(torch.tensor([0.6, 0.8], dtype=torch.float64)), counted.append)
    assert (np.diff(line.alpha) > 0).all() and 0.0 in line.alpha
    assert len(line.alpha) <= POINTS and sum(counted) == pytest.approx(POINTS * 9 / 3, rel=0.1)


def test_a_loss_that_is_not_finite_at_the_checkpoint_is_one_error(linear):
    model, samples = linear
    with torch.no_grad():
        model.weight.fill_(torch.nan)
    with pytest.raises(InputError, match="loss of head is not finite"):
        walk(model, samples, "head", unit(torch.tensor([0.6, 0.8], dtype=torch.float64)))


def test_float32_walks_tell_their_rounding(smooth):
    model, samples = smooth
    _, hessian = dense(model, samples["tail"])
    v = unit(torch.linalg.eigh(hessian)[1][:, 0])
    exact = lowest_point(model, samples, "tail", v, walk(model, samples, "tail", v))
    narrow = {name: replace(s, batches=[(x.float(), y) for x, y in s.batches]) for name, s in samples.items()}
    line = walk(model.float(), narrow, "tail", unit(v.vector.float()))
    found = lowest_point(model.double(), narrow, "tail", unit(v.vector.float()), line)
    assert line.precision == "float32" and 0 < found.rounding < 1e-5
    assert found.drop == pytest.approx(exact.drop, rel=1e-2)


def test_lines_join_in_order_and_without_doubles(linear):
    model, samples = linear
    v = unit(torch.tensor([0.6, 0.8], dtype=torch.float64))
    line = joined(losses_at(model, samples, v, [-1.0, 0.0, 1.0]), losses_at(model, samples, v, [0.0, 0.5]))
    assert line.alpha.tolist() == [-1.0, 0.0, 0.5, 1.0] and line.loss.shape == (2, 4) and line.groups == ("head", "tail")
    np.testing.assert_allclose(line.loss, losses_at(model, samples, v, line.alpha).loss, rtol=1e-13)
