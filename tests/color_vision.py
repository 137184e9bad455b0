"""Colors as color-deficient readers see them: the simulation of Machado et al. 2009, and distances in CIE Lab.

    linear RGB seen = M linear RGB shown,   M of severity 1 (Machado, Oliveira and Fernandes 2009, their tables)
    difference = |Lab - Lab'|               (CIE 1976; about 2.3 is just noticeable side by side)

A palette whose smallest difference stays large under every deficiency can be told apart by (nearly) everyone. sRGB and Lab
are those of IEC 61966-2-1 and CIE 15 with the white D65.
"""

from collections.abc import Sequence
from itertools import combinations

import numpy as np
from matplotlib.colors import to_rgb

from checkpoints.errors import RecordError

DEFICIENCIES = {
    "normal": np.eye(3),
    "protanomaly": np.array([[0.152286, 1.052583, -0.204868], [0.114503, 0.786281, 0.099216],
                             [-0.003882, -0.048116, 1.051998]]),
    "deuteranomaly": np.array([[0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413],
                               [-0.011820, 0.042940, 0.968881]]),
    "tritanomaly": np.array([[1.255528, -0.076749, -0.178779], [-0.078411, 0.930809, 0.147602],
                             [0.004733, 0.691367, 0.303900]]),
}
_XYZ = np.array([[0.4124564, 0.3575761, 0.1804375], [0.2126729, 0.7151522, 0.0721750], [0.0193339, 0.1191920, 0.9503041]])
_WHITE = _XYZ.sum(axis=1)      # D65: linear RGB (1, 1, 1)


def seen(color: str, deficiency: str) -> np.ndarray:
    """Return the linear RGB (3,) in [0, 1] that a reader with a `deficiency` of severity 1 sees of a color."""
    if deficiency not in DEFICIENCIES:
        raise RecordError(f"deficiency={deficiency} is unknown: expected one of {', '.join(DEFICIENCIES)}")
    shown = np.array(to_rgb(color))
    linear = np.where(shown <= 0.04045, shown / 12.92, ((shown + 0.055) / 1.055) ** 2.4)
    return np.clip(DEFICIENCIES[deficiency] @ linear, 0.0, 1.0)


def lab(linear: np.ndarray) -> np.ndarray:
    """Return CIE L*, a*, b* of linear RGB (3,); L* is 0 for black and 100 for white."""
    x, y, z = (np.cbrt(t) if t > (6 / 29) ** 3 else t / (3 * (6 / 29) ** 2) + 4 / 29 for t in _XYZ @ linear / _WHITE)
    return np.array([116 * y - 16, 500 * (x - y), 200 * (y - z)])


def difference(one: str, other: str, deficiency: str = "normal") -> float:
    """Return the distance in CIE Lab between two colors as a reader with the deficiency sees them."""
    return float(np.linalg.norm(lab(seen(one, deficiency)) - lab(seen(other, deficiency))))


def smallest_difference(colors: Sequence[str]) -> tuple[float, str, str, str]:
    """Return the smallest distance between any two of the colors under any deficiency, the two colors, and which it is."""
    return min((difference(one, other, deficiency), one, other, deficiency)
               for one, other in combinations(colors, 2) for deficiency in DEFICIENCIES)
