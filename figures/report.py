"""One self-contained page on some runs, to send to a colleague: question, verdicts, figures, surface, what to trust, origin.

Everything is read from stored records. The page loads nothing: pictures and programs lie in it, and a policy in its head makes
the browser refuse any request. Every name that it prints is escaped.
"""

import io
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from importlib.resources import files

from PIL import Image

from checkpoints.comparison import Comparison
from checkpoints.errors import RecordError
from figures import catalogue, interactive, origin, style, verdicts
from figures.cautions import Caution, cautions
from figures.glossary import QUANTITIES, WORDS
from figures.markup import Markup, embedded, from_math, joined, table, tag
from figures.options import Options
from figures.overview import TITLE
from figures.surface import plane_name

QUESTION = ("Trained on many images of a few classes and few of many, a network can stop where the loss of the rare classes "
            "still curves downwards, which the average over all classes hides. Did these runs leave such saddle points, for the "
            "frequent classes (head) and for the rare ones (tail)?")
PICTURES = ("overview", "accuracy_curves", "spectra", "lambda_min", "extreme_ratio", "negative_mass")
TABLES = ("accuracy_table", "curvature_table")
STILL = ("surface", "lines")                 # beside the interactive part, and in its place on paper
DPI = {"two": 200, "one": 250}               # two: a page; one: a telephone
NARROW = "screen and (max-width: 44rem)"     # as in page.css
POLICY = "default-src 'none'; img-src data: blob:; style-src 'unsafe-inline'; {}; base-uri 'none'; form-action 'none'"


@dataclass(frozen=True)
class Page:
    """A page, and what there is to know about it."""

    html: str
    cautions: tuple[Caution, ...]
    refused: dict[str, str]      # what could not be shown -> why, and what to run


@dataclass(frozen=True)
class Part:
    """One section: its name in addresses, its title, its content."""

    name: str
    title: str
    content: Markup


Told = Callable[[str], object]


def page_of(runs: Comparison, options: Options = Options(), *, title: str = TITLE, still: bool = False,
            figures: Sequence[str] = (), command: Sequence[str] = (), told: Told = lambda name: None) -> Page:
    """Return the page on `runs`.

    still: leave out the interactive surface, and with it plotly. figures: more of the catalogue to draw. command: what makes the
    page again, its last command. `told` is called with the name of each part that begins. RecordError where the runs hold
    nothing that can be shown.
    """
    refused: dict[str, str] = {}
    turning = None if still else _tried("interactive surface", lambda: _interactive(runs, options), refused, told)
    programs = None if turning is None else interactive.programs()      # before the pictures: plotly may be absent
    found = _judged(runs, options, refused)
    shown = [_verdicts(runs, found, options), _figures(runs, options, figures, refused, told),
             _surface(runs, options, turning, refused, told)]
    if not any(shown):
        raise RecordError(f"nothing can be shown of these runs: {next(iter(refused.values()))}")
    warned = cautions(runs, options.groups)
    parts = [part for part in (*shown, _guide(), _origin(runs, found, command)) if part is not None]
    links = tag("nav", *(tag("a", part.title, href=f"#{part.name}") for part in parts), aria_label="parts")
    opening = [tag("h1", title), tag("p", QUESTION, class_="question"), _answer(found),
               tag("p", _about(runs), class_="facts"), _warned(warned), links, _left_out(refused)]
    body = [tag("section", tag("h2", part.title), part.content, id=part.name) for part in parts]
    return Page(_document(title, joined([*opening, *body]), programs), tuple(warned), refused)


def _judged(runs: Comparison, options: Options, refused: dict[str, str]) -> verdicts.Judged:
    """Return the verdicts; nothing, and the reason in `refused`, where spectra are missing."""
    try:
        groups = runs.present(options.groups)
        return verdicts.judged(runs, groups, runs.epoch(groups, options.epoch))
    except RecordError as error:
        refused["verdicts"] = str(error)
        return {}


def _verdicts(runs: Comparison, found: verdicts.Judged, options: Options) -> Part | None:
    if not found:
        return None
    spread = f", mean ± {100 * options.level:g} % t interval over seeds" if runs.num_seeds > 1 else ""
    note = joined([verdicts.LAMBDA_MIN, f" is the most negative curvature found, in nats / parameter²{spread}. Its sign is "
                   "verified by one more product, in float64. |∇L| is the norm of the gradient: above ", verdicts.EPS_G,
                   " the point is no saddle but a slope. Weight decay is no part of this loss."])
    return Part("verdicts", f"Verdicts after epoch {verdicts.epoch_of(found)}",
                joined([verdicts.pooled_table(found, options), tag("p", note, class_="caption"), verdicts.detailed_table(found)]))


def _figures(runs: Comparison, options: Options, more: Sequence[str], refused: dict[str, str], told: Told) -> Part | None:
    names = [name for name in dict.fromkeys((*PICTURES, *more)) if name not in (*TABLES, *STILL)]
    shown = [_tried(name, lambda: _picture(name, runs, options), refused, told) for name in names]
    shown[1:1] = [_tried(name, lambda: _printed(name, runs, options), refused, told) for name in TABLES]
    shown = [one for one in shown if one is not None]
    return Part("figures", "Accuracy and spectra", joined(shown)) if shown else None


def _surface(runs: Comparison, options: Options, turning: Markup | None, refused: dict[str, str], told: Told) -> Part | None:
    shown = [_tried(name, lambda: _picture(name, runs, options), refused, told) for name in STILL]
    shown = [one for one in (turning, *shown) if one is not None]
    return Part("surface", "The loss around the weights", joined(shown)) if shown else None


def _interactive(runs: Comparison, options: Options) -> Markup:
    return interactive.section(runs, plane_name(runs, options))


def _tried(name: str, make: Callable[[], Markup], refused: dict[str, str], told: Told) -> Markup | None:
    told(name)
    try:
        return make()
    except RecordError as error:
        refused[name] = str(error)
        return None


def _picture(name: str, runs: Comparison, options: Options) -> Markup:
    """Return one figure of the catalogue drawn for a page and for a telephone, with what it shows and where it is from."""
    entry = catalogue.entry(name)
    drawn = {width: embedded(_png(name, runs, options, width)) for width in DPI}
    picture = tag("picture", tag("source", media=NARROW, srcset=drawn["one"]), tag("img", src=drawn["two"], alt=entry.shows))
    caption = [f"{_capital(entry.shows)}. A figure like it: {entry.source}. Drawn by ", tag("code", f"landscape figures {name}")]
    return tag("figure", picture, tag("figcaption", *caption), id=f"figure-{name}")


def _png(name: str, runs: Comparison, options: Options, width: str) -> bytes:
    drawn, small, chosen = io.BytesIO(), io.BytesIO(), replace(options, width=width)
    with style.context(chosen.rc, width):
        figure = catalogue.entry(name).draw(runs, chosen)
        figure.savefig(drawn, format="png", dpi=DPI[width], metadata=style.METADATA["png"])
    # 256 colors are enough for what is drawn here, and a third of the bytes.
    Image.open(drawn).convert("RGB").quantize(256, dither=Image.Dither.NONE).save(small, format="png", optimize=True)
    return small.getvalue()


def _capital(text: str) -> str:
    return text[:1].upper() + text[1:]


def _printed(name: str, runs: Comparison, options: Options) -> Markup:
    """Return a table of the catalogue as text."""
    printed = catalogue.entry(name).printed(runs, options)
    rows = [[joined([tag("span", class_="key", style=f"background:{color}"), text]), *(tag("span", cell) for cell in cells)]
            for (text, color), cells in zip(printed.names, printed.cells)]
    return joined([table(["", *map(from_math, printed.heads)], rows, gaps=printed.gaps),
                   tag("p", from_math(_capital(printed.caption)), class_="caption")])


def _answer(found: verdicts.Judged) -> Markup | None:
    return tag("div", *(tag("p", sentence) for sentence in verdicts.sentences(found)), class_="answer") if found else None


def _about(runs: Comparison) -> str:
    number = len(runs.everyone)
    names = ", ".join(style.look(opt).name for opt in runs.optimizers)
    return f"{number} run{'s' * (number > 1)}: {names}; {style.describe(runs)}."


def _warned(found: Sequence[Caution]) -> Markup:
    if not found:
        return tag("p", "Nothing to warn of: all converged, verified and up to date, over all images and several seeds.",
                   class_="facts")
    items = [tag("li", tag("strong", caution.text), ": ", _places(caution.where)) for caution in found]
    return tag("aside", tag("h2", "To know before believing"), tag("ul", *items), class_="cautions")


def _places(where: Sequence[str], shown: int = 3) -> Markup:
    first = "; ".join(where[:shown])
    if len(where) <= shown:
        return tag("span", first, class_="where")
    rest = tag("details", tag("summary", f"and {len(where) - shown} more"), "; ".join(where[shown:]), class_="where")
    return joined([tag("span", first, class_="where"), rest])


def _left_out(refused: dict[str, str]) -> Markup | None:
    if not refused:
        return None
    reasons = dict.fromkeys(refused.values())
    items = [tag("li", f"{', '.join(name for name in refused if refused[name] == reason)}: {reason}") for reason in reasons]
    summary = tag("summary", f"Not shown, for want of records: {', '.join(refused)}")
    return tag("details", summary, tag("ul", *items), class_="facts")


def _guide() -> Part:
    rows = [[from_code(row.name), from_code(row.meaning), from_code(row.uncertainty)] for row in QUANTITIES]
    advice = joined([
        "Believe a negative ", verdicts.LAMBDA_MIN, " whose sign is verified: it proves that much negative curvature, converged "
        "or not. Do not read its absence as proof of a minimum. Compare two numbers only by intervals of the same kind, and two "
        "optimizers only by intervals over seeds. Look at |∇L| before calling anything a saddle."])
    words = [joined([tag("dt", word), tag("dd", meaning)]) for word, meaning in WORDS.items()]
    return Part("guide", "Which number to trust", joined([
        tag("p", advice), table(["name", "what it is", "its uncertainty"], rows, class_="prose"),
        tag("h3", "Words"), tag("dl", *words)]))


def from_code(text: str) -> Markup:
    """Return text of the glossary as markup: `code` and *stress*."""
    pieces = text.split("`")
    parts = [tag("code", piece) if number % 2 else _stressed(piece) for number, piece in enumerate(pieces)]
    return joined(parts)


def _stressed(text: str) -> Markup:
    pieces = text.split("*")
    return joined(tag("em", piece) if number % 2 else piece for number, piece in enumerate(pieces))


def _origin(runs: Comparison, found: verdicts.Judged, command: Sequence[str]) -> Part:
    epoch = verdicts.epoch_of(found) if found else None
    lines = origin.commands(runs, command)
    told = "These commands made the runs and records, in the order of their making; the last makes this page."
    again = [tag("h3", "Make it again"), tag("p", told), tag("pre", "\n".join(lines))] if lines else []
    return Part("origin", "Where the numbers come from", joined([origin.facts(runs), origin.run_table(runs, epoch), *again]))


def _document(title: str, body: Markup, programs: Markup | None) -> str:
    policy = POLICY.format("script-src 'unsafe-inline'" if programs else "script-src 'none'")
    sheet = Markup(files("figures").joinpath("page.css").read_text(encoding="utf-8"))
    head = tag("head", tag("meta", charset="utf-8"), tag("meta", http_equiv="Content-Security-Policy", content=policy),
               tag("meta", name="viewport", content="width=device-width, initial-scale=1"), tag("title", title),
               tag("style", sheet))
    return "<!doctype html>\n" + tag("html", head, tag("body", tag("main", body), programs), lang="en") + "\n"
