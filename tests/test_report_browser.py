"""The page in a real browser: nothing complains, nothing is loaded, it fits, the surface is drawn, names do nothing.

Skipped, with a message, only where no Chromium or Chrome is found; .ci/run installs one.
"""

from dataclasses import replace

import pytest
from chromium import Chromium, find_chromium
from fabricated_runs import fake_runs
from PIL import ImageChops

from checkpoints.comparison import compare
from checkpoints.records import Surface
from figures import report, style
from figures.markup import Markup

pytestmark = pytest.mark.skipif(find_chromium() is None, reason="no Chromium or Chrome is found: apt-get install chromium")
EVIL = "<script>document.title = 'taken'</script>"
WIDE, PHONE = 1280, 390


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    """A page with every part, strange names in it, and a hole in a surface."""
    runs = fake_runs(("sgd", "ssesam"), (0, 1), epochs=(60,), probes=2, steps=6, dataset=EVIL, arch="a" * 90)
    for run in runs:
        run.path = run.path.parent / f"<img src=x onerror=\"document.title='taken'\">{run.path.name}"
        run.kept = [replace(record, direction_names=(EVIL, *record.direction_names[1:]))
                    if isinstance(record, Surface) else record for record in run.kept]
        next(record for record in run.kept if isinstance(record, Surface) and record.beta.size).loss[:, 3, 4] = float("nan")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(report, "PICTURES", ("accuracy_curves",))
        page = report.page_of(compare(runs), title=EVIL, command=["landscape", "report", EVIL])
    file = tmp_path_factory.mktemp("page") / "report.html"
    file.write_text(page.html, encoding="utf-8")
    return file


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    with Chromium(find_chromium(), tmp_path_factory.mktemp("profile")) as browser:
        yield browser


@pytest.fixture(scope="module")
def page(browser, path):
    page = browser.open(path, WIDE)
    page.settle()
    return page


def chosen_in(name: str, index: str) -> str:
    """Return what chooses an entry of a list, as a reader does."""
    return (f"(() => {{ const list = document.querySelector('[name={name}]'), options = list.options; "
            f"list.selectedIndex = {index}; list.dispatchEvent(new Event('change', {{bubbles: true}})); }})()")


def drawn(page) -> int:
    """Return how many different colors are seen where the surface is."""
    colors = page.picture("#surface-plot canvas").getcolors(1 << 24)
    return len(colors)


@pytest.mark.parametrize("width, dark", [(WIDE, False), (PHONE, True)])
def test_nothing_complains_nothing_is_loaded_and_everything_fits(browser, path, width, dark):
    page = browser.open(path, width, dark=dark)
    page.settle()
    assert page.complaints() == []
    assert page.requests() == [path.resolve().as_uri()]
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    wide = page.evaluate("[...document.querySelectorAll('main *')].filter(e => !e.closest('.plot, thead') && "
                         f"e.getBoundingClientRect().right > {width} + 1).map(e => e.tagName + e.textContent.slice(0, 40))")
    assert wide == []
    smallest = page.evaluate("Math.min(...[...document.querySelectorAll('main p, main li, main td, main dd, main th')]"
                             ".map(e => parseFloat(getComputedStyle(e).fontSize)))")
    assert smallest >= 12       # pixels
    scales = page.evaluate("[...document.querySelectorAll('main picture img')].map(e => e.getBoundingClientRect().width / "
                           "e.naturalWidth)")     # of a pixel of the picture on the screen
    dots = report.DPI["one" if width == PHONE else "two"]
    assert scales and min(scales) * style.SMALL / 72 * dots >= 9       # pixels, of the smallest text in a picture
    assert drawn(page) > 300
    for name in ("surface-plot", "slices-plot"):
        assert 200 < page.evaluate(f"document.getElementById('{name}').getBoundingClientRect().height") < 700


def test_names_are_shown_and_do_nothing(page):
    assert page.evaluate("document.title") == EVIL and page.evaluate("document.querySelector('h1').textContent") == EVIL
    text = page.evaluate("document.body.innerText")
    assert EVIL in text and "<img src=x onerror=" in text and page.said("Page.javascriptDialogOpening") == []
    assert page.evaluate("document.querySelectorAll('img:not([src^=\"data:\"])').length") == 0


def test_the_surface_turns_and_another_group_or_optimizer_is_seen_from_the_same_side(page):
    def camera():
        return page.evaluate("Object.values(document.getElementById('surface-plot')._fullLayout.scene._scene.getCamera().eye)")

    def chosen(script, before):
        """Return the surface when it no longer looks as before; after a while it should."""
        page.evaluate(script)
        for _ in range(30):
            after = page.picture("#surface-plot canvas")
            if ImageChops.difference(before, after).getbbox() is not None:
                return after
        raise AssertionError("the surface looks as before")
    start = camera()
    page.drag("#surface-plot canvas", 90, 20)
    first, side = page.picture("#surface-plot canvas"), camera()
    assert max(abs(a - b) for a, b in zip(start, side)) > 0.1
    other = chosen(chosen_in("plane", "1"), first)
    chosen("document.querySelector('[name=group][value=head]').click()", other)
    assert camera() == pytest.approx(side)
    ranges = page.evaluate("document.getElementById('surface-plot')._fullLayout.scene.zaxis.range")
    assert len(ranges) == 2 and page.complaints() == []


def test_a_slice_is_chosen_and_drawn(page):
    lines = "document.querySelectorAll('#slices-plot .scatterlayer path.js-line').length"
    before = page.evaluate(lines)
    page.evaluate(chosen_in("slice", "options.length - 1"))
    page.settle()
    assert before >= 4 and page.evaluate(lines) == 4       # of a cut: two optimizers, two groups, no prediction
    assert page.complaints() == []


def test_on_paper_the_still_pictures_stand_for_what_turns(browser, path):
    page = browser.open(path, WIDE, media="print", dark=True)
    assert page.evaluate("document.getElementById('surface-plot').getBoundingClientRect().height") == 0
    assert page.evaluate("document.getElementById('figure-surface').getBoundingClientRect().height") > 100
    assert page.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)"


def test_the_test_would_see_a_blank_surface_a_request_an_error_and_a_wide_page(browser, path, tmp_path):
    """Each thing that the tests above say is absent, made on purpose."""
    broken = path.read_text(encoding="utf-8").replace("Plotly.react(surface", "new Promise(() => {}, surface")
    broken = broken.replace("default-src 'none'", "default-src *").replace(
        "</main>", Markup('<div style="width: 2000px">x</div><img src="absent.png"><script>undefined.x</script></main>'))
    file = tmp_path / "broken.html"
    file.write_text(broken, encoding="utf-8")
    page = browser.open(file, WIDE)
    page.settle()
    assert page.evaluate("document.querySelector('#surface-plot canvas')") is None
    assert any("absent.png" in url for url in page.requests())
    assert any("undefined" in complaint for complaint in page.complaints())
    assert page.evaluate("document.documentElement.scrollWidth") > WIDE
