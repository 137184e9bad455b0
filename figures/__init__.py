"""Figures drawn from stored records alone: no torch, no model.

Public names are resolved on first use, so that `import figures` does not load matplotlib. `plot_*` functions draw on
axes of your own; `draw` and `write` make whole figures of the catalogue.
"""

from importlib import import_module

_HOME = {
    "CATALOGUE": "catalogue",
    "Options": "options",
    "draw": "catalogue",
    "panels": "panels",
    "plot_accuracy": "accuracy",
    "plot_against_rho": "sweep",
    "plot_escape": "history",
    "plot_lanes": "classwise",
    "plot_line": "lines",
    "plot_over_epochs": "saddle",
    "plot_overlaps": "history",
    "plot_ridges": "overview",
    "plot_spectrum": "spectrum",
    "plot_surface": "surface",
    "plot_surface_3d": "surface",
    "plot_table": "tables",
    "write": "catalogue",
}
__all__ = sorted(_HOME)


def __getattr__(name: str):
    if name not in _HOME:
        raise AttributeError(f"module 'figures' has no attribute {name!r}")
    return getattr(import_module(f"figures.{_HOME[name]}"), name)


def __dir__() -> list[str]:
    return __all__
