import pytest
import torch
from networks import InPlaceResidual, dense_hessian, images, losses, make
from torch import nn

from analysis.operators import plan, products
from analysis.operators.batches import Batch
from analysis.operators.hessian import HessianOperator
from analysis.operators.plan import Kept, Wishes, microbatches
from analysis.operators.prepared import Prepared
from analysis.operators.verification import relative_gap
from landscape.errors import InputError

X, Y = images()


def batch_of(size):
    return Batch.of((torch.arange(size, dtype=torch.float64), torch.zeros(size)), torch.device("cpu"), torch.float64)


FULL = [torch.OutOfMemoryError("injected"), RuntimeError("DefaultCPUAllocator: can't allocate memory: injected")]


def scarce(limit, held=10, error=FULL[0]):
    """Return a `prepare` for the matrix (sum of inputs) I that has memory for `limit` samples at once."""
    def prepare(batch):
        if len(batch) > limit:
            raise error
        return Prepared(lambda V: (batch.tensors[0] * (batch.weights > 0)).sum() * V, held)
    return prepare


@pytest.mark.parametrize("size, limit, sizes", [(10, 4, [4, 4, 4]), (9, 3, [3, 3, 3]), (7, 100, [7]), (128, 64, [64, 64])])
def test_microbatches_are_of_one_size_at_most_the_limit_and_weigh_every_sample_once(size, limit, sizes):
    pieces = microbatches([batch_of(size)], limit, torch.zeros(3))
    assert [len(piece) for piece in pieces] == sizes
    assert sum(float(piece.weights.sum()) for piece in pieces) == size
    assert torch.cat([piece.tensors[0][:piece.num_samples] for piece in pieces]).tolist() == list(range(size))


def test_batches_of_a_small_network_stay_whole_and_those_of_a_large_one_fit_the_cache():
    assert [len(b) for b in microbatches([batch_of(500)], "auto", torch.zeros(10))] == [500]
    assert max(len(b) for b in microbatches([batch_of(500)], "auto", torch.zeros(products.SMALL))) <= plan.SAMPLES["cpu"]


@pytest.mark.parametrize("error", FULL, ids=["cuda", "cpu"])
@pytest.mark.parametrize("limit, samples", [(16, 16), (15, 8), (4, 4), (1, 1)])
def test_an_allocation_failure_halves_the_microbatches_and_goes_on(limit, samples, error):
    kept = Kept(scarce(limit, error=error), [batch_of(16)], budget=1e9)
    assert torch.equal(kept.matmat(torch.ones(1, 2)), torch.full((1, 2), 120.0))
    assert kept.microbatch == samples and (samples == 16 or f"{samples} samples" in kept.notes[-1])


def test_what_is_kept_is_let_go_before_microbatches_are_halved():
    calls = []

    def prepare(batch):
        def product(V):
            calls.append(len(calls))
            if len(calls) == 4:
                raise torch.OutOfMemoryError("injected")
            return float(batch.weights.sum()) * V
        return Prepared(product, 10)
    kept = Kept(prepare, [batch_of(2) for _ in range(4)], budget=1e9)
    assert kept.matmat(torch.ones(1, 1)).tolist() == [[8.0]]
    assert kept.num_kept == 2 and kept.bytes == 20 and kept.notes == ["memory ran out: 2 of 4 microbatches stay in memory"]
    assert kept.matmat(torch.ones(1, 1)).tolist() == [[8.0]] and kept.num_kept == 2


def test_a_single_sample_that_does_not_fit_is_refused():
    with pytest.raises(InputError, match="memory is too small"):
        Kept(scarce(0), [batch_of(4)], budget=0).matmat(torch.ones(1, 2))


@pytest.mark.parametrize("error", FULL, ids=["cuda", "cpu"])
def test_memory_that_runs_out_at_construction_halves_too(monkeypatch, error):
    def engine(objective, theta, traces):
        def prepare(batch):
            if len(batch) > 2:
                raise error
            return products.jvp(objective, theta, traces)(batch)
        return prepare
    monkeypatch.setitem(products.ENGINES, "linearized", engine)
    model = make(InPlaceResidual)
    operator = HessianOperator(model, losses, [(X, Y)], engine="linearized")
    assert operator.choice == {"engine": "linearized", "microbatch": 2}
    assert relative_gap(operator.matmat(torch.eye(operator.size, dtype=torch.float64)), dense_hessian(model, X, Y)) < 1e-13


def test_the_choice_says_why_and_gives_the_same_bits_when_passed_back():
    model, v = make(InPlaceResidual), torch.randn(123, dtype=torch.float64)
    operator = HessianOperator(model, losses, [(X, Y)], microbatch=3)
    assert operator.choice == {"engine": "linearized", "microbatch": 3}
    assert "times" in operator.reasons["reverse"] and "to compile" in operator.reasons["linearized-compiled"]
    assert torch.equal(operator @ v, HessianOperator(model, losses, [(X, Y)], **operator.choice) @ v)


def test_an_engine_measured_to_be_slower_gives_way(monkeypatch):
    monkeypatch.setattr(plan, "verify", lambda name, *rest: {name: 1.0} if name == "reverse" else {name: 3.0, "reverse": 1.0})
    operator = HessianOperator(make(InPlaceResidual), losses, [(X, Y)])
    assert operator.engine == "reverse" and operator.reasons["linearized"] == "3.0 times slower than reverse"


@pytest.mark.parametrize("own, other", [(0.009, 0.001), (3.0, 2.1)])
def test_timing_overrules_the_order_only_where_it_is_clear_and_matters(monkeypatch, own, other):
    monkeypatch.setattr(plan, "verify", lambda name, *rest: {name: own, "reverse": other})
    operator = HessianOperator(make(InPlaceResidual), losses, [(X, Y)])
    assert operator.engine == "linearized" and "not clearly faster" in operator.reasons["reverse"]


def test_a_network_that_branches_on_its_data_is_not_served_by_one_trace():
    class Branching(nn.Module):
        def __init__(self):
            super().__init__()
            self.head = nn.Linear(16, 3)

        def forward(self, x):
            z = self.head(x.flatten(1))
            return torch.tanh(z) if float(x[0, 0, 0, 0]) > 0 else z
    model = make(Branching)
    x = X.clone()
    x[:, 0, 0, 0] = torch.tensor([1.0, 1, 1, -1, -1, -1, -1], dtype=x.dtype)
    with pytest.raises(InputError, match="other samples|another function"):
        HessianOperator(model, losses, [(x, Y)])
    parts = [(x[:3], Y[:3]), (x[3:6], Y[3:6])]
    operator = HessianOperator(model, losses, parts)
    assert operator.engine != "linearized" and operator.reasons["linearized"]


@pytest.mark.parametrize("wish, word", [({"engine": "magic"}, "engine='magic'"), ({"microbatch": 0}, "microbatch=0"),
                                        ({"microbatch": 1.5}, "microbatch=1.5"), ({"memory": -1}, "memory=-1"),
                                        ({"memory": "much"}, "memory='much'")])
def test_wishes_out_of_range_are_named(wish, word):
    with pytest.raises(InputError, match=word):
        Wishes(**wish)


@pytest.fixture
def compiling(monkeypatch):
    """Replace the compiler by a list of what it compiled, and every measured time by one of a table."""
    seconds, found = {"linearized": 1.0, "linearized-compiled": 0.5, "reverse": 1.2}, []
    monkeypatch.setitem(products.FINISHES, products.COMPILED, lambda split, *_: found.append(split) or split)
    monkeypatch.setattr(plan, "verify", lambda name, *_: {name: seconds[name], "reverse": seconds["reverse"]})
    return found, seconds


def test_a_second_operator_of_the_same_traces_chooses_by_the_first_ones_times_and_says_why(compiling):
    compiled, _ = compiling
    traces, model = {}, make(InPlaceResidual)
    one = HessianOperator(model, losses, [(X, Y)], traces=traces)
    assert one.engine == "linearized" and set(one.reasons) == {"reverse", "linearized-compiled"} and not compiled
    two = HessianOperator(model, losses, [(X, Y)], traces=traces)
    assert (two.engine, two.reasons, two.seconds) == (one.engine, one.reasons, one.seconds)
    many = HessianOperator(model, losses, [(X, Y)], traces=traces, expected_matvecs=10**6)
    assert many.engine == "linearized-compiled" and len(compiled) == 1


def test_what_is_compiled_costs_later_operators_nothing_and_other_shapes_are_charged_for(compiling):
    compiled, _ = compiling
    traces, model = {}, make(InPlaceResidual)
    HessianOperator(model, losses, [(X, Y)], traces=traces, expected_matvecs=10**6)
    assert HessianOperator(model, losses, [(X, Y)], traces=traces).engine == "linearized-compiled"
    other = HessianOperator(model, losses, [(X[:3], Y[:3])], traces=traces, expected_matvecs=1)
    assert other.engine == "linearized" and "to compile" in other.reasons["linearized-compiled"] and len(compiled) == 1


def test_what_was_compiled_and_slower_is_let_go_and_not_compiled_again(compiling):
    compiled, seconds = compiling
    seconds["linearized-compiled"] = 1.5
    traces, model = {}, make(InPlaceResidual)
    for _ in range(2):
        operator = HessianOperator(model, losses, [(X, Y)], traces=traces, expected_matvecs=10**6)
        assert operator.engine == "linearized" and operator.reasons["linearized-compiled"] == "1.5 times slower"
    assert compiled == compiled[:1] and compiled[0] in traces.values()      # the trace itself stays
    assert sum(value is compiled[0] for value in traces.values()) == 1


def test_one_engine_at_a_time_keeps_microbatches(compiling, monkeypatch):
    alive, most = set(), []

    class Watched(Kept):
        def __init__(self, *args):
            super().__init__(*args)
            alive.add(self)

        def prepared(self, place):
            found = super().prepared(place)
            most.append(sum(kept.num_kept > 0 for kept in alive))
            return found
    monkeypatch.setattr(plan, "Kept", Watched)
    monkeypatch.setattr(plan, "budget", lambda memory, device: most.append(0) or 1e9)
    operator = HessianOperator(make(InPlaceResidual), losses, [(X[:4], Y[:4]), (X[4:], Y[4:])], expected_matvecs=10**6)
    assert operator.engine == "linearized-compiled" and len(alive) == 2
    assert max(most) == 1 and most.count(0) == 1        # the free memory is asked for once


@pytest.mark.parametrize("error", FULL, ids=["cuda", "cpu"])
def test_memory_that_runs_out_under_a_faster_engine_leaves_the_first_and_its_microbatches(compiling, monkeypatch, error):
    def failing(split, *_):
        raise error
    monkeypatch.setitem(products.FINISHES, products.COMPILED, failing)
    model = make(InPlaceResidual)
    operator = HessianOperator(model, losses, [(X, Y)], expected_matvecs=10**6)
    assert operator.choice == {"engine": "linearized", "microbatch": len(X)}
    assert operator.reasons["linearized-compiled"] == "memory ran out"
    assert relative_gap(operator.matmat(torch.eye(operator.size, dtype=torch.float64)), dense_hessian(model, X, Y)) < 1e-13


def test_microbatches_that_are_let_go_are_prepared_again(monkeypatch):
    operator, v = HessianOperator(make(InPlaceResidual), losses, [(X, Y)], engine="linearized"), torch.ones(123).double()
    first = operator @ v
    assert operator.held_bytes > 0
    operator.release()
    assert operator.held_bytes == 0 and torch.equal(operator @ v, first) and operator.held_bytes > 0


def test_memory_that_ran_out_is_among_the_reasons_at_construction_and_in_a_product(monkeypatch):
    limit = [4]

    def engine(objective, theta, traces):
        def prepare(batch):
            def product(V):
                if len(batch) > limit[0]:
                    raise torch.OutOfMemoryError("injected")
                return inner(V)
            inner = products.jvp(objective, theta, traces)(batch).product
            return Prepared(product)
        return prepare
    monkeypatch.setitem(products.ENGINES, "linearized", engine)
    operator = HessianOperator(make(InPlaceResidual), losses, [(X, Y)], engine="linearized")
    first = "memory ran out: 4 samples are evaluated at once"
    assert operator.reasons == {"all in memory": first}
    limit[0] = 2
    operator.matmat(torch.ones(1, operator.size, dtype=torch.float64))
    assert operator.reasons == {"all in memory": f"{first}; memory ran out: 2 samples are evaluated at once"}
