"""One training step from a batch: this process's share of it, cut into pieces, at the precision asked for.

    batch (B images) -> share of this process (B / processes) -> `accumulate` pieces, one forward after the other

The step is the whole batch's (GroupSAM adds pieces and shares up), so the number of processes and of pieces changes the
parameters by rounding alone, unless BatchNorm, which normalizes each piece on its own, or dropout is in the network.
"""

from collections.abc import Iterator
from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor, nn

from landscape.closures import Closure
from landscape.configuration import TrainConfig
from landscape.data import LongTailData
from landscape.distributed import Processes
from landscape.groups import ClassGroups
from landscape.losses import build_loss, drw_weights
from landscape.optimizers import GroupSAM
from landscape.precision import autocast, check_precision, gradient_scaler


class TrainingStep:
    """A network, its optimizer and its loss; called with a batch, it takes a step and returns the batch's mean loss."""

    def __init__(self, config: TrainConfig, data: LongTailData, model: nn.Module, optimizer: GroupSAM,
                 device: torch.device, dtype: torch.dtype, processes: Processes = Processes()):
        check_precision(config.precision, device)
        self.config, self.optimizer, self.device, self.dtype, self.processes = config, optimizer, device, dtype, processes
        self.forward = torch.compile(model) if config.compile else model
        self.scaler = gradient_scaler(config.precision, device)
        self.loss = build_loss(config.loss, data.counts, **config.loss_options).to(device, dtype)
        self.membership = ClassGroups.head_tail(data.counts, config.eta).membership(device)
        self.class_weights = None
        if config.drw_epoch is not None:
            self.class_weights = drw_weights(data.counts, config.drw_beta).to(device, dtype)

    def __call__(self, inputs: Tensor, labels: Tensor, epoch: int) -> Tensor:
        """Take one step with images (B, C, H, W) and labels (B,), the whole batch; return the loss on the device."""
        with self._retaining():
            loss = self.optimizer.step(*self._closures(inputs, labels, epoch), scaler=self.scaler)
        if self.scaler:
            self.scaler.update()
        return loss

    def _closures(self, inputs: Tensor, labels: Tensor, epoch: int) -> Iterator[Closure]:
        pieces = min(self.config.accumulate, max(len(labels) // self.processes.count, 1))   # as many on every process
        parts = [inputs, labels, *(table[labels] for table in self.membership.values())]
        if (weights := self._weights(labels, epoch)) is not None:
            parts.append(weights)
        share = self.processes.share(len(labels))
        return (self._closure(*piece) for piece in zip(*(part[share].tensor_split(pieces) for part in parts)))

    def _weights(self, labels: Tensor, epoch: int) -> Tensor | None:
        if self.class_weights is None or epoch < self.config.drw_epoch:
            return None
        # Times |B| over their sum, so that the mean over the batch is torch's weighted mean, as in LDAM-DRW.
        weights = self.class_weights[labels]
        return weights * (len(labels) / weights.sum())

    def _closure(self, inputs: Tensor, labels: Tensor, *parts: Tensor) -> Closure:
        masks = dict(zip(self.membership, parts)) | {"labels": labels}
        weights = parts[len(self.membership):]
        if self.config.channels_last and inputs.ndim == 4:
            inputs = inputs.contiguous(memory_format=torch.channels_last)

        def closure() -> tuple[Tensor, dict[str, Tensor]]:
            with autocast(self.config.precision, self.device):
                logits = self.forward(inputs)
            losses = self.loss(logits.to(self.dtype), labels)
            return losses * weights[0] if weights else losses, masks

        return closure

    def _retaining(self) -> AbstractContextManager:
        """Let a compiled forward serve several backwards: one for each group."""
        if not self.config.compile:
            return nullcontext()
        import torch._functorch.config as compiler
        return compiler.patch(donated_buffer=False)
