"""The most negative directions followed along training, by the overlap of stored eigenvectors from checkpoint to checkpoint.

    overlap       |<v_i(t), v_j(t+1)>| of unit eigenvectors, i and j counted from the most negative; 1: the same direction
    subspace      ||V W'||_F^2 / k of the k most negative at both times: the mean squared cosine of the principal angles
                  (Gur-Ari, Roberts and Dyer 2018), k/d for random subspaces of d dimensions

An eigenvector has no sign, and those of nearly equal eigenvalues turn within their common space: the subspace tells more than
any one of them. Records are read one after the other: the vectors of two checkpoints are in memory at a time, no more.
"""

from collections.abc import Iterator, Sequence

import numpy as np
import pandas as pd

from checkpoints.comparison import Comparison, Member
from checkpoints.errors import RecordError
from checkpoints.exactness import inexact
from checkpoints.records import Curvature


def overlaps(V: np.ndarray, W: np.ndarray) -> np.ndarray:
    """Return |<v_i, w_j>|, (p, q), of the rows of V (p, d) and W (q, d)."""
    return np.abs(V.astype(np.float64) @ W.astype(np.float64).T)


def subspace_overlap(V: np.ndarray, W: np.ndarray) -> float:
    """Return ||V W'||_F^2 / min(p, q) of orthonormal rows (p, d) and (q, d), in [0, 1]; NaN where one has none."""
    return float((overlaps(V, W) ** 2).sum() / min(len(V), len(W))) if len(V) and len(W) else np.nan


def most_negative(record: Curvature, k: int) -> tuple[np.ndarray, np.ndarray]:
    """Return values (p,) and eigenvectors (p, d) of the at most k most negative pairs, p <= k; refuse what has no vectors."""
    pairs, place = record.eigenpairs, f"the spectrum of {record.group} at epoch {record.epoch}"
    if word := inexact(record):
        raise RecordError(f"{place} is {word}, its eigenvectors are no directions to follow: compute it again with --overwrite "
                          "and without --engine")
    if len(pairs.values) and not len(pairs.vectors):
        raise RecordError(f"{place} holds no eigenvectors: compute it again with --overwrite")
    chosen = np.flatnonzero(pairs.values < 0)[:k]
    return pairs.values[chosen], pairs.vectors[chosen]


def tracked(runs: Comparison, group: str, k: int = 5) -> pd.DataFrame:
    """Return the overlaps of every run's k most negative directions of `group` from each stored epoch to the next.

    One row a run, pair of epochs, i and j: opt, seed, epoch, next_epoch, i, j, value (of v_i), next_value (of w_j), overlap; and
    subspace, num_pairs (the smaller number of directions) and null = num_pairs / d, the same in all rows of one pair of epochs.
    """
    rows = [{"opt": opt, "seed": member.config.get("seed"), "group": group} | row
            for opt, members in runs.members.items() for member in members
            for row in _tracked(member, group, k, runs.curvature_epochs(opt, (group,)))]
    if not rows:
        raise RecordError(f"{runs.everyone[0].name}: fewer than two epochs with negative curvature of {group}; make more with: "
                          f"landscape spectrum {runs.everyone[0].name} --epoch all --group {group}")
    return pd.DataFrame(rows)


def _tracked(member: Member, group: str, k: int, epochs: Sequence[int]) -> Iterator[dict]:
    before = None
    for epoch in epochs:
        member.curvature(epoch, group)      # absent: says what makes it
        values, vectors = most_negative(member.run.read("curvature", epoch=epoch, group=group), k)
        if before is not None:
            yield from _step(*before, epoch, values, vectors)
        before = epoch, values, vectors


def _step(epoch: int, values: np.ndarray, V: np.ndarray, next_epoch: int, next_values: np.ndarray,
          W: np.ndarray) -> Iterator[dict]:
    if not (len(V) and len(W)):
        return
    matrix, count = overlaps(V, W), min(len(V), len(W))
    whole = {"epoch": epoch, "next_epoch": next_epoch, "subspace": subspace_overlap(V[:count], W[:count]), "num_pairs": count,
             "null": count / V.shape[1]}
    for (i, j), value in np.ndenumerate(matrix):
        yield whole | {"i": i, "j": j, "value": float(values[i]), "next_value": float(next_values[j]), "overlap": float(value)}
