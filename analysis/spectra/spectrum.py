"""Spectral density of an operator by stochastic Lanczos quadrature (Golub and Meurant 2010; Lin, Saad and Yang 2016).

Its moments, masses and smoothed densities are in `analysis.spectra.quadrature`; the trace, from probes of its own, in
`analysis.spectra.trace`.
"""

import torch

from analysis.operators import LinearOperator
from analysis.spectra.lanczos import Krylov, krylov
from analysis.spectra.quadrature import tridiagonal_rule
from checkpoints.records import Spectrum
from landscape.errors import InputError


def spectral_density(source: LinearOperator | Krylov, *, num_matvecs: int = 100, num_probes: int = 10,
                     generator: torch.Generator | None = None) -> Spectrum:
    """Return the Gauss rules of an operator's spectral density, one a probe; `analysis.spectra.quadrature` smooths them.

    A Krylov run is used as it is; for an operator a new one of `num_probes` times `num_matvecs` products is made.
    """
    if not isinstance(source, Krylov):
        if generator is None:
            raise InputError("generator=None is out of range: pass a torch.Generator with a seed")
        source = krylov(source, num_matvecs=num_matvecs, num_probes=num_probes, generator=generator)
    nodes, weights = tridiagonal_rule(source.alphas, source.betas)
    return Spectrum(source.operator.size, nodes, weights, source.alphas, source.betas, source.orthogonality_loss)
