"""What a reader may choose about a figure; every figure takes the same choices and ignores those it has no use for."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Options:
    """Choices common to all figures."""

    epoch: int | None = None                     # default: the last that every run has
    groups: tuple[str, ...] = ("head", "tail")   # class groups, one row or panel each
    style: str = "relative"                      # of spectra: relative | published
    surface: str | None = None                   # name of the plane to draw; default: the first that every run has
    level: float = 0.95                          # coverage of every interval and band
    width: str = "two"                           # one | two columns of a two-column page: 3.25 or 6.75 inches
    rc: Mapping[str, Any] = field(default_factory=dict)   # matplotlib settings on top of the project's
