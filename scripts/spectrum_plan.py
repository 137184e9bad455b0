"""Which of the spectra asked for are still to be computed, and what they take.

    plan_spectra(subject, epochs, groups, settings, making)   what is missing, what is stored, what is stored of other settings
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from scripts.forecast import Forecast, of_spectra


@dataclass(frozen=True)
class SpectraPlan:
    """Spectra of one run, by epoch and group, sorted by what is to be done."""

    missing: tuple[tuple[int, str], ...]    # epoch, group: to be computed
    stored: int                             # how many are given back
    stale: tuple[tuple[int, str], ...]      # of those missing, what is stored of other weights or data: replaced
    others: tuple[str, ...]                 # what is stored of other settings, in words: left as it is
    settings: Any
    making: Any

    @property
    def lines(self) -> list[str]:
        """What is not computed, for people."""
        kept = [f"{self.stored} of {self.stored + len(self.missing) + len(self.others)} stored already"] if self.stored else []
        stale = ", ".join(f"{group} at epoch {epoch}" for epoch, group in self.stale)
        kept += [f"stale, of other weights or data, and to be replaced: {stale}"] if stale else []
        return kept + ([f"left as they are, of other settings: {'; '.join(self.others)}: --overwrite replaces them; the others "
                        "are computed"] if self.others else [])

    def interrupted(self, subject) -> bool:
        """Tell whether an earlier process began with one of those missing."""
        from analysis.pipeline import interrupted
        return any(interrupted(subject, epoch, group, self.settings, self.making) for epoch, group in self.missing)

    def forecast(self, subject, tell: Callable[[str], None]) -> Forecast:
        """Forecast those missing; `tell` is told what begins."""
        if self.missing:
            subject.load(self.missing[0][0])
        return of_spectra(subject, [group for _, group in self.missing], self.settings, self.making, tell)


def plan_spectra(subject, epochs: Sequence[int], groups: Sequence[str], settings, making, *, overwrite: bool) -> SpectraPlan:
    """Look up, epoch by epoch, which spectra are stored as they are asked for; with `overwrite` all are missing."""
    from analysis.pipeline import stored_curvature
    from analysis.stored import OtherRecord
    from analysis.settings import stored_group
    missing, stored, stale, others = [], 0, [], []
    for epoch, group in ((epoch, group) for epoch in epochs for group in groups):
        try:
            if stored_curvature(subject, epoch, group, settings, making, overwrite=overwrite) is None:
                missing.append((epoch, group))
                is_there = subject.store.has("curvature", epoch=epoch, group=stored_group(group, settings))
                stale += [(epoch, group)] if is_there and not overwrite else []
            else:
                stored += 1
        except OtherRecord as other:
            others.append(other.found)
    return SpectraPlan(tuple(missing), stored, tuple(stale), tuple(others), settings, making)
