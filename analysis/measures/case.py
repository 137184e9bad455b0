"""One run at one checkpoint, as measures see it: its network and loss, the images of its groups, its stored spectra.

    case = Case(store, open_subject, epoch=60, settings=MeasureSettings())
    case.subject                        the run's data and model with the checkpoint's weights, opened when first asked for
    case.images("tail")                 the group's images in batches, and how many the split holds
    case.spectrum("tail")               its stored Curvature with eigenvectors; RecordError naming what makes it
"""

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import torch

from analysis.settings import MeasureSettings, SpectrumSettings
from analysis.subject import Batches, Subject, group_batches, group_images
from checkpoints.errors import RecordError
from checkpoints.exactness import inexact
from checkpoints.records import Curvature
from checkpoints.staleness import spectrum_hash
from checkpoints.store import RunStore


@dataclass
class Case:
    """What a measure is a function of. `progress(n)` is told of n image gradients done (one forward and backward each)."""

    store: RunStore
    open_subject: Callable[[], Subject]
    epoch: int | None       # None: no checkpoint, any weights will do
    settings: MeasureSettings
    progress: Callable[[int], None] = field(default=lambda count: None)

    @property
    def subject(self) -> Subject:
        """The run's data, groups and model, with the weights of this checkpoint also where cases share it."""
        if self.epoch is not None:
            self._opened.load(self.epoch)
        return self._opened

    @cached_property
    def _opened(self) -> Subject:
        return self.open_subject()

    @property
    def place(self) -> dict[str, Any]:
        """Where it is computed, for a record's provenance."""
        device = str(self._opened.device) if "_opened" in self.__dict__ else "cpu"
        return {"device": device, "threads": torch.get_num_threads()}

    def images(self, group: str, augmentation_seed: int | None = None) -> tuple[Batches, int]:
        """Return a group's images (a subset with `max_samples`) in batches, and how many the split holds of it.

        With a seed they are as one draw of the training's augmentation leaves them.
        """
        return group_batches(self.subject, group, self.settings, augmentation_seed)

    def num_images(self, group: str) -> tuple[int, int]:
        """Return how many images `images` gives, and how many the split holds of the group."""
        chosen, available = group_images(self.subject, group, self.settings)
        return len(chosen), available

    def spectrum(self, group: str) -> Curvature:
        """Return the stored curvature of a group with its eigenvectors, of these very weights."""
        return self._spectra[group] if group in self._spectra else self._spectra.setdefault(group, self._read(group))

    def spectrum_settings(self, group: str) -> SpectrumSettings:
        """Return the settings of a group's stored spectrum: which images, which loss."""
        return SpectrumSettings(**self.spectrum(group).provenance["inputs"]["settings"])

    def spectrum_images(self, group: str, dtype: str) -> tuple[Batches, int]:
        """Return the very images of a group's stored spectrum in batches of a type, and how many the split holds of it."""
        return group_batches(self.subject, group, replace(self.spectrum_settings(group), dtype=dtype))

    def num_spectrum_images(self, group: str) -> int:
        """Return how many images a group's stored spectrum is of."""
        return len(group_images(self.subject, group, self.spectrum_settings(group))[0])

    def spectrum_hash(self, group: str) -> str:
        """Return the hash of a group's stored curvature, the same once another library has verified it."""
        return spectrum_hash(self.spectrum(group))

    @cached_property
    def _spectra(self) -> dict[str, Curvature]:
        return {}

    def _read(self, group: str) -> Curvature:
        self.subject.groups.select(group)
        make = f"landscape spectrum {self.store.path} --epoch {self.epoch} --group {group}"
        if not self.store.has("curvature", epoch=self.epoch, group=group):
            raise RecordError(f"{self.store.path}: no spectrum of group {group} at epoch {self.epoch}; make it with: {make}")
        record = self.store.read("curvature", epoch=self.epoch, group=group)
        called = f"{self.store.path}: the spectrum of group {group} at epoch {self.epoch}"
        if record.provenance.get("inputs", {}).get("checkpoint") != self.subject.checkpoint_hash:
            raise RecordError(f"{called} belongs to other weights; make it anew with: {make}")
        if not len(record.eigenpairs.vectors):
            raise RecordError(f"{called} holds no eigenvectors; make it anew with: {make} --overwrite")
        if word := inexact(record):
            raise RecordError(f"{called} is {word}, its eigenvectors are none; make it anew with: {make} --overwrite")
        return record
