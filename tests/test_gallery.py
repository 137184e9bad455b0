"""The gallery speaks of the records that are kept beside it, and of nothing else."""

import json
import re
from itertools import product
from pathlib import Path

import numpy as np
import pytest

from analysis.findings import outcomes, summary
from scripts.draw_figures import compare_folders

DOCS = Path(__file__).parents[1] / "docs"
GALLERY, RECORDS = DOCS / "gallery", DOCS / "results" / "cifar100-lt-resnet20"
PAGE, README = ((folder / "README.md").read_text(encoding="utf-8") for folder in (GALLERY, DOCS.parent))
NAMES = {"SGD": "sgd", "SAM": "sam", "ImbSAM": "imbsam", "SSE-SAM": "ssesam"}
SUMMARY = json.loads((GALLERY / "summary.json").read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def pooled():
    return compare_folders([RECORDS])


def same(ours, kept):
    assert ours.keys() == kept.keys()
    for name, value in ours.items():
        assert value == (pytest.approx(kept[name], rel=1e-9) if isinstance(value, float) else kept[name]), name


def test_the_summary_is_that_of_the_kept_records(pooled):
    rows = summary.as_json(summary.accuracy_table(pooled))
    for ours, kept in zip(rows, SUMMARY["accuracy"], strict=True):
        same(ours, kept)
    epochs = sorted({row["epoch"] for row in SUMMARY["curvature"]})
    rows = [row for epoch in epochs for row in summary.as_json(summary.curvature_table(pooled, epoch, ("head", "tail")))]
    for ours, kept in zip(rows, SUMMARY["curvature"], strict=True):
        same(ours, kept)


def test_every_optimizer_has_both_groups_with_verified_ends(pooled):
    assert set(pooled.optimizers) == {"sgd", "sam", "imbsam", "ssesam"}
    for member in pooled.everyone:
        for epoch, group in product((10, 30), ("head", "tail")):
            pairs = member.run.read("curvature", epoch=epoch, group=group).eigenpairs
            assert pairs.converged.all()
            assert pairs.verified[[0, -1]].all() and np.isfinite(pairs.values64).all() and not len(pairs.vectors)


def test_every_picture_is_shown_and_small():
    shown = set(re.findall(r"!\[[^]]+\]\(([^)]+)\)", PAGE))
    assert shown == {path.name for path in GALLERY.glob("*.png")}
    assert all(path.stat().st_size < 2 ** 20 for path in DOCS.rglob("*"))
    for link in re.findall(r"[^!]\[[^]]+\]\(([^)#:]+)\)", PAGE):
        assert (GALLERY / link).exists(), link


def lowest(record):
    return [record.eigenpairs.values64[0]]


def along_it_of_all(record):
    return [record.group_curvature.value, record.group_curvature.low, record.group_curvature.high]


@pytest.mark.parametrize("numbers, cell", [(lowest, r"−[\d.]+"), (along_it_of_all, r"[−\d., ]+\[[−\d., ]+\]")])
def test_the_tables_of_the_page_are_those_of_the_records(pooled, numbers, cell):
    rows = re.findall(r"^\| (SGD|SAM|ImbSAM|SSE-SAM) " + rf"\| ({cell}) " * 4 + r"\|$", PAGE, re.M)
    assert [name for name, *_ in rows] == list(NAMES)
    for name, *cells in rows:
        run = next(member.run for member in pooled.everyone if member.config["opt"] == NAMES[name])
        for text, (epoch, group) in zip(cells, product((10, 30), ("head", "tail"))):
            found = numbers(run.read("curvature", epoch=epoch, group=group))
            told = [float(word.replace("−", "-")) for word in re.findall(r"−?[\d.]+", text)]
            assert told == [round(value, 1) for value in found]


def captions(page):
    """Return {picture: what stands under it in italics} of a page."""
    return dict(re.findall(r"!\[[^]]+\]\(([^)]+)\)\n\n\*(.+?)\*$", page, re.M | re.S))


def check_named(caption, runs):
    """Check that a caption names files of records, and that every run has them."""
    named = re.findall(r"[\w/*-]+\.(?:csv|h5)", caption.replace("\\*", "*"))
    assert named
    folder = ""
    for path in named:
        folder = path.rpartition("/")[0] or (folder if path.endswith(".h5") else "")      # "spectra/a.h5 and b.h5"
        for run in runs:
            assert list(run.glob(f"{folder}/{path.rpartition('/')[2]}".lstrip("/"))), (run.name, path)


def test_every_picture_has_a_caption_that_names_records_of_every_run(pooled):
    runs = [member.run.path for member in pooled.everyone]
    found = captions(PAGE)
    assert set(found) == {path.name for path in GALLERY.glob("*.png")} and len(runs) == 4
    for caption in found.values():
        check_named(caption, runs)


def test_the_readme_shows_the_gallery_first_and_says_what_it_was_drawn_from(pooled):
    found = captions(README)
    first = next(iter(found))
    assert first.startswith("docs/gallery/") and README.index(first) < README.index("## Run it")
    check_named(found[first], [member.run.path for member in pooled.everyone])
    assert f"]({RECORDS.relative_to(DOCS.parent)})" in found[first]
    for picture, caption in found.items():
        links = re.findall(r"\]\(([^)#:]+)\)", caption)
        assert links and all((DOCS.parent / link).exists() for link in [picture, *links]), picture


def test_the_accuracies_of_the_page_are_those_of_the_records(pooled):
    table = outcomes.accuracy_outcomes(pooled)
    rows = re.findall(r"^\| (?:CE \()?(SGD|SAM|ImbSAM|SSE-SAM)\)? \|" + r" ([\d.]+) \|" * 8 + "$", PAGE, re.M)
    assert [name for name, *_ in rows] == list(NAMES)
    for name, *cells in rows:
        kept = table.loc[(NAMES[name], outcomes.how_named("last", False))]
        assert [*map(float, cells[:4])] == rounded(kept[group] for group in ("many", "medium", "few", "all")), name
    both = re.search(r"as published: ([\d.]+), ([\d.]+), ([\d.]+) and ([\d.]+) for all", PAGE)
    assert [*map(float, both.groups())] == rounded(table.loc[(opt, outcomes.how_named("last", True)), "all"]
                                                   for opt in NAMES.values())


def rounded(shares):
    """Return shares as percentages to a tenth; 21.15, which is either, as 21.1 or 21.2."""
    return [pytest.approx(100 * share, abs=0.05 + 1e-9) for share in shares]
