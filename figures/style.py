"""One look for every figure: colors, names, line styles, sizes, and files with the same bytes each time.

Colors are the palette of Okabe and Ito (2008), told apart by color-blind readers; groups are told by line style and
marker besides, so that nothing is lost in gray. Figures are drawn at their final size, one column of a two-column page
(3.25 inches) or both (6.75), with no text below 7 points. Nothing here touches matplotlib's global state beyond
`context`, which also sets the width of the page, as `figure.figsize`.
"""

import logging
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from math import ceil
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
import seaborn
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure, FigureBase
from matplotlib.font_manager import FontProperties
from matplotlib.lines import Line2D

from checkpoints.comparison import UNKNOWN, Comparison, classes_of
from checkpoints.errors import RecordError
from checkpoints.exactness import inexact
from checkpoints.records import Curvature
from landscape.family import FAMILY

WIDTHS = {"one": 3.25, "two": 6.75}   # inches: columns of a two-column page
PANEL = 1.5        # inches: the narrowest panel that a page is divided into
SMALL = 7.0        # points: the smallest text that a journal accepts
FORMATS = ("pdf", "png", "svg")
LAMBDA_LABEL = r"eigenvalue $\lambda$ [nats / parameter$^2$]"
NEGATIVE = "#F6E3E3"   # background of negative curvature
MUTED = "#666666"
SWITCH_LINE = (0, (1, 1.2))
FINE = 8
HANDLE, SPACING = 2.4, 1.6   # of legends: length of a line, and room between columns, in units of the font size


@dataclass(frozen=True)
class Look:
    """How one optimizer is drawn everywhere."""

    name: str
    color: str
    marker: str


SPARE_COLORS = ("#CC79A7", "#56B4E9", "#D55E00")   # of the same palette, for optimizers not named above
GROUP_LINES = {"head": "--", "tail": "-", "all": ":", "many": "--", "medium": "-.", "few": "-"}
GROUP_MARKERS = {"head": "s", "many": "s", "medium": "D", "all": "P", "tail": "o", "few": "o"}
# Single classes, by number: lines and markers of cycles that meet again only after 35 classes.
CLASS_LINES = ("-.", (0, (6, 1.5)), (0, (1, 1)), (0, (4, 1, 1, 1, 1, 1)), (0, (2, 1)))
CLASS_MARKERS = ("o", "v", "^", "X", "*", "p", "d")
BLOCK_LINE = (0, (3, 1, 1, 1, 1, 1))
RC = {
    "font.family": ["sans-serif"], "font.sans-serif": ["DejaVu Sans"],   # matplotlib's own: the same on every machine
    "font.size": 8, "axes.titlesize": 8.5, "axes.labelsize": 8, "figure.labelsize": 8,
    "xtick.labelsize": SMALL, "ytick.labelsize": SMALL,
    "legend.fontsize": 7.5, "legend.frameon": False, "lines.linewidth": 1.3, "lines.markersize": 3.5,
    "axes.linewidth": 0.7, "xtick.major.width": 0.7, "ytick.major.width": 0.7, "xtick.major.size": 2.5,
    "ytick.major.size": 2.5, "xtick.minor.size": 0, "ytick.minor.size": 0, "axes.spines.top": False,
    "axes.spines.right": False, "pdf.fonttype": 42, "svg.hashsalt": "figures", "figure.facecolor": "white",
}
# No time of making and no software version: the same records give the same bytes.
METADATA = {"pdf": {"CreationDate": None, "Producer": None, "Creator": None}, "png": {"Software": None},
            "svg": {"Date": None, "Creator": None}}


@contextmanager
def context(rc: Mapping[str, Any] | None = None, width: str = "two") -> Iterator[None]:
    """Draw and save with the project's settings, with `rc` on top; matplotlib's own settings come back afterwards.

    width: a key of WIDTHS; figure.figsize in `rc` gives any other. A setting that matplotlib does not know, or a value it
    does not take, is a RecordError naming it.
    """
    if width not in WIDTHS:
        raise RecordError(f"width={width} is unknown: expected one of {', '.join(WIDTHS)}")
    with matplotlib.rc_context(seaborn.axes_style("ticks") | RC | {"figure.figsize": (WIDTHS[width], 4.0)}):
        for key, value in (rc or {}).items():
            _set_rc(key, value)
        yield


def look(opt: str) -> Look:
    """Return how `opt` is drawn; an optimizer without an entry gets its name in capitals and a spare color.

    A pool of runs told apart by a setting, "sam rho=0.1", looks as its optimizer and is named with the setting.
    """
    opt, _, setting = opt.partition(" ")
    spare = SPARE_COLORS[sum(opt.encode()) % len(SPARE_COLORS)]
    row, behind = FAMILY.get(opt), f", {setting_name(setting)}" if setting else ""
    if opt == UNKNOWN:
        return Look(f"optimizer unknown{behind}", spare, "v")
    return Look(row.name + behind, row.color or spare, row.marker) if row else \
        Look(opt.rpartition(":")[2].upper() + behind, spare, "v")


def setting_name(setting: str) -> str:
    """Return the settings of a pool as a reader knows them.

    >>> [setting_name(text) for text in ("loss=LDAM,drw_epoch=160", "loss=CE,drw_epoch=None", "tail_rho=0.1,gkp_variant=paper")]
    ['LDAM+DRW', 'CE', 'paper, tail ρ = 0.1']
    """
    found = dict(part.partition("=")[::2] for part in setting.split(","))
    loss = found.pop("loss", "")
    if "drw_epoch" in found and (epoch := found.pop("drw_epoch")) != "None":
        loss = f"{loss}+DRW" if loss else f"DRW from {epoch}"
    variant = [found.pop("gkp_variant")] if "gkp_variant" in found else []
    others = variant + [f"{key.replace('rho', 'ρ').replace('_', ' ')} = {value}" for key, value in found.items()]
    return ", ".join([loss, *others] if loss else others) or "without DRW"


def group_line(group: str) -> str:
    """Return the line style of a class group, which it has everywhere; blocks of parameters are dash-dot-dotted."""
    if "@" in group:
        return BLOCK_LINE
    return GROUP_LINES.get(group) or CLASS_LINES[_class_number(group) % len(CLASS_LINES)]


def group_marker(group: str) -> str:
    """Return the marker of a class group."""
    group = classes_of(group)
    return GROUP_MARKERS.get(group) or CLASS_MARKERS[_class_number(group) % len(CLASS_MARKERS)]


def _class_number(group: str) -> int:
    """Return k of class:k, 0 of any other name."""
    number = group.rpartition(":")[2]
    return int(number) if number.isdecimal() else 0


def group_name(group: str) -> str:
    """Return a group as a reader knows it: "class:3" is "class 3", "tail@layer1" is "tail, layer1"."""
    classes, _, block = group.partition("@")
    return classes.replace(":", " ") + (f", {block.replace('_', ' ').replace('+', ' and ')}" if block else "")


def page_width() -> float:
    """Return the width in inches that a figure may fill: that of the page in use."""
    return float(matplotlib.rcParams["figure.figsize"][0])


def most_columns() -> int:
    """Return how many panels stand side by side on the page at most."""
    return max(1, int(page_width() / PANEL))


def new_figure(height: float, width: float | None = None) -> Figure:
    """Return an empty figure with constrained layout, `width` (default: the page's) x `height` inches, outside global state."""
    figure = Figure(figsize=(width or page_width(), height), layout="constrained")
    FigureCanvasAgg(figure)
    figure.get_layout_engine().set(w_pad=0.03, h_pad=0.03, wspace=0.03, hspace=0.03)
    return figure


def grid(figure: Figure, rows: int, columns: int, **options: Any):
    """Return a (rows, columns) array of axes, also for one row or column."""
    return figure.subplots(rows, columns, squeeze=False, **options)


def describe(runs: Comparison, seeds: bool = True) -> str:
    """Return what the runs have in common, in words: data set, imbalance, split and, if asked, number of seeds."""
    config = runs.config
    factor = config.get("imb_factor")
    parts = [str(config.get("dataset")), f"imbalance {factor:g}" if factor else "",
             f"tail: fewer than {config['eta']:g} training images a class" if config.get("eta") else "",
             runs.seeds_in_words(lambda opt: look(opt).name) if seeds else ""]
    return ", ".join(part for part in parts if part)


def band_note(runs: Comparison, level: float, over_seeds: str = "t interval over seeds", alone: str = "") -> str:
    """Return what bands and bars along curves are: over several seeds, or, where there is one, of the record alone."""
    if runs.num_seeds > 1:
        return f", bands: {100 * level:g} % {over_seeds}"
    return f", bars: {alone}" if alone else ""


def describe_hessians(records: Sequence[Curvature]) -> str:
    """Return, in words, what is not the default about the Hessians of these records: subsets, test images, training loss.

    Inexact products are said first; figures never show them beside exact ones.
    """
    found = {record.group: record for record in records}
    own = {group: record.provenance.get("inputs", {}).get("settings", {}) for group, record in found.items()}
    parts = [f"INEXACT ({word.partition(' ')[2]})" for word in sorted({inexact(r) for r in found.values()} - {""})]
    parts += [f"{record.num_samples} of {record.num_available} images of {group_name(group)}" for group, record in found.items()
              if record.num_samples < record.num_available]
    parts += _where(own, "split", "test", "Hessian over test images")
    parts += _where(own, "loss", "training", "Hessian of the training loss")
    parts += _where(own, "operator", "gauss_newton", "Gauss-Newton matrix in place of the Hessian")
    parts += [f"{group_name(group)}: in the parameters {' '.join(own[group]['params'])}" for group in own
              if own[group].get("params")]
    return "".join(f", {part}" for part in parts)


def _where(settings: Mapping[str, Mapping[str, Any]], name: str, value: str, words: str) -> list[str]:
    """Return the groups whose setting has a value, in words: none are named where all have it."""
    groups = [group for group, own in settings.items() if own.get(name) == value]
    return [words] if groups and len(groups) == len(settings) else [f"{group_name(group)}: {words}" for group in groups]


def name_row(ax: Axes, text: str):
    """Write the name of a row of panels in bold, left of the label of its first axes; return the text."""
    return ax.annotate(text, (0, 0.5), xycoords=ax.yaxis.label, xytext=(-4, 0), textcoords="offset points", rotation=90,
                       ha="right", va="center", fontsize=size("axes.titlesize"), fontweight="bold")


def mark_switch(ax: Axes, epoch: int | None, color: str = MUTED):
    """Draw the vertical line where SSE-SAM's second stage or deferred re-weighting starts; None draws nothing."""
    return None if epoch is None else ax.axvline(epoch, color=color, linestyle=SWITCH_LINE, linewidth=1.1, zorder=0.5)


def switch_handles(runs: Comparison) -> list[Line2D]:
    """Return the legend entries of the vertical lines that `mark_switch` draws for these runs."""
    texts = {"SSE-SAM's second stage" if opt.partition(" ")[0] == "ssesam" else "re-weighting starts"
             for opt, members in runs.members.items() if members[0].switch is not None}
    return [Line2D([], [], color=MUTED, linestyle=SWITCH_LINE, label=text) for text in sorted(texts)]


def shared_legend(figure: FigureBase, handles: Sequence[Any], text: str = "", columns: int | None = None,
                  place: str = "upper"):
    """Put one legend for all panels above them ("upper") or below ("lower"), headed by `text`; return it.

    columns: at most so many entries a row; fewer where more do not fit the figure's width.
    """
    columns = legend_columns(figure, [handle.get_label() for handle in handles], columns)
    legend = figure.legend(handles=handles, loc=f"outside {place} left", ncols=columns, title=wrapped(figure, text),
                           alignment="left", borderpad=0.2, handlelength=HANDLE, columnspacing=SPACING, handletextpad=0.6)
    legend.get_title().set(fontsize=SMALL, color=MUTED)
    return legend


def legend_columns(figure: FigureBase, labels: Sequence[str], most: int | None = None) -> int:
    """Return how many entries stand in one row of a legend: of up to five all, else half, as far as the width allows."""
    number = len(labels)
    most = most or (number if number <= 5 else ceil(number / 2))
    points, point = size("legend.fontsize"), figure.dpi / 72
    widths = [text_width(figure, label, points) + (HANDLE + 0.6) * points * point for label in labels]
    for columns in range(max(1, min(most, number)), 1, -1):
        filled = [max(part) for part in np.array_split(widths, columns)]   # as matplotlib fills them, column by column
        if sum(filled) + (SPACING * (columns - 1) + 0.4) * points * point <= figure.bbox.width - 10 * point:
            return columns
    return 1


def wrapped(figure: FigureBase, text: str, margin: float = 14.0, points: float = SMALL, inches: float | None = None) -> str:
    """Return text of so many points broken between words into lines that fit.

    They fit the figure's width less `margin` points, or so many inches. Mathematics is not broken.
    """
    room = figure.bbox.width if inches is None else inches * figure.dpi
    limit = 0.96 * room - margin * figure.dpi / 72      # glyphs are a little wider at some resolutions
    space = text_width(figure, "x x", points) - text_width(figure, "xx", points)
    lines, filled = [[]], 0.0
    for word in re.findall(r"(?:\$[^$]*\$|\S)+", text):
        width = text_width(figure, word, points)
        if lines[-1] and filled + space + width > limit:
            lines, filled = [*lines, []], 0.0
        filled += width + (space if lines[-1] else 0.0)
        lines[-1].append(word)
    return "\n".join(" ".join(line) for line in lines)


def size(key: str) -> float:
    """Return a font size of matplotlib's settings, such as axes.titlesize, in points."""
    return FontProperties(size=matplotlib.rcParams[key]).get_size_in_points()


def text_width(figure: FigureBase, text: str, points: float = SMALL, weight: str = "normal") -> float:
    """Return the width in pixels of a text of so many points."""
    properties = FontProperties(size=points * FINE, weight=weight)    # so large that no glyph is rounded to pixels
    return 1.02 * figure.canvas.get_renderer().get_text_width_height_descent(text, properties, ismath="$" in text)[0] / FINE


def save(figure: Figure, stem: Path, formats: Sequence[str] = ("pdf", "png"), dpi: int = 200) -> list[Path]:
    """Write `stem`.pdf, `stem`.png ...: the same figure gives the same bytes. Return the paths."""
    for name in formats:
        if name not in FORMATS:
            raise RecordError(f"format={name} is unknown: expected one of {', '.join(FORMATS)}")
    stem.parent.mkdir(parents=True, exist_ok=True)
    paths = [stem.with_name(f"{stem.name}.{name}") for name in formats]
    figure.set_dpi(dpi)
    figure.get_layout_engine().execute(figure)      # once for all formats
    figure.set_layout_engine(None)
    for name, path in zip(formats, paths):
        partial = path.with_name(f".{path.name}.partial")   # a kill leaves the old picture or the new one, never half
        with _quiet_fonts():
            figure.savefig(partial, format=name, dpi=dpi, metadata=METADATA[name])
        partial.replace(path)
    return paths


@contextmanager
def _quiet_fonts() -> Iterator[None]:
    """Keep fontTools from remarking on the dates of matplotlib's own fonts, which nobody can act on."""
    logger = logging.getLogger("fontTools")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(level)


def _set_rc(key: str, value: Any) -> None:
    try:
        matplotlib.rcParams[key] = value
    except (KeyError, ValueError) as error:
        raise RecordError(f"rc {key}={value} is not a matplotlib setting: {str(error).splitlines()[0]}") from error
