"""Stored records in the formats of other programs: ParaView, the loss-landscape project, NumPy, spreadsheets.

    vtu, vtp   a plane for ParaView: loss and accuracy of every group at points (alpha, beta, height)
    h5         the keys that the loss-landscape project of Li et al. (2018) plots: xcoordinates, ycoordinates,
               train_loss, train_acc; one file a class group
    npz        all arrays and facts of a record, by their names there
    csv        a row a point of a surface, a node or a pair of a spectrum, a row of a measurement

Directions and eigenvectors are left out: each is as long as the network has parameters, and they are in the record. Losses
and coordinates are the record's; NaN and inf stay. The loss-landscape project states accuracy in percent, and so do its files
here; everywhere else it is in [0, 1].
"""

import csv
import io
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields, is_dataclass
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from checkpoints.atomic import make_folder, replacing, write_bytes
from checkpoints.brief import LONG
from checkpoints.errors import RecordError
from checkpoints.fields import to_json
from checkpoints.layout import check_name, keys_of, kind_of, relative_path
from checkpoints.polydata import mesh_of, polydata
from checkpoints.records import Curvature, Measurement, Surface


@dataclass(frozen=True)
class Format:
    """One way of writing records: `write(record, stem, height)` returns the paths written."""

    write: Callable[[Any, Path, str | None], list[Path]]
    takes: Callable[[Any], bool]    # which records have such a file
    needs: str                      # of what kind those are, in words


def export(record: Any, folder: Path, name: str, height: str | None = None) -> list[Path]:
    """Write a record in the format `name` below `folder`, filed as in its run; return the paths.

    `height`: the group whose loss lifts a plane in vtu and vtp; flat without. RecordError where the format is of other records.
    """
    if name not in FORMATS:
        raise RecordError(f"format={name} is unknown: expected one of {', '.join(FORMATS)}")
    place = relative_path(kind_of(record), keys_of(record))
    if not FORMATS[name].takes(record):
        raise RecordError(f"{place.stem} cannot be written as {name}, the format of {FORMATS[name].needs}")
    make_folder((folder / place).parent)
    return FORMATS[name].write(record, folder / place.with_suffix(""), height)


def _write_vtu(surface: Surface, stem: Path, height: str | None) -> list[Path]:
    try:
        import meshio
    except ImportError as error:
        raise RecordError("format=vtu needs meshio: install it with pip install 'saddle-landscape[export]', or choose vtp, "
                          "which ParaView opens too") from error
    mesh, path = mesh_of(surface, height), _named(stem, ".vtu")
    with replacing(path) as partial:
        meshio.Mesh(mesh.points, [("quad", mesh.quads)], point_data=mesh.data).write(partial, file_format="vtu")
    return [path]


def _write_vtp(surface: Surface, stem: Path, height: str | None) -> list[Path]:
    write_bytes(path := _named(stem, ".vtp"), polydata(mesh_of(surface, height)))
    return [path]


def _write_h5(surface: Surface, stem: Path, _: str | None) -> list[Path]:
    split = surface.provenance.get("inputs", {}).get("settings", {}).get("split", "train")
    paths = []
    for group, loss, accuracy in zip(surface.groups, surface.loss, surface.accuracy):
        axes = {"xcoordinates": surface.alpha} | ({"ycoordinates": surface.beta} if surface.beta.size else {})
        # A row of theirs is one y: their plots draw it over meshgrid(x, y).
        arrays = axes | {f"{split}_loss": loss.T, f"{split}_acc": 100 * accuracy.T}
        buffer = io.BytesIO()
        with h5py.File(buffer, "w") as file:
            for name, values in arrays.items():
                file[name] = values
            file.attrs.update(group=group, surface=surface.name, epoch=surface.epoch, coordinate_units=surface.coordinate_units,
                              directions=json.dumps(surface.direction_names))
        paths.append(_named(stem, f"-{check_name(group.replace(':', '-'))}.h5"))
        write_bytes(paths[-1], buffer.getvalue())
    return paths


def _write_npz(record: Any, stem: Path, _: str | None) -> list[Path]:
    buffer = io.BytesIO()
    np.savez_compressed(buffer, **dict(_arrays_of(record)))
    write_bytes(path := _named(stem, ".npz"), buffer.getvalue())
    return [path]


def _arrays_of(record: Any, prefix: str = "") -> Iterator[tuple[str, np.ndarray]]:
    """Yield every field as an array that needs no pickle; those of nested records and dictionaries behind a dot."""
    for name in (field.name for field in fields(record) if field.name not in LONG):
        value = getattr(record, name)
        if is_dataclass(value):
            yield from _arrays_of(value, f"{prefix}{name}.")
        elif isinstance(value, Mapping) and value and all(isinstance(item, (np.ndarray, tuple)) for item in value.values()):
            yield from ((f"{prefix}{name}.{key}", np.asarray(item)) for key, item in value.items())
        else:
            yield f"{prefix}{name}", np.asarray(to_json(name, value) if isinstance(value, Mapping) else value)


def _write_csv(record: Any, stem: Path, _: str | None) -> list[Path]:
    paths = []
    for ending, columns in _TABLES[type(record)](record).items():
        buffer = io.StringIO(newline="")
        rows = zip(*(values.tolist() if isinstance(values, np.ndarray) else values for values in columns.values()))
        csv.writer(buffer).writerows([list(columns), *rows])
        paths.append(_named(stem, f"{ending}.csv"))
        write_bytes(paths[-1], buffer.getvalue().encode("utf-8"))
    return paths


def _surface_tables(surface: Surface) -> dict[str, Mapping[str, Sequence]]:
    axes = np.meshgrid(*([surface.alpha, surface.beta] if surface.beta.size else [surface.alpha]), indexing="ij")
    columns = {name: axis.ravel() for name, axis in zip(("alpha", "beta"), axes)}
    for name, table in (("loss", surface.loss), ("accuracy", surface.accuracy)):
        columns |= {f"{name}/{group}": values.ravel() for group, values in zip(surface.groups, table)}
    return {"": columns}


def _curvature_tables(record: Curvature) -> dict[str, Mapping[str, Sequence]]:
    spectrum, pairs = record.spectrum, record.eigenpairs
    probe, node = np.indices(spectrum.nodes.shape)
    nodes = {"probe": probe, "node": node, "eigenvalue": spectrum.nodes, "weight": spectrum.weights}
    kept = np.isfinite(spectrum.nodes).ravel()      # a probe that broke down ends early
    names = ("values", "residuals", "converged", "values64", "rounding", "verified")
    return {"-nodes": {name: values.ravel()[kept] for name, values in nodes.items()},
            "-eigenpairs": {name: getattr(pairs, name) for name in names}}


def _measurement_tables(record: Measurement) -> dict[str, Mapping[str, Sequence]]:
    return {"": {**record.labels, **record.numbers}}


def _named(stem: Path, ending: str) -> Path:
    return stem.with_name(stem.name + ending)


def _is_surface(record: Any) -> bool:
    return isinstance(record, Surface)


def _is_plane(record: Any) -> bool:
    return _is_surface(record) and record.beta.size > 0


_TABLES = {Surface: _surface_tables, Curvature: _curvature_tables, Measurement: _measurement_tables}
FORMATS = {
    "vtu": Format(_write_vtu, _is_plane, "planes"),
    "vtp": Format(_write_vtp, _is_plane, "planes"),
    "h5": Format(_write_h5, _is_surface, "surfaces"),
    "npz": Format(_write_npz, lambda record: type(record) in _TABLES, "surfaces, spectra and measurements"),
    "csv": Format(_write_csv, lambda record: type(record) in _TABLES, "surfaces, spectra and measurements"),
}
