import subprocess
import sys
from itertools import combinations

import matplotlib
import pandas as pd
import pytest
from fabricated_runs import fake_runs
from matplotlib.text import Text

from checkpoints.comparison import compare
from checkpoints.errors import RecordError
from figures import Options, catalogue, draw, style

FIGURES = sorted(catalogue.CATALOGUE)


@pytest.fixture(scope="module")
def runs():
    return compare(fake_runs(seeds=(0, 1), epochs=(0, 60), probes=2, steps=8))


@pytest.fixture(scope="module")
def drawn(runs):
    """Every figure, drawn once: {name: (figure, the texts that were really drawn)}."""
    return {name: _rendered(name, runs) for name in FIGURES}


def _rendered(name, runs):
    texts = {}
    original = Text.draw

    def recording(self, renderer, *args, **kwargs):
        if self.get_visible() and self.get_text().strip():
            texts[id(self)] = self
        return original(self, renderer, *args, **kwargs)

    with style.context(), pytest.MonkeyPatch.context() as patch:
        figure = draw(name, runs)
        patch.setattr(Text, "draw", recording)
        figure.canvas.draw()
    return figure, list(texts.values())


def _boxes(figure, texts):
    renderer = figure.canvas.get_renderer()
    return [(text.get_text(), Text.get_window_extent(text, renderer)) for text in texts]


@pytest.mark.parametrize("name", FIGURES)
def test_no_two_texts_overlap(drawn, name):
    for (one, a), (other, b) in combinations(_boxes(*drawn[name]), 2):
        width, height = min(a.x1, b.x1) - max(a.x0, b.x0), min(a.y1, b.y1) - max(a.y0, b.y0)
        assert min(width, height) <= 1.0, f"{one!r} overlaps {other!r}"   # a pixel of a hundredth of an inch


@pytest.mark.parametrize("name", FIGURES)
def test_every_text_lies_within_the_figure(drawn, name):
    figure, texts = drawn[name]
    for text, box in _boxes(figure, texts):
        assert -0.5 <= box.x0 and box.x1 <= figure.bbox.x1 + 0.5, text
        assert -0.5 <= box.y0 and box.y1 <= figure.bbox.y1 + 0.5, text


@pytest.mark.parametrize("name", FIGURES)
def test_texts_are_readable_at_the_width_of_two_columns(drawn, name):
    figure, texts = drawn[name]
    assert figure.get_figwidth() <= 7.0
    assert min(text.get_fontsize() for text in texts) >= 7.0


@pytest.mark.parametrize("name", FIGURES)
def test_no_figure_speaks_of_a_negative_ratio(drawn, name):
    assert not any("negative ratio" in text.get_text().lower() for text in drawn[name][1])


def test_figures_stay_out_of_global_state(drawn):
    assert matplotlib.rcParams["pdf.fonttype"] != 42
    from matplotlib import _pylab_helpers
    assert not _pylab_helpers.Gcf.figs


def test_figures_need_no_torch():
    code = "import sys; from figures import catalogue; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


def test_written_figures_repeat_byte_by_byte_and_come_with_their_numbers(runs, tmp_path):
    paths = [catalogue.write("accuracy_table", runs, tmp_path / part, dpi=50) for part in ("one", "two")]
    assert [path.name for path in paths[0]] == ["accuracy_table.pdf", "accuracy_table.png", "accuracy_table.csv",
                                               "accuracy_table.tex"]
    for one, two in zip(*paths):
        assert one.read_bytes() == two.read_bytes()
    assert list(pd.read_csv(paths[0][2])["opt"]) == ["sgd", "sam", "imbsam", "ssesam"]


@pytest.mark.parametrize("name", [name for name in FIGURES if catalogue.CATALOGUE[name].table])
def test_tables_beside_figures_have_a_row_an_optimizer_at_least(runs, name):
    table = catalogue.entry(name).table(runs, Options()).reset_index()
    assert set(table["opt"]) == set(runs.optimizers)


def test_an_unknown_figure_is_refused_with_the_nearest(runs):
    with pytest.raises(RecordError, match=r"'spektra' is unknown \(did you mean spectra\?\): expected one of overview"):
        draw("spektra", runs)


def test_a_users_setting_reaches_the_figure(runs):
    figure = draw("accuracy_curves", runs, Options(rc={"axes.labelsize": 11}))
    assert figure.axes[0].xaxis.label.get_fontsize() == 11
