"""The stages of a traced product as CUDA graphs: launched once each instead of once an operation.

On a GPU the products of small networks are bound by launches. A graph reads and writes the memory that it was captured with
(NVIDIA, CUDA C++ Programming Guide, "CUDA Graphs"): what a product is given is copied there, and its result copied out, so
that the next replay does not overwrite it. One graph a shape of batch serves all microbatches of that shape.
"""

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_map

from analysis.operators.stages import Stages, TracingError
from landscape.errors import first_line

WARM_UPS = 3        # calls before the capture, in which libraries allocate what may not be allocated during it


class Graphed:
    """A function of tensors captured with some inputs: called with others of the same shapes, it is replayed."""

    def __init__(self, function: Callable[..., Any], inputs: Sequence[Any]):
        self._inputs = [x.clone() if isinstance(x, Tensor) else x for x in inputs]
        stream, callers = torch.cuda.Stream(), torch.cuda.current_stream()
        with torch.cuda.stream(stream):     # entered here, since a capture that fails does not leave the stream it entered
            stream.wait_stream(callers)
            for _ in range(WARM_UPS):
                function(*self._inputs)
            self._graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(self._graph, stream=stream):
                self._result = function(*self._inputs)
        callers.wait_stream(stream)

    def __call__(self, *inputs: Any) -> Any:
        """Return the function's tensors, in memory of their own."""
        pairs = [pair for pair in zip(self._inputs, inputs, strict=True) if isinstance(pair[0], Tensor)]
        torch._foreach_copy_(*map(list, zip(*pairs)))       # together: a launch for each would cost what the graph saves
        self._graph.replay()
        return tree_map(lambda x: x.clone() if isinstance(x, Tensor) else x, self._result)


def graphed(stages: Stages, theta: Tensor, v: Tensor, samples: Sequence[Tensor], fixed: Sequence[Tensor]) -> Stages:
    """Capture what every product evaluates. Raises TracingError where there is no such device, or it refuses."""
    if not supported(theta.device):
        raise TracingError(f"CUDA graphs need a CUDA device, not {theta.device.type}")
    with torch.no_grad(), torch.cuda.device(theta.device):
        inputs = stages.inputs(theta, v, samples, fixed)
        if elsewhere := {x.device for given in inputs.values() for x in given if isinstance(x, Tensor)} - {theta.device}:
            raise TracingError(f"CUDA graph: a part is computed on {elsewhere.pop()}, whose numbers would be the capture's")
        try:
            captured = {name: Graphed(getattr(stages, name), given) for name, given in inputs.items()}
            return replace(stages, **captured)
        except torch.OutOfMemoryError:
            raise
        except RuntimeError as reason:      # an operation that waits for the device, for one
            raise TracingError(f"CUDA graph: {first_line(reason)}") from reason


def supported(device: torch.device) -> bool:
    """Tell whether graphs can be captured on a device."""
    return device.type == "cuda"
