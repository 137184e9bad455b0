"""How much lambda_min and lambda_max of a group owe to what is chosen: one choice varied at a time, the others as they are.

    probes         random starts of m Lanczos steps each, alone and joined by Rayleigh-Ritz
    steps          m itself, from one start
    augmentation   one fixed draw of augmented images; a new draw at every product, as Rangwani et al. (2022) release it
    loss, split    another loss, other images
    batchnorm      each batch's own statistics, over one batch of all images
    subset         fewer images, drawn anew: extremes of subsets are biased outward, since a mean of fewer matrices spreads more

Without restarts an extreme Ritz value lies inside the spectrum: lambda_min <= it, and its residual says how far an eigenvalue
is at most, never that none was missed. The other axes compare converged pairs, so that their differences are not Lanczos's.

A new draw at every product is no matrix: products of one vector differ, and what Lanczos returns is no eigenvalue of anything.
`Redrawn` says so in numbers, the residual of its Ritz pair at another draw and the difference of two products of one vector.
"""

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from scipy.linalg import eigh_tridiagonal
from torch import Tensor, nn

from analysis.operators import plan
from analysis.operators.algebra import LinearOperator, Operator
from analysis.operators.batches import Batch
from analysis.operators.objective import Objective, Supervised
from analysis.operators.products import ENGINES
from analysis.operators.snapshot import Snapshot
from analysis.operators.verification import check, relative_gap, tolerance
from analysis.spectra.extremes import extreme_eigenpairs
from analysis.spectra.lanczos import Krylov, krylov
from landscape.batchnorm import evaluation_mode, normalizers
from landscape.distributed import Processes
from landscape.errors import InputError
from landscape.parameters import flatten, trainable

GRAPHS = 8      # times what a forward keeps, for a product in reverse mode over reverse mode: 4 were measured for ResNet-20

Batches = Sequence[tuple[Tensor, Tensor]]
Counter = Callable[[int], None]


@dataclass(frozen=True)
class Ends:
    """Both ends of a spectrum as one computation found them, in nats / parameter^2."""

    lower: float
    lower_residual: float   # ||Hv - lower v||: some eigenvalue is this near
    upper: float
    upper_residual: float
    num_matvecs: int        # products that this and all that was computed with it took


def converged_ends(operator: LinearOperator, *, num_matvecs: int, tol: float, max_matvecs: int,
                   generator: torch.Generator, progress: Counter | None = None) -> Ends:
    """Return both ends, followed from one Lanczos run until their residuals are within tol |value| or the products are spent.

    `progress` is told of every product.
    """
    source = _source(operator, num_matvecs, 1, generator, progress)
    return _of_pairs(source, tol, max_matvecs, generator, progress)


def joined_ends(operator: LinearOperator, *, num_probes: int, num_matvecs: int, generator: torch.Generator,
                progress: Counter | None = None) -> list[Ends]:
    """Return what m steps from several starts find without a restart: from each start alone, and at last from all together."""
    source = _source(operator, num_matvecs, num_probes, generator, progress)
    alone = [tridiagonal_ends(*row) for row in zip(source.alphas, source.betas)]
    return alone + ([_of_pairs(source, 0.0, 0, generator, progress)] if num_probes > 1 else [])


def ends_by_steps(operator: LinearOperator, steps: Sequence[int], generator: torch.Generator,
                  progress: Counter | None = None) -> dict[int, Ends]:
    """Return what one start finds after each number of steps; more steps than the matrix is wide are left out."""
    steps = [m for m in sorted(set(steps)) if m <= operator.size]
    if not steps or steps[0] < 1:
        raise InputError(f"steps={steps} are out of range: expected 1 <= steps <= size={operator.size}, at least one")
    source = _source(operator, steps[-1], 1, generator, progress)
    return {m: tridiagonal_ends(source.alphas[0, :m], source.betas[0, :m]) for m in steps}


def tridiagonal_ends(alphas: np.ndarray, betas: np.ndarray) -> Ends:
    """Return the extreme Ritz values of m Lanczos steps, with the residuals |beta_m s_m| that the recurrence implies.

    alphas, betas (m,): the diagonal, NaN after a breakdown, and the off-diagonal, whose last entry is the next one's norm.
    """
    m = int(np.isfinite(alphas).sum())
    values, S = eigh_tridiagonal(alphas[:m], betas[:m - 1])
    residuals = np.abs(betas[m - 1] * S[-1])
    return Ends(float(values[0]), float(residuals[0]), float(values[-1]), float(residuals[-1]), m)


def _source(operator: LinearOperator, num_matvecs: int, num_probes: int, generator: torch.Generator,
            progress: Counter | None, num_ritz: int = 4) -> Krylov:
    return krylov(operator, num_matvecs=min(num_matvecs, operator.size), num_probes=num_probes, generator=generator,
                  num_ritz=num_ritz, progress=progress)


def _of_pairs(source: Krylov, tol: float, max_matvecs: int, generator: torch.Generator, progress: Counter | None) -> Ends:
    pairs = extreme_eigenpairs(source, 1, tol=tol, max_matvecs=max_matvecs, generator=generator, verify=False, progress=progress)
    (lower, upper), (lower_residual, upper_residual) = pairs.values[[0, -1]], pairs.residuals[[0, -1]]
    return Ends(float(lower), float(lower_residual), float(upper), float(upper_residual), pairs.num_matvecs)


class Redrawn(Operator):
    """An "operator" that is another matrix at every call: draw(k) gives that of the k-th, draw(0) tells size and kind."""

    def __init__(self, draw: Callable[[int], LinearOperator]):
        first = draw(0)
        self._draw, self._calls = draw, 0
        self.size, self.dtype, self.device = first.size, first.dtype, first.device

    def matmat(self, V: Tensor) -> Tensor:
        """Return the next matrix applied to each row, (k, d) -> (k, d)."""
        self._calls += 1
        return self._draw(self._calls).matmat(V)


def redrawn_ends(operator: Redrawn, *, num_matvecs: int, generator: torch.Generator,
                 progress: Counter | None = None) -> tuple[Ends, float]:
    """Return the extreme Ritz values of one Lanczos run as published, and the inconsistency ||Hv - H'v|| / ||Hv||.

    The residuals are those of the Ritz vectors at another draw, where the recurrence's own would say that all is well. v is
    the Ritz vector of the lower end, H and H' two more draws.
    """
    source = _source(operator, num_matvecs, 1, generator, progress, num_ritz=1)
    found = tridiagonal_ends(source.alphas[0], source.betas[0])
    V = source.ritz.vectors[[0, -1]]
    V = V / V.norm(dim=1, keepdim=True)
    HV, other = operator.matmat(V), operator.matmat(V)
    values = torch.tensor([found.lower, found.upper], dtype=V.dtype, device=V.device)
    residuals = (HV - values[:, None] * V).double().norm(dim=1).tolist()
    ends = Ends(found.lower, residuals[0], found.upper, residuals[1], source.num_matvecs + 2 * len(V))
    return ends, relative_gap(HV[0], other[0])


def unchecked(model: nn.Module, loss: Callable[[Tensor, Tensor], Tensor], batches: Batches, engine: str) -> Snapshot:
    """Return the Hessian over some batches by a named engine, without the checks of a HessianOperator.

    For matrices next to one that passed them: another draw of its images.
    """
    twin = copy.deepcopy(model).eval()
    leaves = trainable(twin)
    theta = flatten(p.detach() for p in leaves.values())
    rest = {name: p for name, p in twin.named_parameters() if name not in leaves} | dict(twin.named_buffers())
    objective = Objective(twin, Supervised.of(loss), tuple(leaves), tuple(p.shape for p in leaves.values()),
                          {name: t.detach().clone() for name, t in rest.items()})
    held = [Batch.of(batch, theta.device, theta.dtype, place) for place, batch in enumerate(batches)]
    num_samples = sum(len(batch) for batch in held)
    for batch in held:
        batch.weights.fill_(1.0 / num_samples)
    return Snapshot(objective, theta, plan.Kept(ENGINES[engine](objective, theta, {}), held, 0), num_samples, Processes())


def images_that_fit(model: nn.Module, loss: Callable[[Tensor, Tensor], Tensor], image: tuple[Tensor, Tensor], most: int) -> int:
    """Return how many images, at most `most`, a product over one batch has memory for, from what one image's forward keeps."""
    kept: dict[int, int] = {}

    def keep(tensor: Tensor) -> Tensor:
        kept[tensor.data_ptr()] = tensor.numel() * tensor.element_size()
        return tensor
    with evaluation_mode(model), torch.enable_grad(), torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        loss(model(image[0]), image[1]).sum()
    fixed = {p.data_ptr() for p in model.parameters()}
    each = GRAPHS * sum(size for place, size in kept.items() if place not in fixed)
    return max(1, min(most, int(plan.budget("auto", next(model.parameters()).device) / max(each, 1))))


def batch_normalized(model: nn.Module, loss: Callable[[Tensor, Tensor], Tensor], batch: tuple[Tensor, Tensor]) -> Snapshot:
    """Return the Hessian over one batch whose normalizing layers use the statistics of that very batch.

    Then samples see each other, and there is no sum over batches: it is a matrix of this batch alone. Reverse over reverse,
    since forward mode does not pass every normalization; checked to repeat itself and to be symmetric.
    """
    twin = copy.deepcopy(model).eval()
    layers = normalizers(twin)
    if not layers:
        raise InputError(f"{type(model).__name__} has no layer with running statistics: batch statistics change nothing in it")
    for layer in layers:        # in evaluation mode a layer without running statistics takes those of the batch
        layer.track_running_stats, layer.running_mean, layer.running_var = False, None, None
    operator = unchecked(twin, loss, [batch], "reverse")
    check(operator.matmat, operator.theta, tolerance("reverse", operator.dtype))
    return operator
