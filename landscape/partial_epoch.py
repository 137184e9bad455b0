"""The part of an epoch that was trained before a stop: with a snapshot, all that the rest of the epoch needs, bit for bit.

    partial/losses        (steps,) the losses of its steps, in their own type
    partial/random/TYPE   state of the generator that the network draws from on this type of device, dropout for one
    partial/seconds       time spent on it

The order of images and their augmentation need no state: they are drawn again from (seed, epoch), and the steps that
are done are passed over.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

PREFIX = "partial/"
RANDOM = PREFIX + "random/"


@dataclass(frozen=True, eq=False)
class PartialEpoch:
    """Steps done in an epoch that has not ended; none of them in an epoch that begins."""

    losses: list[Tensor] = field(default_factory=list)                  # of shape (), on the device
    generators: dict[str, Tensor] = field(default_factory=dict)         # device type -> state, bytes on the CPU
    seconds: float = 0.0

    @classmethod
    def of(cls, losses: list[Tensor], device: torch.device, seconds: float) -> "PartialEpoch":
        """Return what is done after these losses; the generators are read as they are now."""
        generators = {"cpu": torch.get_rng_state()}
        if device.type == "cuda":
            generators["cuda"] = torch.cuda.get_rng_state(device)
        return cls(losses, generators, seconds)

    @classmethod
    def read(cls, arrays: Mapping[str, Any], device: torch.device) -> "PartialEpoch":
        """Return the part that `arrays` hold; the empty one where they were taken at an epoch's end."""
        if PREFIX + "losses" not in arrays:
            return cls()
        losses = list(torch.tensor(arrays[PREFIX + "losses"]).to(device).unbind())
        names = [name for name in arrays if name.startswith(RANDOM)]
        generators = {name.removeprefix(RANDOM): torch.tensor(arrays[name]) for name in names}
        return cls(losses, generators, float(arrays[PREFIX + "seconds"]))

    def arrays(self) -> dict[str, Any]:
        """Return what `read` reads."""
        states = {RANDOM + name: state.numpy() for name, state in self.generators.items()}
        losses = torch.stack(self.losses).cpu().numpy()
        return {PREFIX + "losses": losses, PREFIX + "seconds": self.seconds, **states}

    def set_generators(self, device: torch.device) -> None:
        """Let the network draw on from where it stopped; those of an epoch that begins are left as they were seeded."""
        if "cpu" in self.generators:
            torch.set_rng_state(self.generators["cpu"])
        if "cuda" in self.generators and device.type == "cuda":
            torch.cuda.set_rng_state(self.generators["cuda"], device)


def steps_into_epoch(arrays: Mapping[str, Any] | None) -> int:
    """Return how many steps of an epoch that has not ended a resume point holds."""
    return 0 if arrays is None or PREFIX + "losses" not in arrays else len(arrays[PREFIX + "losses"])
