"""A traced product in stages, so that nothing is evaluated more often than what it depends on changes.

Of the values in a product some depend on v, some on the microbatch, some on both, some on neither. H v is a sum over
microbatches, so that what is linear in a microbatch's share and done last is done once, to the sum:

    setting(theta, fixed)        -> s              once for an operator: folded kernels
    primal(samples, s)           -> c, losses      once for a microbatch, if memory allows: activations
    before(v, s)                 -> u              once for a product: tangents of folded kernels
    tangent(u, s, c)             -> shares         for every product and microbatch: passes over images
    after(sums of shares, u, s)  -> H v            once for a product: from folded kernels back to parameters

For ResNet-32 a third of the operations that depend on v see an image; the others are small and many.
"""

from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor, fx

aten = torch.ops.aten
LINEAR = {aten.neg.default, aten.mul.Scalar, aten.div.Scalar, aten.reshape.default, aten.expand.default, aten.sum.dim_IntList,
          aten.unsqueeze.default, aten.squeeze.dim, aten.squeeze.dims, aten.t.default, aten.transpose.int, aten.permute.default,
          aten.clone.default}       # in their first argument, the others being numbers
SUMS = {aten.add.Tensor, aten.sub.Tensor, aten.cat.default}     # linear in all arguments together
PRODUCTS = {aten.mul.Tensor, aten.div.Tensor}                   # linear in one argument where no other depends on it
ZERO = "zero"           # in a node's meta: it is known to be zero everywhere
DISPATCH = 10_000       # elements that are added up in the time that an operation takes to be called


class TracingError(RuntimeError):
    """The product cannot be traced into a pure function; the text says why."""


class Setting(NamedTuple):
    """What depends on neither v nor a microbatch, by the stage that needs it."""

    primal: list[Tensor]
    before: list[Tensor]
    tangent: list[Tensor]
    after: list[Tensor]


@dataclass(frozen=True, eq=False)
class Stages:
    """A traced product, cut at what does not depend on v, at what does not depend on a microbatch, and where the sum is taken."""

    setting: Callable[..., Sequence[list[Tensor]]]      # (theta, *fixed) -> the lists of a Setting
    primal: Callable[..., list[Tensor]]                 # (*samples, *setting.primal) -> [*c, losses]
    before: Callable[..., Sequence[list[Tensor]]]       # (v, *setting.before) -> u of `tangent`, u of `after`
    tangent: Callable[..., list[Tensor]]                # (*u, *setting.tangent, *c) -> shares
    after: Callable[..., Tensor]                        # (*sums, *u, *setting.after) -> H v

    def num_nodes(self, *names: str) -> int:
        """Return how many operations and arguments some stages have."""
        return sum(len(getattr(self, name).graph.nodes) for name in names)

    def set_up(self, theta: Tensor, fixed: Sequence[Tensor]) -> Setting:
        """Return what all microbatches and all products have in common."""
        return Setting(*self.setting(theta, *fixed))

    def inputs(self, theta: Tensor, v: Tensor, samples: Sequence[Tensor], fixed: Sequence[Tensor]) -> dict[str, list[Tensor]]:
        """Return arguments of the stages that every product evaluates, by name: for what compiles or captures them."""
        setting = self.set_up(theta, fixed)
        *residuals, _ = self.primal(*samples, *setting.primal)
        for_tangent, for_after = self.before(v, *setting.before)
        found = {"before": [v, *setting.before], "tangent": [*for_tangent, *setting.tangent, *residuals]}
        return found | {"after": [*self.tangent(*found["tangent"]), *for_after, *setting.after]}


def cut(traced: fx.GraphModule, num_samples: int) -> Stages:
    """Cut the graph (theta, v, *samples, *fixed) -> (Hv, losses), pure and simplified; `num_samples` tensors are a microbatch's.

    Raises TracingError where Hv does not depend on v.
    """
    theta, v, *tensors = (node for node in traced.graph.nodes if node.op == "placeholder")
    result, losses = next(node for node in traced.graph.nodes if node.op == "output").args[0]
    samples, fixed = tensors[:num_samples], tensors[num_samples:]
    moving, seeing = _dependent_on(traced.graph, [v]), _dependent_on(traced.graph, samples)
    if result not in moving & seeing:
        raise TracingError("the product does not depend on v: the loss is linear in the parameters")
    computed = [node for node in traced.graph.nodes if node.op in ("call_function", "get_attr")]
    after = _worth_it(_linear_end([n for n in computed if n in moving & seeing], result, seeing), computed, seeing)
    setting, primal, before, tangent = (
        [n for n in computed if n not in after and (n in moving, n in seeing) == where]
        for where in ((False, False), (False, True), (True, False), (True, True)))
    lists = [_used([theta, *fixed, *setting], stage) for stage in ([*primal, losses], before, tangent, [*after, result])]
    carried, kept = (_used([v, *before], stage) for stage in (tangent, after))
    residuals = _used([*samples, *primal], [*tangent, *after])
    shares = _used([*residuals, *tangent], [*after, result])
    plain = torch.nn.Module()       # the constants of the code are part of the setting
    return Stages(_graph(traced, [theta, *fixed], setting, lists),
                  _graph(plain, [*samples, *lists[0]], primal, [*residuals, losses]),
                  _graph(plain, [v, *lists[1]], before, [carried, kept]),
                  _graph(plain, [*carried, *lists[2], *residuals], tangent, shares),
                  _graph(plain, [*shares, *kept, *lists[3]], [n for n in computed if n in after], result))


def _dependent_on(graph: fx.Graph, sources: Iterable[fx.Node]) -> set[fx.Node]:
    """Return some nodes and all those whose values depend on one of them."""
    dependent = set(sources)
    for node in graph.nodes:
        if any(source in dependent for source in node.all_input_nodes):
            dependent.add(node)
    return dependent


def _linear_end(nodes: Sequence[fx.Node], result: fx.Node, seeing: set[fx.Node]) -> set[fx.Node]:
    """Return the last nodes that are linear in what depends on the microbatch: they may be evaluated on its sum."""
    end: set[fx.Node] = set()
    for node in reversed(nodes):
        if (node is result or end.issuperset(node.users)) and _is_linear(node, seeing):
            end.add(node)
    return end


def _is_linear(node: fx.Node, seeing: set[fx.Node]) -> bool:
    seen = [source for source in node.all_input_nodes if source in seeing]
    if not all(_is_real(each) for each in (node, *seen)):
        return False
    if node.target in SUMS:
        terms = node.args[0] if node.target is aten.cat.default else node.args[:2]
        return all(term in seeing or (isinstance(term, fx.Node) and term.meta.get(ZERO)) for term in terms)
    if node.target in PRODUCTS:
        first, second = (factor in seeing for factor in node.args)
        return first != second and (first or node.target is aten.mul.Tensor)
    return node.target in LINEAR


def _is_real(node: fx.Node) -> bool:
    value = node.meta.get("val")
    return isinstance(value, Tensor) and value.is_floating_point()


def _worth_it(end: set[fx.Node], nodes: Sequence[fx.Node], seeing: set[fx.Node]) -> set[fx.Node]:
    """Return what of the end saves more operations than it costs to add up larger shares, tensors of images for one."""
    end, cones = set(end), {}
    for node in (node for node in nodes if node in end):
        cone = cones[node] = {node}.union(*(cones[source] for source in node.all_input_nodes if source in end)) & end
        given = {source for each in cone for source in each.all_input_nodes if source in seeing and source not in end}
        shares = [source for source in given if end.intersection(source.users) <= cone]
        instead = [each for each in cone if not end.intersection(each.users) or not end.intersection(each.users) <= cone]
        if _num_elements(shares) - _num_elements(instead) > DISPATCH * len(cone):
            end -= cone
    return end


def _num_elements(nodes: Iterable[fx.Node]) -> int:
    return sum(node.meta["val"].numel() for node in nodes)


def _used(nodes: Sequence[fx.Node], stage: Collection[fx.Node]) -> list[fx.Node]:
    """Return the nodes that a stage takes, or is to give."""
    stage = set(stage)
    return [node for node in nodes if node in stage or not stage.isdisjoint(node.users)]


def _graph(root: torch.nn.Module, inputs: Sequence[fx.Node], nodes: Sequence[fx.Node], outputs: Any) -> fx.GraphModule:
    """Return the function of `inputs` that evaluates some nodes and gives others, in nested lists or alone."""
    graph = fx.Graph()
    inside = {node: graph.placeholder(node.name) for node in inputs}
    for node in nodes:
        inside[node] = graph.node_copy(node, inside.__getitem__)
    graph.output(fx.map_arg(outputs, inside.__getitem__))
    graph.eliminate_dead_code()
    return fx.GraphModule(root, graph)
