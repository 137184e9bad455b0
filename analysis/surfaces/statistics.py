"""Which statistics BatchNorm normalizes with at the points of a surface.

    fixed           those of the checkpoint
    recalibrated    estimated at each point from the data: running averages over all batches of one pass with batch statistics,
                    each batch with the same weight, as after stochastic weight averaging (Izmailov et al. 2018, section 3.2)
    batch           those of the batch that is evaluated

The last two depend on which images share a batch, so batches must be of one size, up to a sample, and hold still.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext

import torch
from torch import Tensor, nn

from landscape.batchnorm import batch_statistics, normalizers
from landscape.errors import InputError

POLICIES = ("fixed", "recalibrated", "batch")


def effective_policy(model: nn.Module, policy: str, sizes: Sequence[int]) -> str:
    """Return the policy that makes a difference: "fixed" where nothing is normalized. InputError for batches of other sizes."""
    if policy not in POLICIES:
        raise InputError(f"batchnorm={policy!r} is unknown: expected one of {', '.join(POLICIES)}")
    if policy == "fixed" or not normalizers(model):
        return "fixed"
    if max(sizes) - min(sizes) > 1 or min(sizes) < 2:
        raise InputError(f"batches of {min(sizes)} to {max(sizes)} images: batchnorm={policy!r} needs batches of one size, up to "
                         "one image, and of two or more")
    return policy


@contextmanager
def normalizing(model: nn.Module, policy: str) -> Iterator[None]:
    """Let a model in evaluation mode normalize as the policy says, for the length of a with block."""
    with batch_statistics(model) if policy == "batch" else nullcontext():
        yield


def recalibrate(model: nn.Module, batches: Sequence[Tensor]) -> None:
    """Estimate the running statistics of a model in evaluation mode from batches of images, at its present parameters."""
    layers = normalizers(model)
    momenta = [layer.momentum for layer in layers]
    try:
        for layer in layers:
            layer.reset_running_stats()
            layer.momentum = None       # a running average, every batch with the same weight
        with batch_statistics(model, update=True), torch.no_grad():
            for images in batches:
                model(images)
    finally:
        for layer, momentum in zip(layers, momenta):
            layer.momentum = momentum
