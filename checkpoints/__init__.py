"""The run folder on disk: frozen records in HDF5, one file each, whole or absent. NumPy and h5py only, no torch.

Public names are resolved on first use, so that `import checkpoints` stays light.
"""

from importlib import import_module

_HOME = {
    "Checkpoint": "records",
    "Curvature": "records",
    "EigenPairs": "records",
    "Estimate": "records",
    "RecordError": "errors",
    "RunStore": "store",
    "Spectrum": "records",
    "Surface": "records",
    "compare": "comparison",
    "content_hash": "schema",
    "read_record": "schema",
    "write_record": "schema",
}
__all__ = sorted(_HOME)


def __getattr__(name: str):
    if name not in _HOME:
        raise AttributeError(f"module 'checkpoints' has no attribute {name!r}")
    return getattr(import_module(f"checkpoints.{_HOME[name]}"), name)


def __dir__() -> list[str]:
    return __all__
