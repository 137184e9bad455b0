"""Small records with every kind of field, for the tests of the files side and of the commands that only read."""

import numpy as np

from checkpoints.records import Checkpoint, Curvature, EigenPairs, Estimate, Measurement, Spectrum, Surface


def estimate(value: float = 1.5, kind: str = "probes") -> Estimate:
    return Estimate(value, value - 0.25, value + 0.25, 0.95, kind)


def checkpoint(epoch: int = 2, seed: int = 0) -> Checkpoint:
    generator = np.random.default_rng(seed)
    arrays = {
        "layer.1/weight": generator.standard_normal((4, 3)).astype(np.float32),
        "layer.0.bias": np.array([0.0, -0.0, np.inf, np.nan]),
        "num_batches_tracked": np.array(7),
        "mask": np.array([[True, False], [False, True]]),
        "empty": np.zeros((0, 5), np.float32),
        ".": np.arange(3, dtype=np.int16),
    }
    return Checkpoint(epoch, arrays, {"seed": seed, "command": "train --opt sgd"})


def spectrum(num_probes: int = 2, num_nodes: int = 3) -> Spectrum:
    nodes = np.sort(np.random.default_rng(1).standard_normal((num_probes, num_nodes)), axis=1)
    weights = np.full((num_probes, num_nodes), 1 / num_nodes)
    return Spectrum(40, nodes, weights, nodes + 1, nodes + 2, 1e-12)


def eigenpairs(num_pairs: int = 2, size: int = 40, kept: bool = True) -> EigenPairs:
    values = np.linspace(-0.5, 4.0, num_pairs)
    yes = np.ones(num_pairs, bool)
    vectors = np.eye(size)[:num_pairs if kept else 0]
    return EigenPairs(values, values * 0 + 1e-6, yes, values, values * 0, yes, vectors, 1e-5, 60,
                      Estimate(-0.6, -0.7, -0.5, 0.99, "probes"))


def curvature(epoch: int = 2, group: str = "tail", **changes) -> Curvature:
    fields = dict(
        epoch=epoch, group=group, num_samples=20, num_available=30, loss=0.75, accuracy=0.8, test_accuracy=float("nan"),
        gradient_norm=0.01, spectrum=spectrum(), eigenpairs=eigenpairs(), trace=estimate(9.0),
        negative_mass=Estimate(0.1, float("nan"), float("nan"), 0.95, "probes"), threshold=0.004,
        extreme_ratio=estimate(0.125, "residual"), parameter_norms={"layer.weight": 2.0}, second_opinion={},
        provenance={"data_hash": "abc", "threads": 2})
    return Curvature(**fields | changes)


def surface(name: str = "plane", beta: int = 2, **changes) -> Surface:
    shape = (2, 3, beta) if beta else (2, 3)
    loss = np.arange(np.prod(shape), dtype=float).reshape(shape)
    loss.flat[0] = np.inf
    directions = np.ones((2 if beta else 1, 40), np.float32)
    return Surface(name, 2, ("head", "tail"), np.array([30, 20]), np.linspace(-1, 1, 3), np.linspace(-1, 1, beta), loss,
                   loss / 100, directions, ("random filter", "tail lambda_min")[:len(directions)],
                   np.full(len(directions), np.nan), "filter norms", "hash", {}, **changes)


def surface_with_points(name: str = "through-checkpoints") -> Surface:
    """A surface with everything that was added to the record since."""
    return surface(name, batchnorm="recalibrated", precision="bfloat16", derivatives=np.arange(12.0).reshape(3, 2, 2),
                   point_names=("epoch 0", "epoch 2"), point_coordinates=np.array([[0.5, np.nan], [0.0, 0.0]]),
                   point_distances=np.array([0.25, 0.0]), about={"distance": 3.0})


def measurement(name: str = "alignment", epoch: int = 2, **changes) -> Measurement:
    fields = dict(
        name=name, epoch=epoch, labels={"group": ("head", "tail", "tail"), "perturbation": ("sam", "sam", "imbsam")},
        numbers={"value": np.array([0.25, np.nan, -0.0]), "eigenvalue": np.array([-1.0, -2.0, -np.inf])},
        units={"value": "1", "eigenvalue": "nats / parameter^2"},
        about={"d": 40, "null": 0.126, "rho": {"sam": 0.05}, "seeds": [0, 1]},
        provenance={"data_hash": "abc"})
    return Measurement(**fields | changes)


SAMPLES = {
    "estimate": estimate, "checkpoint": checkpoint, "spectrum": spectrum, "eigenpairs": eigenpairs,
    "curvature": curvature, "surface": surface, "surface_with_points": surface_with_points, "measurement": measurement,
}
