"""Trace a product once, into a pure graph of few operations, and cut it into stages.

`torch.func.linearize` as it comes keeps constants that in-place operations then overwrite, so that it is wrong from its
second call on for many networks (pytorch/pytorch#107538). Here the whole product jvp(grad f)(theta; v) is traced as a
function of *all* its tensors, functionalised (no operation writes into a tensor), simplified, and cut in `stages`.

No input is folded into the graph, so one trace serves every microbatch of the same shapes. Constants of the code, the
margins of a loss for one, are copied into the graph; a graph that writes is refused.
"""

import copy
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace

import torch
from torch import Tensor, fx
from torch._guards import TracingContext, tracing
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.func import functionalize
from torch.fx.experimental.proxy_tensor import make_fx

from analysis.operators.convolutions import reroute
from analysis.operators.stages import ZERO, Stages, TracingError, cut
from landscape.errors import first_line

aten, prims = torch.ops.aten, torch.ops.prims
IDENTITIES = {aten.alias.default, aten.detach.default, aten.lift_fresh_copy.default}
CHECKS = {aten.is_same_size.default, aten._has_same_storage_numel.default}
PLAIN = {prims.add.default: aten.add.Tensor, prims.sub.default: aten.sub.Tensor, prims.mul.default: aten.mul.Tensor,
         prims.div.default: aten.div.Tensor,
         aten.view.default: aten.reshape.default,       # a reshape also serves a batch of vectors laid out otherwise
         aten._unsafe_view.default: aten.reshape.default}
KEEP_ZERO = {aten.mul.Tensor, aten.mul.Scalar, aten.div.Tensor, aten.div.Scalar, aten.neg.default}    # zero in, zero out
ZEROS = {aten._efficientzerotensor.default, aten.zeros_like.default, aten.zeros.default}


def trace(product: Callable[..., tuple[Tensor, Tensor]], theta: Tensor, v: Tensor, samples: Sequence[Tensor],
          fixed: Sequence[Tensor]) -> Stages:
    """Trace product(theta, v, *samples, *fixed) -> (Hv, losses), Hv linear in v, and cut it. Raises TracingError with the reason.

    samples     the tensors of a microbatch, of which Hv and the losses are a sum and a list
    """
    traced = _functional(product, (theta, v, *samples, *fixed))
    _own_constants(traced)
    simplify(traced.graph)
    _refuse_impure(traced.graph)
    reroute(traced.graph)
    return cut(traced, len(samples))


def _functional(product: Callable[..., tuple[Tensor, Tensor]], inputs: Sequence[Tensor]) -> fx.GraphModule:
    """Trace a function without writes, once more where a decomposition has brought some in (recurrent networks).

    An exception that left the trace would leave torch's dispatch keys as they are in it, and all later gradients zero: it ends
    inside the guard, and only its text goes on.
    """
    keys = torch._C._dispatch_tls_local_include_set(), torch._C._dispatch_tls_local_exclude_set()
    with torch._C._ForceDispatchKeyGuard(*keys), _one_fake_mode():
        try:
            traced = make_fx(functionalize(product))(*inputs)
            return make_fx(functionalize(traced))(*inputs) if any(map(_writes, traced.graph.nodes)) else traced
        except Exception as error:      # whatever defeats tracing is a reason to use another engine, shown to the user
            reason = f"{type(error).__name__}: {first_line(error)}"
    raise TracingError(reason)


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
    for node in zeros:
        node.meta[ZERO] = True
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
    if node.target in KEEP_ZERO:
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
        if _writes(node):
            raise TracingError(f"{node.target} writes into a tensor")
        if torch.Tag.nondeterministic_seeded in getattr(node.target, "tags", ()):
            raise TracingError(f"{node.target} draws random numbers")


def _writes(node: fx.Node) -> bool:
    schema = getattr(node.target, "_schema", None)
    return schema is not None and schema.is_mutable


def compiled(stages: Stages, theta: Tensor, v: Tensor, samples: Sequence[Tensor], fixed: Sequence[Tensor]) -> Stages:
    """Compile the passes over a microbatch, constants being inputs. Raises TracingError where TorchInductor cannot.

    What is done once a product is many small operations. On a CPU they take some milliseconds as they are, and would take longer
    to compile than all others; on a GPU each is a launch.
    """
    with torch.no_grad():
        inputs = stages.inputs(theta, v, samples, fixed)
        return replace(stages, **{name: _compiled(getattr(stages, name), inputs[name]) for name in compiled_stages(theta.device)})


def compiled_stages(device: torch.device) -> tuple[str, ...]:
    """Return the stages that are compiled on a device."""
    return ("tangent",) if device.type == "cpu" else ("before", "tangent", "after")


def _compiled(graph: fx.GraphModule, inputs: list[Tensor]) -> Callable:
    from torch._inductor import compile
    try:
        function = compile(copy.deepcopy(graph), inputs)        # compiling rewrites the graph
        function(*inputs)
    except Exception as reason:     # no compiler, an operation it does not know: a reason to stay eager, shown to the user
        raise TracingError(f"TorchInductor: {type(reason).__name__}: {first_line(reason)}") from reason
    return function
