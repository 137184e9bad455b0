"""Read the pickles of a CIFAR batch without running anything that they name.

A pickle is a program: it may name any importable function and call it. A CIFAR batch needs three names (rebuild an
array, the array type, its number type), and `_codecs.encode` where Python 3 wrote it. Each of them is replaced by a
stand-in that only notes its arguments and cannot be changed by the pickle; every other name is refused. The noted
arrays are made by `numpy.frombuffer` after their sizes were checked, so that NumPy's own unpickling, which trusts its
input, never runs.
"""

import io
import math
import pickle
import struct

import numpy as np

from landscape.errors import InputError, one_line

# What a damaged or hostile byte stream makes the unpickler or a stand-in raise.
BROKEN = (pickle.UnpicklingError, struct.error, EOFError, ValueError, TypeError, LookupError, AttributeError,
          OverflowError, AssertionError, MemoryError)
NUMBER_TYPES = {"u1": np.dtype("u1"), "i4": np.dtype("<i4"), "i8": np.dtype("<i8")}


def read_pickle(raw: bytes, name: str) -> dict[str, object]:
    """Return the dictionary in a CIFAR pickle, its keys as text; `name` is the file that errors speak of."""
    try:
        content = _BatchUnpickler(io.BytesIO(raw), encoding="bytes").load()
        if not isinstance(content, dict):
            raise TypeError(f"it holds a {type(content).__name__} in place of a dictionary")
        return {text_of(key): value.array if isinstance(value, _Array) else value for key, value in content.items()}
    except BROKEN as error:
        raise InputError(f"{name} is not a whole CIFAR file ({one_line(error)}): "
                         "delete it, and put the file of the official python archive there") from None


def text_of(value: object) -> str:
    """Return a string from a pickle of Python 2 (bytes) or 3 (text); anything else is a TypeError."""
    if not isinstance(value, (bytes, str)):
        raise TypeError(f"a {type(value).__name__} stands where a text is expected")
    return value.decode("latin1") if isinstance(value, bytes) else value


class _NumberType:
    """Stands in for numpy.dtype: its byte order is checked, everything else of its state is left aside."""

    def __init__(self, code, *_):
        self.dtype = NUMBER_TYPES[text_of(code)]

    def __setstate__(self, state):
        if text_of(state[1]) not in ("<", "|"):
            raise ValueError("numbers of another byte order than expected")


class _Array:
    """Stands in for the empty array that a pickle starts with, and for the call that makes it."""

    array = None

    def __init__(self, *_):
        pass

    def __setstate__(self, state):
        _, shape, number_type, column_major, raw = state
        size = math.prod(shape) * number_type.dtype.itemsize
        if min(shape, default=0) < 0 or not isinstance(raw, bytes) or len(raw) != size:
            raise ValueError("an array's shape does not match its bytes")
        self.array = np.frombuffer(raw, number_type.dtype).reshape(shape, order="F" if column_major else "C")


class _Encode:
    """Stands in for _codecs.encode: how Python 3 writes bytes where a pickle has none."""

    __slots__ = ()

    def __call__(self, text, encoding):
        if text_of(encoding) not in ("latin1", "latin-1"):
            raise ValueError("another encoding than latin1")
        return text.encode("latin1")


# The unpickler in Python: the one in C allocates gigabytes when nine bytes ask for a memo of that length. It is as fast
# here, since most of a batch is one string.
class _BatchUnpickler(pickle._Unpickler):
    stand_ins = {
        ("numpy.core.multiarray", "_reconstruct"): _Array,
        ("numpy._core.multiarray", "_reconstruct"): _Array,
        ("numpy", "ndarray"): "ndarray",  # only ever handed to _reconstruct; as text it cannot be called
        ("numpy", "dtype"): _NumberType,
        ("_codecs", "encode"): _Encode(),
    }

    def find_class(self, module: str, name: str):
        if (module, name) not in self.stand_ins:
            raise pickle.UnpicklingError(f"it names {module}.{name}, which no CIFAR file needs")
        return self.stand_ins[module, name]
