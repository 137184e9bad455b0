"""The numbers behind figures that are no tables themselves, for the CSV beside them: what is drawn, and nothing else.

One row a point: of a smoothed density with its band, of a line with its quadratic prediction, of a plane.
"""

import numpy as np
import pandas as pd

from checkpoints.comparison import Comparison
from figures import spectrum, surface
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
                predicted = surface.quadratic_prediction(line, group)
                parts.append(pd.DataFrame({
                    "opt": opt, "surface": name, "group": group, "alpha": line.alpha, "loss": surface.line_of(line, group),
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
