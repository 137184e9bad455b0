"""BatchNorm statistics: which ones a pass uses, and whether it moves the running ones.

    block                      normalizes with     moves the running statistics
    none, in training          the batch           yes
    running_statistics_held    the batch           no
    batch_statistics           the batch           only if asked
    evaluation_mode            the running ones    no

A layer is recognized by its attribute `track_running_stats`, as torch.nn names it, so that instance normalization and
third-party subclasses count too. Every block returns each module's own mode, also after an exception.
"""

from collections.abc import Iterator
from contextlib import contextmanager

from torch import nn


@contextmanager
def evaluation_mode(model: nn.Module) -> Iterator[nn.Module]:
    """Put the model in evaluation mode for the length of a with block; then every module gets its own mode back."""
    modes = [(module, module.training) for module in model.modules()]
    try:
        yield model.eval()
    finally:
        _restore("training", modes)


@contextmanager
def batch_statistics(model: nn.Module, update: bool = False) -> Iterator[nn.Module]:
    """Normalize with the batch's statistics for the length of a with block, whatever the model's mode.

    The running statistics move only with `update`. Modules without running statistics, dropout for one, keep their
    mode.
    """
    layers = normalizers(model)
    modes = [(layer, layer.training) for layer in layers]
    tracking = [(layer, layer.track_running_stats) for layer in layers]
    try:
        for layer in layers:
            layer.training, layer.track_running_stats = True, update
        yield model
    finally:
        _restore("training", modes)
        _restore("track_running_stats", tracking)


@contextmanager
def running_statistics_held(model: nn.Module) -> Iterator[nn.Module]:
    """Keep a model in training from moving its running statistics for the length of a with block.

    Layers that the user has put in evaluation mode go on using their running statistics.
    """
    held = [(layer, True) for layer in normalizers(model) if layer.training]
    try:
        _restore("track_running_stats", [(layer, False) for layer, _ in held])
        yield model
    finally:
        _restore("track_running_stats", held)


def normalizers(model: nn.Module) -> list[nn.Module]:
    """Return the modules that keep running statistics."""
    return [module for module in model.modules() if getattr(module, "track_running_stats", False)]


def _restore(name: str, values: list[tuple[nn.Module, bool]]) -> None:
    for module, value in values:
        setattr(module, name, value)
