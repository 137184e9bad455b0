import subprocess
import sys
from functools import lru_cache
from itertools import combinations

import matplotlib
import pandas as pd
import pytest
from fabricated_runs import fake_runs, swept_runs, switched_runs
from matplotlib.text import Text

from checkpoints.comparison import compare
from checkpoints.errors import RecordError
from figures import Options, catalogue, draw, style
from figures.glossary import QUANTITIES

FIGURES = sorted(catalogue.CATALOGUE)
drawings = pytest.mark.parametrize("name, width", [(name, width) for width in style.WIDTHS for name in FIGURES])


@pytest.fixture(scope="module")
def runs():
    return compare(fake_runs(seeds=(0, 1), epochs=(0, 60), groups=("head", "tail", "all"), probes=2, steps=8, measures=True))


def runs_for(name, runs):
    """Return runs that a figure can be drawn from: some are about runs that differ in a setting."""
    special = {"rho_sweep": swept_runs, "switches": switched_runs}
    few = {"epochs": (60,), "probes": 1, "steps": 4}
    return compare(special[name](**few), vary=catalogue.entry(name).vary) if name in special else runs


@pytest.fixture(scope="module")
def drawn(runs):
    """Every figure at every width, drawn once when asked for: (figure, the texts that were really drawn)."""
    return lru_cache(maxsize=None)(lambda name, width: _rendered(name, width, runs))


def _rendered(name, width, runs, **choices):
    texts = {}
    original = Text.draw

    def recording(self, renderer, *args, **kwargs):
        if self.get_visible() and self.get_text().strip():
            texts[id(self)] = self
        return original(self, renderer, *args, **kwargs)

    with style.context({}, width), pytest.MonkeyPatch.context() as patch:
        figure = draw(name, runs_for(name, runs), Options(width=width, **choices))
        patch.setattr(Text, "draw", recording)
        figure.canvas.draw()
    return figure, list(texts.values())


def _boxes(figure, texts):
    renderer = figure.canvas.get_renderer()
    return [(text.get_text(), Text.get_window_extent(text, renderer)) for text in texts]


@drawings
def test_no_two_texts_overlap(drawn, name, width):
    _check_apart(*drawn(name, width))


@pytest.mark.parametrize("width", style.WIDTHS)
def test_published_spectra_overlap_nowhere_either(runs, width):
    _check_apart(*_rendered("spectra", width, runs, style="published"))


def _check_apart(figure, texts):
    for (one, a), (other, b) in combinations(_boxes(figure, texts), 2):
        across, down = min(a.x1, b.x1) - max(a.x0, b.x0), min(a.y1, b.y1) - max(a.y0, b.y0)
        assert min(across, down) <= 1.0, f"{one!r} overlaps {other!r}"   # a pixel of a hundredth of an inch


@drawings
def test_every_text_lies_within_the_figure(drawn, name, width):
    figure, texts = drawn(name, width)
    for text, box in _boxes(figure, texts):
        assert -0.5 <= box.x0 and box.x1 <= figure.bbox.x1 + 0.5, text
        assert -0.5 <= box.y0 and box.y1 <= figure.bbox.y1 + 0.5, text


@drawings
def test_figures_fill_their_columns_and_are_readable_there(drawn, name, width):
    figure, texts = drawn(name, width)
    assert figure.get_figwidth() <= style.WIDTHS[width]
    assert figure.get_figheight() <= 11.0 or catalogue.CATALOGUE[name].printed   # tables may be longer than a page
    assert min(text.get_fontsize() for text in texts) >= 7.0


@pytest.mark.parametrize("name", FIGURES)
def test_no_figure_speaks_of_a_negative_ratio(drawn, name):
    assert not any("negative ratio" in text.get_text().lower() for text in drawn(name, "two")[1])
    entry = catalogue.CATALOGUE[name]
    assert "negative ratio" not in f"{entry.shows} {entry.quantity} {entry.records}" and entry.quantity and entry.command


def test_every_item_of_the_literature_has_a_figure():
    assert {entry.item for entry in catalogue.CATALOGUE.values()} - {None} == set(range(1, 19))


def test_figures_stay_out_of_global_state(drawn):
    assert matplotlib.rcParams["pdf.fonttype"] != 42
    from matplotlib import _pylab_helpers
    assert not _pylab_helpers.Gcf.figs


def test_figures_need_no_torch():
    code = "import sys; from figures import catalogue; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


def test_written_figures_repeat_byte_by_byte_and_come_with_their_numbers(runs, tmp_path):
    paths = [catalogue.write("accuracy_table", runs, tmp_path / part, dpi=50) for part in ("one", "two")]
    assert [path.name for path in paths[0]] == [f"accuracy_table.{kind}" for kind in ("pdf", "png", "csv", "tex")]
    for one, two in zip(*paths):
        assert one.read_bytes() == two.read_bytes()
    assert list(dict.fromkeys(pd.read_csv(paths[0][2])["opt"])) == ["sgd", "sam", "imbsam", "ssesam"]


@pytest.mark.parametrize("name", [name for name in FIGURES if catalogue.CATALOGUE[name].table])
def test_tables_beside_figures_have_a_row_an_optimizer_at_least(runs, name):
    runs = runs_for(name, runs)
    table = catalogue.entry(name).table(runs, Options()).reset_index()
    assert len(table) and (name in ("toy", "cost") or set(table["opt"]) == {opt.partition(" ")[0] for opt in runs.optimizers})


def test_an_unknown_figure_is_refused_with_the_nearest(runs):
    with pytest.raises(RecordError, match=r"'spektra' is unknown \(did you mean spectra\?\): expected one of overview"):
        draw("spektra", runs)


def test_a_users_setting_reaches_the_figure(runs):
    figure = draw("accuracy_curves", runs, Options(rc={"axes.labelsize": 11, "figure.figsize": "5,4"}))
    assert figure.axes[0].xaxis.label.get_fontsize() == 11 and figure.get_figwidth() == 5.0


def test_a_width_that_is_no_column_is_refused(runs):
    with pytest.raises(RecordError, match="width=three is unknown: expected one of one, two"):
        draw("accuracy_curves", runs, Options(width="three"))


def test_tables_come_as_latex_with_their_caption(runs, tmp_path):
    *_, tex = catalogue.write("curvature_table", runs, tmp_path, formats=["png"], dpi=50)
    text = tex.read_text(encoding="utf-8")
    assert text.count(r"\\") == 9 and r"\toprule" in text and "2 seeds" in text and r"t interval over seeds" in text


@pytest.mark.parametrize("name", FIGURES)
def test_quantities_are_called_as_in_the_readme(name):
    known = {word.strip("` ") for row in QUANTITIES for word in row.name.split(", ")}
    known |= {"spectral density", "test accuracy", "gradient norm"}     # what needs no definition
    assert set(catalogue.CATALOGUE[name].quantity.split(", ")) <= known
