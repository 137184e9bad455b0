"""A traced product in stages: each is evaluated as often as what it depends on changes, and the last is linear."""

import gc
import weakref

import pytest
import torch
from networks import Attention, InPlaceResidual, Masked, Shared, VisionTransformer, dense_hessian, images, losses, make
from torch import nn
from torch.func import functionalize
from torch.fx.experimental.proxy_tensor import make_fx

from analysis.operators import HessianOperator, products
from analysis.operators.prepared import Prepared, summed
from analysis.operators.products import EngineError
from analysis.operators.stages import TracingError, cut
from analysis.operators.verification import probe_vectors, refuse_false_sum, relative_gap

X, Y = images(8)
aten = torch.ops.aten
STAGES = ("setting", "primal", "before", "tangent", "after")


def prepared(kind, count=2, **options):
    """Return an operator and its prepared microbatches."""
    operator = HessianOperator(make(kind), losses, list(zip(X.chunk(count), Y.chunk(count))), engine="linearized", **options)
    return operator, list(operator._products)


@pytest.mark.parametrize("kind", [InPlaceResidual, Attention, VisionTransformer, Shared, Masked], ids=lambda kind: kind.__name__)
def test_the_last_stage_is_linear_in_the_shares_of_microbatches(kind):
    operator, (one, other) = prepared(kind)
    V = torch.randn(1, operator.size, dtype=torch.float64)
    begun = one.shared.begin(V)
    (a,), (b,) = (one.shared.share(begun, each.residuals) for each in (one, other))
    together = one.shared.end(begun, [[x - 3 * y for x, y in zip(a, b)]])
    apart = one.shared.end(begun, [a]) - 3 * one.shared.end(begun, [b])
    assert relative_gap(together, apart) < 1e-13 and together.norm() > 0
    assert not one.shared.end(begun, [[torch.zeros_like(x) for x in a]]).any()


@pytest.mark.parametrize("num_vectors", [1, 3])
def test_what_microbatches_have_in_common_is_evaluated_once_a_product(num_vectors, monkeypatch):
    operator, microbatches = prepared(Attention, 4)
    calls = {name: 0 for name in STAGES}
    stages = microbatches[0].shared.stages

    def counted(name):
        function = getattr(stages, name)

        def call(*inputs):
            calls[name] += 1
            return function(*inputs)
        return call
    for name, function in {name: counted(name) for name in STAGES}.items():
        object.__setattr__(stages, name, function)
    V = torch.randn(num_vectors, operator.size, dtype=torch.float64)
    expected = sum(each.product(V) for each in microbatches)
    calls.update(dict.fromkeys(STAGES, 0))
    assert relative_gap(operator.matmat(V), expected) < 1e-13
    assert calls == {"setting": 0, "primal": 0, "before": 1, "tangent": 4, "after": 1}      # several vectors are one block


def test_microbatches_of_several_shapes_and_untraced_ones_are_added_up():
    operator, microbatches = prepared(InPlaceResidual, 1, microbatch=3)
    other, pieces = prepared(InPlaceResidual, 2)
    V = torch.randn(2, operator.size, dtype=torch.float64)
    plain = Prepared(lambda V: 2 * V)
    mixed = [*microbatches, plain, *pieces]
    assert len({each.shared for each in mixed}) == 3
    assert relative_gap(summed(mixed, V), operator.matmat(V) + 2 * V + other.matmat(V)) < 1e-13


def test_no_share_is_written_into_what_is_kept():
    operator, microbatches = prepared(InPlaceResidual, 4)
    before = [[x.clone() for x in each.residuals] for each in microbatches]
    operator.matmat(torch.randn(3, operator.size, dtype=torch.float64))
    assert all(torch.equal(x, y) for each, kept in zip(microbatches, before) for x, y in zip(each.residuals, kept))


def operations(stage):
    return [node for node in stage.graph.nodes if node.op == "call_function"]


def test_passes_over_images_hold_no_arithmetic_on_kernels():
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(3, 4, 3, padding=1, bias=False), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 4, 3, padding=1),
                        nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(4 * 64, 3)).eval()
    traces = {}
    HessianOperator(net, losses, [(torch.randn(6, 3, 8, 8), Y[:6])], engine="linearized", traces=traces)
    stages = next(each for each in traces.values() if hasattr(each, "tangent"))
    images_seen = {node for node in operations(stages.tangent)
                   if any(tuple(size)[:1] == (6,) for size in _shapes(node)) or _reduces_images(node)}
    rest = {node.target for node in operations(stages.tangent)} - {node.target for node in images_seen}
    assert aten.mul.Tensor not in rest and aten.sum.dim_IntList not in rest
    assert len(operations(stages.before)) + len(operations(stages.after)) > len(operations(stages.tangent))


def _shapes(node):
    value = node.meta.get("val")
    return [value.shape] if isinstance(value, torch.Tensor) else []


def _reduces_images(node):
    return any(tuple(size)[:1] == (6,) for source in node.all_input_nodes for size in _shapes(source))


def cut_of(function, count=1, size=4):
    given = [torch.randn(*shape, dtype=torch.float64) for shape in ((size,), (size,), (6, size))]
    return cut(make_fx(functionalize(function), tracing_mode="fake")(*given), count), given


def total(stages, theta, v, *samples):
    """Return the product over microbatches as stages: the sum of their shares goes through the last one."""
    setting = stages.set_up(theta, ())
    carried, kept = stages.before(v, *setting.before)
    shares = [stages.tangent(*carried, *setting.tangent, *stages.primal(x, *setting.primal)[:-1]) for x in samples]
    return stages.after(*map(sum, zip(*shares)), *kept, *setting.after)


@pytest.mark.parametrize("last, moved", [
    (lambda s, theta, v: s * theta, True), (lambda s, theta, v: s / theta, True), (lambda s, theta, v: (s * v).neg(), True),
    (lambda s, theta, v: s + 2 * s, True), (lambda s, theta, v: torch.add(s, s * theta, alpha=3), True),
    (lambda s, theta, v: torch.cat([s, 2 * s]), True), (lambda s, theta, v: theta / s, False),
    (lambda s, theta, v: s * s, False), (lambda s, theta, v: s + v, False), (lambda s, theta, v: s.abs(), False),
    (lambda s, theta, v: torch.cat([s, v]), False), (lambda s, theta, v: s.long() * v, False)])
def test_only_what_is_linear_moves_behind_the_sum(last, moved):
    stages, (theta, v, x) = cut_of(lambda theta, v, x: (last((x * v).sum(0), theta, v), x.sum(1)))
    other = torch.randn_like(x)
    assert torch.allclose(total(stages, theta, v, x), last((x * v).sum(0), theta, v), rtol=1e-13)
    assert bool(operations(stages.after)) == moved
    if moved:
        both = last((x * v).sum(0), theta, v) + last((other * v).sum(0), theta, v)
        assert torch.allclose(total(stages, theta, v, x, other), both, rtol=1e-13)


def test_sums_over_images_are_not_moved_where_images_would_be_added_up_instead():
    size = 10_000
    stages, (theta, v, x) = cut_of(lambda theta, v, x: (theta * ((x * v) * 2).sum(0), x.sum(1)), size=size)
    shares = next(node for node in stages.tangent.graph.nodes if node.op == "output").args[0]
    assert [node.meta["val"].numel() for node in shares] == [size] and aten.sum.dim_IntList in {
        node.target for node in operations(stages.tangent)}
    assert torch.allclose(total(stages, theta, v, x), theta * (x * v * 2).sum(0))


def test_a_parameter_that_the_loss_does_not_reach_keeps_nothing_from_the_last_stage():
    torch.manual_seed(0)
    traces, net = {}, nn.Sequential(nn.Flatten(), nn.Linear(16, 4), nn.Tanh(), nn.Linear(4, 3))
    net.unused = nn.Linear(2, 2)
    operator = HessianOperator(net, None, [X.float(), X.float()], engine="linearized", traces=traces,
                               forward=lambda net, x: net[3](net[2](net[1](net[0](x)))).square().sum(1))
    stages = next(each for each in traces.values() if hasattr(each, "tangent"))
    assert aten.cat.default in {node.target for node in operations(stages.after)}
    assert not operator.matvec(torch.ones(operator.size))[-6:].any()


@pytest.mark.parametrize("block", [True, False])
def test_where_passes_over_images_take_nothing_of_the_vectors_blocks_are_right_too(block):
    p = nn.Parameter(torch.randn(5, dtype=torch.float64))
    model = nn.Module()
    model.p = p
    data = [torch.randn(3, 5, dtype=torch.float64), torch.randn(3, 5, dtype=torch.float64)]
    operator = HessianOperator(model, None, data, forward=lambda m, x: (x * m.p ** 2).sum(1))
    V = torch.randn(4 if block else 1, 5, dtype=torch.float64)
    assert torch.allclose(operator.matmat(V), V * 2 * torch.cat(data).mean(0))


def test_a_false_last_stage_is_refused_though_one_microbatch_is_right():
    operator, (one, _) = prepared(InPlaceResidual)
    values = one.product(probe_vectors(operator.theta))
    refuse_false_sum(one, values, operator.theta, 1e-12)
    right = one.shared.stages.after
    for after in (lambda *given: right(*given) + 1e-3, lambda *given: right(*(x * x.abs().mean() for x in given))):
        object.__setattr__(one.shared.stages, "after", after)
        with pytest.raises(EngineError, match="sum over two equal microbatches"):
            refuse_false_sum(one, one.product(probe_vectors(operator.theta)), operator.theta, 1e-12)


@pytest.mark.parametrize("failures, left", [(1, "2 of 4 microbatches stay"), (4, "1 samples are evaluated at once")])
def test_memory_that_runs_out_in_the_middle_of_a_sum_begins_it_again(failures, left):
    operator, microbatches = prepared(InPlaceResidual, 4)
    stages, calls = microbatches[0].shared.stages, []
    tangent, V = stages.tangent, torch.randn(1, operator.size, dtype=torch.float64)
    expected = operator.matmat(V)

    def failing(*inputs):
        calls.append(0)
        if len(calls) <= 3 * failures and len(calls) % 3 == 0:
            raise torch.OutOfMemoryError("out of memory")
        return tangent(*inputs)
    object.__setattr__(stages, "tangent", failing)
    assert relative_gap(operator.matmat(V), expected) < 1e-13
    assert left in operator.reasons["all in memory"]


def test_without_memory_one_microbatch_at_a_time_is_held():
    class Watched(torch.Tensor):
        pass
    held, most = set(), []
    operator, _ = prepared(InPlaceResidual, 4, memory=0)
    primal = operator._products.prepared(0).shared.stages.primal

    def watched(*inputs):
        *residuals, losses = primal(*inputs)
        token = torch.zeros(1).as_subclass(Watched)
        held.add(number := len(most))
        weakref.finalize(token, held.discard, number)
        most.append(len(held))
        residuals[0] = residuals[0].as_subclass(Watched)
        residuals[0].token = token
        return [*residuals, losses]
    object.__setattr__(operator._products.prepared(0).shared.stages, "primal", watched)
    gc.collect()
    gc.disable()
    try:
        operator.matvec(torch.ones(operator.size, dtype=torch.float64))
    finally:
        gc.enable()
    assert most == [1] * 4 and not held


def test_a_product_that_does_not_depend_on_the_vector_is_refused():
    with pytest.raises(TracingError, match="linear in the parameters"):
        cut_of(lambda theta, v, x: (x.sum(0) * theta, x.sum(1)))


@pytest.mark.parametrize("held, calls", [(1 << 20, 1), (0, 3)])
def test_vectors_are_one_block_where_a_microbatch_keeps_little(held, calls, monkeypatch):
    monkeypatch.setitem(products.BLOCKED, "cpu", held)
    operator = HessianOperator(make(Masked), losses, [(X, Y)], engine="linearized")
    V = torch.randn(3, operator.size, dtype=torch.float64)
    shared = operator._products.prepared(0).shared
    assert len(shared.begin(V).rows) == calls
    assert relative_gap(operator.matmat(V), V @ dense_hessian(make(Masked), X, Y)) < 1e-13
