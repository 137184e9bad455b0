"""A batch's first evaluation: where the network or its loss fails, one error names the batch, the cause and the way out."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

from analysis.operators.batches import Batch
from analysis.operators.kernels import differentiable_kernels
from analysis.operators.memory import ran_out
from analysis.operators.objective import Objective, nested
from landscape.errors import InputError, first_line


@contextmanager
def first_evaluation(objective: Objective, batch: Batch) -> Iterator[None]:
    """Turn what is raised within into an InputError that names the batch; a lack of memory stays what it is."""
    try:
        yield
    except Exception as reason:
        if isinstance(reason, InputError) or ran_out(reason):
            raise
        cause = f"{type(reason).__name__}: {first_line(reason).rstrip('.')}"
        raise InputError(f"batch {batch.place} ({_described(batch)}; the first is batch 0) cannot be evaluated, {cause}; "
                         f"{_way_out(objective, batch, str(reason))}") from reason


def _described(batch: Batch) -> str:
    given = nested(batch)
    names = [f"{name} " for name in given] if isinstance(given, dict) and len(given) == len(batch.tensors) else [""] * len(
        batch.tensors)
    return ", ".join(f"{name}{_kind(x)} {tuple(x.shape)}" for name, x in zip(names, batch.tensors))


def _kind(value: Tensor) -> str:
    return str(value.dtype).removeprefix("torch.")


def _way_out(objective: Objective, batch: Batch, reason: str) -> str:
    if "CUDA error" in reason:      # nothing can be computed there any more
        return "on a GPU labels outside 0 ... C - 1 do this: a CPU tells more"
    if not hasattr(objective.losses, "outputs"):
        return "see that forward(model, batch) fits these batches"
    try:
        with torch.no_grad(), differentiable_kernels(objective.model):
            found = objective.losses.outputs(objective.model, nested(batch))
    except Exception:
        return ("the model does not take these inputs: mend them, or say how it is called by loss=None, "
                "forward=lambda model, batch: per_sample_losses")
    if not isinstance(found, Tensor):
        return (f"the model returns a {type(found).__name__}: pass loss=None, forward=lambda model, batch: "
                "per_sample_losses, which takes the logits from it")
    return _of_targets(found, batch.tensors[-1])


def _of_targets(outputs: Tensor, targets: Tensor) -> str:
    plain = f"the model returns {_kind(outputs)} {tuple(outputs.shape)}: pass a loss that takes this with these targets"
    if outputs.ndim != 2 or targets.ndim != 1 or len(outputs) != len(targets):
        return plain
    if targets.is_floating_point():
        return f"{plain}, as class labels .long()"
    low, high, classes = int(targets.min()), int(targets.max()), outputs.shape[1]
    return plain if 0 <= low and high < classes else (
        f"its labels run from {low} to {high}, the model has {classes} outputs: expected labels 0 ... {classes - 1}")
