"""Timing side by side in one process: interleaved rounds, and ratios with their spread.

Each round runs every contestant once, the reference before and after each of them: a ratio compares neighbors in time, so that
a machine that slows down or is shared hits both alike. Times are wall clock, after the device has finished.
"""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

LEAST_ROUNDS = 3    # below that a median says nothing


@dataclass(frozen=True, eq=False)
class Rounds:
    """Seconds of every contestant in every round, and those of the reference beside it."""

    seconds: dict[str, list[float]]
    reference: dict[str, list[float]]   # mean of the reference just before and just after

    def ratios(self, name: str, per: int = 1) -> np.ndarray:
        """Return time / reference time of each round, for each of `per` vectors."""
        return np.array(self.seconds[name]) / np.array(self.reference[name]) / per

    def compare(self, name: str, other: str) -> np.ndarray:
        """Return how many times as long as `other` one contestant took, round by round."""
        return self.ratios(name) / self.ratios(other)


def interleave(reference: Callable[[], Any], contestants: Mapping[str, Callable[[int], Any]], *, rounds: int, minutes: float,
               device: torch.device, after: Callable[[str, int, Any], None] = lambda *_: None,
               progress: Callable[[int, int], None] = lambda *_: None) -> Rounds:
    """Run every contestant (called with the number of the round) once a round, in an order that rotates.

    After `minutes` no further round begins, once three are done. `after` gets each result, outside the timing.
    """
    names, started = list(contestants), time.perf_counter()
    seconds, beside = ({name: [] for name in names} for _ in range(2))
    for turn in range(rounds):
        if turn >= LEAST_ROUNDS and time.perf_counter() - started > 60 * minutes:
            break
        before = timed(reference, device)[0]
        for name in names[turn % len(names):] + names[:turn % len(names)]:
            own, result = timed(lambda: contestants[name](turn), device)
            after(name, turn, result)
            del result
            behind = timed(reference, device)[0]
            seconds[name].append(own)
            beside[name].append((before + behind) / 2)
            before = behind
        progress(turn + 1, rounds)
    return Rounds(seconds, beside)


def timed(action: Callable[[], Any], device: torch.device) -> tuple[float, Any]:
    """Return the seconds that a call took, the device's work included, and its result."""
    _finish(device)
    start = time.perf_counter()
    result = action()
    _finish(device)
    return time.perf_counter() - start, result


def spread(values: Sequence[float]) -> dict[str, float]:
    """Return median, quartiles, minimum and maximum."""
    low, first, median, third, high = np.quantile(np.asarray(values, float), [0, 0.25, 0.5, 0.75, 1])
    return {"median": median, "min": low, "q1": first, "q3": third, "max": high}


def _finish(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
