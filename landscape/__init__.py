"""Training core: data, models, losses, the sharpness-aware family, and one training loop. Writes no files.

Public names are resolved on first use, so that `import landscape` does not load torch.
"""

from importlib import import_module

_HOME = {
    "ASAM": "optimizers",
    "CCSAM": "optimizers.cc_sam",
    "ClassGroups": "groups",
    "FocalSAM": "optimizers.focal_sam",
    "FriendlySAM": "optimizers",
    "GKPGSA": "optimizers.gkp_gsa",
    "GroupSAM": "optimizers",
    "ImbSAM": "optimizers",
    "InputError": "errors",
    "LPFSGD": "optimizers.noise",
    "PGD": "optimizers.noise",
    "SAM": "optimizers",
    "SSESAM": "optimizers",
    "TrainConfig": "training",
    "build_loss": "losses",
    "build_model": "models",
    "evaluate": "evaluation",
    "load_data": "data",
    "register_loss": "losses",
    "register_optimizer": "family",
    "train": "training",
}
__all__ = sorted(_HOME)


def __getattr__(name: str):
    if name not in _HOME:
        raise AttributeError(f"module 'landscape' has no attribute {name!r}")
    return getattr(import_module(f"landscape.{_HOME[name]}"), name)


def __dir__() -> list[str]:
    return __all__
