import re

import pytest

from figures import latex, style
from figures.tables import Printed, draw_printed

TABLE = Printed(heads=(r"$\lambda_{\min}$", "share [%]", "note"),
                names=(("SGD", "black"), ("my_opt & co", "red"), ("B", "black")),
                cells=(("−0.5 ± 0.1", "50 %", "a_b"), ("1.0", "absent", "$5"), ("(1.00 ± 0.20)e−7", "~", "x<y")), gaps=(1,),
                caption="share of $n_c$ in 50 % of runs, 3 seeds, mean ± 95 % t interval over seeds", over_names="run")


@pytest.mark.parametrize("width, parts", [("two", 1), ("one", 2)])
def test_columns_that_do_not_fit_stand_below_and_none_is_lost(width, parts):
    wide = Printed(heads=tuple(f"a long head {n}" for n in range(4)), names=TABLE.names,
                   cells=tuple(tuple(f"{row}{n}" for n in range(4)) for row in "abc"), caption="")
    with style.context({}, width):
        figure = draw_printed(wide)
    assert len(figure.axes) == parts and figure.get_figwidth() <= style.WIDTHS[width]
    found = [text.get_text() for ax in figure.axes for text in ax.texts]
    cells = sorted(text for text in found if re.fullmatch("[abc][0-3]", text))
    assert cells == [f"{row}{n}" for row in "abc" for n in range(4)]
    assert found.count("SGD") == parts


def test_latex_has_booktabs_rules_every_cell_and_the_caption():
    text = latex.table(TABLE, "my_table")
    lines = text.splitlines()
    assert [line for line in lines if "rule" in line] == [r"\toprule", r"\midrule", r"\midrule", r"\bottomrule"]
    assert r"\label{tab:my-table}" in text and r"\begin{tabular}{lccc}" in text
    assert r"run & $\lambda_{\min}$ & share [\%] & note \\" in lines
    assert r"SGD & $-$0.5 $\pm$ 0.1 & 50 \% & a\_b \\" in lines
    assert lines[lines.index(r"SGD & $-$0.5 $\pm$ 0.1 & 50 \% & a\_b \\") + 1] == r"\midrule"
    assert r"\caption{Share of $n_c$ in 50 \% of runs, 3 seeds, mean $\pm$ 95 \% t interval over seeds.}" in lines
    assert all(line.count("&") - line.count(r"\&") == 3 for line in lines if line.endswith(r"\\"))


@pytest.mark.parametrize("text, expected", [
    ("a&b%c#d_e{f}g", r"a\&b\%c\#d\_e\{f\}g"), ("~^\\", r"\textasciitilde{}\textasciicircum{}\textbackslash{}"),
    ("5 $", r"5 \$"), ("$x_1$ and y_1", r"$x_1$ and y\_1"), ("a < b | c", r"a \textless{} b \textbar{} c")])
def test_every_letter_with_a_meaning_in_latex_is_escaped(text, expected):
    assert latex.escape(text) == expected
