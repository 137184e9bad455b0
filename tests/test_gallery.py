"""The gallery speaks of the records that are kept beside it, and of nothing else."""

import json
import re
from itertools import product
from pathlib import Path

import numpy as np
import pytest

from analysis.findings import summary
from scripts.draw_figures import compare_folders

DOCS = Path(__file__).parents[1] / "docs"
GALLERY, RECORDS = DOCS / "gallery", DOCS / "results" / "cifar100-lt-resnet20"
PAGE = (GALLERY / "README.md").read_text(encoding="utf-8")
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


def test_the_table_of_the_page_is_that_of_the_records(pooled):
    rows = re.findall(r"^\| (SGD|SAM|ImbSAM|SSE-SAM) \|([^|]*)\|([^|]*)\|([^|]*)\|([^|]*)\|$", PAGE, re.M)
    names = {"SGD": "sgd", "SAM": "sam", "ImbSAM": "imbsam", "SSE-SAM": "ssesam"}
    assert len(rows) == 4
    for name, *cells in rows:
        run = next(member.run for member in pooled.everyone if member.config["opt"] == names[name])
        found = [run.read("curvature", epoch=epoch, group=group).eigenpairs.values64[0]
                 for epoch, group in product((10, 30), ("head", "tail"))]
        assert [float(cell.replace("−", "-")) for cell in cells] == [round(value, 1) for value in found]
