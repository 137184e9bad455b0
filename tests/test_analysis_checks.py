"""Losses whose Hessian would be another matrix than the one asked for are refused, whatever their scale and their batches."""

import pytest
import torch
from networks import dense_hessian, losses
from torch import nn
from torch.nn import functional as F

from analysis.operators import HessianOperator, plan, products
from landscape.errors import InputError

torch.manual_seed(0)
X, Y = torch.randn(20, 5), torch.randint(3, (20,))
WEIGHTS = torch.tensor([1.0, 5.0, 20.0])


def small(seed=0):
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(5, 4), nn.Tanh(), nn.Linear(4, 3))


def relative(operator, expected):
    found = operator.matmat(torch.eye(operator.size, dtype=operator.dtype)).double()
    return float((found - expected).norm() / expected.norm())


@pytest.mark.parametrize("loss", [nn.CrossEntropyLoss(weight=WEIGHTS), nn.CrossEntropyLoss(reduction="sum"),
                                  nn.CrossEntropyLoss(ignore_index=0)], ids=["weights", "sum", "ignored"])
def test_a_loss_whose_own_reduction_is_no_mean_is_refused(loss):
    with pytest.raises(InputError, match="mean over its samples .*reduction='none'"):
        HessianOperator(small(), loss, [(X, Y)])
    loss.reduction = "none"     # then the mean of these values is meant
    operator = HessianOperator(small(), loss, [(X, Y)], engine="reverse")
    assert operator.loss() == pytest.approx(float(loss(small()(X), Y).mean().detach()), rel=1e-5)


def test_the_mean_of_a_loss_module_is_accepted():
    operator = HessianOperator(small(), nn.CrossEntropyLoss(), [(X, Y)])
    assert relative(operator, dense_hessian(small().double(), X.double(), Y)) < 1e-5


class Centred(nn.Module):
    """Its samples see each other."""

    def __init__(self):
        super().__init__()
        self.inner = small()

    def forward(self, x):
        return self.inner(x - x.mean(0))


class ByCount(nn.Module):
    """Another function of a batch of up to four."""

    def __init__(self):
        super().__init__()
        self.inner = nn.Linear(5, 3)

    def forward(self, x):
        return self.inner(x if len(x) > 4 else 2 * x)


@pytest.mark.parametrize("scale", [1, 1e-4, 1e-8])
def test_samples_that_see_each_other_are_refused_at_any_scale(scale):
    with pytest.raises(InputError, match="the other samples of its batch"):
        HessianOperator(Centred(), lambda z, t: scale * losses(z, t), [(X, Y)])


def test_losses_that_are_mostly_rounding_are_not_taken_for_coupled():
    model = small()
    with torch.no_grad():
        model[2].bias += torch.tensor([12.0, 0.0, 0.0])     # fitted: losses of 1e-5, of which a tenth is rounding
    operator = HessianOperator(model, losses, [(X, torch.zeros_like(Y))], microbatch=7)
    assert operator.loss() < 1e-4


@pytest.mark.parametrize("batches, microbatch", [([(X, Y)], 4), ([(X[:17], Y[:17]), (X[17:], Y[17:])], "auto")],
                         ids=["cut", "padded"])
def test_the_pieces_that_are_evaluated_are_compared_with_the_batches(batches, microbatch):
    with pytest.raises(InputError, match="the other samples of its batch"):
        HessianOperator(ByCount(), losses, batches, microbatch=microbatch)


def test_a_mean_is_cut_and_never_padded_where_memory_runs_out(monkeypatch):
    engine = products.ENGINES["jvp"]

    def narrow(objective, theta, traces):
        prepare = engine(objective, theta, traces)

        def limited(batch):
            if len(batch) > 3:
                raise torch.OutOfMemoryError("injected")
            return prepare(batch)
        return limited
    monkeypatch.setitem(products.ENGINES, "jvp", narrow)
    operator = HessianOperator(small(), F.cross_entropy, [(X[:5], Y[:5])], engine="jvp")
    assert [len(batch) for batch in operator.batches] == [2, 3]
    assert relative(operator, dense_hessian(small().double(), X[:5].double(), Y[:5])) < 1e-5


@pytest.mark.parametrize("reduction", ["sum", "mean"])
def test_one_number_for_a_batch_that_cannot_be_cut_is_refused(reduction):
    batches = [{"x": X[:12], "y": Y[:12], "e": torch.zeros(7, 5)}, {"x": X[12:], "y": Y[12:], "e": torch.zeros(7, 5)}]
    with pytest.raises(InputError, match="one number for a batch .*one value a sample"):
        HessianOperator(small(), None, batches, forward=lambda m, b: F.cross_entropy(m(b["x"]), b["y"], reduction=reduction))


def test_a_curvature_that_autograd_alone_sees_is_refused_where_the_gradient_is_the_same_everywhere():
    class Invented(nn.Linear):
        def forward(self, x):
            return super().forward(x)[:, 0] + ((self.weight - self.weight.detach()) ** 2).sum()
    with pytest.raises(InputError, match="the slope of the gradient 0; a detach or no_grad"):
        HessianOperator(Invented(5, 1).double(), lambda z, t: z, [(X.double(), Y)])


@pytest.mark.parametrize("frequency", [1e4, 1e5])
def test_a_loss_that_turns_many_times_within_the_longer_steps_is_accepted(frequency):
    net = nn.Linear(5, 1, bias=False).double()
    operator = HessianOperator(net, lambda z, t: torch.sin(frequency * z[:, 0]) / frequency**2, [(X.double(), Y)])
    exact = -(X.double().T * torch.sin(frequency * net(X.double())[:, 0]).detach()) @ X.double() / len(X)
    assert relative(operator, exact) < 1e-9


def test_a_term_that_is_detached_from_itself_is_refused():
    def teacher(z, t):      # zero, with zero gradient, and curved for autograd
        p = z.softmax(1)
        return losses(z, t) + ((p - p.detach()) ** 2).sum(1)
    with pytest.raises(InputError, match="the product is not that of the gradient"):
        HessianOperator(small(), teacher, [(X, Y)])


def test_a_parameter_outside_the_block_may_not_move_either():
    model = small()
    operator = HessianOperator(model, losses, [(X, Y)], params="2.*")
    with torch.no_grad():
        model[0].weight *= 3
    with pytest.raises(InputError, match="'0.weight' has changed"):
        operator.matvec(torch.ones(operator.size))


def test_refreshing_takes_the_loss_again():
    scale = torch.ones(3)
    loss = nn.CrossEntropyLoss(weight=scale, reduction="none")
    operator = HessianOperator(small(), loss, [(X, Y)], engine="reverse")
    before = operator.loss()
    loss.weight *= 4
    assert operator.loss() == before
    operator.refresh()
    assert operator.loss() == pytest.approx(4 * before, rel=1e-6)


@pytest.mark.parametrize("memory", [0, 1e9])
def test_a_constant_that_is_overwritten_later_is_that_of_construction(memory):
    constant = torch.ones(3)
    operator = HessianOperator(small(), lambda z, t: losses(z * constant, t), [(X, Y)], engine="linearized", memory=memory)
    v = torch.randn(operator.size)
    before = operator @ v
    constant *= 4
    assert torch.equal(operator @ v, before)


def test_parameters_that_no_loss_reaches_are_named():
    model = nn.ModuleDict({"used": nn.Linear(5, 3), "unused": nn.Linear(5, 3)})
    operator = HessianOperator(model, None, [(X, Y)], forward=lambda m, b: losses(m["used"](b[0]), b[1]))
    assert "unused.weight, unused.bias" in operator.reasons["parameters"]


def test_pieces_are_found_again():
    batch = HessianOperator(small(), losses, [(X, Y)]).batches[0]
    cut = plan.microbatches([batch.some(9), batch], 4, torch.zeros(10))
    left = iter(cut)
    assert [len(plan.pieces_of(whole, left)) for whole in (batch.some(9), batch)] == [3, 5] and next(left, None) is None
