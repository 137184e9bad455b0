"""Which epoch's test accuracy a run calls its result, in words that say how it was chosen.

selection="last" takes the last evaluated epoch. selection="test_best" takes the one whose accuracy over all test images,
without flip averaging, is highest, the first of several: as most long-tailed papers do, and optimistic, for the test
images then choose the model that they judge.
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import pandas as pd

PLAIN, FLIP, CHOSEN_BY = "test_accuracy/", "test_accuracy_flip/", "test_accuracy/all"
WORDS = {"last": "last", "test_best": "best, selected on the test set"}


@dataclass(frozen=True)
class Outcome:
    """The test accuracy of one epoch, in [0, 1], by class group."""

    epoch: int
    selection: str
    flip_average: bool
    accuracy: dict[str, float]
    row: dict[str, float]       # everything that was measured in this epoch

    @property
    def words(self) -> str:
        """How it was chosen and measured: never without the test set where that chose it."""
        return f"epoch {self.epoch}, {WORDS[self.selection]}{', flips averaged' if self.flip_average else ''}"

    @property
    def document(self) -> dict[str, Any]:
        """The same as plain values."""
        return {"epoch": self.epoch, "selection": self.selection, "selected_on_test_set": self.selection == "test_best",
                "flip_average": self.flip_average, "accuracy": self.accuracy}


def choose(metrics: "pd.DataFrame", selection: str, flip_average: bool) -> Outcome | None:
    """Return the outcome of a run's metrics; None before the first evaluation.

    Where a mirror image is not of its image's class, nothing was averaged over flips, and the plain accuracy is it.
    """
    if CHOSEN_BY not in metrics or metrics[CHOSEN_BY].isna().all():
        return None
    table = metrics.dropna(subset=[CHOSEN_BY])
    row = table.loc[table[CHOSEN_BY].idxmax()] if selection == "test_best" else table.iloc[-1]
    values = row.dropna().to_dict()
    prefix = FLIP if flip_average and f"{FLIP}all" in values else PLAIN
    accuracy = {name.removeprefix(prefix): value for name, value in values.items() if name.startswith(prefix)}
    return Outcome(int(row["epoch"]), selection, prefix == FLIP, accuracy, values)


def every_choice(metrics: "pd.DataFrame") -> list[Outcome]:
    """Return what each choice of epoch and of flips gives, without repetition."""
    found = [choose(metrics, selection, flip) for selection in WORDS for flip in (False, True)]
    return [outcome for place, outcome in enumerate(found) if outcome and outcome not in found[:place]]
