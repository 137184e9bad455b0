"""Tables as they are printed: the same cells drawn as a figure and written for LaTeX.

A `Printed` table holds text, made by `analysis.findings.summary` from the numbers of the CSV beside it. Where its columns do
not fit the width of the page, the drawing continues them below, rows named again.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from checkpoints.comparison import Comparison
from figures import style
from figures.options import Options

LINE, HEAD, PAD = 0.24, 0.30, 0.11   # inches: a row, the row of heads, room beside a cell
CELL = 7.5                           # points


@dataclass(frozen=True)
class Printed:
    """Heads, named rows and cells of text; mathematics between dollars, in heads alone."""

    heads: tuple[str, ...]
    names: tuple[tuple[str, str], ...]      # of each row: text and color
    cells: tuple[tuple[str, ...], ...]      # a text for each row and head; "absent" is set back
    caption: str                            # what it shows, of which runs, the number of seeds and the kind of interval
    gaps: tuple[int, ...] = ()              # rows with a thin rule above them
    over_names: str = ""                    # head of the names


def figure_of(printed: Callable[[Comparison, Options], Printed]) -> Callable[[Comparison, Options], Figure]:
    """Return the function that draws the table which `printed` makes, for the catalogue."""
    def draw(runs: Comparison, options: Options) -> Figure:
        return draw_printed(printed(runs, options))
    return draw


def draw_printed(table: Printed) -> Figure:
    """Draw a table at the page's width, its caption above; columns that do not fit stand below the others."""
    probe = style.new_figure(1)
    first, widths = column_widths(probe, table)
    parts = fitting(widths, style.page_width() - first - 0.1)
    height = sum(HEAD + LINE * len(table.names) + 0.12 for _ in parts)
    lines = style.wrapped(probe, table.caption).count("\n") + 1
    figure = style.new_figure(0.12 + 0.14 * lines + height, min(style.page_width(), max(
        first + max(sum(widths[i] for i in part) for part in parts) + 0.2, 0.6 * style.page_width())))
    axes = figure.subplots(len(parts), 1, squeeze=False)[:, 0]
    for ax, part in zip(axes, parts):
        plot_table(ax, [table.heads[i] for i in part], table.names, [[row[i] for i in part] for row in table.cells],
                   table.gaps, first=first, widths=[widths[i] for i in part], over_names=table.over_names)
    style.shared_legend(figure, [], table.caption)
    return figure


def plot_table(ax: Axes, columns: Sequence[str], rows: Sequence[tuple[str, str]], cells: Sequence[Sequence[str]],
               gaps: Sequence[int] = (), *, first: float = 1.2, widths: Sequence[float] | None = None,
               over_names: str = "") -> list:
    """Write a table with rules above, below and under the head; return its texts, heads first, then row by row.

    rows: (name, color) pairs; cells: one text a row and column; gaps: rows with a thin rule above them. first, widths: of the
    names and of each column, in any unit.
    """
    widths = [1.0] * len(columns) if widths is None else list(widths)
    centers = [first + sum(widths[:i]) + widths[i] / 2 for i in range(len(widths))]
    ax.set_axis_off()
    ax.set_xlim(0, first + sum(widths))
    ax.set_ylim(len(rows) + 0.1, -1.1)
    for y, width in ((-1.1, 1.0), (-0.1, 0.6), (len(rows) + 0.1, 1.0), *((gap, 0.3) for gap in gaps)):
        ax.plot(ax.get_xlim(), [y, y], color="black", linewidth=width, clip_on=False)
    texts = [ax.text(x, -0.6, name, ha="center", va="center", fontsize=8) for x, name in zip(centers, columns)]
    if over_names:
        ax.text(0.03, -0.6, over_names, va="center", fontsize=8)
    for y, ((name, color), row) in enumerate(zip(rows, cells)):
        texts.append(ax.text(0.03, y + 0.5, name, color=color, fontweight="bold", va="center", fontsize=8))
        texts += [ax.text(x, y + 0.5, cell, ha="center", va="center", fontsize=CELL,
                          color=style.MUTED if cell == "absent" else "black") for x, cell in zip(centers, row)]
    return texts


def column_widths(figure: Figure, table: Printed) -> tuple[float, list[float]]:
    """Return the width in inches of the names and of each column, from the widths of their texts."""
    def inches(text: str, points: float, weight: str = "normal") -> float:
        return style.text_width(figure, text, points, weight) / figure.dpi + PAD

    first = max(inches(name, 8, "bold") for name, _ in (*table.names, (table.over_names, "")))
    columns = [max([inches(head, 8), *(inches(row[i], CELL) for row in table.cells)]) for i, head in enumerate(table.heads)]
    return first, columns


def fitting(widths: Sequence[float], room: float) -> list[list[int]]:
    """Return the columns in as few parts as `room` allows, each no wider than it where a column by itself is not.

    Parts are of nearly equal numbers of columns where these fit.

    >>> fitting([1.0, 1.0, 1.5, 9.0], 2.5), fitting([1.0, 1.0, 1.0, 1.0], 3.0)
    ([[0, 1], [2], [3]], [[0, 1], [2, 3]])
    """
    parts: list[list[int]] = [[]]
    for index, width in enumerate(widths):
        if parts[-1] and sum(widths[i] for i in parts[-1]) + width > room:
            parts.append([])
        parts[-1].append(index)
    even = [part.tolist() for part in np.array_split(np.arange(len(widths)), len(parts))]
    return even if all(sum(widths[i] for i in part) <= room for part in even) else parts


def changes(keys: Sequence[str]) -> tuple[int, ...]:
    """Return the rows where a sequence of keys changes: those with a rule above them.

    >>> changes(["head", "head", "tail"])
    (2,)
    """
    return tuple(row for row in range(1, len(keys)) if keys[row] != keys[row - 1])
