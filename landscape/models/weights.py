"""Files of weights made elsewhere -> named tensors. Nothing in a file becomes code.

    .safetensors            through the safetensors package, the extra `import`
    .pth .pt .pth.tar ...   through torch.load(weights_only=True), which admits tensors and plain values alone

A training script seldom stores the bare state_dict: SSE-SAM does, Saddle-LongTail stores {"epoch", "arch", "state_dict",
"best_acc1", "optimizer"}. The state_dict is taken out of such a dictionary, and what lay beside it is named. Whose weight
is whose is the business of `landscape.models.matching`.
"""

import errno
import hashlib
import re
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from landscape.errors import InputError

# Under which entry scripts keep the state_dict, or a dictionary that holds it.
ENTRIES = ("state_dict", "model_state_dict", "model_state", "model", "net", "network", "module", "weights", "params")
LARGEST_EPOCH = 10**9
DEEPEST = 4
PICKLE = b"\x80"    # the first byte of a pickle of protocol 2 or later


@dataclass(frozen=True, eq=False)
class Weights:
    """The tensors of one file, by the names that the file gives them."""

    path: Path
    sha256: str                 # of the whole file
    tensors: dict[str, Tensor]  # dense, on the CPU, floats at least float32
    entry: str                  # where in the file they lay: "state_dict", "model.state_dict"; "" for the file itself
    beside: tuple[str, ...]     # the names of what lay next to them, and was left
    epoch: int | None           # what the file says of its epoch, if anything


def read_weights(path: str | Path, entry: str | None = None) -> Weights:
    """Read a file of weights. `entry` names the dictionary to take where the file holds several.

    InputError, naming the file and the way out, where it holds code, is damaged, or has no state_dict.
    """
    path = Path(path)
    digest = sha256(path)
    content = _read_safetensors(path) if path.suffix == ".safetensors" else _read_torch(path)
    tensors, walked, beside = _unwrapped(path, content, entry)
    tensors = {name: _plain(path, name, value) for name, value in tensors.items()}
    return Weights(path, digest, tensors, ".".join(walked), beside, _epoch(content))


def sha256(path: Path) -> str:
    """Return the SHA-256 of a file; one that is not there is an InputError."""
    if not path.is_file():
        raise InputError(f"{path} {'is a folder' if path.is_dir() else 'does not exist'}: expected a file of weights")
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _read_safetensors(path: Path) -> Mapping[str, Tensor]:
    try:
        from safetensors import SafetensorError
        from safetensors.torch import load_file
    except ImportError as error:
        raise InputError(f"{path} needs the safetensors package ({error}): pip install 'saddle-landscape[import]'") from None
    try:
        return load_file(path)
    except (SafetensorError, KeyError, ValueError, RuntimeError) as error:
        raise InputError(f"{path} is damaged, or no file of safetensors ({error})") from None


def _read_torch(path: Path) -> Any:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")     # of pickle protocols: whatever is not read is an error here
            return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # the unpickler raises what the bytes drive it to: KeyError, EOFError, UnicodeDecodeError
        if isinstance(error, OSError) and error.errno != errno.EINVAL:      # EINVAL: of a file that was cut off
            raise
        raise InputError(
            f"{path} cannot be read: {_reason(path, error)}; expected tensors alone, as "
            "torch.save(model.state_dict(), 'weights.pth') stores them: where you trust the file, load it in the "
            "program that made it and convert it so"
        ) from None


def _reason(path: Path, error: Exception) -> str:
    text = str(error)
    if named := re.search(r"GLOBAL ([\w.]+)|(?:class|type|global) ([\w.]+\.[\w.]+) ", text):
        return f"it holds a Python object, {named[1] or named[2]}, and reading such objects can run code"
    if "TorchScript" in text:
        return "it is a TorchScript program, not weights"
    with open(path, "rb") as file:
        is_pickle = file.read(1) == PICKLE
    if is_pickle and "Unsupported operand" in text:
        return "it is a pickle of Python objects, and reading those can run code"
    return "it is no file that torch.save wrote, or a damaged one"


def _unwrapped(path: Path, content: Any, entry: str | None) -> tuple[Mapping[str, Any], list[str], tuple[str, ...]]:
    """Return the state_dict in what a file holds, the entries that lead to it, and the names of what lay beside."""
    walked, beside = [], []
    while entry is not None or not _is_state(content):
        chosen, entry = _inner(path, content, entry, len(walked)), None
        beside += [name if _is_name(name) else ascii(name) for name in content if name != chosen]
        walked.append(chosen)
        content = content[chosen]
    return content, walked, tuple(beside)


def _inner(path: Path, content: Any, wanted: str | None, depth: int) -> str:
    """Return the name of the one entry that can hold weights."""
    if not isinstance(content, Mapping) or depth > DEEPEST:
        raise InputError(f"{path} holds {type(content).__name__} and no weights: expected a dictionary of tensors, or "
                         f"one under {', '.join(ENTRIES)}")
    possible = [name for name, value in content.items() if _is_name(name) and isinstance(value, Mapping)]
    found = [name for name in possible if name == wanted or (wanted is None and name in ENTRIES)]
    if len(found) == 1:
        return found[0]
    if found:
        raise InputError(f"{path} holds weights under {', '.join(found)}: say which with entry=NAME")
    raise InputError(f"{path} holds no weights under {wanted or ', '.join(ENTRIES)}: expected a dictionary of tensors; "
                     f"its dictionaries are {', '.join(possible) or 'none'} (entry=NAME chooses one)")


def _is_state(content: Any) -> bool:
    return (isinstance(content, Mapping) and len(content) > 0
            and all(_is_name(name) and isinstance(value, Tensor) for name, value in content.items()))


def _is_name(name: Any) -> bool:
    return isinstance(name, str) and name.isprintable()     # names are shown on terminals


def _plain(path: Path, name: str, value: Tensor) -> Tensor:
    """Return a dense tensor of its own memory that NumPy can hold; float16, bfloat16 and float8 widen without rounding."""
    kind = ("sparse" if value.layout != torch.strided else "quantized" if value.is_quantized else
            "meta" if value.is_meta else "complex" if value.is_complex() else None)
    if kind:
        raise InputError(f"{path} holds {name} as a {kind} tensor: expected dense tensors of real numbers")
    if value.numel() * value.element_size() > value.untyped_storage().nbytes():
        raise InputError(f"{path} holds {name} of shape {tuple(value.shape)} on too little memory: it is damaged, or "
                         "was stored as an expanded view; store a copy")
    value = value.detach()
    return value.float() if value.is_floating_point() and value.element_size() < 4 else value


def _epoch(content: Any) -> int | None:
    epoch = content.get("epoch") if isinstance(content, Mapping) else None
    is_count = isinstance(epoch, int) and not isinstance(epoch, bool) and 0 <= epoch < LARGEST_EPOCH
    return epoch if is_count else None
