"""Pieces of a page in HTML. Whatever is not markup already is escaped, so that no name from a file becomes code.

    tag("p", "a < b & c")           <p>a &lt; b &amp; c</p>
    tag("td", cell, data_label="group")    <td data-label="group">...</td>
"""

import base64
import html
import json
import math
import re
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

EMPTY = frozenset({"img", "source", "meta", "br", "input"})    # elements without an end
_MATH = {r"\lambda": "λ", r"\alpha": "α", r"\beta": "β", r"\eta": "η", r"\rho": "ρ", r"\theta": "θ", r"\,": " ", r"\min": "min",
         r"\max": "max", r"\geq": "≥", r"\leq": "≤", r"\|": "‖", "-": "−"}
_LEVELS = {"_": "sub", "^": "sup"}


class Markup(str):
    """Text that is markup and is not escaped again."""


def tag(name: str, /, *content: Any, **attributes: Any) -> Markup:
    """Return one element. None among the content or attributes is left out; a trailing _ of a name goes, _ becomes -."""
    words = [f' {key.rstrip("_").replace("_", "-")}' + ("" if value is True else f'="{html.escape(str(value))}"')
             for key, value in attributes.items() if value is not None and value is not False]
    start = f"<{name}{''.join(words)}>"
    return Markup(start if name in EMPTY else f"{start}{joined(content)}</{name}>")


def joined(parts: Iterable[Any], between: str = "") -> Markup:
    """Return parts one after the other, those that are not markup escaped."""
    return Markup(html.escape(between).join(
        part if isinstance(part, Markup) else html.escape(str(part)) for part in parts if part is not None))


def table(heads: Sequence[Any], rows: Sequence[Sequence[Any]], *, gaps: Iterable[int] = (), **attributes: Any) -> Markup:
    """Return a table whose first column names the rows; a narrow screen shows each row as a card, its heads as labels."""
    labels = [_plain(head) for head in heads]
    body, gaps = [], set(gaps)
    for number, (name, *cells) in enumerate(rows):
        entries = [tag("td", cell, data_label=label) for cell, label in zip(cells, labels[1:])]
        body.append(tag("tr", tag("th", name, scope="row"), *entries, class_="gap" if number in gaps else None))
    head = tag("tr", *(tag("th", head, scope="col") for head in heads))
    return tag("table", tag("thead", head), tag("tbody", *body), **attributes)


def from_math(text: str) -> Markup:
    r"""Return text with mathematics between dollars, as matplotlib takes it, as markup.

    >>> str(from_math(r"$\lambda_{\min}$ in nats / parameter$^2$"))
    'λ<sub>min</sub> in nats / parameter<sup>2</sup>'
    """
    parts = re.split(r"\$([^$]*)\$", text)
    return joined(_formula(part) if odd % 2 else part for odd, part in enumerate(parts))


def embedded(content: bytes, kind: str = "image/png") -> str:
    """Return content as an address that holds it."""
    return f"data:{kind};base64,{base64.b64encode(content).decode('ascii')}"


def embedded_json(document: Any, digits: int = 6) -> Markup:
    """Return a document for a script element: numbers cut to so many digits, those that are not finite null.

    No character that could end the element or start a comment is left: JSON may write them as escapes.
    """
    text = json.dumps(_shortened(document, digits), separators=(",", ":"), allow_nan=False)
    for character in "<>&\u2028\u2029":
        text = text.replace(character, f"\\u{ord(character):04x}")
    return Markup(text)


def _formula(text: str) -> Markup:
    for name, character in _MATH.items():
        text = text.replace(name, character)
    pieces = re.split(r"([_^])(?:\{([^}]*)\}|(.))", text)      # plain, then level, in braces, bare, plain, ...
    found = [Markup(html.escape(pieces[0].replace("{", "").replace("}", "")))]
    for level, braced, bare, plain in zip(pieces[1::4], pieces[2::4], pieces[3::4], pieces[4::4]):
        found += [tag(_LEVELS[level], braced if braced is not None else bare), plain.replace("{", "").replace("}", "")]
    return joined(found)


def _plain(head: Any) -> str:
    return html.unescape(re.sub(r"<[^>]*>", "", head)) if isinstance(head, Markup) else str(head)


def _shortened(value: Any, digits: int) -> Any:
    if isinstance(value, dict):
        return {str(key): _shortened(item, digits) for key, item in value.items()}
    if isinstance(value, np.ndarray):
        return _shortened(value.tolist(), digits)
    if isinstance(value, (list, tuple)):
        return [_shortened(item, digits) for item in value]
    if isinstance(value, (float, np.floating)):
        return float(f"{value:.{digits}g}") if math.isfinite(value) else None
    return value.item() if isinstance(value, np.generic) else value
