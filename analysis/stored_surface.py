"""From a stored checkpoint to a stored surface: every group's and class's loss on a line or plane through it.

    compute_surface   -> Surface, kept as analysis.stored says; a sweep that was killed goes on at the row where it was
    stored_surface    -> the same, or None where it would have to be computed

Under torchrun every process calls it, and the first alone writes.
"""

import hashlib
from dataclasses import asdict, replace
from typing import Any

import numpy as np
import torch

from analysis.chosen_directions import ChosenDirections, axes_of, choose_directions
from analysis.findings.slices import barrier
from analysis.settings import SurfaceSettings, surface_name
from analysis.stored import digest, inputs_of, known
from analysis.subject import Batches, Subject, surface_batches
from analysis.surfaces.surface import loss_surface
from checkpoints.journal import Journal
from checkpoints.provenance import provenance
from checkpoints.records import Surface
from landscape.distributed import Processes, is_main
from landscape.groups import ClassGroups


def compute_surface(subject: Subject, epoch: int, settings: SurfaceSettings, *, name: str | None = None,
                    progress: Any = None, overwrite: bool = False) -> tuple[Surface, bool]:
    """Return the losses and accuracies on a line or plane through one checkpoint, and whether they were computed now.

    A stored surface is given back where weights, data, settings and all that its directions were made of are the same; one whose
    directions have changed since is an OtherRecord, as one of other settings is.
    """
    chosen = loaded_directions(subject, epoch, settings)
    name, inputs = name or surface_name(epoch, settings), _inputs(subject, settings, chosen)
    stored = _known(subject, name, inputs, overwrite)
    if stored is not None:
        return stored, False
    journal = subject.store.journal(f"surface-{digest(inputs)}")
    batches = surface_batches(subject, settings)
    processes = Processes.present()
    processes.refuse_different("the directions", inputs["directions"])
    record = loss_surface(
        subject.cast(settings.dtype), subject.loss("CE"), batches, chosen.directions, axes_of(chosen, settings),
        _groups(subject, batches), name=name, epoch=epoch, provenance=_made(inputs, processes), progress=progress,
        done=processes.first(_done(journal) if is_main() else None), on_row=_keeping(journal), batchnorm=settings.batchnorm,
        precision=settings.dtype if settings.dtype == "bfloat16" else None, derivatives=True, points=chosen.points,
        about=chosen.about)
    record = _with_barrier(record, settings)
    if is_main():
        subject.store.write(record)
        journal.clear()
    return record, True


def stored_surface(subject: Subject, epoch: int, settings: SurfaceSettings, *, name: str | None = None,
                   overwrite: bool = False) -> Surface | None:
    """Load an epoch's weights and return the stored surface, or None where it is to be computed; or OtherRecord.

    Directions that cannot be had are an error, as they are where it is computed.
    """
    inputs = _inputs(subject, settings, loaded_directions(subject, epoch, settings))
    return _known(subject, name or surface_name(epoch, settings), inputs, overwrite)


def _known(subject: Subject, name: str, inputs: dict[str, Any], overwrite: bool) -> Surface | None:
    return known(subject.store, "surface", inputs, defaults=asdict(SurfaceSettings()), overwrite=overwrite, name=name)


def loaded_directions(subject: Subject, epoch: int, settings: SurfaceSettings) -> ChosenDirections:
    """Return the directions of a surface through one checkpoint, whose weights are loaded."""
    subject.load(epoch)
    subject.cast("float32")         # as they are stored: a direction does not depend on what was computed before
    return choose_directions(subject, epoch, settings)


def _inputs(subject: Subject, settings: SurfaceSettings, chosen: ChosenDirections) -> dict[str, Any]:
    vectors = hashlib.sha256(b"".join(d.vector.cpu().numpy().tobytes() for d in chosen.directions)).hexdigest()
    sources = {"sources": chosen.sources} if chosen.sources else {}
    return inputs_of(subject, settings, directions=vectors, **sources)


def _groups(subject: Subject, batches: Batches) -> ClassGroups:
    """Return the groups and classes that have an image in the batches."""
    present = set(torch.cat([labels for _, labels in batches]).tolist())
    groups = subject.groups.with_classes()
    kept = {name: members for name, members in groups.classes.items() if present.intersection(members)}
    return ClassGroups(groups.counts, kept)


def _done(journal: Journal) -> dict[int, np.ndarray]:
    return {int(step["row"]): step["values"] for step in journal.steps()}


def _keeping(journal: Journal):
    """Return what writes each finished row, on the first process."""
    return (lambda i, row: journal.append({"row": np.array(i), "values": row})) if is_main() else None


def _made(inputs: dict[str, Any], processes: Processes) -> dict[str, Any]:
    return provenance(inputs=inputs, threads=torch.get_num_threads(), processes=processes.count)


def _with_barrier(record: Surface, settings: SurfaceSettings) -> Surface:
    """Add distance and barriers to a line between two checkpoints that holds both."""
    if settings.dims != 1 or settings.words[0].kind != "checkpoint" or settings.span is not None:
        return record
    distance = float(np.ptp(record.point_coordinates[:2, 0]))
    barriers = {group: barrier(record, group) for group in record.groups}
    return replace(record, about={**record.about, "distance": distance, "barrier": barriers})
