"""The catalogue: every figure by name, what it shows, the records it is drawn from, and the paper that has one like it.

`draw(name, runs, options)` makes the figure, `write` makes its files. Tables come with a CSV of the numbers drawn.
"""

import difflib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import pandas as pd
from matplotlib.figure import Figure

from analysis import summary
from checkpoints.comparison import Comparison
from checkpoints.errors import RecordError
from figures import accuracy, overview, saddle, spectrum, style, surface
from figures.options import Options


@dataclass(frozen=True)
class Entry:
    """One figure of the catalogue."""

    draw: Callable[[Comparison, Options], Figure]
    shows: str      # the quantity, by its name in the glossary
    records: str    # what must be stored
    source: str     # where a figure like it is printed
    table: Callable[[Comparison, Options], pd.DataFrame] | None = None   # the numbers drawn, as a CSV beside the figure


def _accuracies(runs: Comparison, options: Options) -> pd.DataFrame:
    return summary.accuracy_table(runs, options.epoch, level=options.level)


def _curvatures(runs: Comparison, options: Options) -> pd.DataFrame:
    return summary.curvature_table(runs, options.epoch, options.groups, options.level)


def _over_epochs(quantity: str) -> Callable[[Comparison, Options], pd.DataFrame]:
    def table(runs: Comparison, options: Options) -> pd.DataFrame:
        return saddle.over_epochs(runs, runs.present(options.groups), quantity, options.level).set_index("opt")
    return table


_RANGWANI, _LYU = "Rangwani et al. 2022", "Lyu et al. 2025 (SSE-SAM)"
CATALOGUE = {
    "overview": Entry(overview.draw_overview, "spectra, lambda_min over epochs and test accuracy in one picture",
                      "spectra, metrics", _LYU + ", overview"),
    "spectra": Entry(spectrum.draw_spectra, "spectral density with lambda_min, lambda_max, trace", "spectra",
                     _RANGWANI + ", class-wise spectra"),
    "extreme_ratio": Entry(saddle.draw_extreme_ratio, "|lambda_min| / |lambda_max| over epochs",
                           "spectra of several epochs",
                           _RANGWANI + ", non-convexity dynamics", _over_epochs("extreme_ratio")),
    "negative_mass": Entry(saddle.draw_negative_mass, "fraction of eigenvalues below -threshold over epochs",
                           "spectra of several epochs", "none; its own quantity", _over_epochs("negative_mass")),
    "lambda_min": Entry(saddle.draw_lambda_min, "the most negative eigenvalue over epochs", "spectra of several epochs",
                        _RANGWANI + ", values of class-wise spectra", _over_epochs("lambda_min")),
    "surface": Entry(surface.draw_surface, "loss on a plane, as contours", "planes",
                     "Li et al. 2018; Chen et al. 2026, Fig. 2"),
    "surface_3d": Entry(surface.draw_surface_3d, "loss on a plane, in three dimensions", "planes", "Li et al. 2018"),
    "lines": Entry(surface.draw_lines, "loss along lines, with lambda alpha^2 / 2 where lambda is known", "lines",
                   "Li et al. 2018"),
    "accuracy_curves": Entry(accuracy.draw_accuracy_curves, "test accuracy over epochs", "metrics",
                             _LYU + ", overview"),
    "accuracy_table": Entry(accuracy.draw_accuracy_table, "test accuracy of Many, Medium, Few, Head, Tail, All",
                            "metrics", _LYU + ", README table", _accuracies),
    "curvature_table": Entry(accuracy.draw_curvature_table,
                             "lambda_min, lambda_max, extreme ratio, negative mass, trace",
                             "spectra", _RANGWANI + ", values", _curvatures),
}


def entry(name: str) -> Entry:
    """Return one figure of the catalogue; RecordError names the choices."""
    if name not in CATALOGUE:
        near = difflib.get_close_matches(name, CATALOGUE, n=1)
        hint = f" (did you mean {near[0]}?)" if near else ""
        raise RecordError(f"figure {name!r} is unknown{hint}: expected one of {', '.join(CATALOGUE)}")
    return CATALOGUE[name]


def draw(name: str, runs: Comparison, options: Options = Options()) -> Figure:
    """Return the figure `name` drawn from records of `runs`; an absent record is a RecordError naming what to run."""
    with style.context(options.rc):
        return entry(name).draw(runs, options)


def write(name: str, runs: Comparison, folder: Path, options: Options = Options(),
          formats: Sequence[str] = ("pdf", "png"),
          dpi: int = 200) -> list[Path]:
    """Write the figure `name` into `folder`, one file a format, and the CSV of its numbers if it has one."""
    found = entry(name)
    with style.context(options.rc):
        paths = style.save(found.draw(runs, options), folder / name, formats, dpi)
    if found.table is not None:
        paths.append(folder / f"{name}.csv")
        found.table(runs, options).to_csv(paths[-1])
    return paths
