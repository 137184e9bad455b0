"""Directions of a surface from what is stored: drawn at random, eigenvectors of spectra, ways through checkpoints.

A direction is as true as what it comes from. A spectrum has to be of the weights at the surface's origin. What a direction was
made of is hashed and stored with the surface: asked for again after a checkpoint or spectrum has changed, it is another surface,
and that is said. Through two checkpoints besides the origin the second direction is taken orthogonal to the first, so that
coordinates are distances and all three lie in the plane; eigenvectors are never turned.
"""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from analysis.settings import SurfaceSettings
from analysis.subject import Subject
from analysis.surfaces.direction_words import Word
from analysis.surfaces.directions import Direction, between, eigenvector_direction, orthogonalized, random_direction
from analysis.surfaces.paths import axis_between, covering_axis, principal_directions, project
from checkpoints.errors import RecordError
from checkpoints.exactness import inexact
from checkpoints.records import Curvature
from checkpoints.schema import content_hash
from checkpoints.store import RunStore
from landscape.errors import InputError
from landscape.parameters import theta, trainable

_OBLIQUE = 0.05     # share of the longer axis that an axis has at least, where checkpoints hardly leave the other one


@dataclass(eq=False)
class ChosenDirections:
    """The directions of one surface, what they were made of, and the checkpoints to be shown on it."""

    directions: list[Direction] = field(default_factory=list)
    sources: dict[str, str] = field(default_factory=dict)   # of checkpoints and paths: content hash by name
    points: dict[str, Tensor] = field(default_factory=dict)  # theta (d,) by name, on the CPU; the origin first
    about: dict[str, Any] = field(default_factory=dict)


def choose_directions(subject: Subject, epoch: int, settings: SurfaceSettings) -> ChosenDirections:
    """Return the directions that the settings name, through the checkpoint now loaded."""
    chosen, generator = ChosenDirections(), torch.Generator().manual_seed(settings.seed)
    leads = any(word.leads_somewhere for word in settings.words)
    if leads:
        chosen.points[_called(None, epoch)] = theta(subject.model).cpu()
    for word in settings.words:
        _ADD[word.kind](chosen, subject, epoch, settings, word, generator)
    if leads and settings.dims == 2:
        _add_path(chosen, subject)
    _refuse_parallel(chosen.directions)
    return chosen


def axes_of(chosen: ChosenDirections, settings: SurfaceSettings) -> list[np.ndarray]:
    """Return the coordinates along each direction: from -span to span, or those that cover the checkpoints."""
    if settings.span is not None:
        return [np.linspace(-settings.span, settings.span, settings.points)] * settings.dims
    places, _ = located(chosen)
    if settings.dims == 1 and settings.words[0].kind == "checkpoint":
        return [axis_between(float(places[1, 0]), settings.points)]
    width = _OBLIQUE * float(np.ptp(places, axis=0).max())
    return [covering_axis(column, settings.points, width) for column in places.T.tolist()]


def located(chosen: ChosenDirections) -> tuple[np.ndarray, np.ndarray]:
    """Return the coordinates of the points (P, k), and how far they lie off the line or plane (P,)."""
    points = list(chosen.points.values())
    return project(points, points[0], chosen.directions)


def _add_random(chosen: ChosenDirections, subject: Subject, epoch: int, settings: SurfaceSettings, word: Word,
                generator: torch.Generator) -> None:
    for _ in range(_count(settings)):
        chosen.directions.append(random_direction(subject.model, generator, settings.normalization, ignore=settings.ignore))


def _add_eigen(chosen: ChosenDirections, subject: Subject, epoch: int, settings: SurfaceSettings, *_: Any) -> None:
    record = _spectrum(subject, epoch, settings.group)
    chosen.directions += [eigenvector_direction(record, end) for end in ("lower", "upper")[:_count(settings)]]


def _add_eigenvector(chosen: ChosenDirections, subject: Subject, epoch: int, settings: SurfaceSettings, word: Word,
                     *_: Any) -> None:
    chosen.directions.append(eigenvector_direction(_spectrum(subject, epoch, word.group), word.end, word.rank))


def _add_checkpoint(chosen: ChosenDirections, subject: Subject, epoch: int, settings: SurfaceSettings, word: Word,
                    *_: Any) -> None:
    store = subject.store if word.run is None else RunStore.open(Path(word.run))
    other = _last(store) if word.epoch is None else word.epoch
    chosen.sources[word.text], there = _theta(subject, store, other)
    here, name = next(iter(chosen.points.values())), _called(word.run, other)
    if torch.equal(there, here):
        raise InputError(f"directions={word.text!r} leads nowhere: it has the weights of epoch {epoch}; name another checkpoint")
    chosen.points[name] = there
    way = between(here, there, name)
    chosen.directions.append(orthogonalized(way, chosen.directions) if chosen.directions else way)


def _add_principal(chosen: ChosenDirections, subject: Subject, epoch: int, settings: SurfaceSettings, *_: Any) -> None:
    _add_path(chosen, subject)
    origin = next(iter(chosen.points.values()))
    path = [point for name, point in chosen.points.items() if name.startswith("epoch ") and point is not origin]
    made, shares = principal_directions(torch.stack(path) if path else origin.new_zeros(0, len(origin)), origin, _count(settings))
    chosen.directions += made
    chosen.about["explained_variance"] = shares


def _add_path(chosen: ChosenDirections, subject: Subject) -> None:
    """Add every checkpoint of the run to the points."""
    for epoch in subject.store.epochs:
        if (name := _called(None, epoch)) not in chosen.points:
            chosen.sources[f"epoch:{epoch}"], chosen.points[name] = _theta(subject, subject.store, epoch)


_ADD = {"random": _add_random, "eigen": _add_eigen, "eigenvector": _add_eigenvector, "checkpoint": _add_checkpoint,
        "pca": _add_principal}


def _count(settings: SurfaceSettings) -> int:
    """Return how many directions a word stands for."""
    return settings.dims if len(settings.words) == 1 else 1


def _called(run: str | None, epoch: int) -> str:
    return f"epoch {epoch}" if run is None else f"{run} epoch {epoch}"


def _last(store: RunStore) -> int:
    if not store.epochs:
        raise RecordError(f"{store.path} holds no checkpoint: train with --checkpoint_epochs, or let the training finish")
    return store.epochs[-1]


def _spectrum(subject: Subject, epoch: int, group: str) -> Curvature:
    """Return the stored spectrum of a group at the origin's own weights."""
    store = subject.store
    if not store.has("curvature", epoch=epoch, group=group):
        raise RecordError(f"{store.path} holds no spectrum of {group} at epoch {epoch}: run "
                          f"`landscape spectrum {store.path} --group {group} --epoch {epoch}` first")
    record = store.read("curvature", epoch=epoch, group=group)
    if word := inexact(record):
        raise RecordError(f"the spectrum of {group} at epoch {epoch} is {word}, its eigenvectors are no directions to "
                          "go by: compute it again with --overwrite and without --engine")
    if record.provenance.get("inputs", {}).get("checkpoint") != subject.checkpoint_hash:
        raise RecordError(f"the spectrum of {group} at epoch {epoch} belongs to other weights: compute it again")
    return record


def _theta(subject: Subject, store: RunStore, epoch: int) -> tuple[str, Tensor]:
    """Return the hash of a checkpoint and its trainable parameters (d,), in the order of the subject's."""
    record = store.read("checkpoint", epoch=epoch)
    parts = []
    for name, parameter in trainable(subject.model).items():
        found = record.arrays.get(name)
        if found is None or found.shape != tuple(parameter.shape):
            shape = "no such parameter" if found is None else f"shape {found.shape}"
            raise RecordError(f"{store.path} epoch {epoch} is of another architecture than {subject.store.path}: {name} has "
                              f"{shape} there, {tuple(parameter.shape)} here")
        parts.append(torch.from_numpy(np.array(found)).reshape(-1).to(parameter.dtype))
    return content_hash(record), torch.cat(parts)


def _refuse_parallel(directions: list[Direction]) -> None:
    """Refuse a plane whose two directions are one."""
    if len(directions) == 2:
        orthogonalized(directions[1], directions[:1])
