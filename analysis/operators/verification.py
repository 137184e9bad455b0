"""Whether a product is that of the Hessian: it repeats itself, is symmetric, and agrees with an independent engine.

One check a trace, since a traced product is a formula: where its loss agrees with that of the network for other tensors of the
same shapes, the network took the same branches, and the formula is the same.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from analysis.operators import rounds
from analysis.operators.batches import Batch
from analysis.operators.objective import Objective
from analysis.operators.prepared import Prepared, Product, summed
from analysis.operators.products import ENGINES, EngineError
from landscape.errors import InputError

FITTED = 1e-8   # what rounding leaves in float64 where a network fits its data, and losses are 1e-6 of their logits
UNDERFLOW = 1e4     # times the least normal number that a product's largest entry has to be
KINKS = 10      # times the rounding of another engine, measured, that a float32 product may be off


def verify(name: str, prepared: Prepared, objective: Objective, theta: Tensor, batch: Batch) -> dict[str, float]:
    """Check a product; return the seconds of one vector, for its engine and the one it was compared with.

    One that took longer is timed twice more: what a shared machine does meanwhile must not turn a choice that later operators
    share. Raises EngineError with the measured discrepancy.
    """
    product = prepared.product
    values, seconds = check(product, theta, tolerance(name, theta.dtype))
    refuse_false_sum(prepared, values, theta, tolerance(name, theta.dtype))
    others = confirm(name, values, objective, theta, batch)
    if others and seconds > min(others.values()):
        seconds = min(seconds, *(timed(product, probe_vectors(theta))[1] for _ in range(2)))
    return {name: seconds} | others


def check(product: Product, theta: Tensor, limit: float) -> tuple[Tensor, float]:
    """Call a product three times and test that it repeats itself and is symmetric.

    Returns its values on two fixed vectors, and the seconds of one vector: the fewer of two calls, since a shared machine stops
    at times.
    """
    U = probe_vectors(theta)
    (first, _), (again, one), (third, other) = (timed(product, U) for _ in range(3))
    if not torch.isfinite(first).all():
        raise EngineError("its product is not finite: infinite derivatives, such as that of sqrt or norm at 0?")
    for later, word in ((again, "second"), (third, "third")):
        if (gap := relative_gap(later, first)) > limit:
            raise EngineError(f"its {word} call differs from the first by {gap:.1e}")
    largest, least = float(first.abs().max()), UNDERFLOW * torch.finfo(theta.dtype).tiny
    if 0 < largest < least:
        raise EngineError(f"its values, at most {largest:.1e}, are near the least that {str(theta.dtype).removeprefix('torch.')} "
                          "holds: use float64")
    left, right = (float((u.double() * hu.double()).sum()) for u, hu in zip(U, first.flip(0)))
    scale = float(first.double().norm() * U.double().norm())
    if (gap := abs(left - right) / scale if scale else 0.0) > limit:
        raise EngineError(f"it is not symmetric: u'Hv and v'Hu differ by {gap:.1e}, so the gradient is not that of the loss "
                          "(a no_grad or detach inside the forward? or a loss of rounding alone, where F.cross_entropy is not)")
    return first, min(one, other)


def refuse_false_sum(prepared: Prepared, values: Tensor, theta: Tensor, limit: float) -> None:
    """Add a traced product up with itself: what is done once, to the sum, must be linear in the shares."""
    if prepared.shared is None:
        return
    twice = summed([prepared, prepared], probe_vectors(theta)[:1])
    if (gap := relative_gap(twice / 2, values[:1])) > limit:
        raise EngineError(f"the sum over two equal microbatches differs from twice the product of one by {gap:.1e}")


def confirm(name: str, values: Tensor, objective: Objective, theta: Tensor, batch: Batch) -> dict[str, float]:
    """Compare the products with the first probe vectors with those of a second, independent engine, and return its seconds; with
    differences in float64 where there is none.

    Where both differ, since activations at a kink fall on either side of it by rounding alone, neither may be farther from the
    float64 product than the other times KINKS.
    """
    if name == "differences":
        return {}
    other = "reverse" if name != "reverse" else "jvp"
    limit, U = tolerance(other, theta.dtype), probe_vectors(theta)[:len(values)]
    try:
        second, seconds = timed(ENGINES[other](objective, theta, {})(batch).product, U)
        timings = {other: seconds}
    except (RuntimeError, NotImplementedError):
        other, limit, timings = "differences", max(1e-4, limit), {}
        second = _in_double("differences", objective, theta, batch, U)
    gap = relative_gap(values, second)
    if gap > limit and not _is_rounding(values, second, other, objective, theta, batch):
        raise EngineError(f"it differs from {other} by {gap:.1e}, more than {limit:.0e}")
    return timings


def refuse_other_losses(losses: Tensor, objective: Objective, theta: Tensor, batch: Batch) -> None:
    """Compare the losses of a traced function with the network's: they differ where the network branches on its data.

    Losses of samples that are fitted well are mostly rounding; then a float64 evaluation says how much of it there is.
    """
    with torch.no_grad():
        expected = objective.sample_losses(theta, batch)
        if (gap := relative_gap(losses, expected)) <= tolerance("linearized", theta.dtype):
            return
        wide = objective.double().sample_losses(theta.double(), batch.double()) if theta.dtype != torch.float64 else expected
    if relative_gap(losses, wide) > KINKS * relative_gap(expected, wide):
        raise EngineError(f"the traced losses differ from the network's by {gap:.1e}: for these data it is another function")


def probe_vectors(theta: Tensor) -> Tensor:
    """Return two fixed unit vectors (2, d), drawn on the CPU."""
    generator = torch.Generator().manual_seed(0)
    U = torch.randn(2, theta.numel(), generator=generator, dtype=torch.float64)
    return (U / U.norm(dim=1, keepdim=True)).to(theta.device, theta.dtype)


def relative_gap(a: Tensor, b: Tensor) -> float:
    """Return |a - b| / max(|a|, |b|); 0 where both vanish, infinite where one is not finite."""
    a, b = a.double(), b.double()       # squares of small float32 numbers are zero
    scale, gap = float(torch.maximum(a.norm(), b.norm())), float((a - b).norm())
    if not (torch.isfinite(a).all() and torch.isfinite(b).all()):
        return float("inf")
    return gap / scale if scale > 0 else 0.0


def tolerance(engine: str, dtype: torch.dtype) -> float:
    """Return the relative difference up to which products are equal: 10^3 units of rounding or FITTED, more for differences."""
    eps = torch.finfo(dtype).eps
    return 1e2 * eps ** (1 / 3) if engine == "differences" else max(1e3 * eps, FITTED)


def timed(product: Callable[[Tensor], Tensor], V: Tensor) -> tuple[Tensor, float]:
    """Return a product and the seconds that each of its rows took."""
    seconds, HV = rounds.timed(lambda: product(V), V.device)
    return HV, seconds / len(V)


def _is_rounding(values: Tensor, second: Tensor, other: str, objective: Objective, theta: Tensor, batch: Batch) -> bool:
    """Tell whether two float32 products differ by their rounding alone, by a third in float64 of the first vector."""
    if theta.dtype == torch.float64 or other == "differences":
        return False
    try:
        wide = _in_double(other, objective, theta, batch, probe_vectors(theta)[:1])
    except (RuntimeError, NotImplementedError, InputError):
        return False
    return relative_gap(values[:1].double(), wide) <= KINKS * relative_gap(second[:1].double(), wide)


def _in_double(name: str, objective: Objective, theta: Tensor, batch: Batch, U: Tensor) -> Tensor:
    wide = ENGINES[name](objective.double(), theta.double(), {})(batch.double()).product
    return wide(U.double())
