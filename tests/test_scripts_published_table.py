"""Ours beside the published: every choice of epoch and flips, means over seeds, and what makes it no reproduction."""

from types import SimpleNamespace

import pandas as pd
import pytest

from checkpoints.comparison import compare
from landscape.recipes import RECIPES, filled, published
from scripts.published_table import GROUPS, departure_lines, published_table, published_words

SSE_SAM = "published: best, selected on the test set, flips averaged"


def run(opt, accuracy, **changes):
    config = {**filled({"recipe": "sse-sam", "opt": opt}), **changes}
    rows = [{"epoch": epoch, **{f"test_accuracy/{g}": a for g in GROUPS}, **{f"test_accuracy_flip/{g}": a + 0.01 for g in GROUPS}}
            for epoch, a in enumerate(accuracy, 1)]
    return SimpleNamespace(path=opt, config=config, metrics=lambda: pd.DataFrame(rows))


def test_the_published_row_stands_below_ours():
    table = published_table(compare([run("sgd", [0.4, 0.3]), run("sgd", [0.5, 0.5], seed=1), run("ssesam", [0.2])]))
    assert list(table.loc["sgd"].index) == ["last", "last, flips averaged", "best, selected on the test set",
                                            "best, selected on the test set, flips averaged", SSE_SAM]
    assert table.loc[("sgd", "last"), "all"] == pytest.approx(40)
    assert table.loc[("sgd", "best, selected on the test set, flips averaged"), "few"] == pytest.approx(46)
    assert list(table.loc[("ssesam", SSE_SAM)]) == [71.7, 54.5, 17.1, 49.3]


@pytest.mark.parametrize("name", RECIPES)
def test_the_published_row_says_that_the_test_set_chose_it_and_whether_flips_were_averaged(name):
    words = published_words(filled({"recipe": name, "rho": 0.1, "selection": "last"}))     # ours
    assert words == (SSE_SAM if name in ("sse-sam", "imbsam") else "published: best, selected on the test set")


@pytest.mark.parametrize("changes", [{"loss": "LA"}, {"imb_factor": 50.0}, {"recipe": None}, {"dataset": "cifar10"}])
def test_other_runs_have_no_published_numbers(changes):
    other = run("sgd", [0.4], **changes)
    assert published(other.config) == {} and published_table(compare([other])) is None


def test_what_departs_is_told_once():
    runs = [run(opt, [0.4], arch="resnet20", epochs=30, seed=seed) for opt in ("sgd", "sam") for seed in (0, 1)]
    assert departure_lines(compare(runs)) == ["arch: resnet20 instead of resnet34", "epochs: 30 instead of 200"]
    assert departure_lines(compare([run("sgd", [0.4])])) == []
