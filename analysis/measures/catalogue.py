"""Measures of the mechanism: one table name -> function, and the one way to run a measure on a run.

    MEASURES            what each measure shows and needs, where it was published, which settings decide it
    measured(...)       the stored Measurement of these inputs, or a new one, stored

A measure is a function of a `Case` (a run at one checkpoint, analysis/measures/case.py) that returns a `table(rows, units,
about)` of analysis/measures/table.py. It is loaded when it is asked for, so the table is known without torch. A new measure
is one row here.

A record is given back as long as the weights, the data and (for a measure along eigenvectors) the spectra are those it was
computed from; with other settings it is refused unless it is to be overwritten.
"""

import difflib
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from importlib import import_module
from typing import TYPE_CHECKING, Any

from analysis.settings import MeasureSettings
from checkpoints.provenance import provenance
from checkpoints.records import Measurement
from landscape.errors import InputError

if TYPE_CHECKING:
    from analysis.measures.case import Case


@dataclass(frozen=True)
class Measure:
    """One row of MEASURES."""

    function: str               # "file:name" in this folder, called with a Case, returns a Table
    shows: str                  # the quantity, in words
    needs: str                  # what must be stored
    source: str                 # where it was published
    settings: tuple[str, ...]   # fields of MeasureSettings that decide the record
    work: str | None = None     # "file:name", called with a Case: image gradients to come, the unit that `progress` counts
    spectra: bool = False       # reads the stored spectra of its groups, and is stale once they are computed anew
    at_checkpoint: bool = True  # else one record a run, filed under epoch 0


_VECTORS, _GRADIENTS = "spectra with eigenvectors of its groups", ("groups", "max_samples", "split", "rho", "dtype", "seed")
MEASURES = {
    "alignment": Measure(
        "mechanism:alignment", "|<v, eps>| / ||eps|| of SAM's, ImbSAM's, SSE-SAM's ascents with the lowest eigenvectors",
        _VECTORS, "Lyu et al. 2025 (SSE-SAM), claims (a) to (c)", (*_GRADIENTS, "num_pairs", "batches"),
        "mechanism:alignment_work", spectra=True),
    "amplification": Measure(
        "mechanism:amplification", "growth of the gradient along eigenvectors by a perturbation, measured and predicted",
        _VECTORS, "Rangwani et al. 2022, Theorem 1, in its general form", (*_GRADIENTS, "num_pairs"),
        "mechanism:amplification_work", spectra=True),
    "ablation": Measure(
        "mechanism:ablation", "a group's gradient in full, along the global one, and without it: share, alignment, rise",
        _VECTORS, "Chen et al. 2026 (GKP-GSA), Table 5", _GRADIENTS, "mechanism:ablation_work", spectra=True),
    "escape": Measure(
        "escape:escape", "loss along the extreme eigenvectors of a group, both ways, beside the quadratic prediction",
        _VECTORS, "Lyu et al. 2025 (SSE-SAM), claims (a) to (c)", ("groups", "dtype"), "escape:work", spectra=True),
    "similarity": Measure(
        "similarity:similarity", "mean cosine of group and class gradients with those of mini-batches; head with tail",
        "nothing", "Chen et al. 2026 (GKP-GSA), Figure 6", ("groups", "batches", "max_samples", "split", "dtype", "seed"),
        "similarity:work"),
    "quality": Measure(
        "features:quality", "feature quality Dis - 0.5 log Var of groups and classes on training images; as released",
        "nothing", "Chen et al. 2026 (GKP-GSA), Eq. 17 to 19, Figure 2",
        ("groups", "max_samples", "split", "dtype", "seed"), "features:work"),
    "robustness": Measure(
        "robustness:robustness", "lambda_min with one choice varied: probes, steps, images, loss, BatchNorm",
        "nothing", "Rangwani et al. 2022, released code", ("groups", "batches", "max_samples", "split", "dtype", "seed"),
        "robustness:work"),
    "cost": Measure(
        "step_cost:cost", "forwards, backwards and seconds of every optimizer's step, on the run's network and batches",
        "nothing", "Lyu et al. 2025 (SSE-SAM), released code", ("batches", "seed"), "step_cost:work",
        at_checkpoint=False),
    "toy": Measure("toys:toy", "steps to escape a two-dimensional saddle against the radius rho, beside closed forms",
                   "nothing", "Rangwani et al. 2022, theory; Kim et al. 2023", ("batches", "seed"), at_checkpoint=False),
}


def measure_named(name: str) -> Measure:
    """Return one row of MEASURES; an unknown name is an InputError naming the choices."""
    if name not in MEASURES:
        near = difflib.get_close_matches(name, MEASURES, n=1)
        hint = f" (did you mean {near[0]}?)" if near else ""
        raise InputError(f"measure {name!r} is unknown{hint}: expected one of {', '.join(MEASURES)}, or all")
    return MEASURES[name]


def measured(name: str, case: "Case", *, overwrite: bool = False) -> tuple[Measurement, bool]:
    """Return one measure of a run at one checkpoint, and whether it was computed now.

    Raises RecordError (stored.OtherRecord) where the stored one has other settings, and where a spectrum it needs is absent.
    """
    from analysis.stored import stored_or_computed
    measure = measure_named(name)
    epoch = case.epoch if measure.at_checkpoint else 0
    inputs = _inputs(measure, case)

    def compute() -> Measurement:
        started = time.perf_counter()
        found = _loaded(measure.function)(case)
        made_from = provenance(inputs=inputs, seconds=time.perf_counter() - started, **case.place)
        return Measurement(name, epoch, found.labels, found.numbers, found.units, found.about, made_from)

    return stored_or_computed(case.store, "measurement", inputs, compute, defaults=_chosen(measure, MeasureSettings()),
                              overwrite=overwrite, epoch=epoch, name=name)


def work(name: str, case: "Case") -> int:
    """Return how many image gradients a measure would take; 0 where it takes a moment."""
    function = measure_named(name).work
    return round(_loaded(function)(case)) if function else 0


def _inputs(measure: Measure, case: "Case") -> dict[str, Any]:
    """Return what decides a record: weights, data, class groups, the settings that matter, the spectra it reads."""
    from analysis.stored import inputs_of
    if not measure.at_checkpoint:
        return {"checkpoint": None, "data": None, "classes": None, "settings": _chosen(measure, case.settings)}
    spectra = {group: case.spectrum_hash(group) for group in case.settings.groups} if measure.spectra else {}
    return inputs_of(case.subject, case.settings) | {"settings": _chosen(measure, case.settings), "spectra": spectra}


def _chosen(measure: Measure, settings: MeasureSettings) -> dict[str, Any]:
    values = {name: value for name, value in asdict(settings).items() if name in measure.settings}
    return {name: list(value) if isinstance(value, tuple) else value for name, value in values.items()}


def _loaded(place: str) -> Callable[["Case"], Any]:
    module, _, name = place.partition(":")
    return getattr(import_module(f"analysis.measures.{module}"), name)
