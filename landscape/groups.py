"""Class groups: which classes are head and tail, many, medium and few, and which samples of a batch belong to each.

Head and tail (SSE-SAM, Lyu et al. 2025; ImbSAM, Zhou et al. 2023): class c is tail where n_c < eta, strictly, else head.
Many, medium and few: many where n_c > `many`, few where n_c < `few`, medium between. A group may be absent: CIFAR-10-LT
at imbalance 100 has no class below eta = 20. An absent group stays out of tables and adds zero to a gradient, but asking
for its Hessian is an error.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from landscape.errors import InputError


@dataclass(frozen=True, eq=False)
class ClassGroups:
    """Named sets of classes. The sets may overlap; each of `head_tail` and `many_medium_few` is a partition."""

    counts: np.ndarray                      # (C,) training images of each class
    classes: Mapping[str, tuple[int, ...]]  # group name -> its classes, ascending; () where the group is absent

    @classmethod
    def head_tail(cls, counts: Sequence[int], eta: float) -> "ClassGroups":
        """Split at `eta`: tail holds the classes with n_c < eta, head all others."""
        counts = _read_counts(counts)
        if not eta >= 0:
            raise InputError(f"eta={eta} is out of range: expected a class size >= 0, with tail classes below it")
        return cls(counts, {"head": _where(counts >= eta), "tail": _where(counts < eta)})

    @classmethod
    def many_medium_few(cls, counts: Sequence[int], many: float = 100, few: float = 20) -> "ClassGroups":
        """Split at two sizes: many holds n_c > many, few holds n_c < few, medium the rest."""
        counts = _read_counts(counts)
        if not 0 <= few <= many:
            raise InputError(f"many={many}, few={few} are out of range: expected 0 <= few <= many")
        medium = (counts >= few) & (counts <= many)
        return cls(counts, {"many": _where(counts > many), "medium": _where(medium), "few": _where(counts < few)})

    @classmethod
    def standard(cls, counts: Sequence[int], eta: float, many: float = 100, few: float = 20) -> "ClassGroups":
        """Return all, head, tail, many, medium and few together: the groups that every table and metric reports."""
        counts = _read_counts(counts)
        everything = {"all": tuple(range(len(counts)))}
        halves, thirds = cls.head_tail(counts, eta), cls.many_medium_few(counts, many, few)
        return cls(counts, everything | dict(halves.classes) | dict(thirds.classes))

    @property
    def names(self) -> tuple[str, ...]:
        """The groups that hold at least one class."""
        return tuple(name for name, members in self.classes.items() if members)

    @property
    def absent(self) -> tuple[str, ...]:
        """The groups without a class."""
        return tuple(name for name, members in self.classes.items() if not members)

    def with_classes(self) -> "ClassGroups":
        """Add every single class as the group `class:c`."""
        single = {f"class:{c}": (c,) for c in range(len(self.counts))}
        return ClassGroups(self.counts, dict(self.classes) | single)

    def select(self, name: str) -> tuple[int, ...]:
        """Return the classes of one group; `class:c` is always known. An unknown or empty group is an error."""
        groups = self.with_classes().classes
        if name not in groups:
            known = ", ".join(self.classes)
            raise InputError(f"group {name!r} is unknown: expected one of {known}, or class:0 ... class:{len(self.counts) - 1}")
        if not groups[name]:
            raise InputError(f"group {name!r} is empty: class sizes run from {self.counts.min()} to {self.counts.max()}; "
                             "move eta, many or few so that a class falls into it")
        return groups[name]

    def masks(self, labels: Tensor) -> dict[str, Tensor]:
        """Return, for every group, which samples belong to it: bool, the shape of `labels`. Absent groups are all False."""
        return {name: membership[labels] for name, membership in self.membership(labels.device).items()}

    def membership(self, device: torch.device | str = "cpu") -> dict[str, Tensor]:
        """Return, for every group, a bool table over classes (C,): index it with labels to get a mask."""
        return {name: _table(members, len(self.counts), device) for name, members in self.classes.items()}


def _read_counts(counts: Sequence[int]) -> np.ndarray:
    counts = np.asarray(counts)
    if counts.ndim != 1 or not counts.size or (counts < 0).any():
        raise InputError(f"counts={counts.tolist()} is out of range: expected one number >= 0 a class")
    return counts


def _where(chosen: np.ndarray) -> tuple[int, ...]:
    return tuple(int(c) for c in np.flatnonzero(chosen))


def _table(members: tuple[int, ...], num_classes: int, device: torch.device | str) -> Tensor:
    table = torch.zeros(num_classes, dtype=torch.bool)
    table[list(members)] = True
    return table.to(device)
