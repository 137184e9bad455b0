"""Groups of classes from the parameters they remember: normalized cuts of a graph whose nodes are classes.

Source: Chen et al. 2026 (GKP-GSA), equation 2, by the normalized cut of Shi and Malik 2000. The paper does not say how
similar two nodes are; to choose from:

    rbf      exp(-||a - b||^2 / (2 s^2)), s^2 the median of the squared distances of distinct vectors, so that
             neither the scale of the parameters nor their number enters
    cosine   (1 + cos(a, b)) / 2, as released; vectors of one training run differ little in it

Before there is anything to cut, groups are runs of classes in the order of their size: `groups_by_size`.
"""

import warnings
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from landscape.errors import InputError

SIMILARITIES = ("rbf", "cosine")


def similarity(rows: Sequence[Tensor], kind: str = "rbf") -> np.ndarray:
    """Return how similar U vectors (d,) are, (U, U) float64 in [0, 1], 1 on the diagonal."""
    if kind not in SIMILARITIES:
        raise InputError(f"similarity={kind!r} is unknown: expected one of {', '.join(SIMILARITIES)}")
    squares = _squared_distances(rows, unit=kind == "cosine")
    if kind == "cosine":
        return 1 - squares / 4      # of unit vectors, ||a - b||^2 = 2 - 2 cos
    off = squares[np.triu_indices(len(rows), 1)]
    return np.exp(-squares / (2 * (np.median(off) if off.any() else 1.0)))


def spectral_groups(graph: np.ndarray, num_groups: int, seed: int = 0) -> np.ndarray | None:
    """Cut a graph of similarities (C, C) into groups; return each node's group (C,), or None where that cannot be done.

    It cannot where fewer than `num_groups` nodes differ from each other. With as many groups as nodes, each is its own.
    """
    check_num_groups(num_groups, len(graph))
    if num_groups == 1:
        return np.zeros(len(graph), np.int64)
    if len(np.unique(graph, axis=0)) < num_groups:
        return None
    if num_groups == len(graph):
        return np.arange(len(graph))
    from sklearn.cluster import SpectralClustering
    cut = SpectralClustering(num_groups, affinity="precomputed", random_state=seed, n_init=10)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")     # of a graph in parts, or of equal nodes: both are cut as well as can be
        found = cut.fit_predict(graph).astype(np.int64)
    return found if len(np.unique(found)) == num_groups else None


def groups_by_size(counts: Sequence[int], num_groups: int) -> np.ndarray:
    """Return each class's group (C,): runs of classes from the largest to the smallest, as equal in number as can be."""
    check_num_groups(num_groups, len(counts))
    order = np.argsort(-np.asarray(counts), kind="stable")
    groups = np.empty(len(counts), np.int64)
    for group, members in enumerate(np.array_split(order, num_groups)):
        groups[members] = group
    return groups


def by_mean_size(groups: np.ndarray, counts: Sequence[int]) -> np.ndarray:
    """Number the groups anew, the one whose classes are largest on average first, so that numbers mean something."""
    names = np.unique(groups)
    size = [np.asarray(counts)[groups == name].mean() for name in names]
    rank = np.empty(len(names), np.int64)
    rank[np.argsort(-np.asarray(size), kind="stable")] = np.arange(len(names))
    return rank[np.searchsorted(names, groups)]


def check_num_groups(num_groups: int, num_classes: int) -> None:
    """Refuse a number of groups that so many classes cannot fill."""
    if not isinstance(num_groups, int) or isinstance(num_groups, bool) or not 1 <= num_groups <= num_classes:
        raise InputError(f"num_groups={num_groups!r} is out of range: expected an integer, 1 <= num_groups <= {num_classes}, "
                         "the number of classes")


def _squared_distances(rows: Sequence[Tensor], unit: bool) -> np.ndarray:
    # By differences of two at a time: products would lose small distances of long vectors to rounding, and all at once
    # would be a second copy of the memory.
    found = np.zeros((len(rows), len(rows)))
    lengths = [float(torch.linalg.vector_norm(a, dtype=torch.float64)) or 1.0 for a in rows] if unit else [1.0] * len(rows)
    for i, j in zip(*np.triu_indices(len(rows), 1)):
        step = rows[i] / lengths[i] - rows[j] / lengths[j]
        found[i, j] = found[j, i] = float(torch.linalg.vector_norm(step, dtype=torch.float64)) ** 2
    return found
