"""What a recipe is: settings that hold for all its runs, and rows of settings that hold where their conditions do."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

Settings = Mapping[str, Any]
GIVEN = "<given>"   # as a condition: the setting has a value, whichever


@dataclass(frozen=True)
class Recipe:
    """Settings of one source, what decides among them, and what there is to know when results are compared."""

    source: str
    datasets: tuple[str, ...]
    settings: Settings
    rows: tuple[tuple[Settings, Settings], ...] = ()    # (where all of these hold, these are set)
    required: tuple[tuple[Settings, str, str], ...] = ()    # (where these hold, this setting is not recorded, because)
    traps: tuple[str, ...] = ()         # of the published runs
    inexpressible: tuple[str, ...] = ()  # what the source does and no setting says
    published: tuple[tuple[Settings, Settings], ...] = ()   # (of runs where these hold, the source's test accuracies in %)

    def values(self, chosen: Settings) -> dict[str, Any]:
        """Return what the recipe says about a run in which `chosen` are settled; these decide the rows."""
        said = dict(self.settings)
        for conditions, settings in self.rows:
            if hold(conditions, said | dict(chosen)):
                said |= settings
        return said


def hold(conditions: Settings, settings: Settings) -> bool:
    """Tell whether settings have the values that conditions name."""
    return all(settings.get(name) is not None if wanted is GIVEN else settings.get(name) == wanted
               for name, wanted in conditions.items())
