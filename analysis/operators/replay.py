"""Products that outlive the process that made them: stored as they are made, given back in order to the next process.

Every algorithm here is deterministic given its products and its generator. One journal of products therefore resumes all
of them, the Lanczos steps, the restarts and the trace, at the product where a process was killed, with the same bits.
A product is known again by the hash of what it multiplied. Among several processes the first has the journal and tells the
others what it recalls.
"""

import hashlib
import json
import time
from collections.abc import Iterable, Iterator
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from analysis.operators.algebra import Like, LinearOperator
from landscape.distributed import Processes

EVERY_SECONDS = 1.0     # how often products are stored: one written at once for each fast product would cost more than it


class Journal(Protocol):
    """Where steps are kept; implemented by the run store."""

    def __iter__(self) -> Iterator[dict[str, np.ndarray]]:
        """Yield the steps stored so far, in order."""

    def append(self, arrays: dict[str, np.ndarray]) -> None:
        """Store the next step, whole."""


class Remembered(Like):
    """An operator whose products are kept in a journal. Leaving it as a context manager stores what is not stored yet.

    `matrix` is a text that tells this operator's matrix from every other one that the journal may serve.
    """

    def __init__(self, operator: LinearOperator, journal: Journal, matrix: str = ""):
        self.operator, self._processes, self._matrix = operator, Processes.present(), matrix
        self._journal = journal if self._processes.rank == 0 else None
        self._known = _products(journal if self._journal is not None else [])
        self._fresh: list[tuple[np.ndarray, np.ndarray]] = []
        self._last_time = time.monotonic()
        self.num_matvecs = self.num_recalled = 0
        self.seconds = 0.0          # that recalled products took, with all that went on around them

    def __enter__(self) -> "Remembered":
        return self

    def __exit__(self, *exception: object) -> None:
        self._flush()

    def matmat(self, V: Tensor) -> Tensor:
        """Return H applied to each row, (k, d) -> (k, d)."""
        self.num_matvecs += len(V)
        digest = _digest(V, self._matrix)
        if (found := self._processes.first(self._recalled(digest))) is not None:
            self.num_recalled += len(V)
            return torch.as_tensor(found, device=self.device)
        HV = self.operator.matmat(V)
        if self._journal is not None:
            self._keep(digest, HV.cpu().numpy().copy())     # a copy: the caller may write into what it is given
        return HV

    def double(self) -> LinearOperator:
        """Return the operator in float64, whose few products are not kept."""
        return self.operator.double()

    def _recalled(self, digest: np.ndarray) -> np.ndarray | None:
        # What does not fit was made by another version of the program: it is passed over.
        for known, products, seconds in self._known:
            if np.array_equal(known, digest):
                self.seconds += seconds
                self._last_time = time.monotonic()
                return products
        return None

    def _keep(self, digest: np.ndarray, products: np.ndarray) -> None:
        self._fresh.append((digest, products))
        if time.monotonic() - self._last_time >= EVERY_SECONDS:
            self._flush()

    def _flush(self) -> None:
        if self._fresh:
            digests, products = zip(*self._fresh)
            self._journal.append({"products": np.concatenate(products), "counts": np.array([len(rows) for rows in products]),
                                  "digests": np.stack(digests), "seconds": np.array(time.monotonic() - self._last_time)})
            self._fresh = []
        self._last_time = time.monotonic()


def noted(journal: Journal) -> dict[str, Any] | None:
    """Return what `note` stored at the journal's beginning; None where nothing was."""
    first = next(iter(journal), {})
    return json.loads(first["note"].tobytes()) if "note" in first else None


def note(journal: Journal, document: dict[str, Any]) -> None:
    """Store a JSON document as the journal's first step."""
    journal.append({"note": np.frombuffer(json.dumps(document).encode(), np.uint8)})


def _products(steps: Iterable[dict[str, np.ndarray]]) -> Iterator[tuple[np.ndarray, np.ndarray, float]]:
    """Yield each stored product: the hash of what it multiplied, its rows, and the seconds of a step with its first."""
    for step in steps:
        if "products" in step:
            rows = np.split(step["products"], np.cumsum(step["counts"])[:-1])
            seconds = [float(step["seconds"])] + [0.0] * (len(rows) - 1)
            yield from zip(step["digests"], rows, seconds)


def _digest(V: Tensor, matrix: str) -> np.ndarray:
    content = V.detach().cpu().contiguous().numpy()
    described = f"{matrix}{content.dtype}{content.shape}".encode()
    return np.frombuffer(hashlib.sha256(described + content.tobytes()).digest(), np.uint8)
