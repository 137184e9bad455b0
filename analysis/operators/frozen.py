"""A model that holds still while it is analysed: a copy in evaluation mode, and a snapshot of all that is not varied."""

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from landscape.errors import InputError, first_line
from landscape.parameters import copied


def common_kind(parameters: dict[str, nn.Parameter]) -> tuple[torch.device, torch.dtype]:
    """Return the device and dtype of all parameters; InputError where they differ, have no size, or too little precision."""
    if lazy := [name for name, p in parameters.items() if isinstance(p, nn.UninitializedParameter)]:
        raise InputError(f"parameter {lazy[0]!r} has no size yet: call the model on one batch first")
    kinds = {(p.device, p.dtype) for p in parameters.values()}
    if len(kinds) > 1:
        found = ", ".join(f"{dtype} on {device}" for device, dtype in sorted(kinds, key=str))
        raise InputError(f"parameters are of several kinds ({found}): expected one dtype on one device")
    device, dtype = kinds.pop()
    if dtype not in (torch.float32, torch.float64):
        raise InputError(f"the parameters are of {dtype}, whose rounding hides second derivatives: expected float32 or float64, "
                         "call model.float()")
    return device, dtype


def frozen_copy(model: nn.Module) -> nn.Module:
    """Copy the model in evaluation mode, refusing what would make its products vary."""
    try:
        twin = copied(model).eval()
    except (RuntimeError, TypeError) as reason:
        raise InputError(f"the model cannot be copied ({first_line(reason)}): keep no tensor of a past forward "
                         "in it, and use torch.nn.utils.parametrizations for weight and spectral norms") from reason
    for name, module in twin.named_modules():
        if (own := getattr(module, "_orig_mod", None)) is not None:
            module.forward = own.__call__       # what torch.compile makes cannot be traced; a copy has no compiled call
        if isinstance(module, nn.Embedding):
            module.sparse = False       # the same gradient, with its zeros
        if isinstance(module, _BatchNorm) and not module.track_running_stats:
            raise InputError(f"BatchNorm {name!r} has no running statistics, so a product would depend on the split into "
                             "batches: build it with track_running_stats=True")
    return twin


def held_still(model: nn.Module, chosen: dict[str, nn.Parameter]) -> dict[str, Tensor]:
    """Snapshot everything that is not in theta: frozen and unchosen parameters, and buffers."""
    rest = {name: p for name, p in model.named_parameters() if name not in chosen}
    return {name: t.detach().clone() for name, t in (rest | dict(model.named_buffers())).items()}
