import json
from html.parser import HTMLParser

import numpy as np
import pytest

from figures.markup import Markup, embedded_json, from_math, joined, table, tag


@pytest.mark.parametrize("made, expected", [
    (tag("p", "a < b & c"), "<p>a &lt; b &amp; c</p>"),
    (tag("p", tag("b", "<i>")), "<p><b>&lt;i&gt;</b></p>"),
    (tag("p", None, "x", 3), "<p>x3</p>"),
    (tag("a", "x", href='"><script>', class_="k", data_label="l"),
     '<a href="&quot;&gt;&lt;script&gt;" class="k" data-label="l">x</a>'),
    (tag("input", checked=True, disabled=False, value=None), "<input checked>"),
    (tag("meta", name="viewport"), '<meta name="viewport">'),
    (joined(["<", Markup("<br>")], between=" & "), "&lt; &amp; <br>"),
])
def test_what_is_no_markup_is_escaped(made, expected):
    assert made == expected and isinstance(made, Markup)


@pytest.mark.parametrize("text, expected", [
    (r"$\lambda_{\min}$", "λ<sub>min</sub>"), (r"a < b, $x^2$", "a &lt; b, x<sup>2</sup>"), ("plain", "plain"),
    (r"$|\lambda_{\min}| \,/\, |\lambda_{\max}|$", "|λ<sub>min</sub>|  /  |λ<sub>max</sub>|"),
    (r"$<script>$", "&lt;script&gt;"), ("$x$ and $y$", "x and y"), ("", "")])
def test_mathematics_becomes_markup(text, expected):
    assert from_math(text) == expected


@pytest.mark.parametrize("text", ["</script>", "<!--", "a & b", "\u2028", "ü 'single' \"double\""])
def test_json_in_a_page_cannot_end_its_element_and_says_the_same(text):
    made = embedded_json({text: [text]})
    assert not set("<>&\u2028") & set(made) and json.loads(made) == {text: [text]}


def test_numbers_in_a_page_are_short_and_what_is_not_finite_is_null():
    made = embedded_json({"x": np.array([[1 / 3, np.nan], [np.inf, -1e-9]]), "n": np.int64(3), "t": (1.23456789, True)})
    assert json.loads(made) == {"x": [[0.333333, None], [None, -1e-09]], "n": 3, "t": [1.23457, True]}


class Cells(HTMLParser):
    def __init__(self):
        super().__init__()
        self.found = []

    def handle_starttag(self, name, attributes):
        if name in ("th", "td"):
            self.found.append((name, dict(attributes)))


def test_every_cell_of_a_table_knows_its_head():
    parser = Cells()
    parser.feed(table(["", from_math(r"$\lambda_{\min}$"), "b <"], [["row", 1, 2], ["other", 3, "<b>"]], gaps=[1]))
    cells = [attributes["data-label"] for name, attributes in parser.found if name == "td"]
    assert cells == ["λmin", "b <"] * 2
    assert [attributes["scope"] for name, attributes in parser.found if name == "th"] == ["col"] * 3 + ["row"] * 2
