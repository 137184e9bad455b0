import dataclasses
import struct

import h5py
import numpy as np
import pytest
from sample_records import (SAMPLES, checkpoint, curvature, eigenpairs, estimate, measurement, spectrum, surface,
                            surface_with_points)

from checkpoints.encode import put_record
from checkpoints.records import Checkpoint, Estimate
from checkpoints.schema import RecordError, content_hash, read_record, write_record


def same(a, b) -> bool:
    """Compare bit for bit: types, shapes, NaN payloads, the order of dictionaries."""
    if type(a) is not type(b):
        return False
    if dataclasses.is_dataclass(a):
        return all(same(getattr(a, field.name), getattr(b, field.name)) for field in dataclasses.fields(a))
    if isinstance(a, np.ndarray):
        return (a.dtype, a.shape, a.tobytes()) == (b.dtype, b.shape, b.tobytes())
    if isinstance(a, dict):
        return list(a) == list(b) and all(same(a[key], b[key]) for key in a)
    return struct.pack("d", a) == struct.pack("d", b) if isinstance(a, float) else a == b


def stored(tmp_path, record):
    return read_record(write_record(tmp_path / "record.h5", record))


def unsealed(tmp_path, record, edit):
    """Write a record as other software would, edit the open file, and return its path."""
    path = tmp_path / "foreign.h5"
    with h5py.File(path, "w") as file:
        put_record(file, record)
        edit(file)
    return path


@pytest.mark.parametrize("name", SAMPLES)
def test_a_record_comes_back_bit_for_bit(tmp_path, name):
    record = SAMPLES[name]()
    assert same(stored(tmp_path, record), record)


@pytest.mark.parametrize("record", [
    surface(beta=0), curvature(eigenpairs=eigenpairs(kept=False)), curvature(spectrum=spectrum(num_probes=0)),
    eigenpairs(num_pairs=0), Checkpoint(0, {}, {}), measurement(labels={}), measurement(labels={"a": ()}, numbers={}, units={})],
    ids=["line", "no vectors", "no probes", "no pairs", "nothing", "no labels", "no rows"])
def test_records_that_leave_something_out_come_back(tmp_path, record):
    assert same(stored(tmp_path, record), record)


def test_every_dtype_comes_back_and_order_of_names_is_kept(tmp_path):
    arrays = {dtype: np.array([[1, 0], [1, 1]]).astype(dtype)
              for dtype in ("?", "i1", "u1", "i2", "u4", "i8", "u8", "f2", "f4", "f8")}
    record = Checkpoint(1, arrays, {})
    assert same(stored(tmp_path, record), record)


def test_a_signaling_nan_keeps_its_payload(tmp_path):
    value = struct.unpack("d", struct.pack("Q", 0xFFF8_0000_0000_1234))[0]
    assert struct.pack("d", stored(tmp_path, estimate(value)).value) == struct.pack("d", value)


def test_views_and_big_endian_arrays_are_stored_by_value(tmp_path):
    arrays = {"transposed": np.arange(6.0).reshape(2, 3).T, "strided": np.arange(9)[::2],
              "big": np.arange(3, dtype=">f4")}
    back = stored(tmp_path, Checkpoint(1, arrays, {})).arrays
    assert all(np.array_equal(back[name], arrays[name]) for name in arrays)
    assert back["big"].dtype == np.dtype("<f4")


@pytest.mark.parametrize("name", ["a/b/c", "..", ".", "%2F", "weight.0", "ü ", "arrays", "/", "a%00b"])
def test_any_name_of_an_array_is_safe(tmp_path, name):
    record = Checkpoint(1, {name: np.ones(2), "other": np.zeros(1)}, {})
    assert same(stored(tmp_path, record), record)


def test_long_provenance_and_many_names_outgrow_attributes(tmp_path):
    record = Checkpoint(1, {f"layer.{i}.{'x' * 200}": np.zeros(1) for i in range(300)}, {"text": "y" * 200_000})
    assert same(stored(tmp_path, record), record)


def test_provenance_may_hold_what_json_cannot(tmp_path):
    record = Checkpoint(1, {}, {"rate": np.float32(0.5), "counts": np.arange(2), "path": tmp_path, "pair": (1, 2)})
    assert stored(tmp_path, record).provenance == {"rate": 0.5, "counts": [0, 1], "path": str(tmp_path), "pair": [1, 2]}


def test_the_same_record_gives_the_same_bytes(tmp_path):
    first, second = (write_record(tmp_path / name, curvature()).read_bytes() for name in ("a.h5", "b.h5"))
    assert first == second


def test_h5py_alone_reads_values_dimensions_and_units(tmp_path):
    record = curvature()
    with h5py.File(write_record(tmp_path / "r.h5", record)) as file:
        assert np.array_equal(file["spectrum/nodes"][:], record.spectrum.nodes)
        assert list(file["spectrum/nodes"].attrs["dims"]) == ["probe", "node"]
        assert file["spectrum/nodes"].attrs["units"] == "nats / parameter^2"
        assert file["trace"].attrs["record"] == "Estimate" and file["trace"].attrs["schema_version"] == 1


def test_only_large_compressible_arrays_are_compressed(tmp_path):
    noise = np.random.default_rng(0).random(100_000)
    arrays = {"small": np.zeros(100), "noise": noise, "zeros": np.zeros(100_000), "number": np.array(1)}
    with h5py.File(write_record(tmp_path / "r.h5", Checkpoint(1, arrays, {}))) as file:
        assert {name: file["arrays"][name].compression for name in arrays} == {
            "small": None, "noise": None, "zeros": "gzip", "number": None}
    assert same(read_record(tmp_path / "r.h5").arrays, arrays)


def test_content_hash_leaves_provenance_out():
    assert content_hash(curvature()) == content_hash(curvature(provenance={"other": 1}))


def test_content_hash_is_the_same_before_and_after_storing(tmp_path):
    for make in SAMPLES.values():
        assert content_hash(stored(tmp_path, make())) == content_hash(make())


def stored_before(tmp_path, record, *fields):
    """Write a record as it was before it had some fields."""
    def forget(file):
        for name in fields:
            del (file if name in file else file.attrs)[name]
    return unsealed(tmp_path, record, forget)


def test_a_record_from_before_a_field_existed_is_read_and_keeps_its_hash(tmp_path):
    added = ("batchnorm", "precision", "derivatives", "point_names", "point_coordinates", "point_distances", "about")
    path = stored_before(tmp_path, surface(), *added)
    assert same(read_record(path), surface()) and content_hash(read_record(path)) == content_hash(surface())
    # The SHA-256 of this record before it had them.
    assert content_hash(surface()) == "f3f71de7e0dc94d29bca9da464d97cb0c0c7fc2048e01dddfe5720a23b49d48e"


def test_what_was_added_to_a_record_is_part_of_its_hash():
    whole = surface_with_points()
    plain = {"batchnorm": "fixed", "precision": "float32", "derivatives": np.zeros((0, 0, 0)), "about": {}}
    hashes = {content_hash(dataclasses.replace(whole, **{name: value})) for name, value in plain.items()}
    assert len(hashes | {content_hash(whole)}) == len(plain) + 1


def test_a_field_that_every_record_has_is_missed(tmp_path):
    with pytest.raises(RecordError, match="/alpha is absent"):
        read_record(stored_before(tmp_path, surface(), "alpha"))


@pytest.mark.parametrize("changes", [
    {"epoch": 3}, {"group": "head"}, {"loss": 0.7500001}, {"parameter_norms": {"layer.weight": 3.0}},
    {"second_opinion": {"pyhessian": 1.0}}, {"trace": estimate(8.0)}, {"spectrum": spectrum(num_nodes=4)}])
def test_content_hash_tells_different_contents_apart(changes):
    assert content_hash(curvature(**changes)) != content_hash(curvature())


@pytest.mark.parametrize("changes", [
    {"name": "toy"}, {"epoch": 3}, {"labels": {"group": ("head", "tail", "tail")}}, {"about": {}},
    {"labels": {"group": ("head", "tail", "tail"), "perturbation": ("sam", "sam", "sam")}},
    {"units": {"value": "nats", "eigenvalue": "nats / parameter^2"}},
    {"numbers": {"value": np.array([0.25, np.nan, 0.0]), "eigenvalue": np.array([-1.0, -2.0, -np.inf])}}])
def test_content_hash_tells_different_measurements_apart(changes):
    assert content_hash(measurement(**changes)) != content_hash(measurement())


THREE, TWO = np.zeros(3), np.zeros(2)


@pytest.mark.parametrize("changes, message", [
    ({"numbers": {"value": THREE}}, "units names value, eigenvalue: expected a unit for each of value"),
    ({"numbers": {"value": THREE, "eigenvalue": TWO}}, "lengths {'group': 3, 'perturbation': 3, 'value': 3, 'eigenvalue': 2}"),
    ({"labels": {"group": ("head",)}}, "lengths {'group': 1, 'value': 3, 'eigenvalue': 3}: expected one value a row in each"),
    ({"labels": {"value": ("a", "b", "c")}}, "columns value are both labels and numbers"),
    ({"numbers": {"value": np.zeros((3, 1))}, "units": {"value": "1"}}, "numbers['value'] is out of range: expected float64"),
    ({"numbers": {"value": np.zeros(3, int)}, "units": {"value": "1"}}, "numbers['value'] is out of range: expected float64"),
    ({"numbers": {"value": [1.0, 2.0, 3.0]}, "units": {"value": "1"}}, "expected float64 of shape (n,)")])
def test_a_measurement_with_columns_that_do_not_fit_cannot_be_made(changes, message):
    with pytest.raises(RecordError) as error:
        measurement(**changes)
    assert message in str(error.value)


@pytest.mark.parametrize("changes, message", [
    ({"labels": {"group": "hea"}}, "labels['group'] is a str: expected tuple"),
    ({"labels": {"group": ("a", "b", 3)}}, "labels['group'][2]=3 is out of range: expected text"),
    ({"units": {"value": 1, "eigenvalue": "1"}}, "units['value']=1 is out of range: expected text")])
def test_words_that_are_no_text_are_not_written(tmp_path, changes, message):
    with pytest.raises(RecordError) as error:
        write_record(tmp_path / "m.h5", measurement(**changes))
    assert message in str(error.value) and list(tmp_path.iterdir()) == []


def test_content_hash_sees_shape_dtype_and_names():
    variants = [{"w": np.zeros(4)}, {"w": np.zeros((2, 2))}, {"w": np.zeros(8, "f4")}, {"v": np.zeros(4)},
                {"w": -np.zeros(4)}]
    assert len({content_hash(Checkpoint(1, arrays, {})) for arrays in variants}) == len(variants)


def test_content_hash_ignores_the_order_of_dictionaries():
    a, b = np.zeros(1), np.ones(2)
    assert content_hash(Checkpoint(1, {"a": a, "b": b}, {})) == content_hash(Checkpoint(1, {"b": b, "a": a}, {}))


@pytest.mark.parametrize("record, message", [
    (Checkpoint(-1, {}, {}), "Checkpoint.epoch=-1"),
    (Checkpoint(True, {}, {}), "Checkpoint.epoch=True"),
    (Checkpoint(1.0, {}, {}), "Checkpoint.epoch=1.0"),
    (Checkpoint(1, {"w": [1, 2]}, {}), "is a list: expected a NumPy array"),
    (Checkpoint(1, {"w": np.array(["text"])}, {}), "dtype <U4"),
    (Checkpoint(1, {"w": np.array([1 + 2j])}, {}), "dtype complex128"),
    (Checkpoint(1, {"": np.ones(1)}, {}), "from names to arrays"),
    (Checkpoint(1, {}, {"f": print}), "cannot be stored as JSON"),
    (Checkpoint(1, {}, {1: 2}), "keys that are no text"),
    (Estimate("x", 0, 0, 0.95, "probes"), "Estimate.value='x'"),
    (Estimate(1.0, 0, 0, 0.95, 3), "Estimate.kind=3"),
    (Estimate(1.0, 0, 0, 0.95, "a\0b"), "without NUL"),
    (Estimate(1.0, 0, 0, 0.95, "\udc80"), "UTF-8"),
    (dataclasses.replace(spectrum(), weights=np.ones((2, 4))), "weights has shape (2, 4): expected node=3 as in nodes"),
    (dataclasses.replace(spectrum(), nodes=np.ones(3)), "nodes has shape (3,): expected dimensions probe, node"),
    (dataclasses.replace(spectrum(), nodes=None), "Spectrum.nodes is a NoneType"),
    (dataclasses.replace(surface(), loss=np.ones((2, 3))), "loss has shape (2, 3)"),
    (curvature(parameter_norms={"w": "large"}), "Curvature.parameter_norms['w']='large'"),
    (curvature(trace=None), "Curvature.trace is a NoneType: expected Estimate"),
    (object(), "object cannot be stored"),
])
def test_a_value_that_does_not_fit_is_refused_and_nothing_is_written(tmp_path, record, message):
    with pytest.raises(RecordError) as error:
        write_record(tmp_path / "r.h5", record)
    assert message in str(error.value)
    assert list(tmp_path.iterdir()) == []


def delete(name):
    return lambda file: file.__delitem__(name)


def attribute(where, name, value):
    return lambda file: file[where].attrs.__setitem__(name, value)


def dataset(name, **options):
    def edit(file):
        declared = dict(file[name].attrs)
        del file[name]
        file.create_dataset(name, **options).attrs.update(declared)
    return edit


def replaced(name, make):
    def edit(file):
        del file[name]
        make(file)
    return edit


def half_written(file, name):
    """Make a dataset whose second row was never stored: HDF5 would read zeros."""
    made = file.create_dataset(name, shape=(2, 600), chunks=(1, 600), dtype="f8")
    made[0] = 1.0
    made.attrs.update(dims=["probe", "node"], units="nats / parameter^2")


def link(name, target):
    return replaced(name, lambda file: file.__setitem__(name, target))


@pytest.mark.parametrize("edit, message", [
    (attribute("/", "schema_version", 7), "schema version 7, newer than the 1 known here: update this package"),
    (attribute("/", "schema_version", 0), "schema_version=0 is out of range"),
    (attribute("/", "schema_version", "x"), "schema_version='x' is out of range"),
    (attribute("/", "record", "Gospel"), "record 'Gospel' is unknown: expected one of Estimate"),
    (lambda file: file.attrs.__delitem__("record"), "holds no record"),
    (attribute("spectrum", "schema_version", 9), "schema version 9"),
    (attribute("spectrum", "record", "EigenPairs"), "holds the record EigenPairs: expected Spectrum"),
    (lambda file: file.attrs.__delitem__("loss"), "/loss is absent"),
    (delete("spectrum"), "/spectrum is absent"),
    (delete("spectrum/nodes"), "/spectrum/nodes is absent"),
    (attribute("/", "epoch", -3), "/epoch=-3 is out of range"),
    (attribute("/", "epoch", 2.5), "is out of range: expected an integer"),
    (attribute("/", "epoch", float("nan")), "is out of range: expected an integer"),
    (attribute("/", "loss", "high"), "/loss='high' is out of range: expected a number"),
    (attribute("/", "loss", np.ones(3)), "is out of range: expected a number"),
    (attribute("/", "group", 3), "/group is a int64: expected text"),
    (attribute("/", "provenance", "{"), "is damaged"),
    (attribute("/", "provenance", "[1]"), "/provenance is a tuple: expected dict"),
    (attribute("/", "provenance", "[" * 100_000), "is damaged"),
    (attribute("/", "parameter_norms", '{"w": "x"}'), "expected a number"),
    (attribute("spectrum/nodes", "units", "eV"), "has units 'eV': expected 'nats / parameter^2'"),
    (attribute("spectrum/nodes", "dims", "time"), "has dims ('time',): expected ('probe', 'node')"),
    (dataset("spectrum/nodes", data=np.ones((2, 5))), "Spectrum.weights has shape (2, 3): expected node=5 as in nodes"),
    (dataset("spectrum/nodes", data=np.ones((2, 3), "S4")), "dtype |S4: expected bool, integers or floating point"),
    (dataset("spectrum/nodes", data=np.ones((2, 3), complex)), "dtype complex128"),
    (dataset("spectrum/nodes", shape=(2, 10**12), chunks=(1, 1000), dtype="f8"), "which this file does not hold"),
    (replaced("spectrum/nodes", lambda file: half_written(file, "spectrum/nodes")), "which this file does not hold"),
    (dataset("spectrum/nodes", shape=(10**7, 10**7), dtype="f8"), "which this file does not hold"),
    (dataset("spectrum/nodes", data=np.ones((2, 3)), chunks=(2, 3), compression="lzf"), "this file does not hold"),
    (dataset("spectrum/nodes", shape=(2, 3), dtype="f8", external=[("other.bin", 0, 48)]), "this file does not hold"),
    (link("spectrum", h5py.ExternalLink("other.h5", "/")), "/spectrum is not a group of this file"),
    (link("spectrum/nodes", h5py.SoftLink("/trace")), "/spectrum/nodes is not a dataset of this file"),
    (replaced("spectrum/nodes", lambda file: file.create_group("spectrum/nodes")), "is not a dataset of this file"),
])
def test_a_foreign_or_altered_file_is_refused_with_one_line(tmp_path, edit, message):
    path = unsealed(tmp_path, curvature(), edit)
    with pytest.raises(RecordError) as error:
        read_record(path)
    assert message in str(error.value) and str(error.value).startswith(str(path))


@pytest.mark.parametrize("edit, message", [
    (attribute("/", "labels", '{"group": ["head", "tail"], "perturbation": ["a", "b", "c"]}'),
     "expected one value a row in each"),
    (attribute("/", "labels", '{"group": ["head", "tail", 3]}'), "[2]=3 is out of range: expected text"),
    (attribute("/", "labels", '{"group": "abc"}'), "is a str: expected tuple"),
    (attribute("/", "labels", '["group"]'), "/labels is a tuple: expected dict"),
    (attribute("/", "units", '{"value": "1"}'), "expected a unit for each of value, eigenvalue"),
    (delete("numbers/value"), "holds other arrays than numbers.names says"),
    (replaced("numbers/value", lambda file: file.create_dataset("numbers/value", data=np.zeros(2))), "one value a row in each"),
    (replaced("numbers/value", lambda file: file.create_dataset("numbers/value", data=np.zeros(3, int))), "expected float64"),
    (replaced("numbers/value", lambda file: file.create_dataset("numbers/value", shape=(10**12,), dtype="f8")), "does not hold"),
])
def test_an_altered_measurement_is_refused_with_one_line(tmp_path, edit, message):
    path = unsealed(tmp_path, measurement(), edit)
    with pytest.raises(RecordError) as error:
        read_record(path)
    assert message in str(error.value) and str(error.value).startswith(str(path))


def test_a_virtual_dataset_is_refused(tmp_path):
    layout = h5py.VirtualLayout(shape=(2, 3), dtype="f8")
    layout[:] = h5py.VirtualSource("elsewhere.h5", "secret", shape=(2, 3))
    path = unsealed(tmp_path, curvature(), replaced(
        "spectrum/nodes", lambda file: file.create_virtual_dataset("spectrum/nodes", layout).attrs.update(
            dims=["probe", "node"], units="nats / parameter^2")))
    with pytest.raises(RecordError, match="which this file does not hold"):
        read_record(path)


@pytest.mark.parametrize("edit", [delete("arrays/mask"), lambda file: file.create_dataset("arrays/more", data=1.0)])
def test_arrays_absent_or_added_are_refused(tmp_path, edit):
    with pytest.raises(RecordError, match="holds other arrays than arrays.names says"):
        read_record(unsealed(tmp_path, checkpoint(), edit))


def test_a_record_written_by_other_software_is_read(tmp_path):
    assert same(read_record(unsealed(tmp_path, curvature(), lambda file: None)), curvature())


def test_a_wrong_content_hash_is_refused(tmp_path):
    with pytest.raises(RecordError, match="does not match its hash"):
        read_record(unsealed(tmp_path, curvature(), attribute("/", "content_hash", "0" * 64)))


def test_another_kind_of_record_than_asked_for_is_refused(tmp_path):
    path = write_record(tmp_path / "r.h5", estimate())
    with pytest.raises(RecordError, match="holds the record Estimate: expected Checkpoint"):
        read_record(path, Checkpoint)


@pytest.mark.parametrize("content", [b"", b"\x89HDF", b"epoch,loss\n1,2\n", b"\0" * 600])
def test_a_file_that_is_not_hdf5_is_refused(tmp_path, content):
    (tmp_path / "r.h5").write_bytes(content)
    with pytest.raises(RecordError, match="r.h5 is not an HDF5 file"):
        read_record(tmp_path / "r.h5")


def test_an_absent_file_is_refused(tmp_path):
    with pytest.raises(RecordError, match="r.h5 does not exist"):
        read_record(tmp_path / "r.h5")


def test_a_truncated_file_is_refused_wherever_it_was_cut(tmp_path):
    path = write_record(tmp_path / "r.h5", curvature())
    whole = path.read_bytes()
    for length in range(0, len(whole), 97):
        path.write_bytes(whole[:length])
        with pytest.raises(RecordError, match="truncated|not an HDF5"):
            read_record(path)


@pytest.mark.parametrize("name, told", [
    ("spectra/r.h5", "delete it and compute it again"), ("resume.h5", "put back a copy, or delete it to start over"),
    ("checkpoints/epoch-0001.h5", "put back a copy, or train the run again into another folder: a checkpoint that is deleted")])
def test_a_damaged_record_says_what_brings_it_back(tmp_path, name, told):
    (tmp_path / name).parent.mkdir(exist_ok=True)
    path = write_record(tmp_path / name, estimate())
    path.write_bytes(path.read_bytes()[:-9])
    with pytest.raises(RecordError, match=told):
        read_record(path)


def test_a_single_flipped_bit_is_noticed_wherever_it_is(tmp_path):
    path = write_record(tmp_path / "r.h5", estimate())
    whole = path.read_bytes()
    for position in range(0, len(whole), 61):
        path.write_bytes(whole[:position] + bytes([whole[position] ^ 4]) + whole[position + 1:])
        with pytest.raises(RecordError, match="damaged|not an HDF5"):
            read_record(path)


def test_an_older_record_survives_a_failed_write(tmp_path):
    path = write_record(tmp_path / "r.h5", estimate(1.0))
    with pytest.raises(RecordError):
        write_record(path, Estimate("x", 0, 0, 0.95, "probes"))
    assert read_record(path).value == 1.0
