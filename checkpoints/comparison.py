"""Several runs read together: pooled over seeds by optimizer, refused where they are not comparable.

Runs may share a figure or a table only if they saw the same data, split into the same groups. Runs of one optimizer
must agree in everything but the seed, or their mean would mean nothing; settings named in `vary` make pools of their own
instead, called "sam rho=0.1". A record that is absent is an error naming the command that makes it: nothing is drawn from
part of the evidence. A run is a `RunStore`, or anything with its `path`, `config`, `metrics()`, `records(kind)` and `read`.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from math import ceil
from typing import Any

import pandas as pd

from checkpoints.alike import check_same_object, check_same_view, classes_of, hessian_of
from checkpoints.brief import brief
from checkpoints.errors import RecordError
from checkpoints.exactness import supported
from checkpoints.records import Curvature, Measurement, Surface
from checkpoints.variants import LOSS, check_vary, variants

__all__ = ["Comparison", "Member", "check_same_object", "check_same_view", "classes_of", "compare"]

UNKNOWN = "unknown"
ORDER = ("sgd", "sam", "imbsam", "ssesam")   # as the papers list them; other optimizers follow in the order given
SHARED = ("dataset", "imb_factor", "profile", "subset", "data_seed", "eta", "many", "few", "arch", "loss",
          "loss_options", "drw_epoch")
NO_MATTER = ("seed", "device", "threads", "workers", "checkpoint_epochs", "eval_every", "recipe", "selection",
             "flip_average")   # what leaves the trained weights alone


@dataclass(frozen=True, eq=False)
class Member:
    """One run and the records it held when it was first asked, eigenvectors left out."""

    run: Any

    @property
    def name(self) -> str:
        return str(self.run.path)

    @property
    def config(self) -> Mapping[str, Any]:
        return self.run.config

    @cached_property
    def metrics(self) -> pd.DataFrame:
        """One row a finished epoch; `test_accuracy/<group>` is NaN where it was not evaluated."""
        return self.run.metrics()

    @cached_property
    def curvatures(self) -> dict[tuple[int, str], Curvature]:
        """The curvature records by (epoch, group), without the vectors, so that hundreds fit in memory."""
        return {(record.epoch, record.group): brief(supported(record)) for record in self.run.records("curvature")}

    @cached_property
    def surfaces(self) -> dict[str, Surface]:
        return {record.name: record for record in self.run.records("surface")}

    @cached_property
    def measurements(self) -> dict[tuple[int, str], Measurement]:
        """The measurements by (epoch, name)."""
        return {(record.epoch, record.name): record for record in self.run.records("measurement")}

    @property
    def switch(self) -> int | None:
        """The epoch after which SSE-SAM's second stage or deferred re-weighting (DRW) starts; None for neither."""
        config, last = self.config, self.config.get("epochs", 0)
        if config.get("opt") == "ssesam":
            # As the optimizer counts: 0.55 * 200 is 110.00000000000001, and only the release takes that for 111.
            epoch = ceil(config.get("gamma", 0.0) * last - (0 if config.get("gamma_rule") == "released" else 1e-9))
        else:
            epoch = config.get("drw_epoch")
        return epoch if epoch is not None and 0 < epoch < last else None

    @property
    def opt(self) -> str:
        """The optimizer, by name; "unknown" where nobody has stated it of imported weights."""
        return self.config["opt"] if self._is_known("opt") else UNKNOWN

    @property
    def weight_decay(self) -> float | None:
        """The weight decay that the run was trained with; None where nobody has stated it of imported weights."""
        return self.config.get("weight_decay") if self._is_known("weight_decay") else None

    def _is_known(self, setting: str) -> bool:
        origin = getattr(self.run, "provenance", {})
        return "imported" not in origin or setting in (origin.get("stated") or [setting])

    def curvature(self, epoch: int, group: str) -> Curvature:
        """Return one record, or say what makes it."""
        if (epoch, group) not in self.curvatures:
            raise RecordError(f"{self.name}: no spectrum of group {group} at epoch {epoch}; "
                              f"make it with: landscape spectrum {self.name} --epoch {epoch} --group {group}")
        return self.curvatures[epoch, group]

    def surface(self, name: str) -> Surface:
        """Return one record, or say what makes it and which there are."""
        if name not in self.surfaces:
            known = ", ".join(sorted(self.surfaces)) or "none"
            raise RecordError(f"{self.name}: no surface {name!r} (there are: {known}); "
                              f"make it with: landscape surface {self.name}")
        return self.surfaces[name]

    def measurement(self, name: str, epoch: int) -> Measurement:
        """Return one record, or say what makes it."""
        if (epoch, name) not in self.measurements:
            raise RecordError(f"{self.name}: no measurement of {name} at epoch {epoch}; "
                              f"make it with: landscape measure {name} {self.name} --epoch {epoch}")
        return self.measurements[epoch, name]


@dataclass(frozen=True, eq=False)
class Comparison:
    """Runs by optimizer, each optimizer's runs in the order of their seeds; with `vary`, by optimizer and setting."""

    members: dict[str, tuple[Member, ...]]
    vary: tuple[str, ...] = ()      # settings that tell pools of one optimizer apart

    @property
    def optimizers(self) -> tuple[str, ...]:
        return tuple(self.members)

    @property
    def everyone(self) -> tuple[Member, ...]:
        return tuple(member for members in self.members.values() for member in members)

    @property
    def config(self) -> Mapping[str, Any]:
        """The configuration of the first run; in the keys of SHARED it is everyone's."""
        return self.everyone[0].config

    @property
    def num_seeds(self) -> int:
        """The largest number of seeds behind an optimizer: with one there is no interval over seeds."""
        return max(len(members) for members in self.members.values())

    def seeds_in_words(self, named: Callable[[str], str] = str) -> str:
        """Return how many seeds stand behind the optimizers: of each, called as `named` says, where they differ."""
        counts = {name: len(members) for name, members in self.members.items()}
        if len(set(counts.values())) == 1:
            return "one seed" if self.num_seeds == 1 else f"{self.num_seeds} seeds"
        return "seeds: " + ", ".join(f"{count} of {named(name)}" for name, count in counts.items())

    def absent(self, group: str) -> bool:
        """Return whether the runs were evaluated and no class of the data falls into `group`."""
        column = f"test_accuracy/{classes_of(group)}"
        return all(_evaluated(member) and column not in _filled(member) for member in self.everyone)

    def present(self, groups: Sequence[str]) -> tuple[str, ...]:
        """Return the groups that are not absent; none left is an error."""
        left = tuple(group for group in groups if not self.absent(group))
        if not left:
            raise RecordError(f"groups={','.join(groups)}: no class of this data falls into any of them; "
                              "choose others, such as all or class:0")
        return left

    def curvatures(self, opt: str, epoch: int, group: str) -> list[Curvature]:
        """Return one record a seed, each of the same kind of Hessian."""
        found = [member.curvature(epoch, group) for member in self.members[opt]]
        self._refuse_other_losses(found)
        return found

    def curvature_epochs(self, opt: str, groups: Sequence[str]) -> list[int]:
        """Return the epochs at which any run of `opt` holds a spectrum of any of `groups`; the others must follow."""
        found = {epoch for member in self.members[opt] for epoch, group in member.curvatures if group in groups}
        if not found:
            self.members[opt][0].curvature(self.members[opt][0].config.get("epochs", 0), groups[0])
        return sorted(found)

    def epoch(self, groups: Sequence[str], epoch: int | None = None) -> int:
        """Return `epoch`, or by default the last at which every run holds the spectra of all `groups`."""
        if epoch is None:
            common = set.intersection(*(set(self._epochs_of(member, groups)) for member in self.everyone))
            epoch = max(common) if common else max(self.curvature_epochs(self.optimizers[0], groups))
        for member in self.everyone:
            for group in groups:
                member.curvature(epoch, group)
        return epoch

    def surface(self, opt: str, name: str) -> Surface:
        """Return the surface of the lowest seed: surfaces along random directions have no mean over seeds."""
        return self.members[opt][0].surface(name)

    def surface_names(self, dimensions: int, epoch: int | None = None) -> list[str]:
        """Return the lines (1) or planes (2) that every optimizer's lowest seed holds at `epoch`, default the last."""
        firsts = [members[0] for members in self.members.values()]
        found = {s.name: s.epoch for s in firsts[0].surfaces.values() if 1 + (s.beta.size > 0) == dimensions}
        common = {name: at for name, at in found.items() if all(name in first.surfaces for first in firsts)}
        epoch = max(common.values(), default=None) if epoch is None else epoch
        names = sorted(name for name, at in common.items() if at == epoch)
        if not names:
            what = ("line", "plane")[dimensions - 1] + ("" if epoch is None else f" at epoch {epoch}")
            raise RecordError(f"{firsts[0].name}: no {what} that every optimizer has; "
                              f"make it with: landscape surface {firsts[0].name} --dims {dimensions}")
        return names

    def _refuse_other_losses(self, records: Sequence[Curvature]) -> None:
        """Hessians of the training loss are of one function only where all runs were trained with one loss."""
        of_training = any(hessian_of(record)["loss"] == "training" for record in records)
        if of_training and len({repr([member.config.get(key) for key in LOSS]) for member in self.everyone}) > 1:
            raise RecordError("loss=training: Hessians of different training losses cannot share a figure or table; compute the "
                              "spectra of cross-entropy, without --loss training")

    @staticmethod
    def _epochs_of(member: Member, groups: Sequence[str]) -> list[int]:
        epochs = {epoch for epoch, _ in member.curvatures}
        return [epoch for epoch in epochs if all((epoch, group) in member.curvatures for group in groups)]


def compare(runs: Iterable[Any], vary: str | Sequence[str] = ()) -> Comparison:
    """Pool runs by optimizer; refuse other data or groups, and other differences within one optimizer.

    vary: settings that runs may differ in, such as "rho": each value makes a pool. Members of an earlier comparison may be given
    for runs; what they have read is not read again.
    """
    everyone = [run if isinstance(run, Member) else Member(run) for run in runs]
    if not everyone:
        raise RecordError("RUN is missing: expected at least one run folder")
    vary = check_vary((vary,) if isinstance(vary, str) else vary, everyone)
    for member in everyone[1:]:
        _refuse_difference(everyone[0], member, [key for key in SHARED if key not in vary], "cannot share a figure or table")
    opts = dict.fromkeys(member.opt for member in everyone)
    order = sorted(opts, key=lambda opt: ORDER.index(opt) if opt in ORDER else len(ORDER))
    pools = {name: members for opt in order
             for name, members in variants(opt, [member for member in everyone if member.opt == opt], vary).items()}
    return Comparison({name: _pool(members) for name, members in pools.items()}, vary)


def _pool(members: list[Member]) -> tuple[Member, ...]:
    for member in members[1:]:
        keys = [key for key in sorted({*members[0].config, *member.config}) if key not in NO_MATTER]
        _refuse_difference(members[0], member, keys, f"are both {member.opt} and cannot be pooled", True)
    seeds = [member.config.get("seed") for member in members]
    if len(set(seeds)) < len(seeds):
        raise RecordError(f"seed={seeds}: runs of {members[0].opt} repeat a seed; give each run once")
    return tuple(sorted(members, key=lambda member: member.config.get("seed", 0)))


def _refuse_difference(first: Member, other: Member, keys: Iterable[str], consequence: str, apart: bool = False) -> None:
    for key in keys:
        ours, theirs = first.config.get(key), other.config.get(key)
        if ours != theirs:
            raise RecordError(f"{key}={theirs} and {key}={ours}: {other.name} and {first.name} {consequence}; "
                              f"choose runs that agree in {key}"
                              + (f", or tell them apart with landscape figures --vary {key}" if apart else ""))


def _evaluated(member: Member) -> bool:
    return any(name.startswith("test_accuracy/") for name in _filled(member))


def _filled(member: Member) -> list[str]:
    return list(member.metrics.columns[member.metrics.notna().any()])
