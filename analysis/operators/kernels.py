"""Which kernels an analysis runs on: those that have second derivatives, full precision, and the same bits every time."""

from collections.abc import Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.overrides import TorchFunctionMode

LINEAR = 50.0       # from where log(1 + exp(a)) = a in float64


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
        with sdpa_kernel(SDPBackend.MATH), Rewritten():
            yield
    finally:
        torch.backends.mha.set_fastpath_enabled(fast)
        torch._C._set_mkldnn_enabled(fused[0])
        torch._C._set_cudnn_enabled(fused[1])


@contextmanager
def reproducible_kernels() -> Iterator[None]:
    """Switch TF32, autocast, inference mode and non-deterministic cuDNN algorithms off for the length of a with block."""
    flags = [(torch.backends.cudnn, "deterministic", True), (torch.backends.cudnn, "benchmark", False), *_full_precision()]
    before = [getattr(module, name) for module, name, _ in flags]
    try:
        for module, name, value in flags:
            setattr(module, name, value)
        with ExitStack() as modes:
            for mode in _modes_off():
                modes.enter_context(mode)
            yield
    finally:
        for (module, name, _), value in zip(flags, before):
            setattr(module, name, value)


class Rewritten(TorchFunctionMode):
    """While active, functions whose derivatives are missing or wrong in torch, or round badly, are computed by others."""

    def __torch_function__(self, function, types, args=(), kwargs=None):
        return REWRITTEN.get(function, function)(*args, **(kwargs or {}))


def _squared_error(input: Tensor, target: Tensor, size_average: bool | None = None, reduce: bool | None = None,
                   reduction: str = "mean", weight: Tensor | None = None) -> Tensor:
    """The same loss in operations that forward mode knows: the derivative of torch's own cannot be differentiated in it."""
    if size_average is not None or reduce is not None or weight is not None:
        return F.mse_loss(input, target, size_average, reduce, reduction, weight)
    squares = (input - target) ** 2
    return squares if reduction == "none" else squares.mean() if reduction == "mean" else squares.sum()


def _cross_entropy(input: Tensor, target: Tensor, weight: Tensor | None = None, size_average: bool | None = None,
                   ignore_index: int = -100, reduce: bool | None = None, reduction: str = "mean",
                   label_smoothing: float = 0.0) -> Tensor:
    """Return log(1 + sum_{j != y} exp(z_j - z_y)), whose derivatives keep their digits where a network fits its data.

    Those of torch's own are differences of probabilities near 1, p_y - 1 for one, of which rounding eps leaves eps / loss.
    """
    dim = min(input.ndim - 1, 1)
    plain = (target.dtype in (torch.int64, torch.uint8) and target.shape == input.shape[:dim] + input.shape[dim + 1:]
             and (weight is None or (weight.shape, weight.dtype) == (input.shape[dim:dim + 1], input.dtype))
             and reduction in ("none", "mean", "sum") and not label_smoothing and size_average is None and reduce is None)
    if not plain:
        return F.cross_entropy(input, target, weight, size_average, ignore_index, reduce, reduction, label_smoothing)
    ignored, least = target == ignore_index, torch.finfo(input.dtype).min
    index = target.long().masked_fill(ignored, 0).unsqueeze(dim)
    gaps = (input - input.gather(dim, index)).scatter(dim, index, least).masked_fill(ignored.unsqueeze(dim), least)
    losses = F.softplus(gaps.logsumexp(dim), threshold=LINEAR)      # 0 where all is at its least
    shares = (~ignored).to(input.dtype) if weight is None else weight[index.squeeze(dim)].masked_fill(ignored, 0)
    losses = losses if weight is None else losses * shares
    return losses if reduction == "none" else losses.sum() / shares.sum() if reduction == "mean" else losses.sum()


def _weight_norm(v: Tensor, g: Tensor, dim: int = 0) -> Tensor:
    """Return g v / ||v||: the derivative of torch's own fused kernel takes ||v|| for a constant when it is differentiated."""
    return v * (g / torch.norm_except_dim(v, 2, dim))


REWRITTEN = {F.cross_entropy: _cross_entropy, F.mse_loss: _squared_error, torch._weight_norm: _weight_norm}


def _modes_off() -> Iterator[AbstractContextManager]:
    """Leave inference mode, in which every gradient is zero, and autocast; where neither is on, nothing is entered.

    Outside inference mode no_grad stays what it is. An autocast that is switched off would keep the casts of weights of one that
    is entered inside it, on purpose, after the weights have moved.
    """
    if torch.is_inference_mode_enabled():
        yield torch.inference_mode(False)
    yield from (torch.autocast(kind, enabled=False) for kind in ("cpu", "cuda") if torch.is_autocast_enabled(kind))


def _full_precision() -> list[tuple[Any, str, Any]]:
    """Return the switches of full float32 precision; torch refuses to mix its two generations of them."""
    matmul, cudnn = torch.backends.cuda.matmul, torch.backends.cudnn
    if hasattr(matmul, "fp32_precision") and hasattr(cudnn, "conv"):
        return [(part, "fp32_precision", "ieee") for part in (matmul, cudnn.conv, cudnn.rnn)]
    return [(matmul, "allow_tf32", False), (cudnn, "allow_tf32", False)]
