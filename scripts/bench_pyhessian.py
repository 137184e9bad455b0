"""What PyHessian spends on a spectrum: its own code with its products counted, and what equal errors would cost it.

Its own stopping rules are run as released (0.1): eigenvalues(top_n) by deflated power iteration until two values agree to
1e-3, trace() until two running means do, density(100). `torch.eig`, which density() ends with, is gone from torch: a
stand-in of the symmetric solver is lent to it. Products may be replaced by faster ones of the same matrix, which leaves
counts and results as they are; the time of its own products is then measured beside and multiplied.

It finds eigenvalues by magnitude, so that those of the other end come after all that exceed them, whose number the spectral
measure tells. Its rule compares two values: it takes LEAST products for each at least.

Equal residuals are extrapolated from the spectral measure of our Lanczos run: after k steps of power iteration from v

    rho = sum_i w_i t_i^(2k+1) / sum_i w_i t_i^(2k),   residual^2 = sum_i w_i t_i^(2k) (t_i - rho)^2 / sum_i w_i t_i^(2k),

t, w being eigenvalues and squared components of v: exact for the Gauss rule of m Lanczos steps up to k = m - 2 (Golub and
Meurant 2010), and governed by the outermost, converged eigenvalues beyond.
"""

import math
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from importlib import import_module
from typing import Any
from unittest.mock import patch

import numpy as np
import torch
from torch import Tensor, nn

from landscape.parameters import flatten, split_like
from scripts.bench_contestants import quiet

LEAST = 2               # products of power iteration before two values can be compared
MOST_STEPS = 10**7      # where the search for a number of iterations gives up


class Stopped(Exception):
    """The time given to PyHessian is over."""


class PyHessian:
    """PyHessian on one batch, its products counted and timed, or made by `multiply`, v (d,) -> H v."""

    def __init__(self, model: nn.Module, loss: Callable[[Tensor, Tensor], Tensor], data: tuple[Tensor, Tensor]):
        from pyhessian import hessian
        self.model = model
        with quiet():
            self.engine = hessian(model, lambda logits, y: loss(logits, y).mean(), data=data, cuda=data[0].is_cuda)
        self.products, self.seconds, self.deadline = 0, 0.0, math.inf

    def own(self, v: Tensor) -> Tensor:
        """Return H v by PyHessian's own function."""
        from pyhessian.utils import hessian_vector_product
        return flatten(hessian_vector_product(self.engine.gradsH, self.engine.params, split_like(v, self.engine.params)))

    def run(self, multiply: Callable[[Tensor], Tensor], *, top_n: int, steps: int, minutes: float, seed: int) -> dict[str, Any]:
        """Run its three methods by their own rules; eigenvalues last, since they alone may take longer than the time given."""
        self.deadline = time.perf_counter() + 60 * minutes
        methods = {"density": lambda: self.engine.density(iter=steps, n_v=1), "trace": self.engine.trace,
                   "eigenvalues": lambda: self.engine.eigenvalues(top_n=top_n)[0]}
        with torch.random.fork_rng(devices=[]), quiet(), self._driven(multiply):
            torch.manual_seed(seed)
            return {name: self._stage(method) for name, method in methods.items()}

    def close(self) -> None:
        """Let go of gradients that hold the graph which made them."""
        self.model.zero_grad(set_to_none=True)
        self.engine = None

    def _stage(self, method: Callable[[], Any]) -> dict[str, Any]:
        self.products, self.seconds = 0, 0.0
        start, result = time.perf_counter(), None
        try:
            result = method()
        except Stopped:
            pass
        whole = time.perf_counter() - start
        return {"products": self.products, "product_seconds": self.seconds, "other_seconds": whole - self.seconds,
                "complete": result is not None, "result": result}

    @contextmanager
    def _driven(self, multiply: Callable[[Tensor], Tensor]) -> Iterator[None]:
        module = import_module("pyhessian.hessian")     # as an attribute of the package it is the class of that name
        with patch.object(module, "hessian_vector_product", self._counted(multiply)), \
                patch.object(torch, "eig", symmetric_eig, create=True):
            yield

    def _counted(self, multiply: Callable[[Tensor], Tensor]):
        def product(gradients: Any, params: Sequence[Tensor], v: Sequence[Tensor]) -> list[Tensor]:
            if time.perf_counter() > self.deadline:
                raise Stopped
            start = time.perf_counter()
            Hv = multiply(flatten(v))
            # PyHessian updates products in place: each piece needs memory of its own.
            pieces = [piece.clone() for piece in split_like(Hv, params)]
            self.products += 1
            self.seconds += time.perf_counter() - start
            return pieces
        return product


def symmetric_eig(T: Tensor, eigenvectors: bool = False) -> tuple[Tensor, Tensor]:
    """Stand in for `torch.eig` of a symmetric matrix: real and imaginary parts (m, 2), eigenvectors as columns."""
    values, vectors = torch.linalg.eigh(T)
    return torch.stack([values, torch.zeros_like(values)], 1), vectors


def larger_eigenvalues(nodes: np.ndarray, weights: np.ndarray, value: float, size: int) -> float:
    """Return how many eigenvalues exceed |value| in magnitude by a spectral measure, all of which PyHessian finds before it."""
    return float(size * weights[np.abs(nodes) > abs(value)].sum())


def power_steps(nodes: np.ndarray, weights: np.ndarray, residual: float) -> int:
    """Return the products that power iteration takes until ||Hv - rho v|| <= residual, the last one to see that."""
    with np.errstate(divide="ignore"):
        logs, log_weights = np.log(np.abs(nodes)), np.log(weights)

    def met(k: int) -> bool:
        p = log_weights + 2 * k * logs if k else log_weights
        p = np.exp(p - p.max())
        p /= p.sum()
        rho = p @ nodes
        return math.sqrt(p @ (nodes - rho)**2) <= residual

    last, k = 0, 1
    while not met(k):
        last, k = k, 2 * k
        if k > MOST_STEPS:
            return MOST_STEPS
    while k - last > 1:
        middle = (last + k) // 2
        last, k = (last, middle) if met(middle) else (middle, k)
    return k + 1


def equal_residuals(nodes: np.ndarray, weights: np.ndarray, lower: np.ndarray, upper: np.ndarray, size: int,
                    tol: float) -> list[dict[str, Any]]:
    """Return what deflated power iteration spends on each wanted eigenvalue until its residual is tol |lambda|.

    PyHessian finds eigenvalues by magnitude. One that is not the largest left is reached by shifting with the far end of
    the spectrum, which PyHessian does not offer: generous, since deflating everything larger costs far more. Deflation
    counts as exact, and a start has the component expected of it, 1 / size, on each eigenvalue found.
    """
    inner = (nodes > lower.max()) & (nodes < upper.min())
    bulk, share = nodes[inner], weights[inner]
    left = sorted([*lower, *upper], key=abs, reverse=True)
    ends, spent = (min(lower), max(upper)), []
    for value in list(left):
        t = np.array([*left, *bulk])
        w = np.array([1 / size] * len(left) + [*share])
        target, steps = tol * abs(value), {}
        if abs(value) >= np.abs(t).max():
            steps["deflated"] = power_steps(t, w, target)
        far = ends[0] if value in upper else ends[1]
        steps["shifted"] = power_steps(t - far, w, target)
        way = min(steps, key=steps.get)
        spent.append({"value": float(value), "products": steps[way], "way": way})
        left.remove(value)
    return spent
