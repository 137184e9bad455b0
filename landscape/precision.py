"""How precisely a network's forward and backward are computed; parameters, gradients' sums and norms keep their type.

    float32   IEEE single precision; on GPUs matrix products and convolutions in TF32 are switched off meanwhile
    tf32      the same with TF32, 10 bits of mantissa, in matrix products and convolutions (GPUs of Ampere and later)
    bf16      forward and backward in bfloat16 where torch.autocast finds it safe; its range is float32's
    amp16     the same in float16, whose range is small: the loss is multiplied by a scale that is halved, and the step
              left out, when a gradient overflows (Micikevicius et al. 2018)

Losses are computed in the parameters' type from the logits. Reading whether a gradient overflowed waits for the device
once a step and once for each ascent; the other three wait for nothing.
"""

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext

import torch

from landscape.errors import InputError

PRECISIONS = ("float32", "tf32", "bf16", "amp16")
AUTOCAST = {"bf16": torch.bfloat16, "amp16": torch.float16}
MINIMUM_OF_TF32 = (8, 0)    # compute capability


def check_precision(precision: str, device: torch.device) -> None:
    """Raise InputError where the device cannot compute so."""
    if precision == "tf32" and not _has_tf32(device):
        raise InputError(f"precision='tf32' is not here: it needs a GPU of compute capability 8.0 or later and the device is "
                         f"{device}; use float32 or bf16")
    if precision == "bf16" and device.type == "cuda" and not torch.cuda.is_bf16_supported(including_emulation=False):
        raise InputError(f"precision='bf16' is not here: {device} does not compute in bfloat16; use amp16 or float32")


def autocast(precision: str, device: torch.device) -> AbstractContextManager:
    """Return the with block in which a forward is computed."""
    return torch.autocast(device.type, AUTOCAST[precision]) if precision in AUTOCAST else nullcontext()


def gradient_scaler(precision: str, device: torch.device) -> "torch.amp.GradScaler | None":
    """Return the scaler that keeps float16 gradients in range; None where there is no need for it."""
    return torch.amp.GradScaler(device.type) if precision == "amp16" else None


@contextmanager
def float32_precision(precision: str) -> Iterator[None]:
    """Let GPUs multiply float32 in TF32 or not, as `precision` says, and put torch's switches back at the end."""
    matmul, cudnn = torch.backends.cuda.matmul, torch.backends.cudnn
    if hasattr(matmul, "fp32_precision") and hasattr(cudnn, "conv"):    # torch refuses to mix its two generations of switches
        switches, name, value = (matmul, cudnn.conv, cudnn.rnn), "fp32_precision", "tf32" if precision == "tf32" else "ieee"
    else:
        switches, name, value = (matmul, cudnn), "allow_tf32", precision == "tf32"
    before = [getattr(switch, name) for switch in switches]
    try:
        for switch in switches:
            setattr(switch, name, value)
        yield
    finally:
        for switch, old in zip(switches, before):
            setattr(switch, name, old)


def _has_tf32(device: torch.device) -> bool:
    return device.type == "cuda" and torch.cuda.get_device_capability(device) >= MINIMUM_OF_TF32
