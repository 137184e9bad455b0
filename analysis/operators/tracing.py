"""Trace a product once and split it: what depends on the vector v, and what does not.

`torch.func.linearize` as it comes keeps constants that in-place operations then overwrite, so that it is wrong from its
second call on for many networks (pytorch/pytorch#107538). Here the whole product jvp(grad f)(theta; v) is traced as a
function of *all* its tensors, functionalised (no operation writes into a tensor), simplified, and cut in two graphs:

    primal(theta, tensors) -> residuals, losses  evaluated once for a microbatch, if memory allows
    tangent(v, residuals)  -> Hv                 linear in v, evaluated for every product

No input is folded into either graph, so one trace serves every microbatch of the same shapes. Constants of the code, the
margins of a loss for one, are copied into the graph; a graph that writes is refused.
"""

import copy
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace

import torch
from torch import Tensor, fx
from torch._guards import TracingContext, tracing
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.func import functionalize
from torch.fx.experimental.proxy_tensor import make_fx

from analysis.operators.convolutions import reroute

aten, prims = torch.ops.aten, torch.ops.prims
IDENTITIES = {aten.alias.default, aten.detach.default, aten.lift_fresh_copy.default}
CHECKS = {aten.is_same_size.default, aten._has_same_storage_numel.default}
PLAIN = {prims.add.default: aten.add.Tensor, prims.sub.default: aten.sub.Tensor, prims.mul.default: aten.mul.Tensor,
         prims.div.default: aten.div.Tensor,
         aten.view.default: aten.reshape.default}       # a reshape also serves a batch of vectors laid out otherwise
LINEAR = {aten.mul.Tensor, aten.mul.Scalar, aten.div.Tensor, aten.div.Scalar, aten.neg.default}   # zero in, zero out
ZEROS = {aten._efficientzerotensor.default, aten.zeros_like.default, aten.zeros.default}


class TracingError(RuntimeError):
    """The product cannot be traced into a pure function; the text says why."""


@dataclass(frozen=True, eq=False)
class Split:
    """A traced product, cut at what does not depend on v."""

    primal: Callable[..., list[Tensor]]     # (theta, *tensors) -> residuals, and the losses last
    tangent: Callable[..., Tensor]          # (v, *residuals) -> Hv
    num_nodes: int = 0                      # of the tangent


def trace_split(product: Callable[..., tuple[Tensor, Tensor]], theta: Tensor, v: Tensor, tensors: Sequence[Tensor]) -> Split:
    """Trace product(theta, v, *tensors) -> (Hv, losses), Hv linear in v, and split it. Raises TracingError with the reason."""
    try:
        with _one_fake_mode():
            traced = make_fx(functionalize(product))(theta, v, *tensors)
    except Exception as reason:       # whatever defeats tracing is a reason to use another engine, shown to the user
        raise TracingError(f"{type(reason).__name__}: {_first_line(reason)}") from reason
    _own_constants(traced)
    simplify(traced.graph)
    _refuse_impure(traced.graph)
    reroute(traced.graph)
    return _split(traced)


@contextmanager
def _one_fake_mode() -> Iterator[None]:
    """Let make_fx describe every node's value in one mode; left alone it builds a mode a node, a third of the time."""
    with tracing(TracingContext(FakeTensorMode(allow_fallback_kernels=True))):
        yield


def _own_constants(traced: fx.GraphModule) -> None:
    """Give the graph copies of the tensors that the code holds: they may be overwritten later, a snapshot may not."""
    for name in {node.target for node in traced.graph.nodes if node.op == "get_attr"}:
        if isinstance(value := getattr(traced, name), Tensor):
            setattr(traced, name, value.clone())


def simplify(graph: fx.Graph) -> None:
    """Remove what costs time and changes nothing: copies onto themselves, added zeros, repeated and unused nodes."""
    for node in list(graph.nodes):
        if node.target in CHECKS:
            graph.erase_node(node)
        elif node.target in PLAIN:
            node.target = PLAIN[node.target]
    zeros: set[fx.Node] = set()
    for node in list(graph.nodes):
        same = _same_as(node, zeros)
        if same is not None:
            node.replace_all_uses_with(same)
        elif _is_zero(node, zeros):
            zeros.add(node)
    _merge_repeated(graph)
    graph.eliminate_dead_code()


def _same_as(node: fx.Node, zeros: set[fx.Node]) -> fx.Node | None:
    """Return the node whose value this node repeats, if it does."""
    if node.target in IDENTITIES or (node.target is aten._to_copy.default and _like(node, node.args[0])):
        return node.args[0]
    if node.target is aten.expand.default and _like(node, node.args[0]):
        return node.args[0]
    if node.target is aten.copy.default and _holds_the_same(node, node.args[1]):
        return node.args[1]
    if node.target is aten.add.Tensor and not node.kwargs:
        for zero, other in (node.args, node.args[::-1]):
            if zero in zeros and isinstance(other, fx.Node) and _like(node, other):
                return other
    return None


def _is_zero(node: fx.Node, zeros: set[fx.Node]) -> bool:
    if node.target in ZEROS:
        return True
    first = node.args[0] if node.args else None
    shaped = {aten.reshape.default, aten.expand.default, aten.t.default, aten._to_copy.default}
    if node.target in LINEAR:
        return first in zeros or (node.target is aten.mul.Tensor and node.args[1] in zeros)
    return node.target in shaped and first in zeros


def _like(a: fx.Node, b: fx.Node) -> bool:
    """Tell whether two nodes hold tensors of one shape, dtype, device and memory layout."""
    a, b = a.meta.get("val"), b.meta.get("val")
    if not (isinstance(a, Tensor) and isinstance(b, Tensor)):
        return False
    return (a.shape, a.dtype, a.device, a.stride()) == (b.shape, b.dtype, b.device, b.stride())


def _holds_the_same(copy: fx.Node, source: fx.Node) -> bool:
    """Tell whether a copy has its source's values and nobody looks at how it lies in memory; vmap has no rule for a copy."""
    a, b = copy.meta.get("val"), source.meta.get("val")
    if not (isinstance(a, Tensor) and isinstance(b, Tensor)) or (a.shape, a.dtype, a.device) != (b.shape, b.dtype, b.device):
        return False
    return _like(copy, source) or not any("as_strided" in str(user.target) for user in copy.users)


def _merge_repeated(graph: fx.Graph) -> None:
    """Let nodes that compute the same thing from the same inputs be one (common subexpressions)."""
    seen: dict[tuple, fx.Node] = {}
    for node in list(graph.nodes):
        if node.op != "call_function":
            continue
        key = (node.target, repr(node.args), repr(node.kwargs))
        first = seen.setdefault(key, node)
        if first is not node:
            node.replace_all_uses_with(first)


def _refuse_impure(graph: fx.Graph) -> None:
    for node in graph.nodes:
        schema = getattr(node.target, "_schema", None)
        if schema is not None and schema.is_mutable:
            raise TracingError(f"{node.target} writes into a tensor")
        if torch.Tag.nondeterministic_seeded in getattr(node.target, "tags", ()):
            raise TracingError(f"{node.target} draws random numbers")


def _split(traced: fx.GraphModule) -> Split:
    graph = traced.graph
    theta, v, *tensors = (node for node in graph.nodes if node.op == "placeholder")
    dependent = _dependent_on(graph, v)
    primal, tangent = fx.Graph(), fx.Graph()
    inside = {node: primal.placeholder(f"x{i}") for i, node in enumerate([theta, *tensors])}
    for node in graph.nodes:
        if node not in dependent and node.op in ("call_function", "get_attr"):
            inside[node] = primal.node_copy(node, inside.__getitem__)
    result, losses = next(node for node in graph.nodes if node.op == "output").args[0]
    boundary = [node for node in inside if any(user in dependent for user in node.users)]
    primal.output([inside[node] for node in (*boundary, losses)])
    outside = {v: tangent.placeholder("v")} | {node: tangent.placeholder(f"c{i}") for i, node in enumerate(boundary)}
    for node in graph.nodes:
        if node in dependent and node.op == "call_function":
            outside[node] = tangent.node_copy(node, outside.__getitem__)
    if result not in outside:
        raise TracingError("the product does not depend on v: the loss is linear in the parameters")
    tangent.output(outside[result])
    for part in (primal, tangent):
        part.eliminate_dead_code()
    return Split(fx.GraphModule(traced, primal), fx.GraphModule(torch.nn.Module(), tangent), len(tangent.nodes))


def _dependent_on(graph: fx.Graph, v: fx.Node) -> set[fx.Node]:
    """Return the nodes whose values depend on v."""
    dependent = {v}
    for node in graph.nodes:
        if any(source in dependent for source in node.all_input_nodes):
            dependent.add(node)
    return dependent


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or ["no message"])[0]


def compiled(split: Split, theta: Tensor, v: Tensor, tensors: Sequence[Tensor]) -> Split:
    """Compile the part that every product evaluates, constants being inputs. Raises TracingError where TorchInductor cannot."""
    with torch.no_grad():
        *residuals, _ = split.primal(theta, *tensors)
        return replace(split, tangent=_compiled(split.tangent, [v, *residuals]))


def _compiled(graph: fx.GraphModule, inputs: list[Tensor]) -> Callable:
    from torch._inductor import compile
    try:
        function = compile(copy.deepcopy(graph), inputs)        # compiling rewrites the graph
        function(*inputs)
    except Exception as reason:     # no compiler, an operation it does not know: a reason to stay eager, shown to the user
        raise TracingError(f"TorchInductor: {type(reason).__name__}: {_first_line(reason)}") from reason
    return function


def held_bytes(residuals: Sequence[Tensor]) -> int:
    """Return the memory that a list of tensors keeps alive, shared storages counted once."""
    storages = {t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in residuals if isinstance(t, Tensor)}
    return sum(storages.values())
