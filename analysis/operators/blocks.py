"""Blocks of parameters: a part of theta by name, by pattern, or by the part of the network that it belongs to.

The Hessian of a block is the sub-matrix of the whole one in the block's rows and columns, all other parameters fixed.
"""

import difflib
from collections.abc import Callable, Sequence
from fnmatch import fnmatchcase

from torch import nn
from torch.nn.modules.batchnorm import _NormBase

from landscape.errors import InputError
from landscape.parameters import trainable

NORMS = (_NormBase, nn.LayerNorm, nn.GroupNorm, nn.RMSNorm)
HEADS = ("fc", "head", "classifier", "heads", "linear")     # what networks call their last layer, tried in this order
Names = tuple[str, ...]


def parameter_blocks(model: nn.Module, by: str = "layer") -> dict[str, Names]:
    """Return the names of the trainable parameters in each block, {block: names}, for `HessianOperator(params=names)`.

    by="layer"       one block a module with parameters of its own
       "stage"       one block a child of the model, the model's own parameters under ""
       "batchnorm"   the parameters of all normalisation layers, as one block
       "head"        the last layer: a child called fc, head, classifier, heads or linear, else the last linear layer
       "all"         everything

    A shared parameter belongs to the first of its names. Raises InputError where the model has no such part.
    """
    if by not in BLOCKS:
        raise InputError(f"by={by!r} is unknown: expected one of {', '.join(BLOCKS)}")
    blocks: dict[str, list[str]] = {}
    block_of = BLOCKS[by](model)
    for name in trainable(model):
        block = block_of(name)
        if block is not None:
            blocks.setdefault(block, []).append(name)
    if not blocks:
        raise InputError(f"by={by!r} finds nothing: the model has no trainable parameter in such a part; expected "
                         "layer, stage or all, or names and patterns")
    return {block: tuple(names) for block, names in blocks.items()}


def choose(model: nn.Module, wanted: str | Sequence[str] | None) -> Names:
    """Return the names of the trainable parameters that names or patterns ("layer1.*", "*.bn?.weight") match, in theta's order.

    None stands for all of them. Raises InputError naming the pattern that matches nothing, and the names nearest to it.
    """
    names = tuple(trainable(model))
    if wanted is None:
        return names
    patterns = (wanted,) if isinstance(wanted, str) else tuple(wanted)
    if not patterns:
        raise InputError(f"params is empty: expected names or patterns of {_some(names)}")
    for pattern in patterns:
        if not any(_matches(name, pattern) for name in names):
            near = difflib.get_close_matches(pattern, names, n=3, cutoff=0.4)
            raise InputError(f"params={pattern!r} matches no trainable parameter: expected some of {_some(near or names)}, or a "
                             "pattern such as 'layer1.*'")
    return tuple(name for name in names if any(_matches(name, pattern) for pattern in patterns))


def _matches(name: str, pattern: str) -> bool:
    return name == pattern or fnmatchcase(name, pattern)


def _some(names: Sequence[str], count: int = 8) -> str:
    return ", ".join(names[:count]) + (f" and {len(names) - count} more" if len(names) > count else "")


def _layer(model: nn.Module) -> Callable[[str], str | None]:
    return lambda name: name.rpartition(".")[0]


def _stage(model: nn.Module) -> Callable[[str], str | None]:
    return lambda name: name.partition(".")[0] if "." in name else ""


def _batchnorm(model: nn.Module) -> Callable[[str], str | None]:
    layers = {name for name, module in model.named_modules() if isinstance(module, NORMS)}
    return lambda name: "batchnorm" if name.rpartition(".")[0] in layers else None


def _head(model: nn.Module) -> Callable[[str], str | None]:
    head = _head_name(model)
    return lambda name: "head" if head is not None and name.startswith(f"{head}." if head else "") else None


def _head_name(model: nn.Module) -> str | None:
    """Return the name of the last layer; "" where the model itself is one."""
    children = dict(model.named_children())
    own = {name.rpartition(".")[0] for name in trainable(model)}
    linear = [name for name, module in model.named_modules() if isinstance(module, nn.Linear) and name in own]
    for name in HEADS:
        if name in children and any(layer == name or layer.startswith(f"{name}.") for layer in own):
            inside = [layer for layer in linear if layer.startswith(f"{name}.")]
            return inside[-1] if inside else name       # the last layer of a classifier of several
    return linear[-1] if linear else None


BLOCKS: dict[str, Callable[[nn.Module], Callable[[str], str | None]]] = {
    "layer": _layer,
    "stage": _stage,
    "batchnorm": _batchnorm,
    "head": _head,
    "all": lambda model: lambda name: "all",
}
