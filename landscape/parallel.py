"""One step of several processes: gradients summed in one exchange, and parameters that stay the same everywhere.

Each process holds the whole model and its part of every batch (data parallelism; Li et al. 2020, PyTorch Distributed). A
gradient of the group losses is linear in the samples, so the sum over processes of the parts' gradients, each divided by
the count of the whole batch, is the gradient that one process would find; norms are taken of that sum. Sums have the same
bits on every process, and so do all parameters ever after.

BatchNorm mixes the samples of a batch. On GPUs its layers become SyncBatchNorm, whose statistics are the whole batch's; on
the CPU, where torch has no such layer, each process normalizes with its own part, which is another training. That the layers
are exchanged is tested; no step has been taken with them yet, for torch trains SyncBatchNorm on GPUs alone.
"""

import hashlib

import torch
from torch import Tensor, nn

from landscape.batchnorm import normalizers
from landscape.distributed import Processes
from landscape.errors import InputError
from landscape.optimizers.ascent import Gradient

PARTED = ("seed alike before the model is built, on every rank, and let no parameter take part in the loss on some ranks "
          "only")
BATCHNORM_NOTE = ("BatchNorm normalizes with each process's own part of a batch, since SyncBatchNorm needs GPUs: the steps "
                  "are not those of one process; running statistics are averaged after each epoch")


def sum_everywhere(processes: Processes, loss: Tensor, gradients: list[Gradient],
                   parameters: list[Tensor]) -> tuple[Tensor, list[Gradient]]:
    """Return loss and gradients summed over the processes, in one exchange; a lone process's as they are."""
    if processes.count == 1:
        return loss, gradients
    # One place for each parameter: what takes no part here still meets its counterpart elsewhere.
    parts = [gradient.get(p, torch.zeros_like(p)) for gradient in gradients for p in parameters]
    total, *sums = processes.sum_together([loss, *parts])
    rows = zip(*[iter(sums)] * len(parameters))
    return total, [{p: s for p, s in zip(parameters, row) if p in gradient} for gradient, row in zip(gradients, rows)]


def refuse_different_parameters(processes: Processes, parameters: list[Tensor]) -> None:
    """Raise InputError on every process if the parameters are not the same bits everywhere."""
    if processes.count > 1:
        digest = hashlib.sha256()
        for p in parameters:
            digest.update(p.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy())
        processes.refuse_different("the parameters", digest.hexdigest(), PARTED)


def one_gpu_each(device: torch.device, processes: Processes) -> None:
    """Raise InputError where a device by number would put all processes on one GPU."""
    if processes.count > 1 and device.type == "cuda" and device.index is not None:
        raise InputError(f"device='{device}' puts all {processes.count} processes on one GPU: leave it out, so that each "
                         "takes its own, or start one process")


def synchronized(model: nn.Module, processes: Processes, device: torch.device) -> nn.Module:
    """Return the model with SyncBatchNorm in the place of BatchNorm where several processes train on GPUs."""
    if processes.count > 1 and device.type == "cuda":
        return nn.SyncBatchNorm.convert_sync_batchnorm(model)
    return model


def batchnorm_note(model: nn.Module, processes: Processes, device: torch.device) -> str | None:
    """Return what is to be said of BatchNorm across these processes; None where there is nothing."""
    return BATCHNORM_NOTE if processes.count > 1 and device.type == "cpu" and normalizers(model) else None


@torch.no_grad()
def average_running_statistics(model: nn.Module, processes: Processes) -> None:
    """Give every process the mean of the running statistics, so that all evaluate and go on alike."""
    buffers = [b for layer in normalizers(model) for b in layer.buffers(recurse=False) if b.is_floating_point()]
    if processes.count > 1:
        for buffer, total in zip(buffers, processes.sum_together(buffers)):
            buffer.copy_(total / processes.count)
