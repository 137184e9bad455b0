"""Parameters as one flat vector theta, and temporary displacement with an exact return.

theta lists the trainable parameters in `named_parameters()` order, each flattened row by row; a parameter that two
modules share appears once.
"""

import copy
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from landscape.errors import InputError


def trainable(model: nn.Module) -> dict[str, nn.Parameter]:
    """Return the trainable parameters by name, in the order of theta."""
    chosen = {name: p for name, p in model.named_parameters() if p.requires_grad}
    if not chosen:
        raise InputError("the model has no trainable parameter: set requires_grad=True on at least one")
    return chosen


def flatten(tensors: Iterable[Tensor]) -> Tensor:
    """Join tensors into one vector, each flattened row by row."""
    return torch.cat([t.reshape(-1) for t in tensors])


def theta(model: nn.Module) -> Tensor:
    """Return a copy of the trainable parameters as one vector (d,)."""
    return flatten(p.detach() for p in trainable(model).values())


def split_like(vector: Tensor, tensors: Sequence[Tensor]) -> list[Tensor]:
    """Cut a vector (d,) into pieces shaped like `tensors`; rows (k, d) give pieces (k, *shape)."""
    size = sum(t.numel() for t in tensors)
    if vector.shape[-1] != size:
        raise InputError(
            f"a vector of length {vector.shape[-1]} does not fit: expected {size}, one entry a trainable parameter"
        )
    pieces = vector.split([t.numel() for t in tensors], dim=-1)
    return [piece.reshape(vector.shape[:-1] + t.shape) for piece, t in zip(pieces, tensors)]


def unflatten(vector: Tensor, model: nn.Module) -> dict[str, Tensor]:
    """Cut a vector (d,) into the model's trainable parameters, by name."""
    parameters = trainable(model)
    return dict(zip(parameters, split_like(vector, list(parameters.values()))))


def called_with(model: nn.Module, tensors: Mapping[str, Tensor], *inputs: Any) -> Any:
    """Call a model with other tensors in the place of its parameters and buffers, by their names in `named_parameters()`.

    What several modules share is replaced in all of them, and once in a module that has two names: torch's own treatment of ties
    would leave the replacement in such a module.
    """
    return torch.func.functional_call(model, _by_seat(model, tensors), inputs, tie_weights=False)


def copied(model: nn.Module) -> nn.Module:
    """Copy a model deeply; what a past forward has left in it, `self.features = h` for one, is copied without its graph."""
    kept = [value for module in model.modules() for name, value in vars(module).items()
            if name not in ("_parameters", "_buffers", "_modules")]
    graphed = [t for t in tree_leaves(kept) if isinstance(t, Tensor) and not t.is_leaf]
    return copy.deepcopy(model, {id(t): t.detach().clone() for t in graphed})


def _by_seat(model: nn.Module, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return a name and a tensor for every module and attribute that holds one of the named tensors."""
    first: dict[Tensor, str] = {}
    seats: dict[tuple[nn.Module, str], tuple[str, Tensor]] = {}
    for prefix, module in model.named_modules(remove_duplicate=False):
        for leaf, held in {**module._parameters, **module._buffers}.items():
            name = f"{prefix}.{leaf}" if prefix else leaf
            if held is not None and first.setdefault(held, name) in tensors:
                seats.setdefault((module, leaf), (name, tensors[first[held]]))
    return dict(seats.values())


@contextmanager
def moved_to(model: nn.Module, vector: Tensor) -> Iterator[nn.Module]:
    """Give the model the parameters `vector` (d,) for the length of a with block; the old ones return bit by bit."""
    with holding(list(trainable(model).values()), vector):
        yield model


@contextmanager
def holding(leaves: Sequence[Tensor], vector: Tensor) -> Iterator[None]:
    """Give tensors the values of a vector (d,) for the length of a with block; the old ones return bit by bit."""
    pieces, saved = split_like(vector, leaves), [leaf.detach().clone() for leaf in leaves]
    try:
        _copy(leaves, pieces)
        yield
    finally:
        _copy(leaves, saved)


@torch.no_grad()
def _copy(targets: Iterable[Tensor], sources: Iterable[Tensor]) -> None:
    for target, source in zip(targets, sources):
        target.copy_(source)
