"""From a stored checkpoint to a stored surface: every group's loss on a line or plane through it.

    compute_surface   -> Surface, kept as analysis.stored says; a sweep that was killed goes on at the row where it was
"""

import hashlib
from dataclasses import asdict
from typing import Any

import numpy as np
import torch

from analysis.directions import Direction, eigenvector_direction, random_direction
from analysis.settings import SurfaceSettings, surface_name
from analysis.stored import digest, inputs_of, known
from analysis.subject import Subject, surface_batches
from analysis.surface import loss_surface
from checkpoints.errors import RecordError
from checkpoints.exactness import inexact
from checkpoints.provenance import provenance
from checkpoints.records import Surface


def compute_surface(subject: Subject, epoch: int, settings: SurfaceSettings, *, name: str | None = None,
                    progress: Any = None, overwrite: bool = False) -> tuple[Surface, bool]:
    """Return every group's loss and accuracy on a line or plane through one checkpoint, and whether it was computed now."""
    subject.load(epoch)
    directions = surface_directions(subject, epoch, settings)
    name = name or surface_name(epoch, settings)
    inputs = inputs_of(subject, settings, directions=hashlib.sha256(
        b"".join(d.vector.cpu().numpy().tobytes() for d in directions)).hexdigest())
    stored = known(subject.store, "surface", inputs, defaults=asdict(SurfaceSettings()), overwrite=overwrite, name=name)
    if stored is not None:
        return stored, False
    journal = subject.store.journal(f"surface-{digest(inputs)}")
    done = {int(step["row"]): step["values"] for step in journal.steps()}
    axis = np.linspace(-settings.span, settings.span, settings.points)
    record = loss_surface(subject.cast(settings.dtype), subject.loss("CE"), surface_batches(subject, settings), directions,
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
    if word := inexact(record):
        raise RecordError(f"the spectrum of {settings.group} at epoch {epoch} is {word}, its eigenvectors are no directions to "
                          "go by: compute it again with --overwrite and without --engine")
    made_from = record.provenance.get("inputs", {}).get("checkpoint")
    if made_from != subject.checkpoint_hash:
        raise RecordError(f"the spectrum of {settings.group} at epoch {epoch} belongs to other weights: compute it again")
    return [eigenvector_direction(record, end) for end in ("lower", "upper")[:settings.dims]]
