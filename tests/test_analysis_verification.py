import pytest
import torch
from networks import images, losses
from torch import nn

from analysis.operators.hessian import HessianOperator
from analysis.operators.products import EngineError
from analysis.operators.verification import check, refuse_other_losses, relative_gap


def test_products_of_kinked_networks_pass_though_rounding_moves_activations_across_the_kink():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(1, 24, 3), nn.BatchNorm2d(24), nn.ReLU(), nn.Conv2d(24, 24, 3), nn.BatchNorm2d(24), nn.ReLU(),
                          nn.Flatten(), nn.Linear(24 * 144, 3))
    x, y = torch.randn(64, 1, 16, 16), torch.randint(3, (64,))
    operator = HessianOperator(model, losses, [(x, y)])
    assert operator.engine == "linearized"


def test_losses_that_are_nearly_zero_are_not_taken_for_another_function():
    x, y = images(dtype=torch.float32)
    model = nn.Sequential(nn.Flatten(), nn.Linear(16, 3))
    with torch.no_grad():
        model[1].bias[:] = 0
        model[1].weight.mul_(30)
    y = model(x).argmax(1)          # fitted well: most losses are rounding
    assert HessianOperator(model, losses, [(x, y)]).engine == "linearized"


def test_other_losses_are_refused_with_the_gap():
    x, y = images()
    operator = HessianOperator(nn.Sequential(nn.Flatten(), nn.Linear(16, 3)).double(), losses, [(x, y)], engine="jvp")
    batch, objective = operator.batches[0], operator._objective
    right = objective.sample_losses(operator.theta, batch).detach()
    refuse_other_losses(right, objective, operator.theta, batch)
    with pytest.raises(EngineError, match="1.0e-03"):
        refuse_other_losses(right * 1.001, objective, operator.theta, batch)


@pytest.mark.parametrize("product, word", [
    (lambda V: V @ torch.triu(torch.ones(4, 4, dtype=torch.float64)), "not symmetric"),
    (lambda V: V + torch.rand_like(V), "second call differs")])
def test_products_that_are_no_hessians_are_named(product, word):
    with pytest.raises(EngineError, match=word):
        check(product, torch.zeros(4, dtype=torch.float64), 1e-12)


def test_the_gap_of_nothing_is_zero_and_of_nan_infinite():
    zero, nan = torch.zeros(3), torch.tensor([0.0, float("nan"), 0.0])
    assert relative_gap(zero, zero) == 0.0 and relative_gap(zero, nan) == float("inf")


def test_products_whose_squares_float32_does_not_hold_are_compared_all_the_same():
    a = torch.full((4,), 1e-24)
    assert relative_gap(a, -a) == 2 and relative_gap(a, a) == 0
    matrix = torch.randn(4, 4, generator=torch.Generator().manual_seed(0))
    check(lambda V: 1e-24 * (V @ (matrix + matrix.T)), torch.zeros(4), 1e-4)
    with pytest.raises(EngineError, match="not symmetric"):
        check(lambda V: 1e-24 * (V @ matrix), torch.zeros(4), 1e-4)
