"""The numbers behind figures that are no tables themselves, for the CSV beside them: what is drawn, and nothing else.

One row a point: of a smoothed density with its band, of a line with its quadratic prediction, of a plane, of the overview.
"""

from dataclasses import replace

import numpy as np
import pandas as pd

from analysis.findings import summary
from checkpoints.comparison import Comparison
from figures import saddle, spectrum, surface
from figures.lines import line_of, quadratic_prediction
from figures.options import Options


def densities(runs: Comparison, options: Options) -> pd.DataFrame:
    """Return opt, group, epoch, eigenvalue, density and the band's low and high, those below the drawing's floor as they are."""
    groups = runs.present(options.groups)
    epoch = runs.epoch(groups, options.epoch)
    pools = {(group, opt): runs.curvatures(opt, epoch, group) for group in groups for opt in runs.optimizers}
    scale = spectrum.scale_of([record for pool in pools.values() for record in pool], options.style)
    parts = []
    for (group, opt), pool in pools.items():
        spectra = [record.spectrum for record in pool]
        grid = spectrum.density_grid(spectra, scale)
        density, low, high = spectrum.smoothed(spectra, grid, scale, options.level)
        parts.append(pd.DataFrame({"opt": opt, "group": group, "epoch": epoch, "eigenvalue": grid, "density": density, "low": low,
                                   "high": high}))
    return pd.concat(parts).set_index("opt")


def lines(runs: Comparison, options: Options) -> pd.DataFrame:
    """Return opt, surface, group, alpha, loss and its quadratic prediction, NaN where none is known."""
    parts = []
    for name in runs.surface_names(1, options.epoch):
        for opt in runs.optimizers:
            line = runs.surface(opt, name)
            for group in runs.present(options.groups):
                predicted = quadratic_prediction(line, group)
                parts.append(pd.DataFrame({
                    "opt": opt, "surface": name, "group": group, "alpha": line.alpha, "loss": line_of(line, group),
                    "predicted": np.full(len(line.alpha), np.nan) if predicted is None else predicted}))
    return pd.concat(parts).set_index("opt")


def planes(runs: Comparison, options: Options) -> pd.DataFrame:
    """Return opt, surface, group, alpha, beta and loss of the plane that is drawn."""
    parts = []
    for opt, plane in surface.planes_of(runs, options).items():
        alpha, beta = (axis.ravel() for axis in np.meshgrid(plane.alpha, plane.beta, indexing="ij"))
        parts += [pd.DataFrame({"opt": opt, "surface": plane.name, "group": group, "alpha": alpha, "beta": beta,
                                "loss": surface.plane_of(plane, group).ravel()}) for group in runs.present(options.groups)]
    return pd.concat(parts).set_index("opt")


def overview(runs: Comparison, options: Options) -> pd.DataFrame:
    """Return opt, quantity (density | lambda_min | test_accuracy), group, epoch, value, low, high, eigenvalue, seed.

    The value of a density is that at `eigenvalue`. Rows with a seed are dots, the others means; low and high go with accuracy.
    """
    groups = runs.present(options.groups)
    density = densities(runs, replace(options, style="relative")).drop(columns=["low", "high"]).reset_index()
    lowest = saddle.over_epochs(runs, groups, "lambda_min")[["opt", "group", "epoch", "value"]]
    seeds = summary.curvature_frame(runs)[["opt", "seed", "group", "epoch", "lambda_min"]]
    parts = {"density": [density.rename(columns={"density": "value"})],
             "lambda_min": [lowest, seeds[seeds["group"].isin(groups)].rename(columns={"lambda_min": "value"})],
             "test_accuracy": _accuracies(runs, groups, options.level)}
    made = pd.concat([part.assign(quantity=quantity) for quantity in parts for part in parts[quantity]])
    return made.set_index("opt")[["quantity", "group", "epoch", "value", "low", "high", "eigenvalue", "seed"]]


def _accuracies(runs: Comparison, groups: tuple[str, ...], level: float) -> list[pd.DataFrame]:
    """Return the mean accuracies of the last epoch with their intervals, and those of every seed."""
    means, seeds = summary.accuracy_table(runs, groups=groups, level=level).reset_index(), summary.last_accuracies(runs, groups)
    interval = {"low": "_low", "high": "_high", "value": ""}
    return [means[["opt", "epoch"]].assign(group=group, **{name: means[group + end] for name, end in interval.items()})
            for group in groups] + [seeds[["opt", "epoch", "seed"]].assign(group=group, value=seeds[group]) for group in groups]
