import os
import pickle
import random
import struct
import tracemalloc

import numpy as np
import pytest

from landscape.data.pickles import read_pickle
from landscape.errors import InputError

PIXELS = np.arange(24, dtype=np.uint8).reshape(4, 6)
BATCH = {"data": PIXELS, "fine_labels": [3, 1, 2, 0], "batch_label": "training batch 1 of 1"}


class Python2Pickler(pickle._Pickler):
    """Writes text and bytes as Python 2 wrote its strings, and NumPy's module under the name it then had."""

    dispatch = dict(pickle._Pickler.dispatch)

    def save_string(self, value):
        raw = value.encode("latin1") if isinstance(value, str) else value
        self.write(b"T" + struct.pack("<i", len(raw)) + raw)
        self.memoize(value)

    dispatch[str] = dispatch[bytes] = save_string


def python2_pickle(content, path):
    with open(path, "wb") as file:
        Python2Pickler(file, 2).dump(content)
    raw = path.read_bytes().replace(b"numpy._core.multiarray", b"numpy.core.multiarray")
    path.write_bytes(raw)
    return raw


class Calls:
    """Pickles as a call of any function."""

    def __init__(self, function, *arguments):
        self.call = function, arguments

    def __reduce__(self):
        return self.call


@pytest.fixture
def official(tmp_path):
    return python2_pickle(BATCH, tmp_path / "train")


def test_a_batch_of_python_2_and_one_of_python_3_read_the_same(official):
    for raw in (official, pickle.dumps(BATCH, protocol=2), pickle.dumps(BATCH, protocol=4)):
        content = read_pickle(raw, "train")
        assert np.array_equal(content["data"], PIXELS) and content["data"].dtype == np.uint8
        assert content["fine_labels"] == [3, 1, 2, 0] and set(content) == set(BATCH)


def test_column_major_arrays_keep_their_values():
    content = read_pickle(pickle.dumps({"data": np.asfortranarray(PIXELS)}, protocol=2), "train")
    assert np.array_equal(content["data"], PIXELS)


@pytest.mark.parametrize("function", [os.system, os.mkdir, eval, exec, np.load, np.fromfile, getattr, __import__])
@pytest.mark.parametrize("protocol", [0, 2, 4])
def test_no_other_function_is_called(function, protocol, tmp_path):
    marker = tmp_path / "marker"
    raw = pickle.dumps({"data": Calls(function, str(marker))}, protocol=protocol)
    with pytest.raises(InputError, match="train is not a whole CIFAR file .it names") as caught:
        read_pickle(raw, "train")
    assert not marker.exists() and "\n" not in str(caught.value)


def test_dotted_names_do_not_reach_through_an_admitted_module():
    raw = b"\x80\x04\x8c\x05numpy\x8c\x0cf2py.os.stat\x93."
    with pytest.raises(InputError, match="numpy.f2py.os.stat"):
        read_pickle(raw, "train")


@pytest.mark.parametrize("hostile", [
    Calls(np.ndarray, (2, 3)),  # the array type is not to be called
    Calls(np.ndarray, (10**15,)),
    Calls(np.dtype, "O"),
    Calls(np.dtype, "V8"),
    np.array([{}, []], dtype=object),
    np.arange(3, dtype=">i8"),
    np.zeros(2, dtype=[("x", "u1")]),
])
def test_arrays_of_other_kinds_are_refused(hostile):
    with pytest.raises(InputError, match="train is not a whole CIFAR file"):
        read_pickle(pickle.dumps({"data": hostile}, protocol=2), "train")


def test_a_shape_that_does_not_match_its_bytes_is_refused_before_anything_is_allocated(official):
    shape = pickle.dumps((4, 6), protocol=2)[2:-3]
    assert official.count(shape) == 1
    for other in ((10**15, 6), (-4, -6), (4, 5)):
        with pytest.raises(InputError, match="does not match its bytes"):
            read_pickle(official.replace(shape, pickle.dumps(other, protocol=2)[2:-3]), "train")


def test_a_file_cut_anywhere_is_one_clear_error(official):
    for length in range(len(official)):
        with pytest.raises(InputError, match="train is not a whole CIFAR file"):
            read_pickle(official[:length], "train")


def test_damaged_bytes_are_read_or_refused_and_nothing_else(official):
    draw, refused = random.Random(0), 0
    for _ in range(3000):
        raw = bytearray(official)
        for _ in range(draw.randint(1, 3)):
            raw[draw.randrange(len(raw))] = draw.randrange(256)
        try:
            read_pickle(bytes(raw), "train")
        except InputError:
            refused += 1
    assert 0 < refused < 3000


@pytest.mark.parametrize("content", [[1, 2], {1: 2}, {("data",): 2}])
def test_a_pickle_of_something_else_is_refused(content):
    with pytest.raises(InputError, match="train is not a whole CIFAR file .*(place of a dictionary|text is expected)"):
        read_pickle(pickle.dumps(content), "train")


@pytest.mark.parametrize("state", [({"array": 1}, {"array": 1}), (None, {"__call__": 1}), {"dtype": 1}])
@pytest.mark.parametrize("name", ["numpy.core.multiarray\n_reconstruct", "numpy\ndtype", "numpy\nndarray",
                                  "_codecs\nencode"])
def test_a_pickle_cannot_change_what_the_next_one_meets(state, name, official):
    hostile = b"\x80\x02c" + name.encode() + b"\n" + pickle.dumps(state, protocol=2)[2:-1] + b"b."
    with pytest.raises(InputError, match="train is not a whole CIFAR file"):
        read_pickle(hostile, "train")
    assert np.array_equal(read_pickle(official, "train")["data"], PIXELS)


def test_a_few_bytes_cannot_ask_for_much_memory():
    tracemalloc.start()
    read_pickle(b"\x80\x02}r\xff\xff\xff\x07.", "train")  # an empty dictionary, noted as number 2^27
    with pytest.raises(InputError):
        read_pickle(b"\x80\x04\x8e" + struct.pack("<Q", 2**40) + b"short.", "train")
    assert tracemalloc.get_traced_memory()[1] < 10**6
    tracemalloc.stop()
