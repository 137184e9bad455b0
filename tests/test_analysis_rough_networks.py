"""Networks and settings as users have them: each gets its Hessian, or one refusal that says what to do."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.nn.utils.parametrizations import weight_norm

from analysis.operators import GaussNewtonOperator, HessianOperator
from landscape.errors import InputError

X, Y = torch.randn(8, 6, generator=torch.Generator().manual_seed(0), dtype=torch.float64), torch.arange(8) % 3
HALVES = [(X[:5], Y[:5]), (X[5:], Y[5:])]


def losses(logits, targets):
    return F.cross_entropy(logits, targets, reduction="none")


class Net(nn.Module):
    """Two layers and what a subclass does in between."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.first, self.last = nn.Linear(6, 4), nn.Linear(4, 3)
        self.build()
        self.double()

    def build(self):
        """Add what a subclass needs."""

    def between(self, h):
        return torch.tanh(h)

    def forward(self, x):
        return self.last(self.between(self.first(x)))


class Quantile(Net):
    """Whose trace fails in the middle, inside torch."""

    def between(self, h):
        return h * h.quantile(0.3, dim=1, keepdim=True)


class Alias(Net):
    """One module under two names, and a frozen one."""

    def build(self):
        self.norm = self.again = nn.BatchNorm1d(4).requires_grad_(False)
        self.features = self.first

    def forward(self, x):
        return self.last(torch.tanh(self.again(self.features(x))))


class Keeping(Net):
    def between(self, h):
        self.kept = [torch.tanh(h)]
        return self.kept[0]


class Experts(Net):
    """Where a sample reaches one of two layers."""

    def build(self):
        self.experts = nn.ModuleList(nn.Linear(4, 4) for _ in range(2))

    def between(self, h):
        second = h[:, :1] > h[:, 1:2]
        return torch.tanh(torch.where(second, self.experts[1](h), self.experts[0](h)))


class Gated(Net):
    """A branch that sees the batch, behind a weight of zero."""

    def build(self):
        self.branch, self.gate = nn.Linear(4, 4), nn.Parameter(torch.zeros(()))

    def between(self, h):
        return torch.tanh(h) + self.gate * self.seeing(self.branch(h))

    def seeing(self, h):
        return h - h.mean(0)


class GatedBranch(Gated):
    """Another function for other data, of which nothing is seen where the gate is zero."""

    def seeing(self, h):
        return h if len(h[h > 0]) > 1 else h * h


def exact(model, batches, loss=lambda model, x, y: losses(model(x), y)):
    """Return the dense Hessian of the mean loss over all batches, reverse over reverse."""
    model.eval()
    parameters = [p for p in model.parameters() if p.requires_grad]
    total = sum(loss(model, x, y).sum() for x, y in batches) / sum(len(x) for x, _ in batches)
    flat = torch.cat([g.reshape(-1) for g in torch.autograd.grad(total, parameters, create_graph=True, materialize_grads=True)])
    rows = [torch.autograd.grad(entry, parameters, retain_graph=True, materialize_grads=True) for entry in flat]
    return torch.stack([torch.cat([g.reshape(-1) for g in row]) for row in rows]).detach()


def dense(operator):
    return operator.matmat(torch.eye(operator.size, dtype=operator.dtype))


def gap(a, b):
    return float((a - b).norm() / b.norm())


@pytest.mark.parametrize("kind", [Quantile, Alias, Keeping, Experts], ids=lambda kind: kind.__name__)
def test_each_gets_its_hessian(kind):
    operator = HessianOperator(kind(), losses, HALVES)
    assert gap(dense(operator), exact(kind(), HALVES)) < 1e-13
    assert gap(dense(operator.double()), exact(kind(), HALVES)) < 1e-13


def test_a_trace_that_fails_leaves_autograd_as_it_was():
    assert HessianOperator(Quantile(), losses, HALVES).engine != "linearized"
    assert (torch.ones(2, requires_grad=True) * 2).requires_grad


def test_a_second_name_of_a_module_holds_its_own_parameters_afterwards():
    model = Alias()
    HessianOperator(model, losses, HALVES, engine="jvp").loss()
    assert isinstance(model.first.weight, nn.Parameter) and model.features.weight is model.first.weight


@pytest.mark.parametrize("engine", ["linearized", "jvp", "reverse"])
def test_the_mode_of_a_caller_changes_nothing(engine):
    model = Net().float()
    operator = HessianOperator(model, losses, [(X.float(), Y)], engine=engine)
    v = torch.randn(operator.size)
    product, gradient = operator @ v, operator.gradient()
    for mode in (torch.inference_mode(), torch.autocast("cpu", torch.bfloat16), torch.no_grad()):
        with mode:
            assert torch.equal(operator @ v, product) and torch.equal(operator.gradient(), gradient)
            inside = HessianOperator(model, losses, [(X.float(), Y)], engine=engine)
        assert gap(inside @ v, product) < 1e-5


@pytest.mark.parametrize("microbatch", ["auto", 4])
def test_what_a_weight_of_zero_hides_is_seen(microbatch):
    with pytest.raises(InputError, match="changes with the other samples"):
        HessianOperator(Gated(), losses, [(X, Y)], microbatch=microbatch)


def test_another_branch_behind_a_weight_of_zero_is_no_linearized_product():
    model = GatedBranch()
    batches = [(x[None], y[None]) for x, y in zip(X, Y)]
    operator = HessianOperator(model, losses, batches)
    assert "another function" in operator.reasons["linearized"]
    assert gap(dense(operator), exact(model, batches)) < 1e-13


def block(channels, norm):
    """Return a convolution and a ReLU that sees an exact 0 where the image is 0."""
    convolution = nn.Conv2d(channels, 4, 3, padding=1, bias=not norm)
    if not norm:
        nn.init.zeros_(convolution.bias)
    return [convolution, *([nn.BatchNorm2d(4)] if norm else []), nn.ReLU()]


@pytest.mark.parametrize("norm", [False, True])
def test_black_pixels_before_units_without_bias_are_no_sign_of_a_detach(norm):
    images = torch.zeros(8, 1, 8, 8)
    images[:, :, 2:5, 2:5] = torch.rand(8, 1, 3, 3, generator=torch.Generator().manual_seed(0))
    for seed in range(6):
        torch.manual_seed(seed)
        model = nn.Sequential(*block(1, norm), *block(4, norm), nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(16, 3))
        HessianOperator(model, losses, [(images, Y)], engine="reverse")


@pytest.mark.parametrize("margin", [1.0, 10.0, 15.0])
def test_a_network_that_fits_its_data_has_a_hessian_in_float64(margin):
    model = Net()
    labels = model(X).argmax(1)
    top = model(X).topk(2)[0].detach()
    with torch.no_grad():
        for p in model.last.parameters():
            p.mul_(margin / float((top[:, 0] - top[:, 1]).min()))
    assert gap(dense(HessianOperator(model, losses, [(X, labels)])), exact(model, [(X, labels)])) < 1e-6


def test_losses_that_round_away_over_the_shortest_steps_are_no_sign_of_a_detach():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 16), nn.Tanh(), nn.Linear(16, 3))
    images = torch.randn(12, 6)
    top = model(images).topk(2)[0].detach()
    with torch.no_grad():
        for p in model[2].parameters():
            p.mul_(1 / float((top[:, 0] - top[:, 1]).min()))        # margins from 1 up to hundreds
    HessianOperator(model, losses, [(images, model(images).argmax(1))], engine="reverse")


@pytest.mark.parametrize("kind", [nn.GRU, nn.RNN, nn.LSTM])
def test_recurrent_networks_are_linearized(kind):
    class Sequence(nn.Module):
        def __init__(self):
            super().__init__()
            torch.manual_seed(0)
            self.rnn, self.last = kind(3, 2, batch_first=True), nn.Linear(2, 3)

        def forward(self, x):
            return self.last(self.rnn(x.reshape(len(x), 2, 3))[0][:, -1])
    model = Sequence().double()
    operator = HessianOperator(model, losses, HALVES)
    assert operator.engine == "linearized"
    torch._C._set_mkldnn_enabled(False)
    try:
        assert gap(dense(operator), exact(model, HALVES)) < 1e-13
    finally:
        torch._C._set_mkldnn_enabled(True)


@pytest.mark.parametrize("engine", ["linearized", "jvp", "reverse"])
def test_a_normalised_weight_is_differentiated_twice(engine):
    model = Net()
    weight_norm(model.first)

    def written_out(model, x, y):
        h = model.first.parametrizations.weight
        W = h.original0 * h.original1 / h.original1.norm(dim=1, keepdim=True)
        return losses(model.last(torch.tanh(F.linear(x, W, model.first.bias))), y)
    assert gap(dense(HessianOperator(model, losses, HALVES, engine=engine)), exact(model, HALVES, written_out)) < 1e-13


@pytest.mark.parametrize("kernel", [2, (2, 4)])
def test_valid_padding(kernel):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(1, 2, kernel, padding="valid"), nn.Tanh(), nn.Flatten(), nn.LazyLinear(3)).double()
    images = torch.randn(8, 1, 5, 5, dtype=torch.float64)
    model(images)
    operator = HessianOperator(model, losses, [(images, Y)])
    assert operator.engine == "linearized" and gap(dense(operator), exact(model, [(images, Y)])) < 1e-13


@pytest.mark.parametrize("kind", [HessianOperator, GaussNewtonOperator])
def test_a_mean_of_squares_has_a_twin_in_float64(kind):
    targets = torch.randn(8, 3)
    operator = kind(Net().float(), lambda z, t: F.mse_loss(z, t), [(X.float(), targets)])
    assert operator.engine == "linearized"
    assert gap(operator @ torch.ones(operator.size), (operator.double() @ torch.ones(operator.size)).float()) < 1e-5


def test_a_mean_over_a_last_batch_of_one_sample():
    batches = [(X[:7], Y[:7]), (X[7:], Y[7:])]
    operator = HessianOperator(Net(), lambda z, y: F.cross_entropy(z, y), batches)
    assert gap(dense(operator), exact(Net(), batches)) < 1e-13


def test_a_network_that_does_not_take_single_samples():
    class Squeezed(Net):
        def between(self, h):
            return torch.tanh(h[:, :, None].squeeze())
    model, pairs = Squeezed(), [(X[start:start + 4], Y[start:start + 4]) for start in (0, 4)]
    model.first = nn.Linear(6, 4).double()
    assert gap(dense(HessianOperator(model, losses, pairs)), exact(model, pairs)) < 1e-13


def test_parameters_that_another_sample_reaches_are_not_called_unreached():
    class BySign(Experts):
        def build(self):
            super().build()
            self.never = nn.Linear(4, 4)

        def between(self, h):
            rows = [self.experts[int(row[0] > 0)](row) for row in h]
            return torch.tanh(torch.stack(rows))
    operator = HessianOperator(BySign(), losses, HALVES, microbatch=1)
    assert operator.reasons["parameters"].endswith("never.weight, never.bias")
    assert gap(dense(operator), exact(BySign(), HALVES)) < 1e-13


def test_sparse_gradients_are_dense_ones_with_zeros():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Embedding(7, 4, sparse=True), nn.Flatten(), nn.Linear(8, 3)).double()
    words = torch.randint(7, (8, 2))
    found = dense(HessianOperator(model, losses, [(words, Y)]))
    assert model[0].sparse
    model[0].sparse = False
    assert gap(found, exact(model, [(words, Y)])) < 1e-13


def compiled_in_place(model):
    model.compile(backend="eager")
    return model


@pytest.mark.parametrize("compiled", [lambda model: torch.compile(model, backend="eager"), compiled_in_place])
def test_a_compiled_model_is_linearized_as_it_was_written(compiled):
    compiled = compiled(Net())
    compiled(X)
    operator = HessianOperator(compiled, losses, HALVES)
    assert operator.engine == "linearized" and gap(dense(operator), exact(Net(), HALVES)) < 1e-13


def test_no_vector_has_no_product():
    operator = HessianOperator(Net(), losses, HALVES, engine="jvp")
    assert operator.matmat(torch.zeros(0, operator.size)).shape == (0, operator.size)


def test_padding_is_no_sample_of_a_piece():
    operator = HessianOperator(Net(), losses, [(X[:7], Y[:7])], microbatch=4)
    assert [batch.num_samples for batch in operator.batches] == [3, 4]
    assert [batch.piece(slice(2, 4)).num_samples for batch in operator.batches] == [1, 2]


class Distance(Net):
    def between(self, h):
        return torch.tanh(h) * h.square().sum(1, keepdim=True).sqrt()


@pytest.mark.parametrize("model, batches, words", [
    (Net().bfloat16(), [(X, Y)], "torch.bfloat16.*expected float32 or float64"),
    (Net().half(), [(X, Y)], "torch.float16.*expected float32 or float64"),
    (nn.Sequential(nn.LazyLinear(3)), [(X, Y)], "no size yet: call the model"),
    (Net(), [(X.to_sparse(), Y)], r"batch 0 holds a sparse tensor.*to_dense\(\)"),
], ids=["bfloat16", "half", "lazy", "sparse"])
def test_what_has_no_hessian_is_refused_with_the_way_out(model, batches, words):
    with pytest.raises(InputError, match=words):
        HessianOperator(model, losses, batches)


def test_an_infinite_derivative_in_a_later_batch_is_refused():
    model, zero = Distance(), X[5:].clone()
    nn.init.zeros_(model.first.bias)
    zero[1] = 0
    with pytest.raises(InputError, match="a product with the operator is not finite"):
        HessianOperator(model, losses, [(X[:5], Y[:5]), (zero, Y[5:])]) @ torch.ones(43, dtype=torch.float64)
    with pytest.raises(InputError, match="its product is not finite"):
        HessianOperator(model, losses, [(zero, Y[5:]), (X[:3], Y[:3])])


def test_a_loss_of_one_value_an_output_says_how_to_average():
    with pytest.raises(InputError, match=r"losses.flatten\(1\).mean\(1\)"):
        HessianOperator(Net(), nn.MSELoss(), [(X, torch.randn(8, 3))])
