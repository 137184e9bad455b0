"""What the landscape looks like at a checkpoint: Hessian operators, Lanczos, spectra, surfaces, saddle measures.

Public names are resolved on first use, so that `import analysis` does not load torch.
"""

from importlib import import_module

_HOME = {
    "GaussNewtonOperator": "operators",
    "HessianOperator": "operators",
    "LinearOperator": "operators",
    "MatrixOperator": "operators",
    "density": "spectra.quadrature",
    "density_band": "spectra.quadrature",
    "estimate_trace": "spectra.trace",
    "extreme_eigenpairs": "spectra.extremes",
    "extreme_ratio": "spectra.saddle",
    "judge": "findings.verdict",
    "krylov": "spectra.lanczos",
    "loss_surface": "surfaces.surface",
    "measure_trace": "spectra.trace",
    "moments": "spectra.quadrature",
    "negative_mass": "spectra.quadrature",
    "parameter_blocks": "operators.blocks",
    "random_direction": "surfaces.directions",
    "ritz_negative_share": "spectra.saddle",
    "spectral_density": "spectra.spectrum",
    "threshold": "spectra.quadrature",
    "trust_radius": "findings.slices",
}
__all__ = sorted(_HOME)


def __getattr__(name: str):
    if name not in _HOME:
        raise AttributeError(f"module 'analysis' has no attribute {name!r}")
    return getattr(import_module(f"analysis.{_HOME[name]}"), name)


def __dir__() -> list[str]:
    return __all__
