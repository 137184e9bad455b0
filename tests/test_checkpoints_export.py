import base64
import json
from dataclasses import replace
from xml.etree import ElementTree

import h5py
import numpy as np
import pandas as pd
import pytest
from fabricated_runs import fake_run

from checkpoints.errors import RecordError
from checkpoints.export import FORMATS, export
from checkpoints.polydata import mesh_of
from checkpoints.records import Curvature, Measurement, Surface

RUN = fake_run("sgd", 0, epochs=(60,), probes=2, steps=6)
LINE = next(record for record in RUN.kept if isinstance(record, Surface) and not record.beta.size)
TAIL = next(record for record in RUN.kept if isinstance(record, Curvature) and record.group == "tail")


def plane(holes=(), alpha=(-1.0, 0.0, 1.0, 2.0), beta=(0.0, 0.5, 3.0)) -> Surface:
    """A plane of 4 x 3 points whose losses are all different, NaN at the places in `holes`."""
    shape = (2, len(alpha), len(beta))
    loss = 10.0 + np.arange(np.prod(shape), dtype=float).reshape(shape)
    for place in holes:
        loss[place] = np.nan
    return Surface("p.1", 60, ("head", "tail"), np.array([5, 3]), np.array(alpha), np.array(beta), loss, loss / 100,
                   np.zeros((2, 7)), ("a", "b"), np.full(2, np.nan), "filter norms", "hash",
                   {"inputs": {"settings": {"split": "train"}}})


MEASURED = Measurement("alignment", 60, {"group": ("head", "tail")}, {"value": np.array([0.1, np.nan])}, {"value": "1"},
                       {"rho": 0.05}, {})


def vtp_arrays(path) -> dict[str, np.ndarray]:
    """Read a .vtp file by the format's definition, with no code of ours."""
    root = ElementTree.parse(path).getroot()
    assert root.attrib == {"type": "PolyData", "version": "1.0", "byte_order": "LittleEndian", "header_type": "UInt64"}
    piece, found = root.find("PolyData/Piece"), {}
    for element in piece.iter("DataArray"):
        content = base64.b64decode(element.text)
        assert int.from_bytes(content[:8], "little") == len(content) - 8
        values = np.frombuffer(content[8:], {"Float64": "<f8", "Int64": "<i8"}[element.get("type")])
        found[element.get("Name")] = values.reshape(-1, int(element.get("NumberOfComponents"))).squeeze()
    assert int(piece.get("NumberOfPoints")) == len(found["Points"])
    assert int(piece.get("NumberOfPolys")) == len(found["offsets"])
    return found


def vtu_arrays(path) -> dict[str, np.ndarray]:
    """Read a .vtu file with meshio."""
    mesh = pytest.importorskip("meshio").read(path)
    quads = mesh.cells_dict["quad"]
    return {"Points": mesh.points, "connectivity": quads.ravel(), "offsets": 4 * np.arange(1, len(quads) + 1), **mesh.point_data}


READERS = {"vtu": vtu_arrays, "vtp": vtp_arrays}


@pytest.mark.parametrize("name", READERS)
@pytest.mark.parametrize("height", [None, "tail"])
def test_a_mesh_holds_every_groups_loss_at_its_coordinates(tmp_path, name, height):
    if name == "vtu":
        pytest.importorskip("meshio")
    surface = plane()
    path, = export(surface, tmp_path, name, height)
    found = READERS[name](path)
    for x, y, z, head, tail, share in zip(*found["Points"].T, found["loss_head"], found["loss_tail"], found["accuracy_tail"]):
        a, b = list(surface.alpha).index(x), list(surface.beta).index(y)
        assert (head, tail, share) == (surface.loss[0, a, b], surface.loss[1, a, b], surface.accuracy[1, a, b])
        assert z == (0 if height is None else tail)
    assert len(found["Points"]) == 12


@pytest.mark.parametrize("name", READERS)
def test_the_cells_tile_the_plane_once_and_face_up(tmp_path, name):
    if name == "vtu":
        pytest.importorskip("meshio")
    found = READERS[name](export(plane(), tmp_path, name)[0])
    corners = found["Points"][found["connectivity"].reshape(-1, 4)]            # (Q, 4, 3)
    x, y = corners[..., 0], corners[..., 1]
    areas = 0.5 * (x * np.roll(y, -1, 1) - y * np.roll(x, -1, 1)).sum(1)       # positive where counter-clockwise
    assert np.all(areas > 0) and areas.sum() == pytest.approx(3 * 3)


@pytest.mark.parametrize("name", READERS)
def test_what_is_not_finite_stays_in_the_data_and_leaves_a_hole_in_a_raised_mesh(tmp_path, name):
    if name == "vtu":
        pytest.importorskip("meshio")
    surface = plane(holes=[(1, 1, 1)])
    flat, raised = (READERS[name](export(surface, tmp_path / str(h), name, h)[0]) for h in (None, "tail"))
    for found in (flat, raised):
        assert np.isnan(found["loss_tail"]).sum() == 1 and np.isfinite(found["loss_head"]).all()
        assert np.isfinite(found["Points"]).all()
    assert (len(flat["offsets"]), len(raised["offsets"])) == (6, 2)
    hole = np.flatnonzero(np.isnan(raised["loss_tail"]))
    assert not np.isin(hole, raised["connectivity"]).any()


def test_a_surface_that_is_nowhere_finite_has_points_and_no_raised_cells():
    mesh = mesh_of(replace(plane(), loss=np.full((2, 4, 3), np.inf)), "tail")
    assert mesh.points.shape == (12, 3) and np.isfinite(mesh.points).all() and not len(mesh.quads)
    assert np.isinf(mesh.data["loss_tail"]).all()


def test_h5_is_what_the_loss_landscape_project_plots(tmp_path):
    surface = plane()
    head, tail = export(surface, tmp_path, "h5")
    assert [head.name, tail.name] == ["p.1-head.h5", "p.1-tail.h5"]
    with h5py.File(tail) as file:
        assert set(file) == {"xcoordinates", "ycoordinates", "train_loss", "train_acc"}
        X, Y = np.meshgrid(file["xcoordinates"][:], file["ycoordinates"][:])     # as plot_2D.py does
        Z, percent = file["train_loss"][:], file["train_acc"][:]
        assert file.attrs["group"] == "tail"
    assert X.shape == Y.shape == Z.shape == percent.shape
    for place in np.ndindex(Z.shape):
        a, b = list(surface.alpha).index(X[place]), list(surface.beta).index(Y[place])
        assert Z[place] == surface.loss[1, a, b] and percent[place] == 100 * surface.accuracy[1, a, b]


def test_h5_of_a_line_has_one_axis_and_of_test_images_their_keys(tmp_path):
    on_test = replace(LINE, provenance={"inputs": {"settings": {"split": "test"}}})
    for path, loss in zip(export(on_test, tmp_path, "h5"), LINE.loss):
        with h5py.File(path) as file:
            assert set(file) == {"xcoordinates", "test_loss", "test_acc"}
            np.testing.assert_array_equal(file["test_loss"][:], loss)


def test_a_group_of_a_strange_file_becomes_no_path(tmp_path):
    with pytest.raises(RecordError, match="name='../../x' is out of range"):
        export(replace(plane(), groups=("head", "../../x")), tmp_path / "a" / "b", "h5")
    assert not list(tmp_path.rglob("x.h5"))


@pytest.mark.parametrize("record", [plane(holes=[(0, 2, 1)]), LINE, TAIL, MEASURED], ids=lambda record: type(record).__name__)
def test_npz_holds_every_array_but_the_long_ones(tmp_path, record):
    path, = export(record, tmp_path, "npz")
    with np.load(path, allow_pickle=False) as found:
        names = set(found.files)
        assert "provenance" in names and json.loads(str(found["provenance"])) == record.provenance
        assert not names & {"directions", "eigenpairs.vectors"}
        if isinstance(record, Surface):
            np.testing.assert_array_equal(found["loss"], record.loss)
            assert list(found["groups"]) == list(record.groups)
        elif isinstance(record, Curvature):
            np.testing.assert_array_equal(found["spectrum.nodes"], record.spectrum.nodes)
            np.testing.assert_array_equal(found["eigenpairs.residuals"], record.eigenpairs.residuals)
            assert found["negative_mass.high"] == record.negative_mass.high and str(found["trace.kind"]) == record.trace.kind
        else:
            np.testing.assert_array_equal(found["numbers.value"], record.numbers["value"])
            assert list(found["labels.group"]) == ["head", "tail"]


@pytest.mark.parametrize("surface", [plane(holes=[(0, 2, 1)]), LINE], ids=["plane", "line"])
def test_csv_of_a_surface_gives_back_every_bit(tmp_path, surface):
    table = pd.read_csv(*export(surface, tmp_path, "csv"), dtype=str).astype(float)     # as Python reads numbers: exactly
    axes = ["alpha", "beta"] if surface.beta.size else ["alpha"]
    assert list(table) == axes + [f"{name}/{group}" for name in ("loss", "accuracy") for group in surface.groups]
    for row, group in enumerate(surface.groups):
        wide = table.set_index(axes)[f"loss/{group}"]
        grid = wide.unstack().to_numpy() if len(axes) == 2 else wide.to_numpy()
        np.testing.assert_array_equal(grid, surface.loss[row])


def test_csv_of_a_spectrum_gives_its_quadrature_and_its_pairs(tmp_path):
    nodes = TAIL.spectrum.nodes.copy()
    nodes[1, -1] = np.nan       # a probe that broke down
    broken = replace(TAIL, spectrum=replace(TAIL.spectrum, nodes=nodes))
    quadrature, pairs = (pd.read_csv(path) for path in export(broken, tmp_path, "csv"))
    assert len(quadrature) == nodes.size - 1 and quadrature["weight"].sum() < TAIL.spectrum.weights.sum()
    first = quadrature[quadrature["probe"] == 0]
    np.testing.assert_allclose(first["eigenvalue"], nodes[0], rtol=1e-14)
    np.testing.assert_allclose(pairs["values"], TAIL.eigenpairs.values, rtol=1e-14)
    assert pairs["verified"].dtype == bool and pairs["verified"].all()


def test_csv_of_a_measurement_is_its_table(tmp_path):
    table = pd.read_csv(*export(MEASURED, tmp_path, "csv"))
    assert list(table) == ["group", "value"] and table["value"].isna().tolist() == [False, True]


@pytest.mark.parametrize("record, name, message", [
    (LINE, "vtp", "cannot be written as vtp, the format of planes"),
    (TAIL, "h5", "cannot be written as h5, the format of surfaces"),
    (LINE, "xls", "format=xls is unknown: expected one of vtu, vtp, h5, npz, csv"),
])
def test_a_format_of_other_records_is_refused(tmp_path, record, name, message):
    with pytest.raises(RecordError, match=message):
        export(record, tmp_path, name)


def test_a_height_that_is_no_group_is_refused(tmp_path):
    with pytest.raises(RecordError, match="height=moon is not in surface 'p.1': expected one of head, tail"):
        export(plane(), tmp_path, "vtp", "moon")


def test_without_meshio_one_line_says_what_to_install(tmp_path, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "meshio", None)
    with pytest.raises(RecordError, match=r"pip install 'saddle-landscape\[export\]', or choose vtp"):
        export(plane(), tmp_path, "vtu")
    assert not list(tmp_path.rglob("*.vtu"))


def test_nothing_is_left_half_written(tmp_path):
    for name in FORMATS:
        if name != "vtu":
            export(plane(), tmp_path, name)
    assert all(not path.name.startswith(".") for path in tmp_path.rglob("*"))
