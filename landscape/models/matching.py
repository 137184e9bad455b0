"""Whose weight is whose: the names in a file matched to the names of a model, every one or none.

Three readings of the names are tried, each on both sides, so that a model whose own names begin with `model.` loses
nothing:

    1. as they are
    2. without the names of wrappers: `module` (DataParallel) and `_orig_mod` (torch.compile) anywhere; `model`, `net`,
       `network`, `backbone` and `encoder` (SSE-SAM's ResnetEncoder) at the front
    3. and with other codes' words for our parts: `linear` for fc (Saddle-LongTail), `shortcut` for downsample

Two things are done to values: a cosine head stored as (features, classes), as Saddle-LongTail and LDAM-DRW do, is
transposed, and absent counters of BatchNorm, which no evaluation reads, become 0. Both are reported, as are new names.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase
from itertools import product
from math import isqrt

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import normalize
from torch.overrides import TorchFunctionMode

from landscape.errors import InputError
from landscape.models import ARCHITECTURES, CosineHead
from landscape.models.weights import Weights
from landscape.snapshot import load_arrays, state_arrays

ANYWHERE = {"module", "_orig_mod"}
IN_FRONT = ANYWHERE | {"model", "net", "network", "backbone", "encoder"}
OTHER_WORDS = {"linear": "fc", "shortcut": "downsample"}
COUNTER = "num_batches_tracked"
SHOWN = 3


@dataclass(frozen=True, eq=False)
class Match:
    """Which tensor of a file belongs to which name of a model, and what stands against it."""

    sources: dict[str, str]         # name in the model -> name in the file
    transposed: tuple[str, ...]     # names in the model
    counters: tuple[str, ...]       # counters of BatchNorm that the file lacks
    missing: tuple[str, ...]        # names in the model
    unexpected: tuple[str, ...]     # names in the file
    misshapen: tuple[str, ...]      # one text a tensor

    @property
    def problems(self) -> int:
        return len(self.missing) + len(self.unexpected) + len(self.misshapen)

    def changes(self) -> Iterator[str]:
        """Yield what was done to names and values, one short text each."""
        renamed = [(source, name) for name, source in self.sources.items() if source != name]
        if renamed:
            yield f"{len(renamed)} names changed ({renamed[0][0]} is {renamed[0][1]})"
        yield from (f"{name} transposed" for name in self.transposed)
        if self.counters:
            yield f"{len(self.counters)} counters {COUNTER} absent, set to 0"


def load_weights(model: nn.Module, weights: Weights, *, ignore: Iterable[str] = (),
                 called: str = "the model") -> tuple[str, ...]:
    """Put a file's weights into a model; return what was done to their names and values, for people.

    `ignore` holds patterns (as of a shell) of names in the file to leave out. Everything else must be found on both
    sides with its shape, be finite, and read back from the model as the file has it; otherwise an InputError names the
    first few that do not fit, and the architecture of ours that the file does fit. The model is then unchanged.
    """
    offered = _without(weights, tuple(ignore))
    before = state_arrays(model)
    match = match_names(offered, model)
    if match.problems:
        raise InputError(f"{weights.path} does not fit {called}: {_listed(match)}{_suggestion(offered, match)}")
    arrays = {name: _values(match, offered, name, before) for name in before}
    _refuse_not_finite(weights, match, arrays)
    load_arrays(model, arrays)
    if lost := [name for name, array in state_arrays(model).items() if not np.array_equal(array, arrays[name])]:
        load_arrays(model, before)
        raise InputError(f"{weights.path}: the model does not hold {_some(lost)} as the file does: a tensor that it uses "
                         "under two names must be the same under both, and float64 weights need dtype=float64")
    return tuple(match.changes())


def match_names(offered: Mapping[str, Tensor], model: nn.Module) -> Match:
    """Return the first reading of the names that fits, else the one against which least stands."""
    matches = [_match(offered, model, reading) for reading in (_as_it_is, _unwrapped, _translated)]
    return min((match for match in matches if match), key=lambda match: match.problems)


def _match(offered: Mapping[str, Tensor], model: nn.Module, reading: Callable[[str], str]) -> Match | None:
    state = model.state_dict(keep_vars=True)
    ours, theirs = {reading(name): name for name in state}, {reading(name): name for name in offered}
    if len(ours) < len(state) or len(theirs) < len(offered):
        return None     # two names read the same; as they are, no two do
    sources = {name: theirs[read] for read, name in ours.items() if read in theirs}
    sources |= _shared(state, sources)
    absent = [name for name in state if name not in sources]
    turned = tuple(name for name in _cosine_weights(model) if name in sources
                   and _is_turned(offered[sources[name]], state[name], sources[name]))
    wrong = (_difference(offered[source], state[name], name, source) for name, source in sources.items() if name not in turned)
    return Match(sources, turned, tuple(name for name in absent if name.endswith(COUNTER)),
                 tuple(name for name in absent if not name.endswith(COUNTER)),
                 tuple(name for read, name in theirs.items() if read not in ours), tuple(text for text in wrong if text))


def _as_it_is(name: str) -> str:
    return name


def _unwrapped(name: str) -> str:
    *parts, last = name.split(".")
    parts = [part for part in parts if part not in ANYWHERE]
    while parts and parts[0] in IN_FRONT:
        del parts[0]
    return ".".join([*parts, last])


def _translated(name: str) -> str:
    return ".".join(OTHER_WORDS.get(part, part) for part in _unwrapped(name).split("."))


def _shared(state: Mapping[str, Tensor], sources: Mapping[str, str]) -> dict[str, str]:
    """Find sources for parameters that the model uses under two names, of which safetensors stores one."""
    by_tensor = {id(state[name]): source for name, source in sources.items()}
    return {name: by_tensor[id(value)] for name, value in state.items() if name not in sources and id(value) in by_tensor}


def _cosine_weights(model: nn.Module) -> list[str]:
    return [f"{name}.weight" if name else "weight" for name, module in model.named_modules() if isinstance(module, CosineHead)]


def _is_turned(found: Tensor, expected: Tensor, source: str) -> bool:
    if found.ndim != 2 or found.shape != expected.shape[::-1]:
        return False
    return found.shape[0] != found.shape[1] or "linear" in source.split(".")     # square: only the name tells


def _difference(found: Tensor, expected: Tensor, name: str, source: str) -> str:
    if found.shape != expected.shape:
        return f"{source} is {tuple(found.shape)}, the model's {name} is {tuple(expected.shape)}"
    if found.is_floating_point() != expected.is_floating_point():
        return f"{source} is of type {_type(found)}, the model's {name} of {_type(expected)}"
    return ""


def _type(value: Tensor) -> str:
    return str(value.dtype).removeprefix("torch.")


def _without(weights: Weights, patterns: tuple[str, ...]) -> dict[str, Tensor]:
    for pattern in patterns:
        if not any(fnmatchcase(name, pattern) for name in weights.tensors):
            raise InputError(f"--ignore {pattern!r} matches no name in {weights.path}: expected a pattern such as "
                             f"'{next(iter(weights.tensors))}'")
    return {name: value for name, value in weights.tensors.items()
            if not any(fnmatchcase(name, pattern) for pattern in patterns)}


def _values(match: Match, offered: Mapping[str, Tensor], name: str, before: Mapping[str, np.ndarray]) -> np.ndarray:
    if name not in match.sources:
        return np.zeros_like(before[name])
    value = offered[match.sources[name]]
    return (value.T if name in match.transposed else value).numpy().copy()


def _refuse_not_finite(weights: Weights, match: Match, arrays: Mapping[str, np.ndarray]) -> None:
    bad = [match.sources.get(name, name) for name, array in arrays.items() if not np.isfinite(array).all()]
    if bad:
        raise InputError(f"{weights.path} holds NaN or infinite numbers in {_some(bad)}: its training diverged; take an "
                         "earlier checkpoint")


def _listed(match: Match) -> str:
    kinds = {"missing": match.missing, "unexpected": match.unexpected, "misshapen": match.misshapen}
    return "; ".join(f"{len(names)} {kind} ({_some(names)})" for kind, names in kinds.items() if names)


def _some(names: Iterable[str]) -> str:
    names = list(names)
    return ", ".join(names[:SHOWN]) + (f" and {len(names) - SHOWN} more" if len(names) > SHOWN else "")


def _suggestion(offered: Mapping[str, Tensor], match: Match) -> str:
    """Name the architecture of ours that the file fits, with its number of classes, or what would make it fit this one."""
    heads = [value for name, value in offered.items() if _translated(name) == "fc.weight" and value.ndim == 2]
    sizes = sorted({size for value in heads for size in value.shape})   # a cosine head may be turned
    likely = [arch for arch in ARCHITECTURES if heads and _names(offered) == _names(_shapes(arch, 2, 1, 1, False))]
    for arch, classes, (channels, side), cosine in product(likely, sizes, _possible_inputs(offered), (False, True)):
        if match_names(offered, _shapes(arch, classes, channels, side, cosine)).problems == 0:
            head = "cosine head (loss=LDAM)" if cosine else "linear head (loss=CE, LA, VS, or LDAM of form=release)"
            return f"; it fits arch={arch} with {classes} classes, {channels} channels, a {head}"
    return "" if match.missing or match.misshapen else "; --ignore PATTERN leaves names out"


def _shapes(arch: str, classes: int, channels: int, side: int, cosine: bool) -> nn.Module:
    with torch.device("meta"), _Undrawn():      # no values, hence neither memory nor time
        return ARCHITECTURES[arch](classes, channels, side, cosine)


class _Undrawn(TorchFunctionMode):
    """Leave out the computing of initial weights: on the meta device its first call loads modules for seconds."""

    def __torch_function__(self, function, types, args=(), kwargs=None):
        computing = function in (Tensor.normal_, Tensor.uniform_, normalize)
        return args[0] if computing else function(*args, **(kwargs or {}))


def _names(weights: Mapping[str, Tensor] | nn.Module) -> set[str]:
    """Return the names but for those that a file may lack: the head's, and counters."""
    names = weights.state_dict() if isinstance(weights, nn.Module) else weights
    return {_translated(name) for name in names if not name.endswith((COUNTER, "fc.bias", "linear.bias"))}


def _possible_inputs(offered: Mapping[str, Tensor]) -> list[tuple[int, int]]:
    """Return (channels, side) of the images that the first layer may have been made for."""
    first = next((value for value in offered.values() if value.ndim in (2, 4) and value.shape[1]), None)
    if first is None:
        return []
    if first.ndim == 4:
        return [(first.shape[1], 1)]
    return [(channels, isqrt(first.shape[1] // channels) or 1) for channels in (1, 3)]
