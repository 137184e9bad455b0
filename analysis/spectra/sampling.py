"""What a Hessian of some images of a group says of the whole group's: intervals of kind "data".

H is the mean of n of the group's N images, drawn without replacement, H_g that of all. For a unit vector v that was chosen by H
alone, c_i = v'H_i v of m images drawn from the other N - n gives the curvature of the whole group along v without bias,

    v'H_g v = (n v'Hv + (N - n) mean(c)) / N,   standard error (N - n) / N s / sqrt(m) sqrt(1 - m / (N - n))

(simple random sampling, Cochran 1977, sections 2.6 and 2.7), and lambda_min(H_g) <= v'H_g v. Extremes of H themselves are
biased outwards, and no interval of them is given. The trace of H is unbiased: with c_i = mean over fixed probes z of z'H_i z
its standard error is s / sqrt(n) sqrt(1 - n / N); few probes make it larger, never smaller on average.
"""

from collections.abc import Iterable

import numpy as np
import torch
from scipy.stats import t as student_t

from analysis.operators import HessianOperator
from analysis.spectra.lanczos import random_unit
from checkpoints.records import NO_SAMPLE, Estimate

LEVEL = 0.95
PROBES = 4          # of the trace's standard error
AGREEMENT = 1e-3    # by which the mean of c_i may miss v'Hv, relative to mean |c_i|: float32 loses some digits


def curvature_of_all(own: float, num_own: int, others: np.ndarray, num_all: int, level: float = LEVEL) -> Estimate:
    """Return v'H_g v from v'Hv of `num_own` images and c_i (m,) of other images; their Student's t interval."""
    rest, count = num_all - num_own, len(others)
    value = (num_own * own + rest * others.mean()) / num_all
    return _interval(value, others, rest / num_all * np.sqrt(1 - count / rest), level)


def trace_of_all(trace: float, samples: np.ndarray, num_all: int, level: float = LEVEL) -> Estimate:
    """Return the trace with the interval that the choice of images gives it, from c_i (n,) of those images."""
    return _interval(trace, samples, np.sqrt(1 - len(samples) / num_all), level)


def whole_group(operator: HessianOperator, vector: np.ndarray, value: float, trace: float, others: Iterable, num_all: int,
                generator: torch.Generator) -> tuple[Estimate, Estimate]:
    """Return curvature along a unit vector, v'Hv = value, and trace of the Hessian of all `num_all` images of a group.

    others: batches of images of the group that H has not seen. Unknown where forward mode gives other curvatures than H.
    """
    v = torch.as_tensor(vector)
    if not _agree(operator.sample_curvatures(v).numpy(), value):
        return NO_SAMPLE, NO_SAMPLE
    Z = random_unit(PROBES, operator, generator)
    samples = operator.size * torch.stack([operator.sample_curvatures(z) for z in Z]).mean(0).numpy()
    beyond = operator.sample_curvatures(v, others).numpy()
    return curvature_of_all(value, operator.num_samples, beyond, num_all), trace_of_all(trace, samples, num_all)


def _agree(samples: np.ndarray, value: float) -> bool:
    return bool(abs(samples.mean() - value) <= AGREEMENT * np.abs(samples).mean())


def _interval(value: float, samples: np.ndarray, shrink: float, level: float) -> Estimate:
    if len(samples) < 2:
        return Estimate(float(value), float("nan"), float("nan"), level, "data")
    half = float(student_t.ppf(0.5 + level / 2, len(samples) - 1) * samples.std(ddof=1) / np.sqrt(len(samples)) * shrink)
    return Estimate(float(value), float(value) - half, float(value) + half, level, "data")
