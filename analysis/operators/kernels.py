"""Which kernels an analysis runs on: those that have second derivatives, full precision, and the same bits every time."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel


@contextmanager
def differentiable_kernels(model: nn.Module) -> Iterator[None]:
    """Use the attention and recurrent kernels that have second derivatives, for the length of a with block."""
    fast = torch.backends.mha.get_fastpath_enabled()
    fused = torch._C._get_mkldnn_enabled(), torch._C._get_cudnn_enabled()
    recurrent = any(isinstance(module, nn.RNNBase) for module in model.modules())
    torch.backends.mha.set_fastpath_enabled(False)
    torch._C._set_mkldnn_enabled(fused[0] and not recurrent)
    torch._C._set_cudnn_enabled(fused[1] and not recurrent)
    try:
        with sdpa_kernel(SDPBackend.MATH):
            yield
    finally:
        torch.backends.mha.set_fastpath_enabled(fast)
        torch._C._set_mkldnn_enabled(fused[0])
        torch._C._set_cudnn_enabled(fused[1])


@contextmanager
def reproducible_kernels() -> Iterator[None]:
    """Switch TF32 and non-deterministic cuDNN algorithms off for the length of a with block."""
    flags = [(torch.backends.cudnn, "deterministic", True), (torch.backends.cudnn, "benchmark", False), *_full_precision()]
    before = [getattr(module, name) for module, name, _ in flags]
    try:
        for module, name, value in flags:
            setattr(module, name, value)
        yield
    finally:
        for (module, name, _), value in zip(flags, before):
            setattr(module, name, value)


def _full_precision() -> list[tuple[Any, str, Any]]:
    """Return the switches of full float32 precision; torch refuses to mix its two generations of them."""
    matmul, cudnn = torch.backends.cuda.matmul, torch.backends.cudnn
    if hasattr(matmul, "fp32_precision") and hasattr(cudnn, "conv"):
        return [(part, "fp32_precision", "ieee") for part in (matmul, cudnn.conv, cudnn.rnn)]
    return [(matmul, "allow_tf32", False), (cudnn, "allow_tf32", False)]
