"""CUDA graphs without such a device: a stand-in records the operations of a capture and replays them in the same memory."""

import contextlib

import pytest
import torch
from networks import InPlaceResidual, dense_hessian, images, losses, make
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from analysis.operators import graphs, plan
from analysis.operators.hessian import HessianOperator
from analysis.operators.verification import relative_gap
from landscape.errors import InputError

X, Y = images()
BATCHES = [(X[:4], Y[:4]), (X[4:], Y[4:])]


class StandIn(TorchDispatchMode):
    """A graph: every operation of a capture, evaluated again at a replay, with results where they were then."""

    def __init__(self):
        super().__init__()
        self.operations, self.replays = [], 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        results = function(*args, **(kwargs or {}))
        self.operations.append((function, args, kwargs or {}, results))
        return results

    def replay(self):
        self.replays += 1
        for function, args, kwargs, results in self.operations:
            for held, new in zip(tree_leaves(results), tree_leaves(function(*args, **kwargs))):
                if held is not None:
                    held.copy_(new.clone())


class Stream:
    def wait_stream(self, other):
        pass


@pytest.fixture
def device(monkeypatch):
    made = []

    def graph():
        made.append(StandIn())
        return made[-1]
    monkeypatch.setattr(graphs, "supported", lambda device: True)
    monkeypatch.setattr(plan, "supported", lambda device: True)
    monkeypatch.setattr(torch.cuda, "CUDAGraph", graph)
    monkeypatch.setattr(torch.cuda, "graph", lambda graph, stream: graph)
    for name, value in (("Stream", Stream), ("current_stream", Stream), ("stream", lambda stream: contextlib.nullcontext()),
                        ("device", lambda device: contextlib.nullcontext())):
        monkeypatch.setattr(torch.cuda, name, value)
    return made


def test_a_replay_reads_what_it_is_given_and_keeps_no_result_of_the_last(device):
    a, b = torch.tensor([1.0, 2.0]), torch.tensor([3.0, 5.0])
    product = graphs.Graphed(lambda x, y: (x * y).add_(1), [a, b])
    first = product(a, b)
    second = product(2 * a, b)
    assert first.tolist() == [4, 11] and second.tolist() == [7, 21] and a.tolist() == [1, 2]
    assert device[0].replays == 2


@pytest.mark.parametrize("memory", [1e9, 0])
def test_replayed_products_are_those_of_the_dense_hessian_on_every_call(device, memory):
    model = make(InPlaceResidual)
    operator = HessianOperator(model, losses, BATCHES, engine="linearized-graphed", memory=memory)
    identity = torch.eye(operator.size, dtype=torch.float64)
    for _ in range(3):
        assert relative_gap(operator.matmat(identity), dense_hessian(model, X, Y)) < 1e-12
    assert operator.engine == "linearized-graphed" and len(device) == 3 and device[1].replays > 6 * operator.size


def test_a_graph_is_taken_where_it_is_faster_and_left_with_a_reason_where_not(device, monkeypatch):
    speeds = {"linearized": 1.0, "linearized-graphed": 0.2, "reverse": 1.2}
    monkeypatch.setattr(plan, "verify", lambda name, *_: {name: speeds[name], "reverse": speeds["reverse"]})
    faster = HessianOperator(make(InPlaceResidual), losses, BATCHES)
    assert faster.engine == "linearized-graphed" and "to compile" in faster.reasons["linearized-compiled"]
    speeds["linearized-graphed"] = 1.1
    slower = HessianOperator(make(InPlaceResidual), losses, BATCHES)
    assert slower.engine == "linearized" and slower.reasons["linearized-graphed"] == "1.1 times slower"


def test_a_capture_that_fails_is_a_reason_and_is_not_tried_again_for_the_same_traces(device, monkeypatch):
    def refused(graph, stream):
        captures.append(graph)
        raise RuntimeError("operation not permitted when stream is capturing")
    captures, traces = [], {}
    monkeypatch.setattr(torch.cuda, "graph", refused)
    monkeypatch.setattr(plan, "verify", lambda name, *_: {name: 1.0, "reverse": 1.2})
    for _ in range(2):
        operator = HessianOperator(make(InPlaceResidual), losses, BATCHES, traces=traces)
        assert operator.engine == "linearized" and "not permitted" in operator.reasons["linearized-graphed"]
    assert len(captures) == 1


def test_a_graph_that_is_slower_leaves_nothing_in_memory_and_may_still_be_named(device, monkeypatch):
    speeds, traces = {"linearized": 1.0, "linearized-graphed": 1.1, "reverse": 1.2}, {}
    monkeypatch.setattr(plan, "verify", lambda name, *_: {name: speeds[name], "reverse": speeds["reverse"]})

    def captured():
        return sum(isinstance(getattr(split, "tangent", None), graphs.Graphed) for split in traces.values())
    HessianOperator(make(InPlaceResidual), losses, BATCHES, traces=traces)
    assert len(device) == 3 and captured() == 0
    named = HessianOperator(make(InPlaceResidual), losses, BATCHES, traces=traces, engine="linearized-graphed")
    chosen = HessianOperator(make(InPlaceResidual), losses, BATCHES, traces=traces)
    assert (named.engine, chosen.engine) == ("linearized-graphed", "linearized") and captured() == 1 and len(device) == 6
    assert chosen.reasons["linearized-graphed"] == "1.1 times slower"


def test_a_graph_that_another_operator_was_told_to_use_stays_though_it_is_slower(device, monkeypatch):
    speeds, traces = {"linearized": 1.0, "linearized-graphed": 1.1, "reverse": 1.2}, {}
    monkeypatch.setattr(plan, "verify", lambda name, *_: {name: speeds[name], "reverse": speeds["reverse"]})
    HessianOperator(make(InPlaceResidual), losses, BATCHES, traces=traces, engine="linearized-graphed")
    assert HessianOperator(make(InPlaceResidual), losses, BATCHES, traces=traces).engine == "linearized"
    assert len(device) == 3 and any(isinstance(getattr(split, "tangent", None), graphs.Graphed) for split in traces.values())


def test_without_a_cuda_device_a_graph_is_refused_in_one_line():
    with pytest.raises(InputError, match="linearized-graphed: CUDA graphs need a CUDA device, not cpu"):
        HessianOperator(make(InPlaceResidual), losses, BATCHES, engine="linearized-graphed")
