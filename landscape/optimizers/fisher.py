"""Diagonal Fisher information: the mean over samples of the squared gradient of the log-likelihood, each sample on its own.

    F_i = (1/n) sum over samples of (d log p(y | x) / d theta_i)^2

with the samples' own labels (the empirical Fisher information; Martens 2020, section 11, on what it is not), in evaluation
mode. Squares are of single samples: those of a batch's mean gradient, which the GKP-GSA release takes, are smaller by about
the size of the batch, and `squared_batch_gradients` gives these.
"""

from collections.abc import Callable, Iterable, Sequence

import torch
from torch import Tensor, nn
from torch.func import grad, vmap
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel

from landscape.batchnorm import evaluation_mode
from landscape.errors import InputError
from landscape.parameters import called_with, flatten

Batches = Iterable[tuple[Tensor, Tensor]]               # inputs (B, ...), labels (B,)
Loss = Callable[[Tensor, Tensor], Tensor]               # of logits (B, C) and labels (B,): per sample, (B,)
NUMBERS = 2 ** 24                                       # of per-sample gradients held at a time: 64 MiB in float32


def negative_log_likelihood(logits: Tensor, labels: Tensor) -> Tensor:
    """Return -log p(y | x) of each sample."""
    return F.cross_entropy(logits, labels, reduction="none")


@torch.no_grad()
def diagonal_fisher(model: nn.Module, batches: Batches, names: Sequence[str],
                    loss: Loss = negative_log_likelihood) -> Tensor:
    """Return the diagonal (d,), float64, in the order of the parameters' `names`. Model and mode are left as they were.

    A network that vmap does not serve, a recurrent one for instance, is differentiated one sample after the other.
    """
    chosen, held = _split(model, names)
    at_once = max(NUMBERS // sum(p.numel() for p in chosen.values()), 1)

    def of_sample(parameters: dict[str, Tensor], image: Tensor, label: Tensor) -> Tensor:
        return loss(called_with(model, {**held, **parameters}, image[None]), label[None])[0]

    slopes = vmap(grad(of_sample), (None, 0, 0))
    total, count = 0.0, 0
    with evaluation_mode(model), sdpa_kernel(SDPBackend.MATH):      # the others have no rule for vmap
        for images, labels in batches:
            for piece in zip(images.split(at_once), labels.split(at_once)):
                try:
                    squares = [g.double().square().sum(0) for g in slopes(chosen, *piece).values()]
                except (RuntimeError, NotImplementedError):
                    squares = _one_by_one(model, names, *piece, loss)
                total, count = total + flatten(squares), count + len(piece[1])
    return total / _counted(count)


@torch.enable_grad()
def _one_by_one(model: nn.Module, names: Sequence[str], images: Tensor, labels: Tensor, loss: Loss) -> list[Tensor]:
    parameters = [model.get_parameter(name) for name in names]
    total = [torch.zeros_like(p, dtype=torch.float64) for p in parameters]
    for image, label in zip(images, labels):
        slopes = torch.autograd.grad(loss(model(image[None]), label[None])[0], parameters, materialize_grads=True)
        total = [t + slope.double().square() for t, slope in zip(total, slopes)]
    return total


def squared_batch_gradients(model: nn.Module, batches: Batches, names: Sequence[str],
                            loss: Loss = negative_log_likelihood) -> Tensor:
    """Return what the GKP-GSA release has in the place of F: squares of batch-mean gradients, summed, over all samples."""
    chosen = [model.get_parameter(name) for name in _split(model, names)[0]]
    total, count = 0.0, 0
    with evaluation_mode(model), torch.enable_grad():
        for images, labels in batches:
            slopes = torch.autograd.grad(loss(model(images), labels).mean(), chosen, materialize_grads=True)
            total, count = total + flatten(slope.double().square() for slope in slopes), count + len(labels)
    return total / _counted(count)


def _split(model: nn.Module, names: Sequence[str]) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Return the parameters to differentiate by, in the order of names, and all other parameters and buffers."""
    everything = {name: p.detach() for name, p in (*model.named_parameters(), *model.named_buffers())}
    if unknown := [name for name in names if name not in everything]:
        raise InputError(f"parameter {unknown[0]!r} is unknown to {type(model).__name__}")
    return {name: everything[name] for name in names}, {n: p for n, p in everything.items() if n not in set(names)}


def _counted(count: int) -> int:
    if not count:
        raise InputError("the Fisher information has no sample: give it at least one batch that is not empty")
    return count
