"""Planes as meshes of quadrilaterals, and VTK's PolyData files (.vtp), which meshio does not write.

The format: VTK file formats, "XML file formats", https://docs.vtk.org (arrays inline, base64, a 64-bit byte count in
front). Text would be larger, and not every reader knows NaN as text.
"""

import base64
from collections.abc import Mapping
from dataclasses import dataclass
from xml.sax.saxutils import quoteattr

import numpy as np

from checkpoints.errors import RecordError
from checkpoints.records import Surface


@dataclass(frozen=True, eq=False)
class Mesh:
    """Points of a plane, the quadrilaterals between them, and the numbers at each point."""

    points: np.ndarray              # (A B, 3) float64: alpha, beta, height
    quads: np.ndarray               # (Q, 4) int64: corners of each cell, counter-clockwise seen from above
    data: dict[str, np.ndarray]     # name -> (A B,) float64, NaN and inf as they are


def mesh_of(surface: Surface, height: str | None = None) -> Mesh:
    """Return a plane as a mesh: flat, or as high as the loss of the group `height`.

    Where that loss is not finite, a raised mesh has a hole: coordinates that are not numbers break what draws them. The
    numbers at the points are complete in either case. RecordError where the surface is a line, or without the group.
    """
    if not surface.beta.size:
        raise RecordError(f"surface {surface.name!r} is a line: expected a plane; formats of lines are h5, npz and csv")
    alpha, beta = np.meshgrid(surface.alpha, surface.beta, indexing="ij")                    # (A, B)
    lift, whole = (np.zeros_like(alpha), np.isfinite(alpha)) if height is None else _raised(surface, height)
    place = np.arange(alpha.size).reshape(alpha.shape)
    corners = [array[a, b] for array in (place, whole) for a, b in _CORNERS]
    quads = np.stack(corners[:4], axis=-1)[np.logical_and.reduce(corners[4:])]               # (Q, 4)
    values = {f"{name}_{group}": table[row].ravel() for name, table in (("loss", surface.loss), ("accuracy", surface.accuracy))
              for row, group in enumerate(surface.groups)}
    return Mesh(np.stack([alpha.ravel(), beta.ravel(), lift.ravel()], axis=-1), quads.astype(np.int64), values)


def polydata(mesh: Mesh) -> bytes:
    """Return the content of a .vtp file."""
    offsets = 4 * np.arange(1, len(mesh.quads) + 1, dtype=np.int64)
    counts = {"Points": len(mesh.points), "Verts": 0, "Lines": 0, "Strips": 0, "Polys": len(mesh.quads)}
    text = f"""<?xml version="1.0"?>
<VTKFile type="PolyData" version="1.0" byte_order="LittleEndian" header_type="UInt64">
<PolyData>
<Piece {" ".join(f'NumberOf{name}="{count}"' for name, count in counts.items())}>
<PointData>
{_arrays(mesh.data)}
</PointData>
<Points>
{_array("Points", mesh.points)}
</Points>
<Polys>
{_arrays({"connectivity": mesh.quads.reshape(-1), "offsets": offsets})}
</Polys>
</Piece>
</PolyData>
</VTKFile>
"""
    return text.encode("utf-8")


_LOW, _HIGH = slice(None, -1), slice(1, None)
_CORNERS = ((_LOW, _LOW), (_HIGH, _LOW), (_HIGH, _HIGH), (_LOW, _HIGH))
_TYPES = {"f": ("Float64", "<f8"), "i": ("Int64", "<i8")}


def _raised(surface: Surface, group: str) -> tuple[np.ndarray, np.ndarray]:
    """Return heights (A, B), and where they are those of the loss."""
    if group not in surface.groups:
        raise RecordError(f"height={group} is not in surface {surface.name!r}: expected one of {', '.join(surface.groups)}")
    loss = surface.loss[surface.groups.index(group)]
    finite = np.isfinite(loss)
    return np.where(finite, loss, loss[finite].min(initial=np.inf) if finite.any() else 0.0), finite


def _arrays(arrays: Mapping[str, np.ndarray]) -> str:
    return "\n".join(_array(name, values) for name, values in arrays.items())


def _array(name: str, values: np.ndarray) -> str:
    word, code = _TYPES[values.dtype.kind]
    content = values.astype(code).tobytes()
    body = base64.b64encode(np.array(len(content), dtype="<u8").tobytes() + content).decode("ascii")
    width = values.shape[1] if values.ndim > 1 else 1
    return f'<DataArray type="{word}" Name={quoteattr(name)} NumberOfComponents="{width}" format="binary">{body}</DataArray>'
