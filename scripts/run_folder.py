"""The folder of a run: its name, and opening it for a configuration."""

import hashlib
import json
import re
from pathlib import Path
from typing import Any

from checkpoints.store import RunStore
from landscape.configuration import NOT_IDENTITY, TrainConfig

# The settings of the first runs that were stored. One added since is part of a folder's name only where it is not at its
# default, so that those runs keep their names.
NAMED = frozenset("""
    dataset imb_factor profile subset data_seed normalization image_size arch loss loss_options drw_epoch drw_beta opt eta
    many few rho head_rho tail_rho gamma gamma_rule weighting batchnorm epochs batch_size lr momentum weight_decay schedule
    scheduler_at warmup_epochs milestones decay augment seed checkpoint_epochs eval_every max_steps dtype
""".split())


def slug(config: TrainConfig) -> str:
    """Return a folder name that a person can read and that no other configuration has."""
    defaults = TrainConfig().identity()
    identity = {name: value for name, value in config.identity().items() if name in NAMED or value != defaults[name]}
    factor = "" if config.imb_factor is None else f"if{config.imb_factor:g}"
    words = (
        config.dataset,
        factor,
        config.arch,
        config.loss,
        config.opt,
        f"seed{config.seed}",
        hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()[:8],
    )
    return "-".join(re.sub(r"[^a-z0-9.]+", "_", word.lower()).strip("_.") for word in words if word)


def open_run(path: Path, config: TrainConfig, provenance: dict[str, Any]) -> RunStore:
    """Make the run folder of a resolved configuration, or open the one that is there with the same.

    A setting that was added after the run had been stored counts there as its default.
    """
    return RunStore.create(path, config.stored(), provenance=provenance, ignored=NOT_IDENTITY, defaults=TrainConfig().stored())
