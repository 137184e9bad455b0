"""Which records were made with inexact products, and what such a record cannot support.

Central differences of the gradient miss the Hessian by far where activations lie near their kinks, and their float64 twin does
so too. A residual is then that of another matrix: it bounds no eigenvalue and verifies no sign.
"""

from dataclasses import replace

import numpy as np

from checkpoints.records import Curvature, EigenPairs, Estimate

INEXACT = {"differences": "finite differences"}     # engine -> what it is called in words


def inexact(record: Curvature) -> str:
    """Return how a record says that its products were inexact; nothing where they were exact."""
    engine = record.provenance.get("engine")
    return f"inexact: {INEXACT[engine]}" if engine in INEXACT else ""


def supported(record: Curvature) -> Curvature:
    """Return a record without verified signs and without bounds from residuals where its products were inexact."""
    if not inexact(record):
        return record
    return replace(record, eigenpairs=unverified(record.eigenpairs), extreme_ratio=unbounded(record.extreme_ratio))


def unverified(pairs: EigenPairs) -> EigenPairs:
    """Return pairs without a second opinion, and without a bound on what was missed."""
    nothing = np.full(len(pairs.values), np.nan)
    return replace(pairs, values64=nothing, rounding=nothing, verified=np.zeros(len(pairs.values), bool),
                   missed_below=unbounded(pairs.missed_below))


def unbounded(estimate: Estimate) -> Estimate:
    """Return an estimate without its interval."""
    return replace(estimate, low=np.nan, high=np.nan)
