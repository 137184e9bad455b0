"""The catalogue: every figure by name, what it shows, the records it is drawn from, and the paper that has one like it.

`draw(name, runs, options)` makes the figure, `write` makes its files: with the picture a CSV of the numbers drawn and, of a
table, the LaTeX.
"""

import difflib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
from matplotlib.figure import Figure

from analysis.findings import outcomes, summary
from checkpoints.comparison import Comparison
from checkpoints.errors import RecordError
from checkpoints.variants import FIDELITY, LOSS, RADII
from figures import (accuracy, classwise, cost, drawn, escape, history, latex, lines, mechanism, methods, overview, quality,
                     robustness, saddle, spectrum, style, surface, sweep, toy, trajectory)
from figures.options import Options
from figures.tables import Printed, figure_of

SPECTRUM, SURFACE, TRAIN = "landscape spectrum RUN", "landscape surface RUN", "landscape train"


@dataclass(frozen=True)
class Entry:
    """One figure of the catalogue."""

    draw: Callable[[Comparison, Options], Figure]
    shows: str      # in a few words
    records: str    # what must be stored
    source: str     # where a figure like it is printed
    table: Callable[[Comparison, Options], pd.DataFrame] | None = None   # the numbers drawn, as a CSV beside the figure
    item: int | None = None          # its number among the 18 figures and tables of the literature; None: beside them
    quantity: str = ""               # what is plotted, by its name in the README's list of quantities
    command: str = SPECTRUM          # makes the records
    printed: Callable[[Comparison, Options], Printed] | None = None      # a table as text: drawn, and written for LaTeX
    vary: tuple[str, ...] = ()       # settings that runs of one optimizer may differ in: see checkpoints.variants
    groups: Callable[[Comparison, int | None], tuple[str, ...]] | None = None   # drawn by default; None: head and tail


def _table(printed: Callable[[Comparison, Options], Printed], *rest: Any, **options: Any) -> Entry:
    return Entry(figure_of(printed), *rest, printed=printed, **options)


def _accuracies(runs: Comparison, options: Options) -> pd.DataFrame:
    return outcomes.accuracy_outcomes(runs, options.epoch, level=options.level)


def _curvatures(runs: Comparison, options: Options) -> pd.DataFrame:
    return summary.curvature_table(runs, options.epoch, options.groups, options.level)


def _over_epochs(quantity: str) -> Callable[[Comparison, Options], pd.DataFrame]:
    def table(runs: Comparison, options: Options) -> pd.DataFrame:
        return saddle.over_epochs(runs, runs.present(options.groups), quantity, options.level).set_index("opt")
    return table


_RANGWANI, _LYU = "Rangwani et al. 2022", "Lyu et al. 2025 (SSE-SAM)"
_MEASURE = "landscape measure {} RUN"
_SWEEP = "landscape spectrum RUN --epoch all"
_DENSITY, _ENDS = "spectral density", "lambda_min, lambda_max"
CATALOGUE = {
    "overview": Entry(overview.draw_overview, "spectra, lambda_min over epochs and test accuracy in one picture",
                      "spectra, metrics", _LYU + ", overview", drawn.overview,
                      quantity="spectral density, lambda_min, test accuracy", command=_SWEEP),
    "spectra": Entry(spectrum.draw_spectra, "spectral density with lambda_min, lambda_max, trace", "spectra",
                     _RANGWANI + ", class-wise spectra", drawn.densities, item=1, quantity=f"{_DENSITY}, {_ENDS}, trace"),
    "extreme_ratio": Entry(saddle.draw_extreme_ratio, "|lambda_min| / |lambda_max| over epochs", "spectra of several epochs",
                           _RANGWANI + ", non-convexity dynamics", _over_epochs("extreme_ratio"), item=2,
                           quantity="extreme_ratio", command=_SWEEP),
    "negative_mass": Entry(saddle.draw_negative_mass, "fraction of eigenvalues below -threshold over epochs",
                           "spectra of several epochs", "none; its own quantity", _over_epochs("negative_mass"),
                           quantity="negative_mass", command=_SWEEP),
    "lambda_min": Entry(saddle.draw_lambda_min, "the most negative eigenvalue over epochs", "spectra of several epochs",
                        _RANGWANI + ", values of class-wise spectra", _over_epochs("lambda_min"), quantity="lambda_min",
                        command=_SWEEP),
    "classwise": Entry(classwise.draw_classwise, "spectrum of all data against a head and a tail class", "spectra",
                       _RANGWANI + ", poster", classwise.classwise_table, item=3, quantity=f"{_DENSITY}, {_ENDS}",
                       command="landscape spectrum RUN --group all class:0 class:9", groups=classwise.classwise_groups),
    "rho_sweep": Entry(sweep.draw_rho_sweep, "accuracy of all and tail, and the tail's lambda_min, against rho",
                       "spectra, metrics", _RANGWANI + ", radius", sweep.rho_sweep_table, item=7,
                       quantity="test accuracy, lambda_min", vary=RADII),
    "switches": _table(sweep.print_switches, "what each setting that published codes set otherwise changes", "spectra, metrics",
                       "none; the releases' own differences", sweep.switches_table, item=17,
                       quantity=f"test accuracy, {_ENDS}", vary=FIDELITY),
    "verdicts": _table(history.print_verdicts, "strict saddle, slope, none found or undecided, with the evidence", "spectra",
                       "Nesterov and Polyak 2006; Jin et al. 2017, definitions", history.verdicts_table,
                       quantity="verdict, gradient norm, lambda_min, lambda_max, extreme_ratio", vary=LOSS),
    "escape_epochs": Entry(history.draw_escape_epochs, "first checkpoint without negative curvature above resolution, by seed",
                           "spectra of several epochs", "none; its own quantity", history.escape_epochs_table,
                           quantity="escape epoch", command=_SWEEP),
    "tracking": Entry(history.draw_tracking, "overlap of the most negative eigenvectors with those of the checkpoint before",
                      "spectra of several epochs", "Gur-Ari et al. 2018, for the largest ones", history.tracking_table,
                      quantity="eigenvector overlap", command=_SWEEP),
    "overlap_matrix": Entry(history.draw_overlap_matrix, "|<v_i(t), v_j(t+1)>| of the most negative eigenvectors",
                            "spectra of several epochs", "none; its own quantity", history.tracking_table,
                            quantity="eigenvector overlap", command=_SWEEP),
    "curvature_table": _table(accuracy.print_curvature_table, "lambda_min, lambda_max, extreme ratio, negative mass, trace",
                              "spectra", _RANGWANI + ", values", _curvatures, item=4, vary=LOSS,
                              quantity=f"{_ENDS}, extreme_ratio, negative_mass, trace"),
    "accuracy_table": _table(accuracy.print_accuracy_table, "test accuracy of Many, Medium, Few, Head, Tail, All: last epoch and "
                             "best on the test set, with and without flips", "metrics", _LYU + ", README table", _accuracies,
                             item=5, quantity="test accuracy", command=TRAIN, vary=LOSS),
    "methods_table": _table(methods.print_methods, "every method's accuracy, curvature of each group, alignment and cost",
                            "spectra, metrics, alignment where it is", "none; what the papers report, in one table",
                            methods.numbers, vary=LOSS, quantity=f"test accuracy, {_ENDS}, extreme_ratio, negative_mass, trace, "
                            "alignment, cost of training"),
    "accuracy_curves": Entry(accuracy.draw_accuracy_curves, "test accuracy over epochs", "metrics", _LYU + ", overview",
                             accuracy.stages_table, quantity="test accuracy", command=TRAIN),
    "stages": Entry(accuracy.draw_stages, "accuracy of head and tail over epochs, before and after the switch", "metrics",
                    _LYU + ", overview", accuracy.stages_table, item=6, quantity="test accuracy", command=TRAIN),
    "escape": Entry(escape.draw_escape, "loss along v_min, both ways, beside its quadratic prediction: where an escape leads",
                    "escape", "none; its own quantity", escape.escape_table, quantity="loss",
                    command=_MEASURE.format("escape")),
    "lines": Entry(lines.draw_lines, "loss along lines, with its quadratic prediction and how far that holds", "lines",
                   "Li et al. 2018", drawn.lines, item=11, quantity="loss", command=SURFACE + " --directions tail:min"),
    "surface": Entry(surface.draw_surface, "loss on a plane, as contours", "planes", "Li et al. 2018; Chen et al. 2026, Fig. 2",
                     drawn.planes, item=11, quantity="loss", command=SURFACE),
    "surface_3d": Entry(surface.draw_surface_3d, "loss on a plane, in three dimensions", "planes", "Li et al. 2018", drawn.planes,
                        item=11, quantity="loss", command=SURFACE),
    "trajectory": Entry(trajectory.draw_trajectory, "the path of training over contours of the loss, distances and barriers",
                        "planes through checkpoints", "Chen et al. 2026, Fig. 1; Li et al. 2018", trajectory.trajectory_table,
                        item=12, quantity="loss, barrier", command=SURFACE + " --directions pca"),
    "alignment": Entry(mechanism.draw_alignment, "alignment of each perturbation with the most negative eigenvectors over epochs",
                       "alignment", "the theory of Lyu et al. 2025", mechanism.alignment_table, item=8, quantity="alignment",
                       command=_MEASURE.format("alignment") + " --epoch all"),
    "amplification": Entry(mechanism.draw_amplification, "amplification of the gradient along v, measured against predicted",
                           "amplification", "Rangwani et al. 2022, theory", mechanism.amplification_table, item=9,
                           quantity="amplification", command=_MEASURE.format("amplification")),
    "toy": Entry(toy.draw_toy, "steps to leave toy saddles against rho, with closed forms", "toy",
                 "Rangwani et al. 2022, theory; Lyu et al. 2025, theory", toy.toy_table, item=10, quantity="escape steps",
                 command=_MEASURE.format("toy")),
    "similarity": Entry(mechanism.draw_similarity, "cosine of group gradients with those of mini-batches, as bars", "similarity",
                        "Chen et al. 2026, Fig. 6", mechanism.similarity_table, item=13, quantity="similarity",
                        command=_MEASURE.format("similarity") + " --epoch all"),
    "ablation": Entry(mechanism.draw_ablation, "group gradients in full, projected on the global one, and with it removed",
                      "ablation", "Chen et al. 2026, Table 5", mechanism.ablation_table, item=15, quantity="ablation",
                      command=_MEASURE.format("ablation")),
    "quality": Entry(quality.draw_quality, "feature quality of groups over epochs, as published and as released", "quality",
                     "Chen et al. 2026, Fig. 2", quality.quality_table, item=14, quantity="feature quality",
                     command=_MEASURE.format("quality") + " --epoch all"),
    "cost": _table(cost.print_cost_table, "forwards, backwards and seconds of a training step", "cost",
                   "Lyu et al. 2025 (SSE-SAM), cost", cost.cost_table, item=16, quantity="cost of a step",
                   command=_MEASURE.format("cost")),
    "robustness": Entry(robustness.draw_robustness, "lambda_min under other choices of how it is measured", "robustness",
                        "none; the papers' own settings side by side", robustness.robustness_table, item=18,
                        quantity="lambda_min", command=_MEASURE.format("robustness")),
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
    with style.context(options.rc, options.width):
        return entry(name).draw(runs, options)


def write(name: str, runs: Comparison, folder: Path, options: Options = Options(),
          formats: Sequence[str] = ("pdf", "png"),
          dpi: int = 200) -> list[Path]:
    """Write the figure `name` into `folder`, one file a format, the CSV of its numbers if it has one, and a table's LaTeX."""
    found = entry(name)
    with style.context(options.rc, options.width):
        paths = style.save(found.draw(runs, options), folder / name, formats, dpi)
    if found.table is not None:
        paths.append(folder / f"{name}.csv")
        found.table(runs, options).to_csv(paths[-1])
    if found.printed is not None:
        paths.append(folder / f"{name}.tex")
        paths[-1].write_text(latex.table(found.printed(runs, options), name), encoding="utf-8")
    return paths
