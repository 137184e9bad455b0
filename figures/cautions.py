"""What a reader must be warned of before believing the numbers of some runs, found in their records.

Unconverged and unverified eigenvalues, inexact products, subsets of images, stale records, unfinished or imported runs, a
single seed, results chosen on test images, one probe, losses that are not finite. Each kind is said once, with where it holds.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from checkpoints.comparison import Comparison, Member
from checkpoints.errors import RecordError
from checkpoints.exactness import inexact
from checkpoints.records import Curvature, Measurement, Surface
from checkpoints.staleness import staleness
from figures import style


@dataclass(frozen=True)
class Caution:
    """One thing to know, and the runs or records of which it is true."""

    kind: str                   # in one or two words
    text: str
    where: tuple[str, ...] = ()


Found = Iterator[tuple[str, str]]      # where, and what follows the text there


def cautions(runs: Comparison, groups: Sequence[str]) -> list[Caution]:
    """Return what to be warned of, the gravest first, in the records of `groups` and in all surfaces."""
    records = [(member, record) for member in runs.everyone for record in member.curvatures.values()
               if record.group in groups]
    surfaces = [(member, surface) for member in runs.everyone for surface in member.surfaces.values()]
    found = [_collected(kind, text, check(records)) for kind, text, check in _OF_CURVATURES]
    measured = [(member, measure) for member in runs.everyone for measure in member.measurements.values()]
    found.append(_collected("stale", "Records of something else than what is stored now: compute them again",
                            _stale([*records, *surfaces, *measured])))
    found += [_collected(kind, text, check(surfaces)) for kind, text, check in _OF_SURFACES]
    found += [_collected(kind, text, check(runs)) for kind, text, check in _OF_RUNS]
    order = [kind for kind in _ORDER if any(caution.kind == kind for caution in found)]
    return sorted((caution for caution in found if caution.where), key=lambda caution: order.index(caution.kind))


def stale_records(members: Iterable[Member]) -> tuple[str, ...]:
    """Return where records that were read so far are of something else than what is stored now, and of what."""
    read = [(member, record) for member in members for kind in ("curvatures", "surfaces", "measurements")
            for record in vars(member).get(kind, {}).values()]      # cached properties: reading all takes seconds a run
    return _collected("stale", "", _stale(read)).where


def name_of(member: Member) -> str:
    """Return a run as a reader tells it from the others: the name of its folder."""
    return member.run.path.name


def _collected(kind: str, text: str, places: Found) -> Caution:
    return Caution(kind, text, tuple(f"{where}{f' ({more})' if more else ''}" for where, more in places))


def _place(member: Member, record: Curvature) -> str:
    return f"{name_of(member)}, {style.group_name(record.group)}, epoch {record.epoch}"


def _inexact(records: Sequence[tuple[Member, Curvature]]) -> Found:
    for member, record in records:
        if word := inexact(record):
            yield _place(member, record), word.partition(" ")[2]


def _unconverged(records: Sequence[tuple[Member, Curvature]]) -> Found:
    for member, record in records:
        pairs = record.eigenpairs
        for name, end in {"lambda_min": 0, "lambda_max": -1}.items():
            if pairs.values.size and not pairs.converged[end]:
                yield _place(member, record), f"{name}, residual {pairs.residuals[end]:.1e}"


def _rounded(records: Sequence[tuple[Member, Curvature]]) -> Found:
    for member, record in records:
        pairs = record.eigenpairs
        for name, end in {"lambda_min": 0, "lambda_max": -1}.items():
            if pairs.values.size and pairs.rounding[end] > pairs.tol * abs(pairs.values[end]):
                yield _place(member, record), f"{name}, off by up to {pairs.rounding[end]:.1e}"


def _unverified(records: Sequence[tuple[Member, Curvature]]) -> Found:
    for member, record in records:
        pairs = record.eigenpairs
        if pairs.values.size and pairs.values[0] < 0 and not pairs.verified[0] and not inexact(record):
            yield _place(member, record), f"{pairs.values[0]:.2g}"


def _subsets(records: Sequence[tuple[Member, Curvature]]) -> Found:
    for member, record in records:
        if record.num_samples < record.num_available:
            yield _place(member, record), f"{record.num_samples} of {record.num_available} images"


def _test_images(records: Sequence[tuple[Member, Curvature]]) -> Found:
    for member, record in records:
        if record.provenance.get("inputs", {}).get("settings", {}).get("split") == "test":
            yield _place(member, record), ""


def _one_probe(records: Sequence[tuple[Member, Curvature]]) -> Found:
    for member, record in records:
        if len(record.spectrum.nodes) == 1:
            yield _place(member, record), ""


def _stale(records: Sequence[tuple[Member, Curvature | Surface | Measurement]]) -> Found:
    for member, record in records:
        try:
            what = staleness(member.run, record) if hasattr(member.run, "provenance") else ""
        except RecordError as error:
            what = str(error)
        if what:
            yield _called(member, record), f"of {what}" if what.startswith(("other", "weights")) else what


def _called(member: Member, record: Curvature | Surface | Measurement) -> str:
    if isinstance(record, Curvature):
        return _place(member, record)
    kind = "surface" if isinstance(record, Surface) else f"epoch {record.epoch}, measurement"
    return f"{name_of(member)}, {kind} {record.name}"


def _not_finite(surfaces: Sequence[tuple[Member, Surface]]) -> Found:
    for member, surface in surfaces:
        number = int((~np.isfinite(surface.loss)).any(axis=0).sum())
        if number:
            yield f"{name_of(member)}, surface {surface.name}", f"{number} of {surface.loss[0].size} points"


def _reduced_surfaces(surfaces: Sequence[tuple[Member, Surface]]) -> Found:
    for member, surface in surfaces:
        limit = surface.provenance.get("inputs", {}).get("settings", {}).get("max_samples")
        if limit:
            yield f"{name_of(member)}, surface {surface.name}", f"at most {limit} images of head and of tail"


def _unfinished(runs: Comparison) -> Found:
    for member in runs.everyone:
        if not getattr(member.run, "finished", True):
            last = int(member.metrics["epoch"].max()) if "epoch" in member.metrics and len(member.metrics) else 0
            yield name_of(member), f"epoch {last} of {member.config.get('epochs')}"


def _imported(runs: Comparison) -> Found:
    for member in runs.everyone:
        if "imported" in getattr(member.run, "provenance", {}):
            yield name_of(member), ""


def _chosen_on_test_images(runs: Comparison) -> Found:
    for member in runs.everyone:
        if member.config.get("selection", "last") != "last":
            yield name_of(member), str(member.config["selection"])


def _single_seed(runs: Comparison) -> Found:
    for opt, members in runs.members.items():
        if len(members) == 1:
            yield style.look(opt).name, ""


def _changed_code(runs: Comparison) -> Found:
    for member in runs.everyone:
        if str(getattr(member.run, "provenance", {}).get("revision")).endswith("+changes"):
            yield name_of(member), ""


Records = Sequence[tuple[Member, Curvature]]
_OF_CURVATURES: tuple[tuple[str, str, Callable[[Records], Found]], ...] = (
    ("inexact", "Products were inexact: residuals bound nothing, and no sign is verified", _inexact),
    ("unconverged", "Eigenvalues that have not converged: the true end lies further out than the number", _unconverged),
    ("rounding", "Eigenvalues of products in less than float64, which are farther off than the residual asked for", _rounded),
    ("unverified", "The sign of lambda_min is not confirmed by a float64 product: it may be rounding", _unverified),
    ("subset", "Curvature of a subset of the group's images: extreme eigenvalues of subsets lie too far out", _subsets),
    ("test images", "Curvature of the loss over test images, not of what was trained on", _test_images),
    ("one probe", "Spectral density from one probe: nothing says how far another would lie", _one_probe),
)
_OF_SURFACES: tuple[tuple[str, str, Callable[[Sequence[tuple[Member, Surface]]], Found]], ...] = (
    ("not finite", "The loss is not finite at some points of a surface; they are left blank", _not_finite),
    ("subset", "Surfaces over a subset of the images", _reduced_surfaces),
)
_OF_RUNS: tuple[tuple[str, str, Callable[[Comparison], Found]], ...] = (
    ("unfinished", "Training had not reached its end", _unfinished),
    ("imported", "Weights trained elsewhere: settings of their training are known as far as they were stated", _imported),
    ("selection", "Accuracy at the epoch that is best on the test images, which flatters it", _chosen_on_test_images),
    ("single seed", "One training run: nothing here says what another seed would give", _single_seed),
    ("code", "Made with sources that differed from the revision stated", _changed_code),
)
_ORDER = ("stale", "inexact", "unfinished", "unconverged", "rounding", "unverified", "single seed", "subset", "not finite",
          "test images", "selection", "one probe", "imported", "code")
