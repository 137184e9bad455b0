r"""Printed tables for LaTeX: booktabs rules, every text escaped, in a document that loads the package booktabs.

The cells are those of the drawn table: a minus sign, ± and a power of ten become mathematics, and heads keep theirs between
dollars. The caption says what the table shows, of how many seeds, and what its intervals are.
"""

import re

from figures.tables import Printed

_ESCAPES = {"\\": r"\textbackslash{}", "&": r"\&", "%": r"\%", "$": r"\$", "#": r"\#", "_": r"\_", "{": r"\{", "}": r"\}",
            "~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "<": r"\textless{}", ">": r"\textgreater{}",
            "|": r"\textbar{}"}
_SIGNS = {"\N{MINUS SIGN}": "$-$", "±": r"$\pm$", "–": "--", "—": "---", "λ": r"$\lambda$", "ρ": r"$\rho$", "θ": r"$\theta$",
          "≤": r"$\le$", "≥": r"$\ge$", "×": r"$\times$", "·": r"$\cdot$", "∞": r"$\infty$", "\N{NO-BREAK SPACE}": "~"}

_POWER = re.compile("(?<=[0-9])e([+\N{MINUS SIGN}])0*([0-9]+)")


def table(printed: Printed, label: str) -> str:
    """Return a whole table environment with caption and label tab:`label`; ends with a newline."""
    rows = [f"{escape(name)} & " + " & ".join(map(escape, cells)) + r" \\"
            for (name, _), cells in zip(printed.names, printed.cells)]
    for gap in sorted(printed.gaps, reverse=True):
        rows.insert(gap, r"\midrule")
    head = " & ".join(map(escape, (printed.over_names, *printed.heads))) + r" \\"
    lines = [r"% needs \usepackage{booktabs}", r"\begin{table}", r"\centering",
             rf"\caption{{{escape(sentence(printed.caption))}}}",
             rf"\label{{tab:{re.sub('[^A-Za-z0-9:-]', '-', label)}}}", rf"\begin{{tabular}}{{l{'c' * len(printed.heads)}}}",
             r"\toprule", head, r"\midrule", *rows, r"\bottomrule", r"\end{tabular}", r"\end{table}"]
    return "\n".join(lines) + "\n"


def escape(text: str) -> str:
    r"""Return text as LaTeX prints it; what stands between two dollars is mathematics and stays as it is.

    >>> escape("50 % of $\\lambda$, class_3"), escape("2.50e\N{MINUS SIGN}07")
    ('50 \\% of $\\lambda$, class\\_3', '2.50$\\times 10^{-7}$')
    """
    pieces = re.split(r"(\$[^$]*\$)", _POWER.sub(_power_of_ten, text))
    return "".join(piece if place % 2 else _escape_words(piece) for place, piece in enumerate(pieces))


def sentence(text: str) -> str:
    """Return a caption with a capital letter in front and a full stop behind."""
    return text[:1].upper() + text[1:] + ("" if text.endswith(".") else ".")


def _escape_words(text: str) -> str:
    return "".join(_ESCAPES.get(letter, _SIGNS.get(letter, letter)) for letter in text)


def _power_of_ten(found: re.Match) -> str:
    sign = "-" if found[1] == "\N{MINUS SIGN}" else ""
    return rf"$\times 10^{{{sign}{found[2]}}}$"
