import threading

import numpy as np
import pytest
import torch
from networks import (EXACT, AlwaysDropout, BranchOnBatch, BranchOnSample, Counting, Custom, Detached, FalseCustom,
                      InPlaceResidual, Masked, Narrow, Recurrent, ReentrantlyCheckpointed, StopGradient, dense_hessian,
                      images, losses, make)
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from analysis.operators import HessianOperator, MatrixOperator, products
from analysis.spectra.extremes import extreme_eigenpairs
from landscape.errors import InputError
from landscape.groups import ClassGroups
from landscape.losses import build_loss

X, Y = images()
TRACES = {}     # tests that are not about tracing share their traces, as operators of one architecture and loss do


def relative(a, b):
    return float((a - b).norm() / b.norm())


@pytest.mark.parametrize("kind", EXACT, ids=lambda kind: kind.__name__)
def test_every_network_gets_its_dense_hessian_on_every_one_of_many_calls(kind):
    model = make(kind)
    operator = HessianOperator(model, losses, [(X[:4], Y[:4]), (X[4:], Y[4:])])
    H = dense_hessian(model, X, Y)
    for _ in range(4):      # random vectors lie in the kernel of no difference of matrices
        V = torch.randn(3, operator.size, dtype=torch.float64)
        assert relative(operator.matmat(V), V @ H) < 1e-13
        assert relative(operator @ V[0], H @ V[0]) < 1e-13


@pytest.mark.parametrize("engine", products.EXACT)
def test_engines_agree(engine):
    model = make(InPlaceResidual)
    operator = HessianOperator(model, losses, [(X, Y)], engine=engine, traces=TRACES)
    assert relative(operator.matmat(torch.eye(operator.size, dtype=torch.float64)), dense_hessian(model, X, Y)) < 1e-13


def test_a_loss_with_constants_is_linearized_too():
    model, loss = make(InPlaceResidual), build_loss("LA", [50, 20, 5])
    v = torch.randn(123, dtype=torch.float64)
    operator = HessianOperator(model, loss, [(X, Y)], engine="linearized")
    assert relative(operator @ v, HessianOperator(model, loss, [(X, Y)], engine="reverse") @ v) < 1e-13


def anchored(theta0):
    """Equal to the cross-entropy at theta0, and of another Hessian there."""
    return lambda model, batch: losses(model(batch[0]), batch[1]) + sum(
        5 * (p - p0).square().sum() for p, p0 in zip(model.parameters(), theta0))


def test_operators_that_share_traces_have_each_their_own_loss():
    model, v, traces = make(InPlaceResidual), torch.randn(123, dtype=torch.float64), {}
    plain = HessianOperator(model, losses, [(X, Y)], traces=traces) @ v
    theta0 = [p.detach().clone() for p in model.parameters()]
    pulled = HessianOperator(model, None, [(X, Y)], traces=traces, forward=anchored(theta0))
    assert relative(pulled @ v, plain + 10 * v) < 1e-13
    smoothed = [nn.CrossEntropyLoss(label_smoothing=amount) for amount in (0.1, 0.3)]
    for loss in (build_loss("LA", [50, 20, 5]), *smoothed):
        own = HessianOperator(model, loss, [(X, Y)], engine="reverse") @ v
        assert relative(HessianOperator(model, loss, [(X, Y)], traces=traces) @ v, own) < 1e-13


@pytest.mark.parametrize("loss", [nn.functional.mse_loss, lambda z, t: nn.functional.mse_loss(z, t, reduction="none").mean(1)],
                         ids=["mean", "per sample"])
def test_the_squared_error_has_a_traced_product(loss):
    model, T = make(InPlaceResidual), torch.randn(len(X), 3, dtype=torch.float64)
    operator = HessianOperator(model, loss, [(X, T)], engine="linearized")      # torch's own form ends the process in tracing
    v = torch.randn(operator.size, dtype=torch.float64)
    assert relative(operator @ v, HessianOperator(model, loss, [(X, T)], engine="reverse") @ v) < 1e-13


def test_finite_differences_are_near_and_only_taken_when_named():
    model = make(InPlaceResidual)
    operator = HessianOperator(model, losses, [(X, Y)], engine="differences")
    gap = relative(operator.matmat(torch.eye(operator.size, dtype=torch.float64)), dense_hessian(model, X, Y))
    assert 1e-14 < gap < 1e-6


def test_the_engines_that_failed_are_named_with_their_reason():
    operator = HessianOperator(make(Custom), losses, [(X, Y)])
    assert operator.engine == "reverse"
    assert "setup_context" in operator.reasons["jvp"]


@pytest.mark.parametrize("kind, word", [(StopGradient, "gradient is not that of the loss"),
                                        (Detached, "gradient is not that of the loss"),
                                        (FalseCustom, "gradient is not that of the loss"), (AlwaysDropout, "random"),
                                        (BranchOnBatch, "other samples"), (Counting, "writes into buffer 'calls'"),
                                        (Narrow, "no product in float64.*instead of .float"),
                                        (ReentrantlyCheckpointed, "use_reentrant=False")])
@pytest.mark.filterwarnings("ignore:None of the inputs have requires_grad")
def test_a_network_without_a_hessian_is_refused_in_one_line(kind, word):
    with pytest.raises(InputError, match=word) as refusal:
        HessianOperator(make(kind), losses, [(X, Y)])
    assert "\n" not in str(refusal.value)


def test_a_wrong_engine_is_caught_by_its_second_call(monkeypatch):
    def forgetful(objective, theta, traces):
        calls = []

        def prepare(batch):
            product = products.jvp(objective, theta, traces)(batch)[0]
            return products.Prepared(lambda V: (calls.append(0), product(V) * (1 if len(calls) == 1 else 2))[1])
        return prepare
    monkeypatch.setitem(products.ENGINES, "linearized", forgetful)
    operator = HessianOperator(make(InPlaceResidual), losses, [(X, Y)])
    assert "second call" in operator.reasons["linearized"]


def test_a_symmetric_but_wrong_engine_is_caught_by_another():
    def doubled(objective, theta, traces):
        def prepare(batch):
            product = products.jvp(objective, theta, traces)(batch)[0]
            return products.Prepared(lambda V: 2 * product(V))
        return prepare
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(products.ENGINES, "linearized", doubled)
        operator = HessianOperator(make(InPlaceResidual), losses, [(X, Y)])
    assert "differs from reverse" in operator.reasons["linearized"]


def test_any_split_into_batches_gives_the_same_product():
    model, v = make(InPlaceResidual), torch.randn(123, dtype=torch.float64)
    whole = HessianOperator(model, losses, [(X, Y)], engine="jvp") @ v
    for sizes in ((6, 1), (3, 3, 1), (1,) * 7):
        parts = list(zip(X.split(sizes), Y.split(sizes)))
        assert relative(HessianOperator(model, losses, parts, engine="jvp") @ v, whole) < 1e-13


def test_group_hessians_weighted_by_size_add_up_to_the_hessian():
    model, groups = make(InPlaceResidual), ClassGroups.head_tail([9, 9, 1], eta=5)
    v, total = torch.randn(123, dtype=torch.float64), 0
    for mask in groups.masks(Y).values():
        total = total + int(mask.sum()) / len(Y) * (HessianOperator(model, losses, [(X[mask], Y[mask])], engine="jvp") @ v)
    assert relative(total, HessianOperator(model, losses, [(X, Y)], engine="jvp") @ v) < 1e-13


def test_recomputed_products_equal_kept_ones_bit_by_bit():
    model, v = make(InPlaceResidual), torch.randn(123, dtype=torch.float64)
    batches = list(zip(X.split(3), Y.split(3)))
    kept, anew = (HessianOperator(model, losses, batches, memory=memory, engine="linearized", traces=TRACES)
                  for memory in (1e9, 0))
    assert torch.equal(kept @ v, anew @ v)
    assert kept._products.num_kept == 3 and anew._products.num_kept == 0


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_scaled_loss_only_rescales(dtype):
    model, (x, y) = make(InPlaceResidual, dtype), images(dtype=dtype)
    v = torch.randn(123, dtype=dtype)
    Hv = HessianOperator(model, losses, [(x, y)], engine="jvp") @ v
    small = HessianOperator(model, lambda logits, targets: 2.0 ** -30 * losses(logits, targets), [(x, y)], engine="jvp") @ v
    assert relative(small * 2.0 ** 30, Hv) < 100 * torch.finfo(dtype).eps


def test_least_squares_has_its_closed_form():
    model, y = nn.Linear(16, 1).double(), torch.randn(7, dtype=torch.float64)
    operator = HessianOperator(model, lambda out, target: (out[:, 0] - target) ** 2 / 2, [(X.flatten(1), y)])
    A = torch.cat([X.flatten(1), torch.ones(7, 1, dtype=torch.float64)], dim=1)
    assert relative(operator.matmat(torch.eye(17, dtype=torch.float64)), A.T @ A / 7) < 1e-14


def test_softmax_regression_has_its_closed_form():
    model, inputs = nn.Linear(16, 3, bias=False).double(), X.flatten(1)
    operator = HessianOperator(model, losses, [(inputs, Y)])
    p = model(inputs).softmax(1).detach()
    S = torch.diag_embed(p) - p[:, :, None] * p[:, None, :]
    expected = torch.einsum("nab,ni,nj->aibj", S, inputs, inputs).reshape(48, 48) / 7
    assert relative(operator.matmat(torch.eye(48, dtype=torch.float64)), expected) < 1e-14


def test_analysis_leaves_no_trace_in_the_model():
    model = make(InPlaceResidual)
    model.conv.weight.grad = torch.ones_like(model.conv.weight)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    modes, random = [m.training for m in model.modules()], torch.get_rng_state()
    operator = HessianOperator(model, losses, [(X, Y)], traces=TRACES)
    operator.matvec(torch.ones(operator.size, dtype=torch.float64))
    operator.gradient(), operator.double(), operator.loss()
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert [m.training for m in model.modules()] == modes and torch.equal(torch.get_rng_state(), random)
    assert torch.equal(model.conv.weight.grad, torch.ones_like(model.conv.weight)) and model.head.weight.grad is None


def test_gradient_and_loss_are_those_of_the_mean():
    model = make(InPlaceResidual)
    operator = HessianOperator(model, losses, [(X[:5], Y[:5]), (X[5:], Y[5:])], engine="reverse")
    mean = losses(model.eval()(X), Y).mean()
    expected = torch.cat([g.reshape(-1) for g in torch.autograd.grad(mean, list(model.parameters()))])
    assert relative(operator.gradient(), expected) < 1e-13
    assert operator.loss() == pytest.approx(mean.item(), rel=1e-14)


def test_a_changed_parameter_is_an_error_that_refresh_cures():
    model = make(InPlaceResidual)
    operator = HessianOperator(model, losses, [(X, Y)], engine="jvp")
    with torch.no_grad():
        model.head.weight += 1
    v = torch.randn(123, dtype=torch.float64)
    with pytest.raises(InputError, match="'head.weight' has changed.*refresh"):
        operator @ v
    operator.refresh()
    assert relative(operator @ v, dense_hessian(model, X, Y) @ v) < 1e-13


def test_float64_twin_is_the_dense_hessian_of_the_float32_weights():
    model, (x, y) = make(InPlaceResidual, torch.float32), images(dtype=torch.float32)
    twin = HessianOperator(model, losses, [(x[:4], y[:4]), (x[4:], y[4:])], engine="jvp").double()
    expected = dense_hessian(make(InPlaceResidual, torch.float32).double(), x.double(), y)
    assert relative(twin.matmat(torch.eye(twin.size, dtype=torch.float64)), expected) < 1e-13


def test_dict_batches_come_through_forward():
    model = make(InPlaceResidual)
    operator = HessianOperator(model, None, [{"pixels": X, "label": Y}],
                               forward=lambda net, batch: losses(net(batch["pixels"]), batch["label"]), engine="jvp")
    v = torch.randn(123, dtype=torch.float64)
    assert relative(operator @ v, dense_hessian(model, X, Y) @ v) < 1e-13


def test_a_mean_loss_is_accepted_and_a_weighted_one_refused():
    model, v = make(InPlaceResidual), torch.randn(123, dtype=torch.float64)
    mean = HessianOperator(model, lambda z, t: losses(z, t).mean(), [(X[:4], Y[:4]), (X[4:], Y[4:])], engine="jvp")
    assert relative(mean @ v, dense_hessian(model, X, Y) @ v) < 1e-13
    module = HessianOperator(model, nn.CrossEntropyLoss(), [(X, Y)], engine="jvp")
    assert torch.equal(module @ v, HessianOperator(model, losses, [(X, Y)], engine="jvp") @ v)
    weights = torch.tensor([1.0, 2.0, 3.0], dtype=torch.float64)
    with pytest.raises(InputError, match="reduction='none'"):
        HessianOperator(model, lambda z, t: nn.functional.cross_entropy(z, t, weight=weights), [(X, Y)])


@pytest.mark.parametrize("change, loss", [
    (dict(y=[0, 1, 2, 0, -100, 1, 2]), lambda z, t: nn.functional.cross_entropy(z, t)),
    (dict(y=[0, 1, 2, 0, 1, 2, 0]), lambda z, t: losses(z, t).sum() / 4)], ids=["ignored label", "divisor of another size"])
def test_a_loss_that_is_a_mean_of_one_batch_alone_is_refused(change, loss):
    y = torch.tensor(change["y"])
    HessianOperator(make(InPlaceResidual), lambda z, t: losses(z, t).mean(), [(X[:4], y[:4])], engine="jvp")
    with pytest.raises(InputError, match="reduction='none'"):
        HessianOperator(make(InPlaceResidual), loss, [(X[:4], y[:4]), (X[4:], y[4:])], engine="jvp")


def test_samples_that_see_each_other_in_a_later_batch_are_refused():
    class CentredWhereLarge(Custom):
        def forward(self, x):
            out = torch.tanh(self.head(x.flatten(1)))
            return out - out.mean(0) if x.max() > 50 else out
    later = torch.cat([X[4:6], 100 * X[6:]])
    with pytest.raises(InputError, match="other samples"):
        HessianOperator(make(CentredWhereLarge), losses, [(X[:4], Y[:4]), (later, Y[4:])])


def test_each_sample_may_take_a_way_of_its_own():
    model = make(BranchOnSample)
    operator = HessianOperator(model, losses, list(zip(X.split(1), Y.split(1))), traces={})
    assert operator.engine != "linearized" and "value out of a tracing tensor" in operator.reasons["linearized"]
    V = torch.randn(3, operator.size, dtype=torch.float64)
    assert relative(operator.matmat(V), V @ dense_hessian(model, X, Y)) < 1e-13


@pytest.mark.parametrize("engine", products.EXACT)
@pytest.mark.parametrize("memory", [0, 1e9])
def test_every_engine_multiplies_the_snapshot(engine, memory):
    model, loss, v = make(InPlaceResidual), nn.CrossEntropyLoss(), torch.randn(123, dtype=torch.float64)
    loss.register_buffer("weight", torch.ones(3, dtype=torch.float64))
    operator = HessianOperator(model, loss, [(X, Y)], engine=engine, memory=memory, traces=TRACES)
    expected = dense_hessian(model, X, Y) @ v
    model.norm.running_var *= 2
    loss.weight *= 3
    model.train()
    for _ in range(2):
        assert relative(operator @ v, expected) < 1e-13
    assert operator.loss() == pytest.approx(float(losses(operator._objective.model(X), Y).mean().detach()), rel=1e-14)
    model.norm.running_var /= 2
    loss.weight /= 3
    operator.refresh()
    assert relative(operator @ v, expected) < 1e-13
    with torch.no_grad():
        model.conv.bias += 1e-3
    for action in (operator.matvec, lambda _: operator.gradient()):
        with pytest.raises(InputError, match="'conv.bias' has changed.*refresh"):
            action(v)


@pytest.mark.parametrize("loss, reason", [
    (lambda z, t: losses(z @ torch.eye(3), t), "another dtype"),
    (lambda z, t: losses(z.float(), t), "_to_copy")], ids=["constant", "conversion"])
def test_a_network_without_a_float64_twin_is_served_but_not_verified(loss, reason):
    x, y = images(dtype=torch.float32)
    operator = HessianOperator(make(Masked, torch.float32), loss, [(x, y)], engine="reverse")
    with pytest.raises(InputError, match=f"no product in float64.*{reason}"):
        operator.double()
    pairs = extreme_eigenpairs(operator, 1, generator=torch.Generator().manual_seed(0))
    assert not pairs.verified.any() and np.isnan(pairs.values64).all() and pairs.converged.all()


def test_the_constants_of_a_loss_that_is_a_module_are_widened_with_it():
    (x, y), weights = images(dtype=torch.float32), torch.tensor([1.0, 2.0, 3.0])
    operator = HessianOperator(make(Masked, torch.float32), nn.CrossEntropyLoss(weight=weights, reduction="none"),
                               [(x, y)], engine="jvp")
    v = torch.randn(51)
    assert relative((operator @ v).double(), operator.double() @ v.double()) < 1e-5


def test_a_detached_factor_is_found_in_float32_too():
    class DetachedNarrow(Detached):
        def forward(self, x):
            return super().forward(x).float()
    x, y = images(dtype=torch.float32)
    with pytest.raises(InputError, match="gradient is not that of the loss"):
        HessianOperator(make(DetachedNarrow, torch.float32), losses, [(x, y)])


def test_a_forward_that_uses_another_model_than_the_one_given_is_refused():
    model = make(Masked)
    with pytest.raises(InputError, match="use the model that forward"):
        HessianOperator(model, None, [(X, Y)], forward=lambda _, batch: losses(model(batch[0]), batch[1]))


def test_a_model_that_keeps_a_graph_is_copied_without_it():
    model = make(Masked)
    model.last, model.all = model(X), [{"h": model(X)}]
    operator = HessianOperator(model, losses, [(X, Y)], engine="reverse")
    assert relative(operator.matmat(torch.eye(operator.size, dtype=X.dtype)), dense_hessian(make(Masked), X, Y)) < 1e-13
    assert model.last.requires_grad and model.all[0]["h"].requires_grad


def test_a_model_that_cannot_be_copied_is_refused():
    model = make(Masked)
    model.lock = threading.Lock()
    with pytest.raises(InputError, match="cannot be copied"):
        HessianOperator(model, losses, [(X, Y)])


def test_group_operators_weighted_by_size_are_the_operator_of_all():
    model, options = make(Recurrent), dict(engine="reverse")
    parts = [HessianOperator(model, losses, [(X[mask], Y[mask])], **options) for mask in (Y == 0, Y != 0)]
    total = parts[0].num_samples / 7 * parts[0] + parts[1].num_samples / 7 * parts[1]
    V = torch.randn(2, total.size, dtype=torch.float64)
    assert relative(total.matmat(V), HessianOperator(model, losses, [(X, Y)], **options).matmat(V)) < 1e-13


def test_a_loss_without_curvature_has_a_zero_hessian():
    operator = HessianOperator(nn.Linear(16, 1).double(), lambda z, t: (1 - z[:, 0]).clamp_min(0), [(X.flatten(1), Y)])
    assert torch.equal(operator @ torch.ones(17, dtype=torch.float64), torch.zeros(17, dtype=torch.float64))


def test_every_shape_of_batch_is_checked_against_a_shared_trace():
    model, traces = make(Masked), {}
    once, thrice = (lambda z, t, s=s: nn.functional.cross_entropy(s * z, t) for s in (1, 3))
    HessianOperator(model, once, [(X[:4], Y[:4]), (X[4:], Y[4:])], traces=traces)
    other = HessianOperator(model, thrice, [(X[:5], Y[:5]), (X[4:], Y[4:])], traces=traces)
    alone = HessianOperator(model, thrice, [(X[:5], Y[:5]), (X[4:], Y[4:])], engine="reverse")
    v = torch.randn(51, dtype=torch.float64)
    assert relative(other @ v, alone @ v) < 1e-12


def test_the_operator_keeps_its_own_copy_of_the_data():
    model, x, v = make(InPlaceResidual), X.clone(), torch.randn(123, dtype=torch.float64)
    operator = HessianOperator(model, losses, [(x, Y)], engine="jvp")
    before = operator @ v
    x.mul_(2)
    assert torch.equal(operator @ v, before)


def test_a_data_loader_leaves_the_global_generator_alone():
    random = torch.get_rng_state()
    HessianOperator(make(Custom), losses, DataLoader(TensorDataset(X, Y), batch_size=4))
    assert torch.equal(torch.get_rng_state(), random)


def test_a_later_batch_that_is_not_finite_is_refused():
    with pytest.raises(InputError, match="not finite for 3 of 3"):
        HessianOperator(make(Custom), losses, [(X[:4], Y[:4]), (X[4:] * np.nan, Y[4:])])


@pytest.mark.parametrize("setting", ["medium", "highest"])
def test_the_precision_of_matrix_products_is_restored(setting):
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision(setting)
    try:
        HessianOperator(make(Custom), losses, [(X, Y)])
        assert torch.get_float32_matmul_precision() == setting
    finally:
        torch.set_float32_matmul_precision(before)


def test_data_that_move_are_refused():
    model, data = make(Custom), TensorDataset(X, Y)
    with pytest.raises(InputError, match="can be read once"):
        HessianOperator(model, losses, iter([(X, Y)]))
    with pytest.raises(InputError, match="shuffling"):
        HessianOperator(model, losses, DataLoader(data, batch_size=2, shuffle=True))
    HessianOperator(model, losses, DataLoader(data, batch_size=2))


@pytest.mark.parametrize("change, word", [
    (dict(batches=[]), "empty"), (dict(engine="magic"), "unknown: expected auto, linearized"),
    (dict(params=["nothing"]), "expected some of head.weight"),
    (dict(batches=[{"x": X, "y": Y}]), "a batch is a dict of 2"), (dict(memory=-1), "memory=-1"),
    (dict(loss=None), "loss=None"), (dict(loss=lambda z, t: z), "one value a sample"),
    (dict(loss=lambda z, t: losses(z, t) * np.nan), "not finite for 7 of 7")])
def test_bad_arguments_are_named(change, word):
    arguments = dict(model=make(Custom), loss=losses, batches=[(X, Y)]) | change
    with pytest.raises(InputError, match=word):
        HessianOperator(**arguments)


def test_batch_norm_without_running_statistics_is_refused():
    with pytest.raises(InputError, match="'0' has no running statistics"):
        HessianOperator(nn.Sequential(nn.BatchNorm2d(1, track_running_stats=False), nn.Flatten(), nn.Linear(16, 3)).double(),
                        losses, [(X, Y)])


def test_scipy_sees_the_same_matrix():
    model = make(Custom)
    operator = HessianOperator(model, losses, [(X, Y)]).to_scipy()
    v = np.random.default_rng(0).normal(size=operator.shape[0])
    assert np.allclose(operator @ v, dense_hessian(model, X, Y).numpy() @ v, rtol=1e-12)


def test_an_unsymmetric_matrix_is_refused():
    with pytest.raises(InputError, match="not symmetric"):
        MatrixOperator(torch.tensor([[1.0, 2.0], [0.0, 1.0]]))


def test_the_float64_twin_of_a_large_network_is_traced_too(monkeypatch):
    monkeypatch.setattr(products, "SMALL", 1)
    x, y = images(dtype=torch.float32)
    operator = HessianOperator(make(InPlaceResidual, torch.float32), losses, [(x, y)], microbatch=2, traces=(traces := {}))
    v = torch.randn(operator.size, dtype=torch.float64)
    assert relative(operator.double() @ v, dense_hessian(operator._objective.double().model, x.double(), y) @ v) < 1e-13
    assert any(torch.float64 in key for key in traces if isinstance(key, tuple))


def test_a_float64_twin_whose_trace_is_wrong_is_made_by_another_engine(monkeypatch):
    real = products.trace

    def off(product, theta, *rest):
        def wrong(*inputs):
            found, values = product(*inputs)
            return 1.001 * found, values
        return real(wrong if theta.dtype == torch.float64 else product, theta, *rest)
    monkeypatch.setattr(products, "SMALL", 1)
    monkeypatch.setattr(products, "trace", off)
    x, y = images(dtype=torch.float32)
    operator = HessianOperator(make(InPlaceResidual, torch.float32), losses, [(x, y)], microbatch=2)
    v = torch.randn(operator.size, dtype=torch.float64)
    assert operator.engine == "linearized"
    assert relative(operator.double() @ v, dense_hessian(operator._objective.double().model, x.double(), y) @ v) < 1e-13


def test_the_gradients_rounding_is_its_distance_from_the_one_in_float64():
    model = make(InPlaceResidual)
    twin = HessianOperator(model, losses, [(X[:4], Y[:4]), (X[4:], Y[4:])]).gradient()
    model.float()
    operator = HessianOperator(model, losses, [(X[:4].float(), Y[:4]), (X[4:].float(), Y[4:])])
    # Parameters and images are rounded as well: their exact gradient is that of the rounded ones.
    exact = HessianOperator(model.double(), losses, [(X.float().double(), Y)]).gradient()
    model.float()
    expected = float((operator.gradient().double() - exact).norm())
    assert operator.gradient_error() == pytest.approx(expected, rel=1e-6) and 0 < expected < 1e-5 * float(twin.norm())


@pytest.mark.parametrize("kind, dtype", [(InPlaceResidual, torch.float64), (Narrow, torch.float32)])
def test_a_gradient_without_a_wider_one_has_no_known_rounding(kind, dtype):
    operator = HessianOperator(make(kind).to(dtype), losses, [(X.to(dtype), Y)])
    assert np.isnan(operator.gradient_error())
