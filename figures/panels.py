"""The scaffold of every figure made of panels: rows by columns of them, arranged to fit the width of the page.

Where the columns do not fit side by side, two or more rows that do are turned into columns (four optimizers across become
four down, head and tail side by side), and anything else is folded: the first columns, the next below them. Who draws
speaks of rows and columns by name, and of axes shared by row, column or all; where each panel stands is decided here, and
with it which of them carry names, axis labels and tick labels.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from math import ceil
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from figures import style

Key = tuple[str, str]          # the names of a panel's row and column
Name = str | tuple[str, str]   # a text, or a text and its color
TALLEST = 2.5                  # inches: a square panel


@dataclass(frozen=True, eq=False)
class Panels:
    """Axes by the names of their row and column, and where on the page each of them stands."""

    figure: Figure
    axes: dict[Key, Axes]
    places: dict[Key, tuple[int, int]]   # line and position on the page, from the upper left
    turned: bool                         # rows stand side by side, columns one below the other
    height: float                        # inches of a panel, with its labels

    def __getitem__(self, key: Key) -> Axes:
        return self.axes[key]

    def __iter__(self) -> Iterator[Axes]:
        return iter(self.axes.values())

    @property
    def across(self) -> int:
        """How many panels stand side by side."""
        return 1 + max(position for _, position in self.places.values())

    def row(self, name: str) -> list[Axes]:
        """Return the axes of one row, in the order of the columns."""
        return [ax for (row, _), ax in self.axes.items() if row == name]

    def column(self, name: str) -> list[Axes]:
        """Return the axes of one column, in the order of the rows."""
        return [ax for (_, column), ax in self.axes.items() if column == name]

    def leftmost(self) -> list[Key]:
        """Return the panels at the left edge of the page."""
        return [key for key, (_, position) in self.places.items() if position == 0]

    def lowest(self) -> list[Key]:
        """Return the panels with none below them."""
        return self._lowest(list(self.axes))

    def lowest_of_rows(self) -> list[Key]:
        """Return the panels with none of their own row below them."""
        rows = dict.fromkeys(row for row, _ in self.axes)
        return [key for row in rows for key in self._lowest([key for key in self.axes if key[0] == row])]

    def _lowest(self, keys: Sequence[Key]) -> list[Key]:
        depth: dict[int, int] = {}
        for line, position in (self.places[key] for key in keys):
            depth[position] = max(line, depth.get(position, 0))
        return [key for key in keys if self.places[key][0] == depth[self.places[key][1]]]

    def label_x(self, text: str | Mapping[str, str]) -> None:
        """Write the x label below the lowest panels, or that of each row by name below the row's own lowest."""
        for key in self.lowest() if isinstance(text, str) or self.turned else self.lowest_of_rows():
            self.axes[key].set_xlabel(text if isinstance(text, str) else text[key[0]])

    def label_y(self, text: str | Mapping[str, str]) -> None:
        """Write the y label beside the panels at the left, or that of each row by name; rows that were turned all have theirs.

        A label longer than its panel is broken into lines.
        """
        for key, ax in self.axes.items():
            if key in self.leftmost() or (self.turned and not isinstance(text, str)):
                label = text if isinstance(text, str) else text[key[0]]
                points = style.size("axes.labelsize")
                ax.set_ylabel("\n".join(style.wrapped(self.figure, line, 0, points, 0.8 * self.height)
                                        for line in label.splitlines()))

    def name(self, rows: Mapping[str, Name], columns: Mapping[str, Name], lift: float = 0.0) -> None:
        """Write the names of rows and columns in bold: above the panels at the top, and beside those at the left.

        lift: points between a panel and its name above, where something else stands between them. Names that are missing are
        not written.
        """
        for ax, side, text, color in self.names(rows, columns):
            if side == "beside":
                style.name_row(ax, text).set_color(color)
            else:
                _name_above(ax, text, color, lift)

    def names(self, rows: Mapping[str, Name], columns: Mapping[str, Name]) -> Iterator[tuple[Axes, str, str, str]]:
        """Yield the axes, side ("above" or "beside"), text and color of each name to be written."""
        above, beside, place = (rows, columns, 0) if self.turned else (columns, rows, 1)
        lines = {line for line, _ in self.places.values()}
        folded = len(lines) > len({key[1 - place] for key in self.axes})
        for key, ax in self.axes.items():
            line, position = self.places[key]
            if (line == 0 or folded) and key[place] in above:
                yield ax, "above", *_parts(above[key[place]])
            if position == 0 and key[1 - place] in beside:
                yield ax, "beside", *_parts(beside[key[1 - place]])


def panels(rows: Sequence[str], columns: Sequence[str], height: float, *, top: float = 0.7, square: bool = False,
           share_x: str = "all", share_y: str = "all", **options: Any) -> Panels:
    """Return empty panels, each `height` inches, or less where they stand in more lines, under `top` inches for legend and note.

    The figure is as wide as the page. square: wide panels are higher, up to TALLEST, and rows of one column are turned.
    share_x, share_y: all | row | column | none.
    """
    roomy = style.page_width() >= style.PANEL * (len(rows) + 1)
    places, turned = arrange(rows, columns, style.most_columns(), turn=square and len(columns) == 1 and roomy)
    lines, width = (1 + max(place[way] for place in places.values()) for way in (0, 1))
    height *= 1.0 if lines <= len(rows) else 0.85
    height = max(height, min(TALLEST, 0.6 * style.page_width() / width)) if square else height
    figure = style.new_figure(top + height * lines)
    cells, axes, shared = figure.add_gridspec(lines, width), {}, {}
    for key, place in places.items():
        found = {f"share{way}": shared.get((way, _kin(key, kind))) for way, kind in (("x", share_x), ("y", share_y))}
        axes[key] = ax = figure.add_subplot(cells[place], **found, **options)
        for way, kind in (("x", share_x), ("y", share_y)):
            shared.setdefault((way, _kin(key, kind)), ax)
    made = Panels(figure, axes, places, turned, height)
    _hide_inner_labels(made, share_x, share_y)
    return made


def arrange(rows: Sequence[str], columns: Sequence[str], most: int,
            turn: bool = False) -> tuple[dict[Key, tuple[int, int]], bool]:
    """Return the place (line, position) of every panel with at most `most` side by side, and whether they were turned.

    turn: also where the columns fit side by side.

    >>> arrange(["head", "tail"], ["sgd", "sam", "imbsam"], 2)[0]["tail", "imbsam"]
    (2, 1)
    """
    turned = (turn or len(columns) > most) and 2 <= len(rows) <= most
    if turned:
        return {(row, column): (i, j) for j, row in enumerate(rows) for i, column in enumerate(columns)}, True
    side = ceil(len(columns) / ceil(len(columns) / most))   # folded lines are equally long, or nearly
    lines = ceil(len(columns) / side)
    return {(row, column): (i * lines + j // side, j % side) for i, row in enumerate(rows)
            for j, column in enumerate(columns)}, False


def optimizer_names(opts: Sequence[str]) -> dict[str, Name]:
    """Return optimizers as `Panels.name` writes them."""
    return {opt: (style.look(opt).name, style.look(opt).color) for opt in opts}


def group_names(groups: Sequence[str]) -> dict[str, Name]:
    """Return class groups as `Panels.name` writes them."""
    return {group: style.group_name(group) for group in groups}


def _name_above(ax: Axes, text: str, color: str, lift: float) -> None:
    if lift:
        ax.annotate(text, (0, 1), xycoords="axes fraction", xytext=(0, lift), textcoords="offset points",
                    fontsize=style.size("axes.titlesize"), fontweight="bold", color=color)
    else:
        ax.set_title(text, loc="left", fontweight="bold", color=color)


def _parts(name: Name) -> tuple[str, str]:
    return (name, "black") if isinstance(name, str) else name


def _kin(key: Key, kind: str) -> Any:
    """Return what the panels that share an axis with this one have in common."""
    return {"all": "all", "row": ("row", key[0]), "column": ("column", key[1]), "none": key}[kind]


def _hide_inner_labels(made: Panels, share_x: str, share_y: str) -> None:
    """Leave tick labels off where the panel below, or that to the left, shows the same axis."""
    at = {place: key for key, place in made.places.items()}
    for key, (line, position) in made.places.items():
        below, left = at.get((line + 1, position)), at.get((line, position - 1))
        if below and _kin(below, share_x) == _kin(key, share_x):
            made[key].tick_params(labelbottom=False)
        if left and _kin(left, share_y) == _kin(key, share_y):
            made[key].tick_params(labelleft=False)
