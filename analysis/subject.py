"""One run under analysis: its data, its groups, and the model that its checkpoints are loaded into.

    subject = Subject.open(store)           # or Subject.of(config, data): a run that is still to be trained
    subject.load(epoch=60)
    batches, available = group_batches(subject, "tail", settings)
"""

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from analysis.settings import SpectrumSettings, SurfaceSettings
from checkpoints.records import Checkpoint
from checkpoints.schema import content_hash
from checkpoints.store import RunStore
from landscape.configuration import TrainConfig, TrainedConfig
from landscape.data import LongTailData, Split
from landscape.errors import InputError
from landscape.evaluation import evaluate
from landscape.groups import ClassGroups
from landscape.losses import build_loss, needs_views
from landscape.losses.contrastive import freeze_contrastive_heads
from landscape.snapshot import load_arrays
from landscape.training import build_network, choose_device, training_data

Batches = list[tuple[Tensor, Tensor]]


@dataclass
class Subject:
    """A run's data, groups and model. `traces` holds traced products, shared by every run of one process."""

    config: TrainConfig
    data: LongTailData
    model: nn.Module
    groups: ClassGroups
    device: torch.device
    store: RunStore | None = None
    traces: dict = field(default_factory=dict)
    checkpoint: Checkpoint | None = None

    @classmethod
    def open(cls, store: RunStore, *, data_dir: Path | str | None = None, device: str = "auto",
             data: LongTailData | None = None, traces: dict | None = None) -> "Subject":
        """Load the data and build the model that a run's configuration names."""
        config = TrainedConfig.from_dict(store.config)
        data = training_data(config, data_dir, progress=False) if data is None else data
        return cls.of(config, data, device=device, store=store, traces=traces)

    @classmethod
    def of(cls, config: TrainConfig, data: LongTailData, *, device: str = "auto", store: RunStore | None = None,
           traces: dict | None = None) -> "Subject":
        """Build the model of a configuration, with its initial weights."""
        config, device = config.resolved(data), choose_device(device)
        groups = ClassGroups.standard(data.counts, config.eta, config.many, config.few)
        # Projection heads have no part in the logits, and would fill the spectrum with zeros.
        model = freeze_contrastive_heads(build_network(config, data)).to(device)
        return cls(config, data, model, groups, device, store, {} if traces is None else traces)

    def load(self, epoch: int) -> None:
        """Put the weights of one checkpoint into the model."""
        if self.checkpoint is None or self.checkpoint.epoch != epoch:
            self.checkpoint = self.store.read("checkpoint", epoch=epoch)
            self.model.float()
            load_arrays(self.model, self.checkpoint.arrays)
            self.__dict__.pop("test_metrics", None)
            self.__dict__.pop("checkpoint_hash", None)

    def cast(self, dtype: str) -> nn.Module:
        """Return the model in float32 or float64."""
        return self.model.to(torch.float64 if dtype == "float64" else torch.float32)

    def loss(self, name: str) -> Callable[[Tensor, Tensor], Tensor]:
        """Return cross-entropy ("CE"), or the loss that the run was trained with."""
        if name == "CE":
            return build_loss("CE", self.data.counts)
        if needs_views(self.config.loss):
            raise InputError(f"loss={name} is {self.config.loss}, which contrasts views of images and is no function of their "
                             "logits: expected loss=CE for this run")
        return build_loss(self.config.loss, self.data.counts, **self.config.loss_options)

    def shared_traces(self, settings: SpectrumSettings) -> dict:
        """Return the traced products that fit this run: a trace holds the network, the loss and its constants."""
        network = (self.config.arch, self.config.loss, repr(self.config.loss_options), tuple(self.data.counts),
                   self.data.image_size)
        return self.traces.setdefault((*network, settings.loss, settings.dtype, settings.operator), {})

    @cached_property
    def checkpoint_hash(self) -> str:
        """The hash of the weights now loaded."""
        return content_hash(self.checkpoint)

    @cached_property
    def test_metrics(self) -> dict[str, float]:
        """Accuracy and loss of every group and class on the test images, at the weights now loaded."""
        return evaluate(self.model, self.data, self.groups.with_classes(), flip=False)


def group_images(subject: Subject, group: str, settings: SpectrumSettings) -> tuple[np.ndarray, int]:
    """Return which images of the split enter a group's Hessian, and how many the split holds of the group."""
    labels = getattr(subject.data, settings.split).labels.cpu().numpy()
    members = np.flatnonzero(np.isin(labels, subject.groups.select(group)))
    if not len(members):
        raise InputError(f"group {group!r} has no image in the {settings.split} split")
    return _subset(members, settings.max_samples, settings.seed), len(members)


def group_batches(subject: Subject, group: str, settings: SpectrumSettings,
                  augmentation_seed: int | None = None) -> tuple[Batches, int]:
    """Return a group's images in batches, and how many the split holds of it; with a seed as training augments them."""
    chosen, available = group_images(subject, group, settings)
    split = getattr(subject.data, settings.split)
    return _batches(subject, split, chosen, settings.batch_size, settings.dtype, augmentation_seed), available


def other_batches(subject: Subject, group: str, settings: SpectrumSettings) -> Batches:
    """Return as many images of a group again, drawn from those that do not enter its Hessian; none where all do."""
    all_images, _ = group_images(subject, group, replace(settings, max_samples=None))
    chosen, _ = group_images(subject, group, settings)
    others = np.setdiff1d(all_images, chosen)
    picked = _subset(others, len(chosen), (settings.seed, 1))
    split = getattr(subject.data, settings.split)
    return _batches(subject, split, picked, settings.batch_size, settings.dtype) if len(picked) else []


def surface_batches(subject: Subject, settings: SurfaceSettings) -> Batches:
    """Return the images of all groups in batches; with `max_samples`, so many of head and of tail each.

    Where the statistics of batches are used, the images are mixed by `seed`, and batches differ by an image at most.
    """
    split = getattr(subject.data, settings.split)
    labels = split.labels.cpu().numpy()
    halves = [np.flatnonzero(np.isin(labels, subject.groups.classes[name])) for name in ("head", "tail")]
    chosen = np.sort(np.concatenate([_subset(part, settings.max_samples, settings.seed) for part in halves]))
    if settings.batchnorm == "fixed":
        return _batches(subject, split, chosen, settings.batch_size, settings.dtype)
    # Statistics depend on which images share a batch: a batch of each class alone is like none in training.
    mixed = np.random.default_rng(settings.seed).permutation(chosen)
    return _batches(subject, split, mixed, settings.batch_size, settings.dtype, even=True)


def _subset(members: np.ndarray, limit: int | None, seed: int | tuple[int, ...]) -> np.ndarray:
    if limit is None or limit >= len(members):
        return members
    return np.sort(np.random.default_rng(seed).choice(members, limit, replace=False))


def _batches(subject: Subject, split: Split, chosen: np.ndarray, batch_size: int, dtype: str,
             augmentation_seed: int | None = None, even: bool = False) -> Batches:
    cuts = -(-len(chosen) // batch_size) if even else range(batch_size, len(chosen), batch_size)
    pieces = np.array_split(chosen, cuts)
    kind = torch.float64 if dtype == "float64" else torch.float32
    read = split.batches([torch.from_numpy(piece).to(split.labels.device) for piece in pieces], augmentation_seed)
    if augmentation_seed is not None:       # drawn on the CPU, so that devices agree
        draws = torch.Generator().manual_seed(augmentation_seed)
        read = ((subject.data.augmentation(images, draws), labels) for images, labels in read)
    taken = [(subject.data.inputs(images.to(subject.device), kind), labels.to(subject.device)) for images, labels in read
             if len(labels)]
    if not taken:
        raise InputError(f"none of the {len(chosen)} images asked for can be read: {len(split.skipped)} are broken")
    return taken
