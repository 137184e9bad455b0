"""Networks that fit their data: cross-entropy, its gradient and its Hessian keep their digits where the loss is far below 1."""

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from analysis.measures.similarity import mean_gradient
from analysis.operators import GaussNewtonOperator, HessianOperator
from analysis.operators.kernels import Rewritten
from analysis.spectra.extremes import extreme_eigenpairs
from analysis.surfaces.directions import random_direction
from analysis.surfaces.surface import loss_surface
from landscape.errors import InputError
from landscape.groups import ClassGroups
from landscape.losses.table import LOSSES, build_loss
from landscape.parameters import flatten

SHAPES = [((7, 5), (7,)), ((5,), ()), ((3, 4, 2, 2), (3, 2, 2)), ((6, 1), (6,))]


def ours(*args, **options):
    with Rewritten():
        return F.cross_entropy(*args, **options)


class Scaled(nn.Module):
    """A network whose logits are scaled by a value that autograd does not see."""

    def __init__(self, net):
        super().__init__()
        self.net = net

    def forward(self, x):
        z = self.net(x)
        return z * (1 + z.detach().abs().mean(1, keepdim=True) / 50)


def plain(logits, labels):
    return F.cross_entropy(logits, labels, reduction="none")


def fitted(loss):
    """Return a float32 network whose mean cross-entropy is `loss`, and its data: labels that it predicts, by a margin."""
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(5, 8), nn.Tanh(), nn.Linear(8, 3)).double()
    x = torch.randn(200, 5, dtype=torch.float64)
    with torch.no_grad():
        top = net(x).topk(2).values
        x = x[(top[:, 0] - top[:, 1]).argsort()[-40:]]
        y, low, high = net(x).argmax(1), 0.0, 1e4
        for _ in range(100):
            scale = (low + high) / 2
            low, high = (scale, high) if float(ours(scale * net(x), y)) > loss else (low, scale)
        net[2].weight *= scale
        net[2].bias *= scale
    return net.float(), x.float(), y


def relative(found, expected):
    return float((found.double() - expected).norm() / expected.norm())


@pytest.mark.parametrize("shape, labels", SHAPES)
@pytest.mark.parametrize("reduction", ["none", "mean", "sum"])
@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("ignored", [-100, 0])
def test_it_is_torch_s_cross_entropy_with_its_derivatives(shape, labels, reduction, weighted, ignored):
    generator = torch.Generator().manual_seed(0)
    z = 3 * torch.randn(shape, generator=generator, dtype=torch.float64)
    classes = shape[min(len(shape) - 1, 1)]
    y = torch.randint(classes, labels, generator=generator)
    weight = 0.5 + torch.rand(classes, generator=generator, dtype=torch.float64) if weighted else None

    def total(function):
        return lambda z: function(z, y, weight, reduction=reduction, ignore_index=ignored).sum()
    if reduction == "mean" and bool((y == ignored).all()):
        assert ours(z, y, weight, ignore_index=ignored).isnan()
        return
    found, expected = (function(z, y, weight, reduction=reduction, ignore_index=ignored) for function in (ours, F.cross_entropy))
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-14)
    for derivative in (torch.func.grad, torch.func.hessian):
        torch.testing.assert_close(derivative(total(ours))(z), derivative(total(F.cross_entropy))(z), rtol=1e-11, atol=1e-13)


@pytest.mark.parametrize("logits, labels", [(torch.randn(8, 3), torch.zeros(1, dtype=torch.long)),
                                            (torch.randn(8, 3), torch.zeros(8)), (torch.randn(8, 3), torch.full((8,), 3)),
                                            (torch.randn(8, 3), torch.full((8,), -1)),
                                            (torch.randn(8, 3), torch.zeros(4, dtype=torch.long))])
def test_what_torch_refuses_is_refused(logits, labels):
    for function in (F.cross_entropy, ours):
        with pytest.raises((RuntimeError, ValueError, IndexError)):
            function(logits, labels)


@pytest.mark.parametrize("options", [{"weight": torch.ones(5)}, {"weight": torch.ones(2)}, {"weight": torch.ones(3).double()},
                                     {"weight": torch.ones(3, dtype=torch.long)}, {"reduction": "avg"}])
def test_weights_and_reductions_that_torch_refuses_are_refused(options):
    for function in (F.cross_entropy, ours):
        with pytest.raises((RuntimeError, ValueError)):
            function(torch.randn(4, 3), torch.tensor([0, 1, 0, 1]), **options)


def test_a_class_ruled_out_beside_ignored_samples_gives_numbers():
    z = torch.randn(6, 4, dtype=torch.float64).masked_fill(torch.arange(4) == 0, -np.inf)
    y = torch.tensor([1, -100, 2, 3, -100, 1])
    for derivative in (torch.func.grad, torch.func.hessian):
        found, expected = (derivative(lambda z: function(z, y))(z) for function in (ours, F.cross_entropy))
        torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-14)


def test_labels_that_are_bytes_keep_their_digits():
    logits, labels = torch.tensor([[30.0, 0.0, 1.0]]), torch.tensor([0])
    assert torch.equal(ours(logits, labels.byte()), ours(logits, labels))


@pytest.mark.parametrize("labels, options", [(torch.full((4, 3), 1 / 3), {}),
                                             (torch.zeros(4, dtype=torch.long), {"label_smoothing": 0.1})])
def test_soft_labels_and_smoothing_are_torch_s_own(labels, options):
    logits = torch.randn(4, 3)
    assert torch.equal(ours(logits, labels, **options), F.cross_entropy(logits, labels, **options))


@pytest.mark.parametrize("row", [[0.0, -np.inf, -np.inf], [0.0, -3.0, -np.inf], [0.0, 500.0, 1.0], [500.0, 0.0, 1.0],
                                 [0.0, 1e30, -1e30]])
def test_ruled_out_classes_and_extreme_logits_give_numbers(row):
    z, y = torch.tensor([row]), torch.tensor([0])
    torch.testing.assert_close(ours(z, y), F.cross_entropy(z, y))
    for derivative in (torch.func.grad, torch.func.hessian):
        assert derivative(lambda z: ours(z, y))(z).isfinite().all()


def test_a_sample_that_is_far_on_the_wrong_side_still_curves():
    z, y = torch.tensor([[0.0, 25.0]], dtype=torch.float64), torch.tensor([0])
    curvature = torch.func.hessian(lambda z: ours(z, y))(z)[0, 0, 0, 0]
    assert float(curvature) == pytest.approx(np.exp(-25) / (1 + np.exp(-25)) ** 2, rel=1e-4)


@pytest.mark.parametrize("engine", ["linearized", "linearized-compiled", "jvp", "reverse"])
@pytest.mark.parametrize("loss", [1e-3, 1e-9, 1e-30])
def test_float32_products_of_a_network_that_fits_its_data_keep_their_digits(engine, loss):
    net, x, y = fitted(loss)
    operator = HessianOperator(net, plain, [(x, y)], engine=engine)
    v = torch.randn(operator.size, generator=torch.Generator().manual_seed(1))
    expected = HessianOperator(net.double(), plain, [(x.double(), y)], engine="reverse") @ v.double()
    assert relative(operator @ v, expected) < 3e-5


def test_torch_s_own_derivatives_lose_them():
    net, x, y = fitted(1e-5)
    operator, parameters = HessianOperator(net, plain, [(x, y)]), list(net.parameters())
    v = torch.randn(operator.size, generator=torch.Generator().manual_seed(1))
    slope = torch.autograd.grad(plain(net(x), y).mean(), parameters, create_graph=True)
    torch_s = flatten(torch.autograd.grad((flatten(slope) * v).sum(), parameters))
    expected = operator.double() @ v.double()
    assert relative(operator @ v, expected) < 3e-5 and relative(torch_s, expected) > 5e-4


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("loss", [1e-5, 1e-12, 1e-20, 1e-30])
def test_a_false_gradient_is_refused_however_well_the_network_fits_and_a_true_one_is_not(loss, dtype):
    net, x, y = fitted(loss)
    net, x = net.to(dtype), x.to(dtype)
    assert HessianOperator(net, plain, [(x, y)]).engine == "linearized"
    with pytest.raises(InputError, match="a detach or no_grad"):
        HessianOperator(Scaled(net), plain, [(x, y)])


def test_products_that_float32_cannot_hold_say_so_and_float64_has_them():
    net, x, y = fitted(1e-40)
    with pytest.raises(InputError, match="near the least that float32 holds: use float64"):
        HessianOperator(net, plain, [(x, y)], engine="reverse")
    operator = HessianOperator(net.double(), plain, [(x.double(), y)], engine="reverse")
    assert float((operator @ torch.ones(operator.size, dtype=torch.float64)).norm()) > 0


def test_its_loss_gradient_and_gauss_newton_matrix_keep_theirs():
    net, x, y = fitted(1e-8)
    operators = [kind(net, plain, [(x, y)]) for kind in (HessianOperator, GaussNewtonOperator)]
    v, exact = torch.ones(operators[0].size), [kind.double() for kind in operators]
    assert operators[0].loss() == pytest.approx(1e-8, rel=1e-4)
    assert relative(operators[0].gradient(), exact[0].gradient()) < 3e-5
    assert relative(operators[1] @ v, exact[1] @ v.double()) < 3e-5


def test_its_eigenvalues_are_certified():
    net, x, y = fitted(1e-7)
    pairs = extreme_eigenpairs(HessianOperator(net, plain, [(x, y)]), 2, tol=1e-4, generator=torch.Generator().manual_seed(0))
    assert pairs.converged[-2:].all() and pairs.verified[-2:].all()
    assert (pairs.rounding[-2:] < 1e-4 * np.abs(pairs.values[-2:])).all()


@pytest.mark.parametrize("name", sorted(name for name, row in LOSSES.items() if not row.views and name != "Focal"))
def test_every_adjusted_loss_keeps_its_digits(name):
    net, x, y = fitted(0.6 if name == "LDAM" else 1e-7)     # whose scale, 30, does the rest
    loss = build_loss(name, [30, 8, 2])
    operator = HessianOperator(net, loss, [(x, y)], engine="linearized")
    v = torch.ones(operator.size)
    assert relative(operator @ v, operator.double() @ v.double()) < 1e-4


def test_losses_on_a_surface_keep_theirs():
    net, x, y = fitted(1e-9)
    groups = ClassGroups(np.bincount(y.numpy(), minlength=3), {"all": (0, 1, 2)})
    record = loss_surface(net, plain, [(x, y)], [random_direction(net, torch.Generator().manual_seed(0))], ([-1e-3, 0, 1e-3],),
                          groups)
    assert record.loss[0, 1] == pytest.approx(1e-9, rel=1e-4)


def test_mean_gradients_keep_theirs():
    net, x, y = fitted(1e-9)
    found = mean_gradient(net, plain, [(x, y)])
    assert relative(found, mean_gradient(net.double(), plain, [(x.double(), y)])) < 3e-5
