"""Accuracy and loss by class group, from one pass over the images, and from one more over their mirror images.

For a group S of classes: accuracy = the share of S's images whose largest logit is their own class's, loss = the mean
cross-entropy over S's images in nats. With flip averaging, the logits of an image and of its mirror image are averaged
first, as in the final evaluation of the SSE-SAM and ImbSAM releases. The model is in evaluation mode meanwhile.
"""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from landscape.batchnorm import evaluation_mode
from landscape.data import LongTailData
from landscape.errors import InputError
from landscape.groups import ClassGroups

SPLITS = ("train", "test")


@dataclass(frozen=True, eq=False)
class Outcome:
    """What a model says about each image of a split, on the CPU; broken images that are skipped are not among them."""

    labels: np.ndarray              # (N,) int64
    loss: np.ndarray                # (N,) cross-entropy in nats, float64
    correct: np.ndarray             # (N,) bool
    correct_flip: np.ndarray | None  # (N,) bool, with flip averaging; None where it was not asked for

    def by_group(self, groups: ClassGroups, prefix: str = "test") -> dict[str, float]:
        """Return the mean of each measure over each group's images.

        The names are `<prefix>_accuracy/<group>`, `<prefix>_loss/<group>` and, with flip averaging,
        `<prefix>_accuracy_flip/<group>`. A group without a class or without an image has no entry.
        """
        measures = {"accuracy": self.correct, "loss": self.loss}
        if self.correct_flip is not None:
            measures["accuracy_flip"] = self.correct_flip
        members = {name: np.isin(self.labels, classes) for name, classes in groups.classes.items()}
        return {f"{prefix}_{measure}/{name}": float(values[chosen].mean())
                for measure, values in measures.items() for name, chosen in members.items() if chosen.any()}


def evaluate(
    model: nn.Module,
    data: LongTailData,
    groups: ClassGroups,
    *,
    split: str = "test",
    flip: bool | None = None,
    batch_size: int = 250,
) -> dict[str, float]:
    """Return accuracy and loss of every group over one split; see `Outcome.by_group` for the names.

    `flip` asks for flip averaging as well; left out, it is done where a mirrored image keeps its label.
    """
    flip = data.flip_average if flip is None else flip
    return outcome(model, data, split=split, flip=flip, batch_size=batch_size).by_group(groups, split)


@torch.no_grad()
def outcome(
    model: nn.Module, data: LongTailData, *, split: str = "test", flip: bool = False, batch_size: int = 250
) -> Outcome:
    """Return what the model says about each image of a split. Model, mode and buffers are left as they were."""
    if split not in SPLITS:
        raise InputError(f"split={split!r} is unknown: expected one of {', '.join(SPLITS)}")
    if batch_size < 1:
        raise InputError(f"batch_size={batch_size} is out of range: expected an integer >= 1")
    chosen = getattr(data, split)
    like = next(model.parameters())
    pieces = torch.arange(len(chosen), device=chosen.labels.device).split(batch_size)
    with evaluation_mode(model):
        parts = [
            (labels, *_judge(model, data.inputs(images.to(like.device), like.dtype), labels.to(like.device), flip))
            for images, labels in chosen.batches(pieces) if len(labels)
        ]
    if not parts:
        raise InputError(f"no image of the {split} split can be read: {len(chosen.skipped)} are broken")
    # Joined on the device and fetched once: nothing waits in between.
    labels, loss, correct, correct_flip = (torch.cat(column).cpu().numpy() for column in zip(*parts))
    return Outcome(labels, loss, correct, correct_flip if flip else None)


def _judge(model: nn.Module, inputs: Tensor, labels: Tensor, flip: bool) -> tuple[Tensor, Tensor, Tensor]:
    logits = model(inputs)  # (B, C)
    loss = functional.cross_entropy(logits.double(), labels, reduction="none")
    correct = logits.argmax(1) == labels
    averaged = (logits + model(inputs.flip(-1))) / 2 if flip else logits
    return loss, correct, averaged.argmax(1) == labels
