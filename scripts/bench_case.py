"""The parts of a benchmarked spectrum: ours, PyHessian's beside it, and a float64 reference of both."""

import argparse
import copy
import math
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor

from analysis.spectra.extremes import extreme_eigenpairs
from analysis.spectra.lanczos import Krylov, Ritz, dots, gram, krylov
from analysis.operators import HessianOperator
from analysis.spectra.quadrature import tridiagonal_rule
from analysis.settings import SpectrumSettings
from analysis.spectra.spectrum import spectral_density
from analysis.subject import Subject, group_batches
from analysis.spectra.trace import measure_trace
from checkpoints.records import EigenPairs
from landscape.losses import build_loss
from scripts import bench_timing as timing
from scripts.bench_pyhessian import PyHessian


class Counted:
    """An operator whose products are counted and timed."""

    def __init__(self, operator: Any):
        self.operator, self.size, self.dtype, self.device = operator, operator.size, operator.dtype, operator.device
        self.products, self.seconds, self.twin, self.setup_seconds = 0, 0.0, None, 0.0

    def matvec(self, v: Tensor) -> Tensor:
        return self.matmat(v[None])[0]

    def matmat(self, V: Tensor) -> Tensor:
        seconds, HV = timing.timed(lambda: self.operator.matmat(V), self.device)
        self.seconds += seconds
        self.products += len(V)
        return HV

    def double(self) -> "Counted":
        """Return the operator in float64, counted by itself."""
        seconds, twin = timing.timed(self.operator.double, self.device)
        self.twin = Counted(twin)
        self.twin.setup_seconds = seconds
        return self.twin


class Case:
    """One group of one checkpoint: every part returns what it found, as JSON can hold it."""

    def __init__(self, args: argparse.Namespace, subject: Subject, group: str, limit: int | None):
        self.args, self.subject, self.group, self.limit = args, subject, group, limit
        self.loss = build_loss("CE", subject.data.counts)
        self.batches = self._batches("float32")
        self.operator: Counted | None = None
        self.pairs = None

    def inputs(self) -> dict[str, Any]:
        names = ("num_matvecs", "num_probes", "num_pairs", "tol", "trace_error", "seed")
        size = sum(p.numel() for p in self.subject.model.parameters())
        about = {"group": self.group, "parameters": size, "images": sum(len(y) for _, y in self.batches)}
        return about | {name: getattr(self.args, name) for name in names}

    def ours(self) -> dict[str, Any]:
        """Compute the spectrum with our engine, both ends, each stage timed and split into products and the rest."""
        return self._spectrum(lambda nodes: "both")

    def alike(self) -> dict[str, Any]:
        """Compute with our engine what PyHessian gives and no more: of the eigenvalues, the largest by magnitude."""
        return self._spectrum(lambda nodes: largest_end(nodes, self.args.num_pairs))

    def _spectrum(self, end: Callable[[np.ndarray], str]) -> dict[str, Any]:
        args, stages = self.args, {}
        generator, memory = torch.Generator().manual_seed(args.seed), timing.Memory(self.subject.device)
        started = time.perf_counter()
        operator = self._set_up(stages)
        space = self._stage(stages, "density", lambda: krylov(
            operator, num_matvecs=min(args.num_matvecs, operator.size), num_probes=args.num_probes, generator=generator,
            num_ritz=2 * args.num_pairs))
        spectrum = spectral_density(space)
        which = end(spectrum.nodes)
        pairs = self._stage(stages, "extremes", lambda: extreme_eigenpairs(
            space, args.num_pairs, which=which, tol=args.tol, generator=generator))
        trace = self._stage(stages, "trace", lambda: measure_trace(
            operator, rel_error=args.trace_error, generator=generator, deflate=pairs, max_matvecs=operator.size))
        seconds = time.perf_counter() - started
        self.pairs = pairs if which == "both" else self.pairs
        nodes, weights = tridiagonal_rule(space.alphas, space.betas)
        return {"seconds": seconds, "stages": stages, "choice": self.choice, "peak_bytes": memory.peak(),
                "kept_bytes": operator.operator.held_bytes, "end": which, "values": pairs.values, "values64": pairs.values64,
                "residuals": pairs.residuals, "converged": pairs.converged, "trace": trace.estimate.value,
                "trace_standard_error": trace.standard_error, "trace_method": trace.method, "trace_reached": trace.reached,
                "loss": operator.operator.loss(), "nodes": nodes, "weights": weights,
                "orthogonality_loss": spectrum.orthogonality_loss}

    def pyhessian(self) -> dict[str, Any]:
        """Time gradient, our product and PyHessian's in turn; run PyHessian by its own rules."""
        args, operator = self.args, self.operator or self._set_up({})
        x, y = (torch.cat(parts) for parts in zip(*self.batches))
        setup, peer = timing.timed(lambda: PyHessian(self._model(), self.loss, (x, y)), x.device)
        plain = self._model()

        def gradient() -> None:
            plain.zero_grad(set_to_none=True)
            self.loss(plain(x), y).mean().backward()
        v = torch.randn(operator.size, generator=torch.Generator().manual_seed(1)).to(x.device)
        v /= v.norm()
        gap = float((operator.matvec(v) - peer.own(v)).norm() / operator.matvec(v).norm())
        rounds = timing.interleave(gradient, {"ours": lambda _: operator.matvec(v), "pyhessian": lambda _: peer.own(v)},
                                   rounds=args.rounds, minutes=2, device=x.device)
        plain.zero_grad(set_to_none=True)
        multiply = peer.own if args.pyhessian_products == "own" else operator.matvec
        stages = peer.run(multiply, top_n=args.num_pairs, steps=args.num_matvecs, minutes=args.minutes, seed=args.seed)
        peer.close()
        return {"products_of": args.pyhessian_products, "beside": self.choice["engine"], "setup_seconds": setup, "stages": stages,
                "product_gap": gap, "gradient_seconds": rounds.reference, "product_seconds": rounds.seconds,
                "product_ratio": {name: timing.spread(rounds.ratios(name)) for name in rounds.seconds},
                "peer_over_ours": timing.spread(rounds.compare("pyhessian", "ours"))}

    def reference(self) -> dict[str, Any]:
        """Converge the pairs in float64 from ours, and average many probes for the trace."""
        args, operator = self.args, self.operator or self._set_up({})
        generator = torch.Generator().manual_seed(args.seed + 1)
        if self.pairs is None:
            space = krylov(operator, num_matvecs=min(60, operator.size), num_probes=1, generator=generator,
                           num_ritz=2 * args.num_pairs)
            self.pairs = extreme_eigenpairs(space, args.num_pairs, tol=args.tol, generator=generator, verify=False)
        samples, plain = _probes(operator, self.pairs, args.reference_probes, generator)
        self.operator = None
        timing.release_memory()
        wide = Counted(HessianOperator(self._model().double(), self.loss, self._batches("float64"), engine=args.engine))
        pairs = _refined(wide, self.pairs, args)
        return {"values": pairs.values, "residuals": pairs.residuals, "products": wide.products, "trace": samples.mean(),
                "trace_standard_error": samples.std(ddof=1) / math.sqrt(len(samples)), "trace_probes": len(samples),
                "plain_trace_variance": plain.var(ddof=1)}

    def _set_up(self, stages: dict) -> Counted:
        timing.fresh_compiler_cache()
        compiling = timing.compile_seconds()
        expected = self.args.num_matvecs * self.args.num_probes + self.args.further_matvecs
        seconds, operator = timing.timed(lambda: HessianOperator(
            self._model(), self.loss, self.batches, engine=self.args.engine, expected_matvecs=expected), self.subject.device)
        stages["set-up"] = {"seconds": seconds, "products": 0, "product_seconds": 0.0,
                            "compile_seconds": timing.compile_seconds() - compiling}
        self.choice = operator.choice | {"reasons": dict(operator.reasons)}
        self.operator = Counted(operator)
        return self.operator

    def _stage(self, stages: dict, name: str, action: Callable[[], Any]) -> Any:
        operator = self.operator
        before, operator.twin = (operator.products, operator.seconds), None
        seconds, result = timing.timed(action, operator.device)
        stages[name] = {"seconds": seconds, "products": operator.products - before[0],
                        "product_seconds": operator.seconds - before[1]}
        if operator.twin:       # the verification in float64
            stages[name] |= {"float64_products": operator.twin.products, "float64_seconds": operator.twin.seconds,
                             "float64_setup_seconds": operator.twin.setup_seconds}
        return result

    def _model(self):
        return copy.deepcopy(self.subject.model).float().eval()

    def _batches(self, dtype: str):
        settings = SpectrumSettings(max_samples=self.limit, batch_size=self.args.batch_size, dtype=dtype)
        return group_batches(self.subject, self.group, settings)[0]


def largest_end(nodes: np.ndarray, count: int) -> str:
    """Return the end of the spectrum at which the `count` nodes (R, m) of largest magnitude of one probe lie, or both."""
    signs = set(np.sign(sorted(nodes[0][np.isfinite(nodes[0])], key=abs)[-count:]))
    return "both" if len(signs) > 1 else "upper" if signs == {1.0} else "lower"


def _probes(operator: Any, pairs: EigenPairs, count: int, generator: torch.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Return z'Hz of Rademacher z with the known pairs taken out and put back exactly, and as it is: (count,) each."""
    X = torch.as_tensor(pairs.vectors, dtype=operator.dtype, device=operator.device)
    values, plain, share = torch.as_tensor(pairs.values, dtype=torch.float64, device=operator.device), [], []
    for start in range(0, count, 8):
        Z = torch.randint(0, 2, (min(8, count - start), operator.size), generator=generator).mul_(2).sub_(1)
        Z = Z.to(operator.device, operator.dtype)
        plain.append(dots(Z, operator.matmat(Z)))
        share.append(gram(Z, X)**2 @ values)
    samples = torch.cat(plain).cpu().numpy()
    return samples - torch.cat(share).cpu().numpy() + pairs.values.sum(), samples


def _refined(operator: Any, pairs: EigenPairs, args: argparse.Namespace) -> EigenPairs:
    """Go on from known pairs in another precision, to the residual of the reference."""
    X = torch.as_tensor(pairs.vectors, dtype=operator.dtype, device=operator.device)
    none = np.zeros((args.num_pairs, 1))    # as from so many probes: the pairs are refined, and no further ones looked for
    space = Krylov(operator, none, none, Ritz(X, operator.matmat(X)), 0.0, len(X), args.num_pairs, True)
    return extreme_eigenpairs(space, args.num_pairs, tol=args.reference_tol, max_matvecs=args.reference_products,
                              generator=torch.Generator().manual_seed(args.seed), verify=False)
