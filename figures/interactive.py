"""The part of a page that answers the mouse: one plane of every optimizer in three dimensions, and slices through it.

Every group's loss is on one scale, so that head and tail can be compared when one is switched for the other: from the lowest
loss to the highest 98 % quantile of head and tail, logarithmic where that spans more than a factor of 10. The numbers lie in
the page as JSON, drawn by plotly.js, which is embedded once. What is not finite is left blank.
"""

from collections.abc import Iterable, Sequence
from importlib.resources import files
from typing import Any

import numpy as np
from matplotlib.colors import LogNorm
from scipy.interpolate import RegularGridInterpolator

from checkpoints.comparison import Comparison, check_same_view
from checkpoints.errors import RecordError
from checkpoints.records import Surface
from figures import style
from figures.markup import Markup, embedded_json, joined, tag
from figures.lines import line_of, quadratic_prediction
from figures.surface import common_norm, evaluation_note, plane_of
from figures.trajectory import others_of, path_of

DASHES = {"head": "dash", "many": "dash", "medium": "dashdot", "all": "dot"}     # of plotly; solid for what is not named
FIRST = ("tail", "head", "all")          # groups in the order they are offered
MOST_GROUPS = 20                         # of a surface; more than these: no single classes
BUTTONS = 6                              # more groups than these are chosen from a list


def document_of(runs: Comparison, name: str) -> dict[str, Any]:
    """Return the numbers of the plane `name` of every optimizer's lowest seed, and of the slices that go with it."""
    planes = {opt: runs.surface(opt, name) for opt in runs.optimizers}
    check_same_view(planes.values())
    first = next(iter(planes.values()))
    groups = _offered(first.groups)
    scale = [group for group in ("head", "tail") if group in groups] or groups
    norm = common_norm([plane_of(plane, group) for plane in planes.values() for group in scale])
    return {
        "name": name, "epoch": first.epoch, "units": first.coordinate_units, "directions": list(first.direction_names),
        "groups": {group: style.group_name(group) for group in groups}, "logarithmic": isinstance(norm, LogNorm),
        "range": [norm.vmin, norm.vmax], "evaluated": evaluation_note(planes.values()),
        "planes": [{"opt": opt, "name": style.look(opt).name, "color": style.look(opt).color, "alpha": plane.alpha,
                    "beta": plane.beta, "loss": {group: plane_of(plane, group).T for group in groups},   # rows of plotly are y
                    "marks": _marks(plane, groups)}
                   for opt, plane in planes.items()],
        "slices": _slices(runs, planes, [group for group in groups if group in FIRST] or groups),
    }


def section(runs: Comparison, name: str) -> Markup:
    """Return the markup of surface and slices, the numbers and the programs that draw them.

    RecordError without plotly, and where the plane cannot be drawn.
    """
    document = document_of(runs, name)
    groups, planes = document["groups"], document["planes"]
    names = enumerate(plane["name"] for plane in planes)
    controls = tag("form", _group_choice(groups), _select("plane", "optimizer", names), class_="controls", autocomplete="off")
    slices = tag("form", _select("slice", "slice", enumerate(one["label"] for one in document["slices"])), class_="controls",
                 autocomplete="off")
    return joined([
        controls, _place("surface-plot", "plot tall", _spoken(document)),
        tag("p", _caption(document), class_="caption"), slices,
        _place("slices-plot", "plot", "losses of every group along a line"),
        tag("p", "The loss measured of each group; dotted, where known, what slope and curvature at the checkpoint predict. "
                 "A click on a name in the legend hides or shows its line.", class_="caption"),
        tag("script", embedded_json(document), type="application/json", id="landscape"),
    ])


def programs() -> Markup:
    """Return plotly.js and what uses it, as script elements. RecordError, naming the extra, where plotly is absent."""
    try:
        from plotly.offline import get_plotlyjs
    except ImportError as error:
        raise RecordError("the interactive surface needs plotly: install it with pip install 'saddle-landscape[report]', "
                          "or leave it out with --static") from error
    ours = files("figures").joinpath("page.js").read_text(encoding="utf-8")
    return joined([tag("script", Markup(get_plotlyjs())), tag("script", Markup(ours))])


def _slices(runs: Comparison, planes: dict[str, Surface], groups: Sequence[str]) -> list[dict[str, Any]]:
    """Return the stored lines of the planes' epoch, then cuts through the planes along either axis."""
    epoch = next(iter(planes.values())).epoch
    found = []
    for name in _lines(runs, epoch):
        lines = {opt: runs.surface(opt, name) for opt in runs.optimizers}
        first = next(iter(lines.values()))
        own = [group for group in groups if group in first.groups]
        found.append({"label": f"along {first.direction_names[0]}", "units": first.coordinate_units, "axis": "α", "lines": [
            _line(opt, group, line.alpha, line_of(line, group), quadratic_prediction(line, group))
            for opt, line in lines.items() for group in own]})
    for axis, other, letter in ((0, 1, "α"), (1, 0, "β")):
        first = next(iter(planes.values()))
        label = f"cut of the plane along {letter} ({first.direction_names[axis]})"
        found.append({"label": label, "units": first.coordinate_units, "axis": letter, "lines": [
            _line(opt, group, (plane.alpha, plane.beta)[axis], _cut(plane, group, axis, other))
            for opt, plane in planes.items() for group in groups]})
    return found


def _marks(plane: Surface, groups: Sequence[str]) -> list[dict[str, Any]]:
    """Return the checkpoints within the plane, at (0, 0) where none are named, each with every group's loss interpolated there.

    Those of the run itself come first, in the order of its training.
    """
    epochs, path = path_of(plane)
    named = {f"epoch {epoch}": place for epoch, place in zip(epochs, path)} | others_of(plane) or {
        f"epoch {plane.epoch}": np.zeros(2)}
    heights = {group: RegularGridInterpolator((plane.alpha, plane.beta), plane_of(plane, group), bounds_error=False)
               for group in groups}
    marks = [{"name": name, "own": name.startswith("epoch "), "alpha": float(place[0]), "beta": float(place[1]),
              "loss": {group: float(height(place)[0]) for group, height in heights.items()}} for name, place in named.items()]
    return [mark for mark in marks if any(map(np.isfinite, mark["loss"].values()))]


def _lines(runs: Comparison, epoch: int) -> list[str]:
    try:
        names = runs.surface_names(1, epoch)
        for name in names:
            check_same_view(runs.surface(opt, name) for opt in runs.optimizers)
    except RecordError:     # lines are no part of what was asked for
        return []
    return names


def _cut(plane: Surface, group: str, axis: int, other: int) -> np.ndarray:
    """Return the loss along one axis, at the place of the other that is nearest to the checkpoint."""
    nearest = int(np.abs((plane.alpha, plane.beta)[other]).argmin())
    return plane_of(plane, group).take(nearest, axis=other)


def _line(opt: str, group: str, x: np.ndarray, loss: np.ndarray, predicted: np.ndarray | None = None) -> dict[str, Any]:
    look = style.look(opt)
    return {"name": f"{look.name}, {style.group_name(group)}", "color": look.color, "dash": DASHES.get(group, "solid"),
            "shown": group in ("head", "tail"), "x": x, "y": loss, "predicted": predicted}


def _offered(groups: Sequence[str]) -> list[str]:
    """Return the groups to choose from, halves first; of a surface with very many classes no single ones."""
    shown = groups if len(groups) <= MOST_GROUPS else [group for group in groups if not group.startswith("class:")]
    return [group for group in dict.fromkeys((*FIRST, *shown)) if group in groups]


def _group_choice(groups: dict[str, str]) -> Markup:
    if len(groups) > BUTTONS:
        return _select("group", "loss of", groups.items())
    buttons = [tag("label", tag("input", type="radio", name="group", value=group, checked=not number), word)
               for number, (group, word) in enumerate(groups.items())]
    return tag("fieldset", tag("legend", "loss of"), *buttons)


def _select(name: str, label: str, choices: Iterable[tuple[Any, str]]) -> Markup:
    options = [tag("option", word, value=value) for value, word in choices]
    return tag("label", f"{label} ", tag("select", *options, name=name))


def _place(name: str, look: str, spoken: str) -> Markup:
    """Return where plotly draws: it fills what it is given, so that the size is that of the element around."""
    return tag("div", tag("div", id=name, role="img", aria_label=spoken), class_=look)


def _spoken(document: dict[str, Any]) -> str:
    return f"the loss of one class group on a plane through the weights after epoch {document['epoch']}, in three dimensions"


def _caption(document: dict[str, Any]) -> str:
    names = list(dict.fromkeys(document["directions"]))
    along = f"two {names[0]} directions" if len(names) == 1 else " and ".join(names)
    scale = "logarithmic" if document["logarithmic"] else "linear"
    low, high = document["range"]
    return (f"Drag to turn. The plane {document['name']} through the weights after epoch {document['epoch']}, lowest seed of "
            f"each optimizer{document['evaluated']}; along {along}, α and β in {document['units']}. One {scale} scale for every "
            f"group and optimizer, {low:.3g} to {high:.3g} nats; beyond it, and where the loss is not finite, nothing is drawn. "
            "Marks: checkpoints, those of the run itself joined in order; the loss there is interpolated.")
