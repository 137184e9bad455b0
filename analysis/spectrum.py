"""Spectral density and trace of an operator by random probes.

Density: stochastic Lanczos quadrature (Golub and Meurant 2010; Lin, Saad and Yang 2016). Trace: Hutchinson (1990) with
the known ends of the spectrum deflated, since a few outliers carry most of a Hessian's variance.
"""

from collections.abc import Callable

import torch

from analysis.lanczos import Krylov, dots, gram, krylov
from analysis.operators import LinearOperator
from analysis.quadrature import t_interval, tridiagonal_rule
from checkpoints.records import EigenPairs, Estimate, Spectrum
from landscape.errors import InputError


def spectral_density(source: LinearOperator | Krylov, *, num_matvecs: int = 100, num_probes: int = 10,
                     generator: torch.Generator | None = None) -> Spectrum:
    """Return the Gauss rules of an operator's spectral density, one a probe; `analysis.quadrature` smooths them.

    A Krylov run is used as it is; for an operator a new one of `num_probes` times `num_matvecs` products is made.
    """
    if not isinstance(source, Krylov):
        if generator is None:
            raise InputError("generator=None is out of range: pass a torch.Generator with a seed")
        source = krylov(source, num_matvecs=num_matvecs, num_probes=num_probes, generator=generator)
    nodes, weights = tridiagonal_rule(source.alphas, source.betas)
    return Spectrum(source.operator.size, nodes, weights, source.alphas, source.betas, source.orthogonality_loss)


def estimate_trace(operator: LinearOperator, *, num_probes: int = 10, generator: torch.Generator,
                   deflate: EigenPairs | None = None, level: float = 0.95, block: int = 16,
                   progress: Callable[[int], None] | None = None) -> Estimate:
    """Estimate tr H with Student's t interval over independent Rademacher probes z.

    With orthonormal X, tr H = tr(X H X') + E z'(I - X'X) H (I - X'X) z: exact on the span of X, the eigenvectors of
    `deflate`, and estimated on its complement only. One product a probe; one probe has a NaN interval. Without deflation, a
    trace carried by one or two outliers has few distinct samples, and the interval covers it too seldom (87 to 93 %).
    """
    if num_probes < 1:
        raise InputError(f"num_probes={num_probes} is out of range: expected at least 1")
    X, known = _deflation(operator, deflate)
    samples: list[float] = []
    while len(samples) < num_probes:
        count = min(block, num_probes - len(samples))
        Z = torch.randint(0, 2, (count, operator.size), generator=generator).mul_(2).sub_(1)
        Z = Z.to(operator.device, operator.dtype)
        Z = Z - gram(Z, X).to(Z.dtype) @ X
        samples += (dots(Z, operator.matmat(Z)) + known).tolist()
        if progress:
            progress(count)
    return t_interval(samples, level, "probes")


def _deflation(operator: LinearOperator, pairs: EigenPairs | None) -> tuple[torch.Tensor, float]:
    """Return orthonormal rows and tr(X H X'), the sum of their Rayleigh quotients."""
    if pairs is None or not len(pairs.vectors):
        return torch.zeros(0, operator.size, dtype=operator.dtype, device=operator.device), 0.0
    X = torch.as_tensor(pairs.vectors, dtype=operator.dtype, device=operator.device)
    return X, float(pairs.values.sum())
