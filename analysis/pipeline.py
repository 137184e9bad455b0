"""From a stored checkpoint to a stored spectrum.

    compute_curvature   everything measured of one group's Hessian at one checkpoint -> Curvature
    stored_curvature    the same, or None where it would have to be computed

It is kept as analysis.stored says; one made by another engine than the one named is refused as one of other settings is.
A computation that was killed goes on at the product where it was.
"""

import json
import time
from collections.abc import Callable
from dataclasses import asdict, replace
from typing import Any

import torch
from torch import nn

from analysis.operators import GaussNewtonOperator, HessianOperator, LinearOperator
from analysis.operators.hessian import LossOperator
from analysis.operators.replay import Remembered, note, noted
from analysis.second_opinion import pyhessian_numbers
from analysis.settings import Making, SpectrumSettings, stored_group
from analysis.spectra.extremes import extreme_eigenpairs
from analysis.spectra.lanczos import krylov
from analysis.spectra.quadrature import negative_mass, threshold
from analysis.spectra.saddle import extreme_ratio
from analysis.spectra.sampling import whole_group
from analysis.spectra.spectrum import spectral_density
from analysis.spectra.trace import TraceEstimate, measure_trace
from analysis.stored import OtherRecord, called, digest, inputs_of, known
from analysis.subject import Batches, Subject, group_batches, group_images, other_batches
from checkpoints.exactness import INEXACT, inexact, supported
from checkpoints.journal import Journal
from checkpoints.provenance import provenance
from checkpoints.records import NO_SAMPLE, Curvature, EigenPairs, Estimate, Spectrum
from checkpoints.store import RunStore
from landscape.batchnorm import evaluation_mode
from landscape.distributed import Processes, is_main
from landscape.errors import InputError

Counter = Callable[[int], None]
OPERATORS = {"hessian": HessianOperator, "gauss_newton": GaussNewtonOperator}


def compute_curvature(subject: Subject, epoch: int, group: str, settings: SpectrumSettings, *, making: Making = Making(),
                      progress: Counter | None = None, recalled: Counter | None = None, verify: str | None = None,
                      overwrite: bool = False) -> tuple[Curvature, bool]:
    """Return everything measured of one group's Hessian at one epoch, and whether it was computed now.

    A stored record of the same inputs is returned; one of other weights or data is stale, and computed anew; one of other
    settings, or not made as `making` names, is an OtherRecord. With `overwrite` nothing stored is returned.
    `progress` is told of every product, `recalled` of those among them that an earlier process made.
    `verify="pyhessian"` adds that library's top eigenvalue and trace, computed on the same images.
    """
    if verify == "pyhessian":
        _refuse_unverifiable(settings)
    stored = stored_curvature(subject, epoch, group, settings, making, overwrite=overwrite)
    if stored is not None and (verify is None or stored.second_opinion):
        return stored, False
    inputs = inputs_of(subject, settings, group=group)
    record = stored or _measured(subject, epoch, group, settings, making, inputs, progress, recalled)
    if is_main():
        if verify == "pyhessian":
            record = replace(record, second_opinion=_second_opinion(subject, group, settings))
        subject.store.write(record)
        _journal(subject.store, epoch, group, inputs, making).clear()
    return record, stored is None


def _refuse_unverifiable(settings: SpectrumSettings) -> None:
    if settings.params is not None or settings.operator != "hessian":
        raise InputError("verify='pyhessian' knows the Hessian over all parameters alone: leave out params and operator")
    if Processes.present().count > 1:
        raise InputError("verify='pyhessian' is the work of one process, for which the others would wait: ask for it without "
                         "torchrun, when the spectra are stored")


def stored_curvature(subject: Subject, epoch: int, group: str, settings: SpectrumSettings, making: Making = Making(), *,
                     overwrite: bool = False) -> Curvature | None:
    """Load an epoch's weights and return the stored record of a spectrum, or None where it is to be computed; or OtherRecord."""
    subject.groups.select(group)
    subject.load(epoch)
    stored = known(subject.store, "curvature", inputs_of(subject, settings, group=group), defaults=asdict(SpectrumSettings()),
                   overwrite=overwrite, epoch=epoch, group=stored_group(group, settings))
    if stored is not None:
        _refuse_other_making(subject.store, stored, making)
    return stored


def build_operator(subject: Subject, batches: Batches, settings: SpectrumSettings, making: Making = Making(),
                   choice: dict[str, Any] | None = None, *, share: float = 1.0) -> LossOperator:
    """Return the Hessian, or what `settings.operator` names, over some batches at the weights now loaded.

    `share` is that of the batches in all that the spectrum is of: one microbatch of many chooses as if it were all of them.
    """
    return OPERATORS[settings.operator](
        subject.cast(settings.dtype), subject.loss(settings.loss), batches, params=settings.params, fill=True,
        traces=subject.shared_traces(settings), expected_matvecs=round(settings.products / share),
        **making.keywords(choice or {}))


def interrupted(subject: Subject, epoch: int, group: str, settings: SpectrumSettings, making: Making = Making()) -> bool:
    """Tell whether an earlier process began this spectrum, as it is asked for, and chose how to make its products."""
    subject.load(epoch)
    journal = _journal(subject.store, epoch, group, inputs_of(subject, settings, group=group), making)
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
    seconds = time.perf_counter() - started + products.seconds
    whole = _whole_group(subject, group, settings, operator, pairs, trace.estimate.value)
    return supported(Curvature(
        epoch=epoch, group=stored_group(group, settings), num_samples=operator.num_samples, num_available=available,
        **_at_the_point(subject, group, operator, batches), **whole, **_derived(spectrum, pairs), spectrum=spectrum,
        eigenpairs=pairs, trace=trace.estimate, second_opinion={},
        provenance=provenance(inputs=inputs, **_how(products), making=asdict(making), trace=_trace_facts(trace),
                              seconds=seconds)))


def _at_the_point(subject: Subject, group: str, operator: LossOperator, batches: Batches) -> dict[str, Any]:
    """Return what a record tells of the weights themselves, by its fields."""
    return {"loss": operator.loss(), "accuracy": _accuracy(subject.model, batches),
            "test_accuracy": subject.test_metrics.get(f"test_accuracy/{group}", float("nan")),
            "gradient_norm": float(operator.gradient().double().norm()), "gradient_error": operator.gradient_error(),
            "parameter_norms": parameter_norms(subject.model)}


def _derived(spectrum: Spectrum, pairs: EigenPairs) -> dict[str, Any]:
    """Return what a record derives of its spectrum and pairs, by its fields."""
    cutoff = threshold([spectrum])
    return {"negative_mass": negative_mass(spectrum, cutoff), "threshold": cutoff, "extreme_ratio": extreme_ratio(pairs)}


def _whole_group(subject: Subject, group: str, settings: SpectrumSettings, operator: LinearOperator, pairs: EigenPairs,
                 trace: float) -> dict[str, Estimate]:
    """Return what a subset's Hessian says of the whole group's; unknown where it is that of all images, or inexact."""
    others = other_batches(subject, group, settings)
    if not others or not len(pairs.values) or not isinstance(operator, HessianOperator) or operator.engine in INEXACT:
        return {"group_curvature": NO_SAMPLE, "group_trace": NO_SAMPLE}
    _, available = group_images(subject, group, settings)
    curvature, of_trace = whole_group(operator, pairs.vectors[0], float(pairs.values[0]), trace, others, available,
                                      torch.Generator().manual_seed(settings.seed + 1))
    return {"group_curvature": curvature, "group_trace": of_trace}


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
        raise OtherRecord(f"{store.path} holds another {called('curvature', epoch=record.epoch, group=record.group)}: "
                          + ", ".join(other))


def _journal(store: RunStore, epoch: int, group: str, inputs: dict, making: Making) -> Journal:
    """Return the journal of one spectrum. Products asked for in another way are kept apart: nothing is lost by asking."""
    return store.journal(f"spectrum-{epoch:04d}-{group.replace(':', '-')}-{digest([inputs, asdict(making)])}")
