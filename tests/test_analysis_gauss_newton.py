import pytest
import torch
from networks import Custom, Detached, InPlaceResidual, Recurrent, Shared, dense_hessian, images, losses, make
from torch import nn
from torch.func import functional_call, hessian, jacrev

from analysis.operators import GaussNewtonOperator, HessianOperator, products
from landscape.errors import InputError

X, Y = images()


def relative(a, b):
    return float((a - b).norm() / b.norm())


def dense(operator):
    return operator.matmat(torch.eye(operator.size, dtype=operator.dtype))


def dense_gauss_newton(model, x, y, loss=losses):
    """Return (1/n) sum_i J_i' Q_i J_i from explicit Jacobians and loss Hessians."""
    model, total = model.eval(), 0
    parameters = {name: p.detach() for name, p in model.named_parameters() if p.requires_grad}
    for i in range(len(x)):
        z = model(x[i:i + 1]).detach()
        J = jacrev(lambda p: functional_call(model, p, (x[i:i + 1],)).reshape(-1))(parameters)
        J = torch.cat([J[name].reshape(z.numel(), -1) for name in parameters], dim=1)
        Q = hessian(lambda z: loss(z.reshape(1, -1), y[i:i + 1]).sum())(z.reshape(-1))
        total = total + J.T @ Q @ J / len(x)
    return total


def perceptron(*widths):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        layers = [layer for a, b in zip(widths, widths[1:]) for layer in (nn.Linear(a, b), nn.Tanh())]
        return nn.Sequential(nn.Flatten(), *layers[:-1]).double()


def squares(outputs, targets):
    return ((outputs - torch.eye(3, dtype=outputs.dtype)[targets]) ** 2).sum(1)


@pytest.mark.parametrize("loss", [losses, squares], ids=["cross-entropy", "squares"])
@pytest.mark.parametrize("engine", products.EXACT)
def test_every_engine_gives_the_dense_matrix_on_every_one_of_many_calls(engine, loss):
    model = perceptron(16, 4, 3)
    operator = GaussNewtonOperator(model, loss, [(X[:4], Y[:4]), (X[4:], Y[4:])], engine=engine)
    expected = dense_gauss_newton(model, X, Y, loss)
    for _ in range(3):
        assert relative(dense(operator), expected) < 1e-13
    assert operator.engine == engine


@pytest.mark.parametrize("kind", [InPlaceResidual, Shared], ids=lambda kind: kind.__name__)
def test_it_is_positive_semi_definite_where_the_hessian_is_not(kind):
    model = make(kind)
    G = GaussNewtonOperator(model, losses, [(X, Y)], engine="linearized")
    H = HessianOperator(model, losses, [(X, Y)], engine="jvp")
    matrix = dense(G)
    assert relative(matrix, dense_gauss_newton(model, X, Y)) < 1e-12
    assert torch.linalg.eigvalsh(matrix)[0] > -1e-13 * matrix.norm()
    assert torch.linalg.eigvalsh(dense(H))[0] < -1e-3 * matrix.norm()


def test_it_is_the_hessian_of_a_model_that_is_linear_in_its_parameters():
    model = nn.Linear(16, 3).double()
    G, H = (kind(model, losses, [(X.flatten(1), Y)], engine="jvp") for kind in (GaussNewtonOperator, HessianOperator))
    assert relative(dense(G), dense(H)) < 1e-14
    assert float(dense(H - G).norm() / dense(H).norm()) < 1e-14


def test_the_difference_is_the_curvature_of_the_network_weighted_by_the_slope_of_the_loss():
    model = perceptron(16, 3, 3)
    parameters = {name: p.detach() for name, p in model.named_parameters()}
    z = model(X).detach()
    slope = (z.softmax(1) - nn.functional.one_hot(Y, 3)) / len(Y)
    blocks = hessian(lambda p: (functional_call(model, p, (X,)) * slope).sum())(parameters)
    sizes = {name: p.numel() for name, p in parameters.items()}
    expected = torch.cat([torch.cat([blocks[a][b].reshape(sizes[a], sizes[b]) for b in sizes], dim=1) for a in sizes])
    H, G = (kind(model, losses, [(X, Y)], engine="jvp") for kind in (HessianOperator, GaussNewtonOperator))
    assert relative(dense(H - G), expected) < 1e-12


def test_a_scaled_loss_only_rescales():
    model, v = perceptron(16, 4, 3), torch.randn(83, dtype=torch.float64)
    once, small = (GaussNewtonOperator(model, lambda z, t, s=s: s * losses(z, t), [(X, Y)], engine="jvp") @ v
                   for s in (1.0, 2.0 ** -30))
    assert torch.equal(once, small * 2.0 ** 30)


def test_a_mean_loss_counts_every_sample():
    model, v = perceptron(16, 4, 3), torch.randn(83, dtype=torch.float64)
    mean = GaussNewtonOperator(model, lambda z, t: losses(z, t).mean(), [(X[:4], Y[:4]), (X[4:], Y[4:])], engine="jvp")
    assert relative(mean @ v, GaussNewtonOperator(model, losses, [(X, Y)], engine="jvp") @ v) < 1e-13


def test_a_custom_function_is_served_in_reverse_and_confirmed_by_differences():
    model = make(Custom)
    operator = GaussNewtonOperator(model, losses, [(X, Y)])
    assert operator.engine == "reverse" and relative(dense(operator), dense_by_rows(model)) < 1e-13


def dense_by_rows(model):
    """Return the matrix from the rows of J in reverse mode on the module itself, for what torch.func cannot follow."""
    z = model.eval()(X)
    rows = [torch.autograd.grad(entry, list(model.parameters()), retain_graph=True) for entry in z.reshape(-1)]
    J = torch.stack([torch.cat([g.reshape(-1) for g in row]) for row in rows]).reshape(len(X), 3, -1)
    p = z.detach().softmax(1)
    return torch.einsum("nad,nab,nbe->de", J, torch.diag_embed(p) - p[:, :, None] * p[:, None], J) / len(X)


def test_differences_are_near_and_only_taken_when_named():
    model = perceptron(16, 4, 3)
    gap = relative(dense(GaussNewtonOperator(model, losses, [(X, Y)], engine="differences")), dense_gauss_newton(model, X, Y))
    assert 1e-14 < gap < 1e-6


def test_a_wrong_engine_is_caught_by_another(monkeypatch):
    def hessian_instead(objective, theta, traces):
        from analysis.operators.objective import Objective
        return products.jvp(Objective(**vars(objective)), theta, traces)
    monkeypatch.setitem(products.ENGINES, "linearized", hessian_instead)
    operator = GaussNewtonOperator(perceptron(16, 4, 3), losses, [(X, Y)])
    assert operator.engine != "linearized" and "differs from reverse" in operator.reasons["linearized"]


def test_a_detached_factor_is_refused():
    with pytest.raises(InputError, match="gradient is not that of the loss"):
        GaussNewtonOperator(make(Detached), losses, [(X, Y)])


def test_batches_of_another_form_come_through_outputs():
    model = make(Recurrent)
    plain = GaussNewtonOperator(model, losses, [(X, Y)], engine="jvp")
    operator = GaussNewtonOperator(model, lambda z, batch: losses(z, batch["label"]), [{"pixels": X, "label": Y}],
                                   outputs=lambda net, batch: net(batch["pixels"]), engine="jvp")
    v = torch.randn(plain.size, dtype=torch.float64)
    assert torch.equal(operator @ v, plain @ v)


def test_a_forward_without_outputs_is_refused():
    with pytest.raises(InputError, match="outputs=lambda"):
        GaussNewtonOperator(make(Custom), losses, [(X, Y)], forward=lambda net, batch: losses(net(batch[0]), batch[1]))


def test_a_model_that_gives_no_tensor_is_refused():
    class Wrapped(Custom):
        def forward(self, x):
            return {"logits": super().forward(x)}
    with pytest.raises(InputError, match="gives a dict"):
        GaussNewtonOperator(make(Wrapped), lambda z, t: losses(z["logits"], t), [(X, Y)])


def test_the_float64_twin_is_the_matrix_of_the_float32_weights():
    model = perceptron(16, 4, 3).float()
    twin = GaussNewtonOperator(model, losses, [(X.float(), Y)], engine="jvp").double()
    assert relative(dense(twin), dense_gauss_newton(perceptron(16, 4, 3).float().double(), X.float().double(), Y)) < 1e-13


def test_a_block_of_parameters_is_a_block_of_the_matrix():
    model = perceptron(16, 4, 3)
    operator = GaussNewtonOperator(model, losses, [(X, Y)], params="3.*", engine="reverse")
    assert relative(dense(operator), dense_gauss_newton(model, X, Y)[68:, 68:]) < 1e-13


def test_the_hessian_of_the_same_call_is_another_matrix():
    model = perceptron(16, 4, 3)
    assert relative(dense(GaussNewtonOperator(model, losses, [(X, Y)], engine="jvp")), dense_hessian(model, X, Y)) > 1e-2
