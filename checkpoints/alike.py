"""Whether stored records show the same thing at other weights: then alone may they share a figure, a table or a mean."""

from collections.abc import Iterable, Sequence
from typing import Any

from checkpoints.errors import RecordError
from checkpoints.exactness import inexact
from checkpoints.records import Curvature, Surface


def check_same_object(records: Sequence[Curvature]) -> None:
    """Refuse curvatures of one group that describe different Hessians: other data, split, loss or number of images.

    Those of inexact products are refused beside exact ones, whatever their groups.
    """
    if len({inexact(record) for record in records}) > 1:
        odd = next(record for record in records if inexact(record))
        raise RecordError(f"the spectrum of {odd.group} at epoch {odd.epoch} is {inexact(odd)}, others are exact: they cannot "
                          "share a figure or table; compute it again with: landscape spectrum RUN --overwrite"
                          f" --epoch {odd.epoch} --group {classes_of(odd.group)}")
    for group in dict.fromkeys(record.group for record in records):
        kinds = [hessian_of(record) for record in records if record.group == group]
        for kind in kinds[1:]:
            for key, value in kind.items():
                if value != kinds[0][key]:
                    raise RecordError(f"{key}={value} and {key}={kinds[0][key]}: spectra of group {group} of different "
                                      "Hessians cannot share a figure or table; choose runs computed alike")


def check_same_view(surfaces: Iterable[Surface]) -> None:
    """Refuse surfaces side by side that differ in epoch, kind of directions or units of their coordinates."""
    first, *others = surfaces
    for other in others:
        for (key, ours), theirs in zip(_view(first).items(), _view(other).values()):
            if ours != theirs:
                raise RecordError(f"{key}={theirs} and {key}={ours}: surfaces {first.name!r} of different runs "
                                  "cannot share a figure; compute them alike")


def hessian_of(record: Curvature) -> dict[str, Any]:
    """Return what decides which Hessian a curvature is of, beside the weights; absent keys are None."""
    inputs = record.provenance.get("inputs", {})
    settings = inputs.get("settings", {})
    return {"data": inputs.get("data"), "classes": inputs.get("classes"), "split": settings.get("split"),
            "loss": settings.get("loss"), "operator": settings.get("operator", "hessian"), "params": settings.get("params"),
            "num_samples": record.num_samples}   # extremes of subsets are biased outward, so n must agree


def _view(surface: Surface) -> dict[str, Any]:
    return {"epoch": surface.epoch, "direction_names": surface.direction_names,
            "num_samples": surface.num_samples.tolist(),
            "coordinate_units": surface.coordinate_units, "data": surface.provenance.get("inputs", {}).get("data")}


def classes_of(group: str) -> str:
    """Return the class group of a spectrum: "tail" of "tail@test" and of "tail@layer1"."""
    return group.partition("@")[0]
