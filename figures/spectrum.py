"""Spectral densities of class groups: how much of the Hessian's spectrum lies where, and how far it reaches below zero.

The density of a stored Gauss rule is smoothed here, at drawing time. Two styles:

relative   the axis is linear up to s = 1e-3 max|lambda| and logarithmic beyond, u = arcsinh(lambda / s); the Gaussian
           has standard deviation 0.25 on that axis (a decade is 2.3), more where Lanczos resolves less, and density is
           per unit of u. Scaling the loss only relabels the axis. s is shared by all panels. The floor is a tenth of
           a single eigenvalue's peak.
published  symlog with linear threshold 1, Gaussian on the eigenvalue axis with sigma^2 = 1e-5 max(1, lambda_max -
           lambda_min), floor 1e-7 (PyHessian; Rangwani et al. 2022, released code). Not scale-free.

One run: the band is Student's t over probes. Several runs: over the means of the seeds.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.ticker import NullLocator

from analysis.findings import summary
from analysis.spectra import quadrature
from analysis.spectra.intervals import t_half_width
from checkpoints.comparison import Comparison, check_same_object
from checkpoints.errors import RecordError
from checkpoints.records import Curvature, Spectrum
from figures import style
from figures.options import Options
from figures.panels import group_names, optimizer_names, panels

STYLES = ("relative", "published")
_BANDWIDTH = 0.25   # on the axis u = arcsinh(lambda / s)


@dataclass(frozen=True)
class Scale:
    """How eigenvalues become places on the axis, shared by the panels that are compared."""

    name: str        # one of STYLES
    linear: float    # |lambda| below which the axis is linear
    floor: float     # smallest density drawn
    low: float       # ends of the eigenvalue axis
    high: float

    @property
    def label(self) -> str:
        if self.name == "published":
            return r"density [parameter$^2$ / nats]"
        return r"density [1 / arcsinh($\lambda / s$)]"

    def place(self, values: np.ndarray) -> np.ndarray:
        """Return where eigenvalues lie on a smooth axis, for spacing a grid evenly."""
        return np.arcsinh(values / self.linear)


def common_scale(spectra: Sequence[Spectrum], name: str = "relative", marks: Sequence[float] = ()) -> Scale:
    """Return the scale that all `spectra` share in one figure; the eigenvalues `marks` are in view besides."""
    if name not in STYLES:
        raise RecordError(f"style={name} is unknown: expected one of {', '.join(STYLES)}")
    if not any(np.nanmax(np.abs(spectrum.nodes)) > 0 for spectrum in spectra):
        raise RecordError("the spectra are zero everywhere: there is nothing to draw")
    linear = 1.0 if name == "published" else quadrature.threshold(spectra)
    size = max(spectrum.size for spectrum in spectra)
    floor = 1e-7 if name == "published" else 0.1 / (size * _BANDWIDTH * np.sqrt(2 * np.pi))
    low = min([*marks, *(np.nanmin(spectrum.nodes) for spectrum in spectra)])
    high = max([*marks, *(np.nanmax(spectrum.nodes) for spectrum in spectra)])
    ends = np.arcsinh(np.array([min(low, -linear), max(high, linear)]) / linear)
    low, high = linear * np.sinh(ends + np.array([-1, 1]) * 0.1 * (ends[1] - ends[0]))
    return Scale(name, linear, floor, float(low), float(high))


def scale_of(records: Sequence[Curvature], name: str = "relative") -> Scale:
    """Return the scale that all `records` share in one figure, their extreme eigenvalues in view; refuse a mixture."""
    check_same_object(records)
    marks = [float(value) for record in records for value in record.eigenpairs.values]
    return common_scale([record.spectrum for record in records], name, marks)


def density_grid(spectra: Sequence[Spectrum], scale: Scale, points: int = 1201) -> np.ndarray:
    """Return eigenvalues (P,), ascending, dense enough that no smoothed node falls between two of them."""
    ends = scale.place(np.array([scale.low, scale.high]))
    even = scale.linear * np.sinh(np.linspace(*ends, points))
    if scale.name == "relative":
        return even
    # A Gaussian of fixed width is a needle far out on a logarithmic axis: follow each one.
    steps = np.linspace(-4, 4, 17)
    around = [spectrum.nodes[..., None] + steps * quadrature.published_bandwidth(spectrum) for spectrum in spectra]
    grid = np.concatenate([even, *(nodes[np.isfinite(nodes)] for nodes in around)])
    return np.unique(np.clip(grid, scale.low, scale.high))


def smoothed(spectra: Sequence[Spectrum], grid: np.ndarray, scale: Scale, level: float = 0.95):
    """Return mean density and the lower and upper edge of its band on `grid`, (P,) each.

    One spectrum: a t interval over its probes (NaN with one probe). Several: one over the seeds' densities.
    """
    bands = [quadrature.density_band(spectrum, grid, *_kernel(spectrum, scale, level)) for spectrum in spectra]
    if len(bands) == 1:
        return bands[0]
    means = np.array([mean for mean, _, _ in bands])
    mean, half = means.mean(axis=0), t_half_width(means, level)
    return mean, mean - half, mean + half


def plot_spectrum(ax: Axes, spectra: Spectrum | Sequence[Spectrum], scale: Scale | None = None, *, color: str = "black",
                  level: float = 0.95, width: float = 2.5) -> dict:
    """Draw the density of one spectrum, or the mean over several, with its band; return the artists by name.

    The background of negative curvature is tinted. Axis limits, ticks and labels follow `scale`; the axes are about
    `width` inches wide.
    """
    spectra = [spectra] if isinstance(spectra, Spectrum) else list(spectra)
    scale = scale or common_scale(spectra)
    grid = density_grid(spectra, scale)
    mean, low, high = (np.maximum(values, scale.floor) for values in smoothed(spectra, grid, scale, level))
    set_eigenvalue_axis(ax, scale, width)
    line, = ax.plot(grid, mean, color=color, zorder=3)
    band = ax.fill_between(grid, low, high, color=color, alpha=0.25, linewidth=0, zorder=2)
    ax.set_yscale("log")
    ax.yaxis.set_minor_locator(NullLocator())
    return {"line": line, "band": band}


def set_eigenvalue_axis(ax: Axes, scale: Scale, width: float = 2.5) -> None:
    """Set scale, limits and ticks of an eigenvalue axis of about `width` inches, and tint its negative half."""
    if scale.name == "published":
        ax.set_xscale("symlog", linthresh=scale.linear)
    else:
        ax.set_xscale("asinh", linear_width=scale.linear)
    ax.set_xlim(scale.low, scale.high)
    ticks = eigenvalue_ticks(scale, width)
    ax.set_xticks(ticks, [_tick_label(tick) for tick in ticks])
    ax.set_xticks([], minor=True)
    ax.axvspan(scale.low, 0, color=style.NEGATIVE, linewidth=0, zorder=0)


def eigenvalue_ticks(scale: Scale, width: float = 2.5) -> list[float]:
    """Return zero and signed powers of ten, evenly spaced, whose labels fit side by side in `width` inches."""
    # On the smooth axis the powers next to s crowd zero.
    first = int(np.ceil(np.log10(scale.linear) + (0.0 if scale.name == "published" else 0.5)))
    last = int(np.floor(np.log10(max(-scale.low, scale.high))))
    for stride in range(1, max(2, last - first + 2)):
        powers = [10.0 ** power for power in range(last, first - 1, -stride)]
        ticks = sorted([0.0, *(p for p in powers if p <= scale.high), *(-p for p in powers if -p >= scale.low)])
        if _labels_fit(ticks, scale, width):
            return ticks
    return [0.0]


def _labels_fit(ticks: Sequence[float], scale: Scale, width: float) -> bool:
    ends = scale.place(np.array([scale.low, scale.high]))
    gaps = np.diff(scale.place(np.array(ticks))) / (ends[1] - ends[0]) * width * 72   # points
    widths = np.array([4.5 * (len(_tick_label(tick)) if "$" not in _tick_label(tick) else 5) for tick in ticks])
    return bool((gaps >= (widths[1:] + widths[:-1]) / 2 + 2).all())


def mark_extremes(ax: Axes, records: Sequence[Curvature], color: str = "black") -> dict:
    """Mark lambda_min and lambda_max: a line at the mean, and a triangle for each run on the axis.

    A filled triangle is verified: the sign of the eigenvalue survives the float64 second opinion. Others are hollow.
    """
    artists = {}
    for name, end, dashes in (("lambda_min", 0, (0, (3, 1.5))), ("lambda_max", -1, (0, (1, 1)))):
        pairs = [record.eigenpairs for record in records if record.eigenpairs.values.size]
        if not pairs:
            continue
        values, verified = np.array([pair.values[end] for pair in pairs]), [bool(pair.verified[end]) for pair in pairs]
        artists[name] = ax.axvline(values.mean(), color=color, linestyle=dashes, linewidth=0.9, zorder=1)
        artists[f"{name} runs"] = [_triangle(ax, value, sure, color) for value, sure in zip(values, verified)]
    return artists


def annotation(records: Sequence[Curvature], level: float = 0.95) -> str:
    """Return the numbers of one panel as lines of text: lambda_min, lambda_max, trace, loss, test accuracy."""
    def text(quantity, factor=1.0, decimals=None):
        estimate = summary.pooled(records, quantity, level)
        return summary.interval_text(*(factor * v for v in (estimate.value, estimate.low, estimate.high)), decimals)

    lines = [rf"$\lambda_{{\min}}$  {text('lambda_min')}", rf"$\lambda_{{\max}}$  {text('lambda_max')}",
             f"trace  {text('trace')}", f"loss  {text('loss')}"]
    if not any(np.isnan(record.test_accuracy) for record in records):
        lines.append(f"test acc.  {text('test_accuracy', 100, 1)} %")
    return "\n".join(lines)


def draw_spectra(runs: Comparison, options: Options) -> Figure:
    """Draw the density of every class group (rows) for every optimizer (columns) at one epoch, on shared axes."""
    groups = runs.present(options.groups)
    epoch = runs.epoch(groups, options.epoch)
    pools = {(group, opt): runs.curvatures(opt, epoch, group) for group in groups for opt in runs.optimizers}
    scale = scale_of([record for pool in pools.values() for record in pool], options.style)
    made = panels(groups, runs.optimizers, 2.0 if style.most_columns() > 2 else 2.45, top=0.75)
    for key, ax in made.axes.items():
        color = style.look(key[1]).color
        plot_spectrum(ax, [record.spectrum for record in pools[key]], scale, color=color, level=options.level,
                      width=(made.figure.get_figwidth() - 0.7) / made.across - 0.15)
        mark_extremes(ax, pools[key], color)
        ax.set_title(annotation(pools[key], options.level), loc="left", fontsize=style.SMALL, linespacing=1.25)
    made[groups[0], runs.optimizers[0]].set_ylim(bottom=scale.floor)
    made.name(group_names(groups), optimizer_names(runs.optimizers), lift=54)
    made.label_y(scale.label)
    made.figure.supxlabel(style.LAMBDA_LABEL)
    hessians = style.describe_hessians([record for pool in pools.values() for record in pool])
    text = f"{style.describe(runs)}, epoch {epoch}{hessians}" + (f", s = {scale.linear:.2g}" if scale.name == "relative" else "")
    style.shared_legend(made.figure, _legend_handles(runs), text, 4 if len(runs.optimizers) > 2 else 2)
    return made.figure


def _legend_handles(runs: Comparison) -> list[Line2D]:
    band = "interval over seeds" if runs.num_seeds > 1 else "interval over probes"
    return [Line2D([], [], color=style.MUTED, label="mean density"),
            Patch(color=style.MUTED, alpha=0.25, linewidth=0, label=band),
            Line2D([], [], color=style.MUTED, linestyle="", marker="^",
                   label=r"$\lambda_{\min}$, $\lambda_{\max}$ of a run, sign verified"),
            Line2D([], [], color=style.MUTED, linestyle="", marker="^", markerfacecolor="white", label="not verified")]


def _triangle(ax: Axes, value: float, verified: bool, color: str):
    marker, = ax.plot([value], [0.0], marker="^", markersize=4.5, color=color,
                      markerfacecolor=color if verified else "white",
                      markeredgewidth=0.7, linestyle="", transform=ax.get_xaxis_transform(), clip_on=False, zorder=4)
    return marker


def _kernel(spectrum: Spectrum, scale: Scale, level: float) -> tuple[float, float, float | None]:
    if scale.name == "published":
        return quadrature.published_bandwidth(spectrum), level, None
    return _BANDWIDTH, level, scale.linear


def _tick_label(value: float) -> str:
    if value == 0 or 0.01 <= abs(value) <= 1000:
        return f"{value:g}".replace("-", "\N{MINUS SIGN}")
    sign = "-" if value < 0 else ""
    return rf"${sign}10^{{{round(np.log10(abs(value)))}}}$"
