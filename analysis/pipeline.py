"""From a stored checkpoint to stored records: the only place here that opens a run.

    Subject        one run: its data, model and groups; `load(epoch)` puts a checkpoint's weights into the model
    curvature      everything measured of one group's Hessian at one checkpoint -> Curvature
    surface        every group's loss on a line or plane through a checkpoint   -> Surface

A record stores what it was computed from. One whose inputs are the same is kept; one whose inputs differ is computed anew.
"""

import hashlib
import json
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from analysis.directions import Direction, eigenvector_direction, random_direction
from analysis.extremes import extreme_eigenpairs
from analysis.lanczos import krylov
from analysis.operators import HessianOperator
from analysis.quadrature import negative_mass, threshold
from analysis.saddle import extreme_ratio
from analysis.second_opinion import pyhessian_numbers
from analysis.settings import SpectrumSettings, SurfaceSettings, surface_name
from analysis.spectrum import estimate_trace, spectral_density
from analysis.surface import loss_surface
from checkpoints.errors import RecordError
from checkpoints.provenance import provenance
from checkpoints.records import Checkpoint, Curvature, Surface
from checkpoints.schema import content_hash
from checkpoints.store import RunStore
from landscape.batchnorm import evaluation_mode
from landscape.configuration import TrainConfig
from landscape.data import LongTailData, Split
from landscape.errors import InputError
from landscape.evaluation import evaluate
from landscape.groups import ClassGroups
from landscape.losses import build_loss
from landscape.snapshot import load_arrays
from landscape.training import build_network, choose_device, training_data

Batches = list[tuple[Tensor, Tensor]]
Counter = Callable[[int], None]


@dataclass
class Subject:
    """One run under analysis: data, groups and the model that checkpoints are loaded into."""

    store: RunStore
    config: TrainConfig
    data: LongTailData
    model: nn.Module
    groups: ClassGroups
    device: torch.device
    traces: dict = field(default_factory=dict)      # shared by all operators of one architecture
    checkpoint: Checkpoint | None = None

    @classmethod
    def open(cls, store: RunStore, *, data_dir: Path | str | None = None, device: str = "auto",
             data: LongTailData | None = None, traces: dict | None = None) -> "Subject":
        """Load the data and build the model that a run's configuration names."""
        config = TrainConfig.from_dict(store.config)
        data = training_data(config, data_dir, progress=False) if data is None else data
        config = config.resolved(data)
        device = choose_device(device)
        model = build_network(config, data).to(device)
        groups = ClassGroups.standard(data.counts, config.eta, config.many, config.few)
        return cls(store, config, data, model, groups, device, {} if traces is None else traces)

    def load(self, epoch: int) -> None:
        """Put the weights of one checkpoint into the model."""
        if self.checkpoint is None or self.checkpoint.epoch != epoch:
            self.checkpoint = self.store.read("checkpoint", epoch=epoch)
            self.model.float()
            load_arrays(self.model, self.checkpoint.arrays)
            self.__dict__.pop("test_metrics", None)
            self.__dict__.pop("checkpoint_hash", None)

    @cached_property
    def checkpoint_hash(self) -> str:
        """The hash of the weights now loaded."""
        return content_hash(self.checkpoint)

    @cached_property
    def test_metrics(self) -> dict[str, float]:
        """Accuracy and loss of every group and class on the test images, at the weights now loaded."""
        return evaluate(self.model, self.data, self.groups.with_classes(), flip=False)


def compute_curvature(subject: Subject, epoch: int, group: str, settings: SpectrumSettings, *,
                      progress: Counter | None = None, verify: str | None = None,
                      overwrite: bool = False) -> tuple[Curvature, bool]:
    """Return everything measured of one group's Hessian at one epoch, and whether it was computed now.

    A stored record of the same inputs is returned; one of other weights or data is stale, and computed anew; one of other
    settings is a RecordError unless `overwrite`. `verify="pyhessian"` adds that library's top eigenvalue and trace, computed
    on the same images.
    """
    subject.groups.select(group)
    subject.load(epoch)
    inputs = _inputs(subject, settings, group=group)
    known = _known(subject.store, "curvature", inputs, overwrite, epoch=epoch, group=group)
    if known is not None and (verify is None or known.second_opinion):
        return known, False
    started = time.perf_counter()
    batches, available = group_batches(subject, group, settings)
    model = subject.model.to(torch.float64 if settings.dtype == "float64" else torch.float32)
    traces = subject.traces.setdefault((settings.loss, settings.dtype), {})     # a trace holds the loss and its constants
    operator = HessianOperator(model, _loss(subject, settings), batches, traces=traces)
    record = known or _measure(subject, operator, epoch, group, settings, inputs, available, started, progress)
    if verify == "pyhessian":
        record = replace(record, second_opinion=pyhessian_numbers(model, _loss(subject, settings), _joined(operator)))
    subject.store.write(record)
    _journal(subject.store, inputs, epoch, group).clear()
    return record, known is None


def _measure(subject: Subject, operator: HessianOperator, epoch: int, group: str, settings: SpectrumSettings, inputs: dict,
             available: int, started: float, progress: Counter | None) -> Curvature:
    generator = torch.Generator().manual_seed(settings.seed)
    steps = min(settings.num_matvecs, operator.size)
    space = krylov(operator, num_matvecs=steps, num_probes=settings.num_probes, generator=generator,
                   num_ritz=2 * settings.num_pairs, journal=_journal(subject.store, inputs, epoch, group), progress=progress)
    spectrum = spectral_density(space)
    pairs = extreme_eigenpairs(space, min(settings.num_pairs, operator.size // 2), tol=settings.tol,
                               max_matvecs=settings.max_matvecs, generator=generator, progress=progress)
    trace = estimate_trace(operator, num_probes=settings.trace_probes, generator=generator, deflate=pairs, progress=progress)
    cutoff = threshold([spectrum])
    made_from = provenance(inputs=inputs, engine=operator.engine, engine_reasons=operator.reasons,
                           num_matvecs=operator.num_matvecs, threads=torch.get_num_threads(), device=str(operator.device),
                           seconds=time.perf_counter() - started)
    return Curvature(epoch, group, operator.num_samples, available, operator.loss(), _accuracy(subject.model, operator),
                     subject.test_metrics.get(f"test_accuracy/{group}", float("nan")), float(operator.gradient().norm()),
                     spectrum, pairs, trace, negative_mass(spectrum, cutoff), cutoff, extreme_ratio(pairs),
                     parameter_norms(subject.model), {}, made_from)


def compute_surface(subject: Subject, epoch: int, settings: SurfaceSettings, *, name: str | None = None,
                    progress: Any = None, overwrite: bool = False) -> tuple[Surface, bool]:
    """Return every group's loss and accuracy on a line or plane through one checkpoint, and whether it was computed now."""
    subject.load(epoch)
    directions = surface_directions(subject, epoch, settings)
    name = name or surface_name(epoch, settings)
    inputs = _inputs(subject, settings, directions=hashlib.sha256(
        b"".join(d.vector.cpu().numpy().tobytes() for d in directions)).hexdigest())
    if (known := _known(subject.store, "surface", inputs, overwrite, name=name)) is not None:
        return known, False
    subject.model.to(torch.float64 if settings.dtype == "float64" else torch.float32)
    journal = subject.store.journal(f"surface-{_digest(inputs)}")
    done = {int(step["row"]): step["values"] for step in journal.steps()}
    axis = np.linspace(-settings.span, settings.span, settings.points)
    record = loss_surface(subject.model, build_loss("CE", subject.data.counts), surface_batches(subject, settings), directions,
                          [axis] * settings.dims, subject.groups, name=name, epoch=epoch, provenance=provenance(inputs=inputs),
                          progress=progress, done=done,
                          on_row=lambda i, row: journal.append({"row": np.array(i), "values": row}))
    subject.store.write(record)
    journal.clear()
    return record, True


def surface_directions(subject: Subject, epoch: int, settings: SurfaceSettings) -> list[Direction]:
    """Return random filter-normalised directions, or a group's most negative and largest eigenvectors."""
    if settings.directions == "random":
        generator = torch.Generator().manual_seed(settings.seed)
        return [random_direction(subject.model, generator) for _ in range(settings.dims)]
    if not subject.store.has("curvature", epoch=epoch, group=settings.group):
        raise RecordError(f"{subject.store.path} holds no spectrum of {settings.group} at epoch {epoch}: run "
                          f"`landscape spectrum {subject.store.path} --group {settings.group} --epoch {epoch}` first")
    record = subject.store.read("curvature", epoch=epoch, group=settings.group)
    made_from = record.provenance.get("inputs", {}).get("checkpoint")
    if made_from != subject.checkpoint_hash:
        raise RecordError(f"the spectrum of {settings.group} at epoch {epoch} belongs to other weights: compute it again")
    return [eigenvector_direction(record, end) for end in ("lower", "upper")[:settings.dims]]


def group_batches(subject: Subject, group: str, settings: SpectrumSettings) -> tuple[Batches, int]:
    """Return a group's images in batches of nearly equal size, and how many the split holds of it."""
    split = getattr(subject.data, settings.split)
    labels = split.labels.cpu().numpy()
    members = np.flatnonzero(np.isin(labels, subject.groups.select(group)))
    if not len(members):
        raise InputError(f"group {group!r} has no image in the {settings.split} split")
    chosen = _subset(members, settings.max_samples, settings.seed)
    return _batches(subject, split, chosen, settings.batch_size, settings.dtype), len(members)


def surface_batches(subject: Subject, settings: SurfaceSettings) -> Batches:
    """Return the images of all groups in batches; with `max_samples`, so many of head and of tail each."""
    split = getattr(subject.data, settings.split)
    labels = split.labels.cpu().numpy()
    halves = [np.flatnonzero(np.isin(labels, subject.groups.classes[name])) for name in ("head", "tail")]
    chosen = np.sort(np.concatenate([_subset(part, settings.max_samples, settings.seed) for part in halves]))
    return _batches(subject, split, chosen, settings.batch_size, settings.dtype)


def parameter_norms(model: nn.Module) -> dict[str, float]:
    """Return ||theta|| of each trainable parameter."""
    return {name: float(p.detach().double().norm()) for name, p in model.named_parameters() if p.requires_grad}


def _subset(members: np.ndarray, limit: int | None, seed: int) -> np.ndarray:
    if limit is None or limit >= len(members):
        return members
    return np.sort(np.random.default_rng(seed).choice(members, limit, replace=False))


def _batches(subject: Subject, split: Split, chosen: np.ndarray, batch_size: int, dtype: str) -> Batches:
    pieces = np.array_split(chosen, -(-len(chosen) // batch_size))
    kind = torch.float64 if dtype == "float64" else torch.float32
    taken = [split.take(piece).to(subject.device) for piece in pieces]
    return [(subject.data.inputs(part.images, kind), part.labels) for part in taken]


def _loss(subject: Subject, settings: SpectrumSettings) -> Callable[[Tensor, Tensor], Tensor]:
    if settings.loss == "CE":
        return build_loss("CE", subject.data.counts)
    return build_loss(subject.config.loss, subject.data.counts, **subject.config.loss_options)


@torch.no_grad()
def _accuracy(model: nn.Module, operator: HessianOperator) -> float:
    """Return the share of the operator's own samples that the model labels rightly."""
    inputs, labels = _joined(operator)
    with evaluation_mode(model):
        correct = sum(int((model(x).argmax(1) == y).sum()) for x, y in zip(inputs.split(500), labels.split(500)))
    return correct / len(labels)


def _joined(operator: HessianOperator) -> tuple[Tensor, Tensor]:
    """Return the inputs and labels that the operator was made of, without padding."""
    columns = zip(*(tuple(x[:batch.num_samples] for x in batch.tensors) for batch in operator.batches))
    inputs, labels = (torch.cat(parts) for parts in columns)
    return inputs, labels


def _inputs(subject: Subject, settings: SpectrumSettings | SurfaceSettings, **more: Any) -> dict[str, Any]:
    """Return what decides a record's content, for the record and for telling whether it is stale."""
    counts = {"head": subject.groups.classes["head"], "tail": subject.groups.classes["tail"]}
    return {"checkpoint": subject.checkpoint_hash, "data": subject.data.hash, "settings": asdict(settings),
            "classes": {name: list(members) for name, members in counts.items()}, **more}


def _known(store: RunStore, kind: str, inputs: dict, overwrite: bool, **keys: Any) -> Any:
    """Return the stored record of these inputs, if there is one; refuse to replace one that is as good but of other settings."""
    if not store.has(kind, **keys):
        return None
    record, wanted = store.read(kind, **keys), json.loads(json.dumps(inputs))
    stored = record.provenance.get("inputs", {})
    if stored == wanted:
        return record
    stale = any(stored.get(key) != wanted[key] for key in ("checkpoint", "data", "classes"))
    if not (stale or overwrite):
        raise RecordError(f"{store.path} holds another {kind} of {', '.join(map(str, keys.values()))}: "
                          f"{_difference(stored, wanted)}; replace it with --overwrite, or keep it and ask for the same")
    return None


def _difference(stored: dict, wanted: dict) -> str:
    old, new = stored.get("settings", {}), wanted["settings"]
    names = [name for name in new if old.get(name) != new[name]]
    return ", ".join(f"{name}={old.get(name)} there, {new[name]} here" for name in names) or "other directions"


def _journal(store: RunStore, inputs: dict, epoch: int, group: str):
    return store.journal(f"spectrum-{epoch:04d}-{group.replace(':', '-')}-{_digest(inputs)}")


def _digest(inputs: dict) -> str:
    return hashlib.sha256(json.dumps(inputs, sort_keys=True).encode()).hexdigest()[:16]
