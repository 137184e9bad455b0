"""The difference of two groups of runs, by the seeds that they share: initial weights and batches are then the same.

Two seeds or more in common: the mean of their differences with Student's t interval ("paired"). None in common, two or more on
either side: Welch's t interval of the difference of means ("unpaired"), wider where seeds matter. Else the difference of means
alone: one run against one other says nothing of its spread, and the interval is NaN.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np
from scipy.stats import t as student_t

from analysis.findings.summary import over_seeds
from checkpoints.records import Estimate


def difference(ours: Mapping[Any, float], base: Mapping[Any, float], level: float = 0.95) -> Estimate:
    """Return mean(ours) - mean(base) of values by seed, kind "paired", "unpaired" or "single"; NaN where one has no values."""
    shared = [seed for seed in ours if seed in base]
    if len(shared) >= 2:
        found = over_seeds([ours[seed] - base[seed] for seed in shared], level)
        return Estimate(found.value, found.low, found.high, level, "paired")
    if len(shared) == 1:
        return Estimate(ours[shared[0]] - base[shared[0]], np.nan, np.nan, level, "single")
    a, b = np.array(list(ours.values()), float), np.array(list(base.values()), float)
    if len(a) >= 2 and len(b) >= 2:
        return _welch(a, b, level)
    value = float(a.mean() - b.mean()) if len(a) and len(b) else np.nan
    return Estimate(value, np.nan, np.nan, level, "single")


def _welch(a: np.ndarray, b: np.ndarray, level: float) -> Estimate:
    """Return Welch's interval: degrees of freedom by Welch and Satterthwaite."""
    parts = np.array([np.var(x, ddof=1) / len(x) for x in (a, b)])
    value, variance = float(a.mean() - b.mean()), parts.sum()
    if variance == 0:
        return Estimate(value, value, value, level, "unpaired")
    freedom = variance ** 2 / sum(part ** 2 / (len(x) - 1) for part, x in zip(parts, (a, b)))
    half = float(student_t.ppf(0.5 + level / 2, freedom) * np.sqrt(variance))
    return Estimate(value, value - half, value + half, level, "unpaired")
