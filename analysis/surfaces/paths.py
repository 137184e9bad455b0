"""Paths through parameter space: principal directions of stored checkpoints, and where checkpoints lie on a line or plane.

Principal directions (Li et al. 2018, section 7): with M = [theta_0 - theta_n; ...; theta_(n-1) - theta_n] (n, d), the leading
principal components of M's rows. As in the code released with the paper, which calls scikit-learn, the rows are centred first;
the surface still goes through theta_n. M M' (n, n) is what is decomposed, since d is far larger than n.
"""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from analysis.surfaces.directions import Direction
from landscape.errors import InputError

_CHUNK = 2**20      # columns of M that are brought to float64 at once
_NOTHING = 1e-12    # a share of the squared distances that is rounding


def principal_directions(path: Tensor, origin: Tensor, count: int) -> tuple[list[Direction], list[float]]:
    """Return the leading principal directions of path - origin, and the share of the variance that each explains.

    path: (n, d), the checkpoints along training without the origin itself. Each direction has unit length and leads towards the
    first of them. InputError where the path spans fewer than `count` dimensions.
    """
    gram, scale = _gram(path, origin)
    values, vectors = torch.linalg.eigh(gram)
    values, vectors = values.flip(0).clamp(min=0), vectors.flip(1)
    total = float(values.sum())
    if len(path) <= count:
        raise InputError(f"pca has {len(path)} checkpoints beside the one at the origin: {count} directions need at least "
                         f"{count + 1}; store more with --checkpoint_epochs")
    if not float(values[count - 1]) > _NOTHING * scale:
        raise InputError(f"pca has no {count} directions: the {len(path)} checkpoints span fewer; store others with "
                         "--checkpoint_epochs")
    made = [_component(path, origin, vectors[:, k], k) for k in range(count)]
    return made, [float(value) / total for value in values[:count]]


def project(points: Sequence[Tensor], origin: Tensor, directions: Sequence[Direction]) -> tuple[np.ndarray, np.ndarray]:
    """Return the least-squares coordinates (P, k) of points on the directions through the origin, and their distances off (P,).

    Coordinates count in each direction's own length, so that origin + coordinates @ directions is the nearest place of the line
    or plane; directions need not be orthogonal. Distances are in parameter units.
    """
    basis = torch.stack([direction.vector.double().cpu() for direction in directions], dim=1)       # (d, k)
    inverse = torch.linalg.inv(basis.T @ basis)
    coordinates, distances = np.zeros((len(points), basis.shape[1])), np.zeros(len(points))
    for place, point in enumerate(points):
        step = point.double().cpu() - origin.double().cpu()
        inside = inverse @ (basis.T @ step)
        coordinates[place] = inside.numpy()
        distances[place] = float((step - basis @ inside).norm())
    return coordinates, distances


def covering_axis(places: Sequence[float], points: int, width: float = 0.0) -> np.ndarray:
    """Return evenly spaced coordinates (points,) that cover some places with a margin of a sixth, and hold 0 exactly.

    places: where the origin, 0, is one of them. width: least length of the axis.
    """
    low, high = min(*places, 0.0), max(*places, 0.0)
    missing = max(width - (high - low), 0.0) / 2
    low, high = low - missing, high + missing
    step = (high - low) * 4 / 3 / (points - 1) or 1.0 / (points - 1)
    first = round((low - (high - low) / 6) / step)          # the grid is moved by less than a step, so that 0 is on it
    return np.arange(first, first + points) * step


def axis_between(distance: float, points: int) -> np.ndarray:
    """Return evenly spaced coordinates (points,) from before 0 to beyond `distance`, both of them exactly on the grid."""
    beyond = points // 10
    between = points - 1 - 2 * beyond
    axis = np.arange(-beyond, points - beyond) * (distance / between)
    axis[beyond + between] = distance
    return axis


def _gram(path: Tensor, origin: Tensor) -> tuple[Tensor, float]:
    """Return M M' (n, n) of the centred rows, and the squared norm of M before that."""
    total, scale = torch.zeros(len(path), len(path), dtype=torch.float64), 0.0
    for chunk, start in zip(path.split(_CHUNK, dim=1), origin.split(_CHUNK)):
        rows = chunk.double() - start.double()
        scale += float(rows.square().sum())
        rows = rows - rows.mean(0)
        total += rows @ rows.T
    return total, scale


def _component(path: Tensor, origin: Tensor, weights: Tensor, rank: int) -> Direction:
    """Return M' w, of unit length, towards the first checkpoint of the path."""
    weights = weights - weights.mean()
    pieces = zip(path.split(_CHUNK, dim=1), origin.split(_CHUNK))
    vector = torch.cat([(chunk.double() - start.double()).T @ weights for chunk, start in pieces])
    vector = vector / vector.norm()
    if float(vector @ (path[0].double() - origin.double())) < 0:
        vector = -vector
    return Direction(vector.to(path.dtype), f"PC {rank + 1}")
