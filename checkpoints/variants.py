"""Runs of one optimizer that differ in settings, told apart: a pool for each setting, its name "sam rho=0.1".

Only settings that are to vary are told apart, and of these only those in which the runs of an optimizer do differ, so that an
optimizer with one setting keeps its plain name.
"""

import difflib
from collections.abc import Mapping, Sequence
from typing import Any, Protocol

from checkpoints.errors import RecordError

LOSS = ("loss", "loss_options", "drw_epoch", "drw_beta")
RADII = ("rho", "head_rho", "tail_rho", "opt_options")
# What published codes do differently, beside the method: see the traps of `landscape inspect`.
FIDELITY = ("weighting", "batchnorm", "scheduler_at", "restore", "norm_epsilon", "gamma_rule", "schedule", "subset", "augment")
FIXED = ("opt", "seed", "dataset", "eta", "many", "few")     # these make other runs, or other groups, not variants


class Configured(Protocol):
    """Anything with a configuration."""

    @property
    def config(self) -> Mapping[str, Any]: ...


def check_vary(vary: Sequence[str], members: Sequence[Configured]) -> tuple[str, ...]:
    """Return the settings that runs may differ in; RecordError names one that no run has, or that makes other groups."""
    known = dict.fromkeys(key for member in members for key in member.config)
    for key in vary:
        if key in FIXED:
            raise RecordError(f"vary={key} is out of range: runs that differ in it have other data, groups or names; choose "
                              "another setting, such as rho")
        if key not in known and key not in (*LOSS, *RADII, *FIDELITY):
            near = difflib.get_close_matches(key, known, n=1)
            hint = f"did you mean {near[0]}?" if near else "expected a setting of landscape train"
            raise RecordError(f"vary={key} is no setting of these runs: {hint}")
    return tuple(dict.fromkeys(vary))


def variants(opt: str, members: Sequence[Configured], vary: Sequence[str]) -> dict[str, list]:
    """Return the runs of one optimizer by their values of `vary`, ascending; one value alone keeps the plain name."""
    keys = [key for key in vary if len({_hashable(member.config.get(key)) for member in members}) > 1]
    pools: dict[tuple, list] = {}
    for member in members:
        pools.setdefault(tuple(_hashable(member.config.get(key)) for key in keys), []).append(member)
    ordered = sorted(pools.items(), key=lambda pair: [_rank(value) for value in pair[0]])
    return {variant_name(opt, found[0].config, keys): found for _, found in ordered}


def variant_name(opt: str, config: Mapping[str, Any], keys: Sequence[str]) -> str:
    """Return the name of a pool: the optimizer, then what sets it apart.

    >>> variant_name("sam", {"rho": 0.1, "loss": "LDAM"}, ["rho", "loss"])
    'sam rho=0.1,loss=LDAM'
    """
    return " ".join([opt, ",".join(f"{key}={plain(config.get(key))}" for key in keys)]).strip()


def plain(value: Any) -> str:
    """Return a setting's value in a few letters."""
    if isinstance(value, float):
        return f"{value:g}"
    if isinstance(value, Mapping):
        return "{" + ";".join(f"{key}:{plain(item)}" for key, item in value.items()) + "}"
    return str(value)


def _hashable(value: Any) -> Any:
    if isinstance(value, Mapping):
        return tuple(sorted((key, _hashable(item)) for key, item in value.items()))
    return tuple(map(_hashable, value)) if isinstance(value, (list, tuple)) else value


def _rank(value: Any) -> tuple:
    """Order values of any kinds: None, then numbers, then the rest by its text."""
    if value is None:
        return (0, 0.0, "")
    return (1, float(value), "") if isinstance(value, (bool, int, float)) else (2, 0.0, str(value))
