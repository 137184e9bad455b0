"""One training step from a batch: this process's share of it, cut into pieces, at the precision asked for.

    batch (B images) -> share of this process (B / processes) -> `accumulate` pieces, one forward after the other

The step is the whole batch's (GroupSAM adds pieces and shares up), so the number of processes and of pieces changes the
parameters by rounding alone, unless BatchNorm, which normalizes each piece on its own, or dropout is in the network.
"""

from collections.abc import Iterator
from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor, nn

from landscape.configuration import TrainConfig
from landscape.data import LongTailData
from landscape.data.views import NUM_VIEWS, Views, views_of
from landscape.distributed import Processes
from landscape.errors import InputError
from landscape.groups import ClassGroups
from landscape.losses import build_loss, drw_weights, loss_options, needs_views
from landscape.losses.contrastive import ContrastiveForward
from landscape.optimizers import GroupSAM
from landscape.optimizers.closures import Closure
from landscape.precision import autocast, check_precision, gradient_scaler


class TrainingStep:
    """A network, its optimizer and its loss; called with a batch, it takes a step and returns the batch's mean loss."""

    def __init__(self, config: TrainConfig, data: LongTailData, model: nn.Module, optimizer: GroupSAM,
                 device: torch.device, dtype: torch.dtype, processes: Processes = Processes()):
        check_precision(config.precision, device)
        self.config, self.optimizer, self.device, self.dtype, self.processes = config, optimizer, device, dtype, processes
        self.views = views_for(config, data)
        forward = model if self.views is None else ContrastiveForward(model)
        self.forward = torch.compile(forward) if config.compile else forward
        self.scaler = gradient_scaler(config.precision, device)
        self.loss = build_loss(config.loss, data.counts, **config.loss_options).to(device, dtype)
        self.membership = ClassGroups.head_tail(data.counts, config.eta).membership(device)
        self.class_weights = None
        if config.drw_epoch is not None:
            self.class_weights = drw_weights(data.counts, config.drw_beta).to(device, dtype)

    def __call__(self, inputs: Tensor, labels: Tensor, epoch: int) -> Tensor:
        """Take one step with images (B, C, H, W) and labels (B,), the whole batch; return the loss on the device.

        Where the loss contrasts views, images are (B, V, C, H, W).
        """
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
        if self.views is not None:
            inputs = _view_by_view(inputs)
        if self.config.channels_last and inputs.ndim == 4:
            inputs = inputs.contiguous(memory_format=torch.channels_last)

        def closure() -> tuple[Tensor, dict[str, Tensor]]:
            with autocast(self.config.precision, self.device):
                outputs = self.forward(inputs)
            losses = self.loss(_cast(outputs, self.dtype), labels)
            return losses * weights[0] if weights else losses, masks

        return closure

    def _retaining(self) -> AbstractContextManager:
        """Let a compiled forward serve several backwards: one for each group."""
        if not self.config.compile:
            return nullcontext()
        import torch._functorch.config as compiler
        return compiler.patch(donated_buffer=False)


def views_for(config: TrainConfig, data: LongTailData) -> Views | None:
    """Return what makes the views that the loss of a run contrasts; None where it contrasts none."""
    if not needs_views(config.loss):
        return None
    return views_of(data, config.loss_options.get("views", loss_options(config.loss)["views"]))


def _view_by_view(inputs: Tensor) -> Tensor:
    if inputs.ndim != 5 or inputs.shape[1] != NUM_VIEWS:
        raise InputError(f"loss=BCL was given images of shape {tuple(inputs.shape)}: expected (B, {NUM_VIEWS}, channels, H, W), "
                         "as shuffled_batches gives them with views=step.views")
    return inputs.transpose(0, 1).flatten(0, 1)     # (V B, channels, H, W)


def _cast(outputs, dtype: torch.dtype):
    return outputs.to(dtype) if isinstance(outputs, Tensor) else type(outputs)(*(part.to(dtype) for part in outputs))
