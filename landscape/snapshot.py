"""A model and its optimizer as NumPy arrays, and back: what a run needs to go on as if it had never stopped.

    model/<state_dict name>             parameters and buffers
    optimizer/<parameter index>/<name>  the base optimizer's state, momentum for one
    kept/<name>                         what the optimizer has found besides, such as anchors
    epochs_done                         the number of epochs done, which also decides the optimizer's stage
    scaler/<name>                       with precision amp16: the scale of the loss, and the steps since it changed
"""

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from landscape.errors import InputError
from landscape.optimizers import GroupSAM


def state_arrays(model: nn.Module) -> dict[str, np.ndarray]:
    """Return copies of parameters and buffers by their state_dict names."""
    return {name: _array(name, value) for name, value in model.state_dict().items()}


def snapshot(model: nn.Module, optimizer: GroupSAM, scaler: "torch.amp.GradScaler | None" = None) -> dict[str, Any]:
    """Return everything that training needs to go on from here."""
    arrays = {f"model/{name}": array for name, array in state_arrays(model).items()}
    for index, entries in optimizer.state_dict()["state"].items():
        arrays |= {
            f"optimizer/{index}/{name}": _array(name, value) for name, value in entries.items() if value is not None
        }
    arrays |= {f"scaler/{name}": value for name, value in (scaler.state_dict() if scaler else {}).items()}
    arrays |= {f"kept/{name}": value for name, value in optimizer.arrays().items()}
    return arrays | {"epochs_done": optimizer.epochs_done}


def restore_snapshot(model: nn.Module, optimizer: GroupSAM, arrays: Mapping[str, Any],
                     scaler: "torch.amp.GradScaler | None" = None) -> int:
    """Give model, optimizer and scaler what `snapshot` returned; return the number of epochs done."""
    state: dict[int, dict[str, Tensor]] = {}
    for name in arrays:
        kind, _, rest = name.partition("/")
        if kind == "optimizer":
            index, _, entry = rest.partition("/")
            state.setdefault(int(index), {})[entry] = torch.tensor(arrays[name])
    load_arrays(model, {name.removeprefix("model/"): arrays[name] for name in arrays if name.startswith("model/")})
    if scaler and "scaler/scale" in arrays:
        known = scaler.state_dict()
        scaler.load_state_dict({name: type(known[name])(arrays[f"scaler/{name}"]) for name in known})
    epochs_done = int(arrays["epochs_done"])
    optimizer.load_state_dict(optimizer.state_dict() | {"state": state, "epochs_done": epochs_done})
    optimizer.load_arrays({name.removeprefix("kept/"): arrays[name] for name in arrays if name.startswith("kept/")})
    return epochs_done


def load_arrays(model: nn.Module, arrays: Mapping[str, np.ndarray]) -> None:
    """Give the model parameters and buffers by their state_dict names. Names or shapes that do not fit are an error."""
    shapes = {name: tuple(value.shape) for name, value in model.state_dict().items()}
    for name in sorted(shapes.keys() | arrays.keys()):
        found = tuple(arrays[name].shape) if name in arrays else "absent"
        expected = shapes.get(name, "absent")
        if found != expected:
            raise InputError(
                f"the stored parameters do not fit the model: {name} is {found}, the model's is {expected}; "
                "build the model that they were stored from"
            )
    model.load_state_dict({name: torch.tensor(array) for name, array in arrays.items()})


def _array(name: str, value: Any) -> np.ndarray:
    if not isinstance(value, Tensor):
        raise InputError(
            f"the model's state holds {name} of type {type(value).__name__}: expected tensors alone, "
            "since only they can be stored"
        )
    return value.detach().cpu().numpy().copy()
