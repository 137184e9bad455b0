"""Robustness of lambda_min: both ends of a group's spectrum with one choice varied at a time, the others as they are.

The reference is the Hessian of the group's mean cross-entropy over its un-augmented training images, in evaluation mode, its
extreme pairs converged to a residual of TOL |lambda|. What is varied, and why: `analysis.measures.ends`. A value's low and
high are value -+ residual, so that some eigenvalue lies between them; no residual says that none was missed. The products
are exact (the engine is stored); where images are drawn anew at every product, there is no matrix for a residual to be of,
and the inconsistency ||Hv - H'v|| / ||Hv|| of two products is stored.
"""

from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor

from analysis.measures.ends import (Ends, Redrawn, batch_normalized, converged_ends, ends_by_steps, images_that_fit,
                                    joined_ends, redrawn_ends, unchecked)
from analysis.measures.table import Table, table
from analysis.operators.hessian import HessianOperator
from analysis.settings import SpectrumSettings
from checkpoints.records import LAMBDA
from landscape.batchnorm import normalizers
from landscape.data.augment import Augmentation
from landscape.errors import InputError

TOL = 1e-3                      # of a converged pair's residual, relative to it
NUM_MATVECS = 100               # Lanczos steps of a start, as Rangwani et al. (2022) take
STEPS = (20, 50, 100, 200)
BEGUN = 40                      # Lanczos steps from which a converged pair is followed
MAX_MATVECS = 200               # products for it beyond them
SUBSETS = (0.25, 0.5)           # of the group's images
DRAWS = 2                       # of each size of subset
LARGEST_BATCH = 1024            # images in the one batch that lends its statistics, fewer where memory is short
GRADIENTS = 2                   # that a product takes as long as
AXES = ("reference", "probes", "steps", "augmentation", "loss", "split", "batchnorm", "subset")

Batches = list[tuple[Tensor, Tensor]]
Row = tuple[str, Ends, int]     # setting, what was found, images


def robustness(case) -> Table:
    """Return both ends of every group's spectrum under every variation; one row a variation."""
    rows, engines, inconsistency, left_out = [], {}, {}, {}
    for group in case.settings.groups:
        part = _Group(case, group)
        for axis in AXES:
            if reason := part.reason_against(axis):
                left_out[axis] = reason
                continue
            rows += [_row(group, axis, *found) for found in getattr(part, axis)()]
        engines[group], inconsistency[group] = part.operator.engine, part.inconsistency
    case.subject.cast("float32")
    units = dict.fromkeys(("value", "low", "high", "upper", "upper_low", "upper_high"), LAMBDA)
    about = {"engine": engines, "exact": all(engine != "differences" for engine in engines.values()), "tol": TOL,
             "dtype": case.settings.dtype, "bars": "value -+ residual", "inconsistency": inconsistency, "left_out": left_out,
             "num_matvecs": NUM_MATVECS, "num_probes": case.settings.batches}
    return table(rows, units, about)


def work(case) -> int:
    """Return at most how many image gradients the variations take."""
    converged, images = BEGUN + MAX_MATVECS + 2, 0
    for group in case.settings.groups:
        part, own = _Group(case, group), case.num_images(group)[0]
        other = 0 if part.reason_against("split") else _varied(case, split=part.other_split).num_images(group)[0]
        sizes = {"reference": own, "loss": own, "augmentation": own, "batchnorm": min(own, LARGEST_BATCH), "split": other,
                 "subset": DRAWS * sum(int(share * own) for share in SUBSETS)}
        images += converged * sum(size for axis, size in sizes.items() if not part.reason_against(axis))
        images += own * (case.settings.batches * NUM_MATVECS + max(STEPS))
        images += 0 if part.reason_against("augmentation") else own * (NUM_MATVECS + 4)
    return GRADIENTS * images


class _Group:
    """One group's variations; each method yields the rows of one axis."""

    def __init__(self, case, group: str):
        self.case, self.group, self.inconsistency = case, group, None
        self.subject, self.dtype = case.subject, case.settings.dtype
        self.other_split = "test" if case.settings.split == "train" else "train"
        self._operator: HessianOperator | None = None

    @property
    def operator(self) -> HessianOperator:
        """The reference's Hessian."""
        if self._operator is None:
            self._operator = self._hessian(self.case.images(self.group)[0])
        return self._operator

    def reason_against(self, axis: str) -> str | None:
        """Return why an axis cannot be varied for this run; None where it can."""
        if axis == "augmentation" and (reason := self._not_augmented()):
            return reason
        if axis == "loss" and self.subject.config.loss == "CE":
            return "the training loss is the cross-entropy"
        if axis == "batchnorm" and not normalizers(self.subject.model):
            return "the network has no running statistics"
        return self._without_images() if axis == "split" else None

    def reference(self) -> Iterator[Row]:
        yield "reference", self._converged(self.operator), self.operator.num_samples

    def probes(self) -> Iterator[Row]:
        number, count = self.case.settings.batches, self.operator.num_samples
        *alone, joined = joined_ends(self.operator, num_probes=max(number, 2), num_matvecs=NUM_MATVECS,
                                     generator=self._generator(), progress=self._progress(count))
        alone = sorted(alone, key=lambda ends: ends.lower)
        yield f"1, lowest of {len(alone)}", alone[0], count
        yield f"1, highest of {len(alone)}", alone[-1], count
        yield f"{len(alone)}", joined, count

    def steps(self) -> Iterator[Row]:
        count = self.operator.num_samples
        for m, ends in ends_by_steps(self.operator, STEPS, self._generator(), self._progress(count)).items():
            yield str(m), ends, count

    def augmentation(self) -> Iterator[Row]:
        count = self.operator.num_samples
        yield "fixed", self._converged(self._hessian(self._augmented(0))), count
        engine = "reverse" if self.operator.engine.startswith("linearized") else self.operator.engine   # a trace costs more
        model, loss = self.subject.cast(self.dtype), self.subject.loss("CE")
        redrawn = Redrawn(lambda k: unchecked(model, loss, self._augmented(k), engine))
        ends, self.inconsistency = redrawn_ends(redrawn, num_matvecs=NUM_MATVECS, generator=self._generator(),
                                                progress=self._progress(count))
        yield "redrawn", ends, count       # at every product, as published

    def loss(self) -> Iterator[Row]:
        operator = self._hessian(self.case.images(self.group)[0], "training")
        yield f"training ({self.subject.config.loss})", self._converged(operator), operator.num_samples

    def split(self) -> Iterator[Row]:
        operator = self._hessian(_varied(self.case, split=self.other_split).images(self.group)[0])
        yield self.other_split, self._converged(operator), operator.num_samples

    def batchnorm(self) -> Iterator[Row]:
        model, loss, count = self.subject.cast(self.dtype), self.subject.loss("CE"), self.operator.num_samples
        images, labels = self.case.images(self.group)[0][0]
        count = images_that_fit(model, loss, (images[:1], labels[:1]), min(count, LARGEST_BATCH))
        images, labels = map(torch.cat, zip(*_varied(self.case, max_samples=count).images(self.group)[0]))
        operator = batch_normalized(model, loss, (images, labels))
        yield "one batch", self._converged(operator), len(labels)

    def subset(self) -> Iterator[Row]:
        seed = self.case.settings.seed
        for share in SUBSETS:
            size = max(1, int(share * self.operator.num_samples))
            for draw in range(1, DRAWS + 1):
                operator = self._hessian(_varied(self.case, max_samples=size, seed=seed + draw).images(self.group)[0])
                yield f"{share:.0%}, seed {seed + draw}", self._converged(operator), operator.num_samples

    def _hessian(self, batches: Batches, loss: str = "CE") -> HessianOperator:
        traces = self.subject.shared_traces(SpectrumSettings(loss=loss, dtype=self.dtype))
        return HessianOperator(self.subject.cast(self.dtype), self.subject.loss(loss), batches, fill=True, traces=traces,
                               expected_matvecs=BEGUN + MAX_MATVECS)

    def _converged(self, operator) -> Ends:
        return converged_ends(operator, num_matvecs=BEGUN, tol=TOL, max_matvecs=MAX_MATVECS, generator=self._generator(),
                              progress=self._progress(operator.num_samples))

    def _without_images(self) -> str | None:
        try:
            return None if _varied(self.case, split=self.other_split).num_images(self.group)[0] else "no images"
        except InputError as reason:
            return str(reason)

    def _not_augmented(self) -> str | None:
        if self.case.settings.split != "train":
            return "test images are not augmented"
        data = self.subject.data
        return "the data set is not augmented" if data.train.in_memory and data.augmentation == Augmentation() else None

    def _augmented(self, draw: int) -> Batches:
        """Return the group's images as one draw of the training's augmentation leaves them."""
        seed = int(np.random.SeedSequence((self.case.settings.seed, draw)).generate_state(1)[0])
        return self.case.images(self.group, augmentation_seed=seed)[0]

    def _generator(self) -> torch.Generator:
        return torch.Generator().manual_seed(self.case.settings.seed)

    def _progress(self, count: int) -> Callable[[int], None]:
        return lambda products: self.case.progress(GRADIENTS * count * products)


def _varied(case, **changes: Any):
    """Return a case of the same run, weights and data with other settings."""
    return replace(case, open_subject=partial(getattr, case, "subject"), settings=replace(case.settings, **changes))


def _row(group: str, axis: str, setting: str, ends: Ends, images: int) -> dict[str, Any]:
    return {"group": group, "axis": axis, "setting": setting,
            "value": ends.lower, "low": ends.lower - ends.lower_residual, "high": ends.lower + ends.lower_residual,
            "upper": ends.upper, "upper_low": ends.upper - ends.upper_residual, "upper_high": ends.upper + ends.upper_residual,
            "images": images, "num_matvecs": ends.num_matvecs}
