"""Runs fabricated for tests of figures and tables: no network, but real Lanczos runs of matrices with a known spectrum.

A `FakeRun` answers like a `RunStore` and keeps its records in memory. Its Hessians are diagonal, so every eigenvalue is
known exactly; negative curvature fades over the epochs, more slowly for the tail and fastest for SSE-SAM.
"""

from dataclasses import dataclass, field, replace
from pathlib import Path
from zlib import crc32

import numpy as np
import pandas as pd
from fabricated_measures import fake_measurements

from analysis.spectra.intervals import t_interval
from analysis.spectra.quadrature import negative_mass, threshold, tridiagonal_rule
from checkpoints.records import Curvature, EigenPairs, Estimate, Measurement, Spectrum, Surface

SIZE = 400
FADE = {"sgd": 0.9, "sam": 0.5, "imbsam": 0.22, "ssesam": 0.06}   # depth of the tail's negative curvature at the end
TAIL_ACCURACY = {"sgd": 0.52, "sam": 0.60, "imbsam": 0.67, "ssesam": 0.73}
CONFIG = {"dataset": "digits", "imb_factor": 20.0, "profile": "exp", "subset": "first", "arch": "digitnet",
          "loss": "CE",
          "loss_options": {}, "drw_epoch": None, "eta": 20, "many": 60, "few": 20, "epochs": 60, "gamma": 0.7,
          "gamma_rule": "ceil", "lr": 0.01}


@dataclass
class FakeRun:
    """What figures and tables ask of a RunStore."""

    path: Path
    config: dict
    table: pd.DataFrame = field(default_factory=pd.DataFrame)
    kept: list = field(default_factory=list)

    def metrics(self):
        return self.table

    def records(self, kind=None):
        kinds = {"curvature": Curvature, "surface": Surface, "measurement": Measurement}
        return (record for record in self.kept if kind is None or isinstance(record, kinds[kind]))

    def read(self, kind, **keys):
        return next(record for record in self.records(kind) if all(getattr(record, key) == value for key, value in keys.items()))


def fake_run(opt="sgd", seed=0, epochs=(0, 60), groups=("head", "tail"), probes=3, steps=24, measures=False,
             **config) -> FakeRun:
    """Return one run with metrics, the spectra of `groups` at `epochs`, surfaces; if asked, measurements and a path."""
    config = CONFIG | {"opt": opt, "seed": seed} | config
    rng = np.random.default_rng([seed, crc32(opt.encode())])
    run = FakeRun(Path("runs") / f"{opt}-{seed}", config, fake_metrics(opt, rng, config["epochs"]))
    for epoch in epochs:
        for group in groups:
            run.kept.append(fake_curvature(opt, group, epoch, rng, config["epochs"], probes, steps))
    run.kept += [fake_plane(opt, max(epochs), rng), *fake_lines(opt, max(epochs), rng, derivatives=measures)]
    run.kept += fake_measurements(opt, seed, epochs) + fake_path(opt, max(epochs), rng) if measures else []
    return run


def fake_runs(opts=("sgd", "sam", "imbsam", "ssesam"), seeds=(0, 1, 2), **options) -> list[FakeRun]:
    return [fake_run(opt, seed, **options) for opt in opts for seed in seeds]


def swept_runs(radii=(0.05, 0.1, 0.5), seeds=(0, 1), **options) -> list[FakeRun]:
    """Return runs of SAM at several radii, one of SSE-SAM and one of SGD: what a sweep is drawn from."""
    same = {"rho": 0.05, "head_rho": 0.05, "tail_rho": 0.05} | options
    return [*(fake_run("sam", seed, **same | {"rho": rho}) for rho in radii for seed in seeds), fake_run("sgd", **same),
            fake_run("ssesam", **same | {"tail_rho": 0.2})]


def switched_runs(seeds=(0, 1), **options) -> list[FakeRun]:
    """Return runs of ImbSAM that differ from the first in one switch each."""
    same = {"weighting": "batch", "restore": "copy"} | options
    return [fake_run("imbsam", seed, **same | change) for seed in seeds
            for change in ({}, {"weighting": "double_tail"}, {"restore": "subtract"})]


def eigenvalues(opt, group, epoch, rng, epochs=60) -> np.ndarray:
    """Return a spectrum (SIZE,), ascending: a bulk around zero over decades, positive outliers, a negative tail."""
    done = epoch / epochs
    bulk = rng.standard_normal(SIZE - 24) * 10 ** rng.uniform(-4, -0.5, SIZE - 24)
    top = (8 if group == "head" else 20) * (0.5 + 1.5 * done) * FADE[opt] ** 0.3
    outliers = top * np.geomspace(0.02, 1.0, 14) * rng.uniform(0.9, 1.1, 14)
    depth = (0.6 if group == "head" else 7.0) * ((1 - done) + done * FADE[opt])
    negatives = -depth * np.geomspace(0.02, 1.0, 10) * rng.uniform(0.85, 1.15, 10)
    return np.sort(np.concatenate([bulk, outliers, negatives]))


def fake_curvature(opt, group, epoch, rng, epochs=60, probes=3, steps=24) -> Curvature:
    """Measure diag(eigenvalues) as the pipeline measures a Hessian: the numbers of the record are all computed."""
    values = eigenvalues(opt, group, epoch, rng, epochs)
    spectrum = lanczos(values, probes, steps, rng)
    signs = rng.choice([-1.0, 1.0], (probes, 1)) * rng.standard_normal((probes, SIZE))
    pairs, mass_threshold = fake_pairs(values, vectors=turned(epoch / epochs)), threshold([spectrum])
    done, few = epoch / epochs, group == "tail"
    test = done * (TAIL_ACCURACY[opt] if few else 0.95) + (1 - done) * 0.1 + rng.normal(0, 0.01)
    ratio = abs(values[0] / values[-1])
    return Curvature(
        epoch=epoch, group=group, num_samples=60 if few else 500, num_available=60 if few else 500,
        loss=2.3 * (1 - done) + 0.03 * done * rng.uniform(0.8, 1.2), accuracy=min(1.0, 0.1 + done),
        test_accuracy=float(test), gradient_norm=0.01,
        spectrum=spectrum, eigenpairs=pairs, trace=t_interval((signs ** 2 * values).sum(1)),
        negative_mass=negative_mass(spectrum, mass_threshold), threshold=mass_threshold,
        extreme_ratio=Estimate(ratio, ratio * 0.999, ratio * 1.001, 1.0, "residual"), parameter_norms={"w": 1.0},
        second_opinion={}, provenance={
            "inputs": {"data": "d1", "classes": {"head": [0], "tail": [9]}, "settings": {"split": "train", "loss": "CE"}}})


def turned(done, angle=1.2) -> np.ndarray:
    """Return four orthonormal vectors (4, SIZE), each turned by `angle * done` from one axis towards another."""
    vectors = np.zeros((4, SIZE))
    for row in range(4):
        vectors[row, [row, 100 + row]] = np.cos(angle * done), np.sin(angle * done)
    return vectors


def fake_pairs(values, verified=True, vectors=None) -> EigenPairs:
    ends = values[[0, 1, -2, -1]]
    zeros = np.zeros(4)
    return EigenPairs(values=ends, residuals=1e-6 * np.abs(ends), converged=np.full(4, True), values64=ends,
                      rounding=zeros,
                      verified=np.full(4, verified), vectors=np.zeros((0, SIZE)) if vectors is None else vectors, tol=1e-5,
                      num_matvecs=96,
                      missed_below=Estimate(values[0], values[0] * 1.01, values[0], 0.95, "probes"))


def lanczos(values, probes, steps, rng) -> Spectrum:
    """Run Lanczos with full reorthogonalisation on diag(values), one random Gaussian vector a probe."""
    alphas, betas = np.zeros((probes, steps)), np.zeros((probes, steps))
    for row in range(probes):
        q = rng.standard_normal(len(values))   # sign vectors would all measure a diagonal matrix alike
        q /= np.linalg.norm(q)
        basis = np.zeros((steps + 1, len(values)))
        for step in range(steps):
            basis[step] = q
            r = values * q
            alphas[row, step] = q @ r
            for _ in range(2):
                r = r - basis[:step + 1].T @ (basis[:step + 1] @ r)
            betas[row, step] = np.linalg.norm(r)
            q = r / max(betas[row, step], np.finfo(float).tiny)     # 0 at a breakdown, or near it
    nodes, weights = tridiagonal_rule(alphas, betas)
    return Spectrum(len(values), nodes, weights, alphas, betas, 1e-14)


def fake_metrics(opt, rng, epochs=60, every=6, absent=()) -> pd.DataFrame:
    """Return one row an epoch; accuracies at every sixth epoch, empty elsewhere. A group in `absent` has no column."""
    rows = []
    for epoch in range(1, epochs + 1):
        rows.append({"epoch": epoch, "lr": 0.01, "train_loss": 2.3 * np.exp(-epoch / 15)})
        if epoch % every == 0 or epoch == epochs:
            rows[-1] |= {f"test_accuracy/{group}": value for group,
                         value in _accuracies(opt, epoch / epochs, rng).items()
                         if group not in absent}
    return pd.DataFrame(rows)


def _accuracies(opt, done, rng) -> dict[str, float]:
    head, tail = 0.96 * (1 - 0.8 * np.exp(-8 * done)), TAIL_ACCURACY[opt] * (1 - 0.95 * np.exp(-4 * done))
    centers = {"all": 0.7 * head + 0.3 * tail, "head": head, "tail": tail, "many": head + 0.02, "medium": head - 0.1,
               "few": tail}
    return {group: float(np.clip(value + rng.normal(0, 0.012), 0, 1)) for group, value in centers.items()}


def fake_plane(opt, epoch, rng, points=15) -> Surface:
    """A plane whose tail loss is a true saddle, 2 + (x^2 - depth y^2) / 2 plus a quartic, in parameter units."""
    x = np.linspace(-1, 1, points)
    bowl = np.stack([0.4 + 2.0 * (x[:, None] ** 2 + x[None] ** 2), _saddle(opt, x)])
    return _surface("random-plane", epoch, x, x, bowl, rng, ("random filter", "random filter"), (np.nan, np.nan),
                    "filter norms")


def fake_lines(opt, epoch, rng, points=31, derivatives=False) -> list[Surface]:
    """Quartics along unit eigenvectors of the tail, whose quadratic prediction lies on them near zero; stored if asked."""
    x = np.linspace(-0.5, 0.5, points)
    low, high = -7.0 * FADE[opt], 20.0 * FADE[opt] ** 0.3
    lines = []
    for name, value in (("tail lambda_min", low), ("tail lambda_max", high)):
        slope = 0.1 if value < 0 else 0.0
        loss = np.stack([0.05 + 1.5 * x ** 2, 0.9 + slope * x + 0.5 * value * x ** 2 + 6.0 * x ** 4])
        line = _surface(name.replace(" ", "-"), epoch, x, np.zeros(0), loss, rng, (name,), (value,), "parameter units")
        terms = np.array([[[0.05], [0.9]], [[0.0], [slope]], [[3.0], [value]]])
        lines.append(replace(line, derivatives=terms) if derivatives else line)
    return lines


def fake_path(opt, epoch, rng) -> list[Surface]:
    """The checkpoints of a run and one of another on their principal plane, and the line between the last and the first."""
    epochs, x = [0, epoch // 4, epoch // 2, 3 * epoch // 4, epoch], np.linspace(-1, 5, 17)
    places = np.array([[4 * (1 - done), 1.5 * np.sin(3 * done) * (1 - done)] for done in np.linspace(0, 1, 5)])
    order = [4, 0, 1, 2, 3]     # the origin first, as they are stored
    names = (*(f"epoch {epochs[i]}" for i in order), f"runs/tail-only epoch {epoch}")
    points = np.concatenate([places[order], [[0.8, 2.2]]])
    bowl = 0.05 + 0.08 * (x[:, None] ** 2 + 1.5 * (x[None] - 1) ** 2)
    loss = np.stack([bowl, 2 * FADE[opt] + 2 * bowl, 1.2 * bowl])
    plane = _surface("path-plane", epoch, x, x, loss[:2], rng, ("PC 1", "PC 2"), (np.nan, np.nan), "parameter units")
    plane = replace(plane, groups=("head", "tail", "all"), num_samples=np.array([500, 60, 560]), loss=loss,
                    accuracy=np.exp(-loss), point_names=names, point_coordinates=points,
                    point_distances=np.array([0, 0, 0.2, 0.3, 0.1, 0.4]),
                    about={"explained_variance": [0.83, 0.11]}, batchnorm="recalibrated")
    alpha = np.linspace(-0.4, 4.4, 25)
    alpha[[2, 22]] = 0.0, 4.0
    hill = np.stack([0.05 + 0.1 * alpha ** 2, 0.9 + 0.05 * alpha ** 2 + np.exp(-(alpha - 1) ** 2)])
    line = _surface("path-line", epoch, alpha, np.zeros(0), hill, rng, ("epoch 0",), (np.nan,), "parameter units")
    return [plane, replace(line, point_names=(f"epoch {epoch}", "epoch 0"), point_coordinates=np.array([[0.0], [4.0]]),
                           point_distances=np.zeros(2))]


def _saddle(opt, x) -> np.ndarray:
    return 1.2 + 3.0 * x[:, None] ** 2 - 2.5 * FADE[opt] * x[None] ** 2 + 1.5 * x[None] ** 4


def _surface(name, epoch, alpha, beta, loss, rng, directions, curvatures, units) -> Surface:
    vectors = rng.standard_normal((len(directions), 20))
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    return Surface(name=name, epoch=epoch, groups=("head", "tail"), num_samples=np.array([500, 60]), alpha=alpha,
                   beta=beta,
                   loss=loss, accuracy=np.exp(-loss), directions=vectors, direction_names=directions,
                   direction_curvatures=np.array(curvatures), coordinate_units=units, directions_hash="x",
                   provenance={})
