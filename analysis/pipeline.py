"""From a stored checkpoint to stored records.

    compute_curvature   everything measured of one group's Hessian at one checkpoint -> Curvature
    compute_surface     every group's loss on a line or plane through a checkpoint   -> Surface

A record stores what it was computed from. One whose inputs are the same is kept unless it is to be overwritten; one of other
weights or data is computed anew; one of other settings, or made by another engine than the one named, is refused.
A computation that was killed goes on at the product where it was.
"""

import hashlib
import json
import time
from collections.abc import Callable
from dataclasses import asdict, replace
from typing import Any

import numpy as np
import torch
from torch import nn

from analysis.directions import Direction, eigenvector_direction, random_direction
from analysis.extremes import extreme_eigenpairs
from analysis.lanczos import krylov
from analysis.operators import GaussNewtonOperator, HessianOperator, LinearOperator
from analysis.quadrature import negative_mass, threshold
from analysis.replay import Remembered, note, noted
from analysis.saddle import extreme_ratio
from analysis.second_opinion import pyhessian_numbers
from analysis.settings import Making, SpectrumSettings, SurfaceSettings, stored_group, surface_name
from analysis.spectrum import spectral_density
from analysis.subject import Batches, Subject, group_batches, surface_batches
from analysis.surface import loss_surface
from analysis.trace import TraceEstimate, measure_trace
from checkpoints.errors import RecordError
from checkpoints.exactness import INEXACT, inexact, supported
from checkpoints.journal import Journal
from checkpoints.provenance import provenance
from checkpoints.records import Curvature, EigenPairs, Spectrum, Surface
from checkpoints.store import RunStore
from landscape.batchnorm import evaluation_mode
from landscape.distributed import Processes, is_main
from landscape.errors import InputError

Counter = Callable[[int], None]
OPERATORS = {"hessian": HessianOperator, "gauss_newton": GaussNewtonOperator}


class OtherRecord(RecordError):
    """What is stored was computed otherwise than is asked for: it is neither given back nor replaced."""

    def __init__(self, found: str):
        super().__init__(f"{found}; replace it with --overwrite, or keep it and ask for the same")
        self.found = found


def compute_curvature(subject: Subject, epoch: int, group: str, settings: SpectrumSettings, *, making: Making = Making(),
                      progress: Counter | None = None, recalled: Counter | None = None, verify: str | None = None,
                      overwrite: bool = False) -> tuple[Curvature, bool]:
    """Return everything measured of one group's Hessian at one epoch, and whether it was computed now.

    A stored record of the same inputs is returned; one of other weights or data is stale, and computed anew; one of other
    settings, or not made as `making` names, is an OtherRecord. With `overwrite` nothing stored is returned.
    `progress` is told of every product, `recalled` of those among them that an earlier process made.
    `verify="pyhessian"` adds that library's top eigenvalue and trace, computed on the same images.
    """
    subject.groups.select(group)
    if verify == "pyhessian" and stored_group(group, settings) != group:
        raise InputError("verify='pyhessian' knows the Hessian over all parameters alone: leave out params and operator")
    subject.load(epoch)
    inputs = _inputs(subject, settings, group=group)
    known = _known(subject.store, "curvature", inputs, overwrite, epoch=epoch, group=stored_group(group, settings))
    if known is not None:
        _refuse_other_making(subject.store, known, making)
        if verify is None or known.second_opinion:
            return known, False
    record = known or _measured(subject, epoch, group, settings, making, inputs, progress, recalled)
    if is_main():
        if verify == "pyhessian":
            record = replace(record, second_opinion=_second_opinion(subject, group, settings))
        subject.store.write(record)
        _journal(subject.store, epoch, group, inputs, making).clear()
    return record, known is None


def build_operator(subject: Subject, batches: Batches, settings: SpectrumSettings, making: Making = Making(),
                   choice: dict[str, Any] | None = None) -> HessianOperator:
    """Return the Hessian, or what `settings.operator` names, over some batches at the weights now loaded."""
    return OPERATORS[settings.operator](
        subject.cast(settings.dtype), subject.loss(settings.loss), batches, params=settings.params, fill=True,
        traces=subject.shared_traces(settings), expected_matvecs=settings.products, **making.keywords(choice or {}))


def interrupted(subject: Subject, epoch: int, group: str, settings: SpectrumSettings, making: Making = Making()) -> bool:
    """Tell whether an earlier process began this spectrum, as it is asked for, and chose how to make its products."""
    subject.load(epoch)
    journal = _journal(subject.store, epoch, group, _inputs(subject, settings, group=group), making)
    return Processes.present().first(is_main() and noted(journal) is not None)


def _measured(subject: Subject, epoch: int, group: str, settings: SpectrumSettings, making: Making, inputs: dict,
              progress: Counter | None, recalled: Counter | None) -> Curvature:
    """Measure with products that are kept, made as a process before this one had chosen to make them."""
    started, journal = time.perf_counter(), _journal(subject.store, epoch, group, inputs, making)
    choice = Processes.present().first(noted(journal) if is_main() else None)
    batches, available = group_batches(subject, group, settings)
    operator = build_operator(subject, batches, settings, making, choice)
    if choice is None and is_main():
        journal.clear()
        note(journal, operator.choice)
    with Remembered(operator, journal, json.dumps(inputs, sort_keys=True)) as products:
        spectrum, pairs, trace = _decompose(products, settings, _telling(products, progress, recalled))
    made_from = provenance(inputs=inputs, **_how(products), making=asdict(making), trace=_trace_facts(trace),
                           seconds=time.perf_counter() - started + products.seconds)
    cutoff = threshold([spectrum])
    return supported(Curvature(
        epoch, stored_group(group, settings), operator.num_samples, available, operator.loss(),
        _accuracy(subject.model, batches), subject.test_metrics.get(f"test_accuracy/{group}", float("nan")),
        float(operator.gradient().norm()), spectrum, pairs, trace.estimate, negative_mass(spectrum, cutoff), cutoff,
        extreme_ratio(pairs), parameter_norms(subject.model), {}, made_from))


def _telling(products: Remembered, progress: Counter | None, recalled: Counter | None) -> Counter | None:
    """Return a counter of products that tells which of them were recalled first."""
    if progress is None or recalled is None:
        return progress
    told = 0

    def count(number: int) -> None:
        nonlocal told
        if products.num_recalled > told:
            recalled(products.num_recalled - told)
            told = products.num_recalled
        progress(number)
    return count


def _trace_facts(trace: TraceEstimate) -> dict[str, Any]:
    return {"method": trace.method, "num_matvecs": trace.num_matvecs, "reached": trace.reached}


def _decompose(operator: LinearOperator, settings: SpectrumSettings,
               progress: Counter | None) -> tuple[Spectrum, EigenPairs, TraceEstimate]:
    """Return density, extreme pairs and trace: one Krylov run for the first two, probes of its own for the trace."""
    generator = torch.Generator().manual_seed(settings.seed)
    space = krylov(operator, num_matvecs=min(settings.num_matvecs, operator.size), num_probes=settings.num_probes,
                   generator=generator, num_ritz=2 * settings.num_pairs, progress=progress)
    pairs = extreme_eigenpairs(space, min(settings.num_pairs, operator.size // 2), tol=settings.tol,
                               max_matvecs=settings.max_matvecs, generator=generator, progress=progress)
    wanted = {"num_probes": settings.trace_probes}
    if settings.trace_error is not None:
        wanted = {"rel_error": settings.trace_error, "max_matvecs": settings.trace_products}
    trace = measure_trace(operator, **wanted, generator=generator, deflate=pairs, progress=progress)
    return spectral_density(space), pairs, trace


def _how(products: Remembered) -> dict[str, Any]:
    """Return how the products were made, for a record's provenance."""
    operator = products.operator
    return {"engine": operator.engine, "engine_reasons": operator.reasons, "choice": operator.choice,
            "num_matvecs": products.num_matvecs, "threads": torch.get_num_threads(), "device": str(operator.device),
            "processes": Processes.present().count}


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
    journal = subject.store.journal(f"surface-{_digest(inputs)}")
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


def parameter_norms(model: nn.Module) -> dict[str, float]:
    """Return ||theta|| of each trainable parameter."""
    return {name: float(p.detach().double().norm()) for name, p in model.named_parameters() if p.requires_grad}


@torch.no_grad()
def _accuracy(model: nn.Module, batches: Batches) -> float:
    """Return the share of samples that the model labels rightly."""
    with evaluation_mode(model):
        correct = sum(int((model(inputs).argmax(1) == labels).sum()) for inputs, labels in batches)
    return correct / sum(len(labels) for _, labels in batches)


def _second_opinion(subject: Subject, group: str, settings: SpectrumSettings) -> dict[str, float]:
    images, labels = (torch.cat(parts) for parts in zip(*group_batches(subject, group, settings)[0]))
    return pyhessian_numbers(subject.cast(settings.dtype), subject.loss(settings.loss), (images, labels))


def _inputs(subject: Subject, settings: SpectrumSettings | SurfaceSettings, **more: Any) -> dict[str, Any]:
    """Return what decides a record's content, for the record and for telling whether it is stale."""
    counts = {"head": subject.groups.classes["head"], "tail": subject.groups.classes["tail"]}
    inputs = {"checkpoint": subject.checkpoint_hash, "data": subject.data.hash, "settings": asdict(settings),
              "classes": {name: list(members) for name, members in counts.items()}, **more}
    return json.loads(json.dumps(inputs))


def _known(store: RunStore, kind: str, inputs: dict, overwrite: bool, **keys: Any) -> Any:
    """Return the stored record of these inputs, if there is one; refuse to replace one that is as good but of other settings."""
    if overwrite or not store.has(kind, **keys):
        return None
    record = store.read(kind, **keys)
    stored = record.provenance.get("inputs", {})
    # A setting that the record does not know yet had its default's value.
    stored = stored | {"settings": _DEFAULTS[kind] | stored.get("settings", {})}
    if stored == inputs:
        return record
    stale = any(stored.get(key) != inputs[key] for key in ("checkpoint", "data", "classes"))
    if not stale:
        raise OtherRecord(f"{store.path} holds another {_called(kind, **keys)}: {_difference(stored, inputs)}")
    return None


def _called(kind: str, **keys: Any) -> str:
    return f"spectrum of {keys['group']} at epoch {keys['epoch']}" if kind == "curvature" else f"{kind} {keys['name']}"


def _refuse_other_making(store: RunStore, record: Curvature, making: Making) -> None:
    """Refuse to give a record for that of an engine or microbatch which was named and did not make it.

    What was not named may be anything that is exact. A microbatch is what was asked for: that of a small group is cut to it.
    """
    made, asked = record.provenance, record.provenance.get("making", {})
    engine, microbatch = made.get("engine"), made.get("choice", {}).get("microbatch")
    other = []
    if making.engine == "auto" and engine in INEXACT or making.engine not in ("auto", engine, asked.get("engine")):
        other.append(f"engine={engine}{f' ({inexact(record)})' if engine in INEXACT else ''} there, {making.engine} here")
    if making.microbatch not in ("auto", microbatch, asked.get("microbatch")):
        other.append(f"microbatch={microbatch} there, {making.microbatch} here")
    if other:
        raise OtherRecord(f"{store.path} holds another {_called('curvature', epoch=record.epoch, group=record.group)}: "
                          + ", ".join(other))


def _difference(stored: dict, wanted: dict) -> str:
    old, new = stored["settings"], wanted["settings"]
    names = [name for name in new if old.get(name) != new[name]]
    return ", ".join(f"{name}={old.get(name)} there, {new[name]} here" for name in names) or "other directions"


def _journal(store: RunStore, epoch: int, group: str, inputs: dict, making: Making) -> Journal:
    """Return the journal of one spectrum. Products asked for in another way are kept apart: nothing is lost by asking."""
    return store.journal(f"spectrum-{epoch:04d}-{group.replace(':', '-')}-{_digest([inputs, asdict(making)])}")


def _digest(document: Any) -> str:
    return hashlib.sha256(json.dumps(document, sort_keys=True).encode()).hexdigest()[:16]


_DEFAULTS = {"curvature": asdict(SpectrumSettings()), "surface": asdict(SurfaceSettings())}
