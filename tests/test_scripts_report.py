import json
import re

import pytest
from fabricated_runs import fake_run

from checkpoints.store import RunStore
from figures import report
from scripts.cli import main


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    """Two run folders with real files."""
    folder = tmp_path_factory.mktemp("study")
    for run in (fake_run("sgd", seed, epochs=(60,), probes=2, steps=4) for seed in (0, 1)):
        store = RunStore.create(folder / run.path.name, run.config)
        run.table.to_csv(store.path / "metrics.csv", index=False)
        for record in run.kept:
            store.write(record)
        store.mark_finished()
    return folder


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    monkeypatch.setattr(report, "PICTURES", ())
    monkeypatch.setattr(report, "STILL", ())
    monkeypatch.setattr(report, "DPI", {"two": 40, "one": 40})


def write(*words):
    return main(["report", *map(str, words)])


def test_the_page_lies_beside_the_runs_and_the_last_line_opens_it(study, capsys):
    assert write(study, "--static") == 0
    captured = capsys.readouterr()
    assert captured.out.splitlines()[-1] == f"open {study / 'report.html'}"
    text = (study / "report.html").read_text(encoding="utf-8")
    assert text.startswith("<!doctype html>") and f"landscape report {study} --out {study / 'report.html'} --static" in text
    assert "no spectrum" not in captured.err


def test_json_is_one_document_that_names_page_runs_and_warnings(study, tmp_path, capsys):
    assert write(study / "sgd-0", "--static", "--out", tmp_path / "p.html", "--json") == 0
    document = json.loads(capsys.readouterr().out)
    assert document["out"] == str(tmp_path / "p.html") and document["runs"] == [str(study / "sgd-0")]
    assert [caution["kind"] for caution in document["cautions"]] == ["single seed"] and document["refused"] == {}


def test_choices_reach_the_page_and_its_last_command(study, tmp_path):
    words = ["--group", "tail", "--title", "What <b> did", "--figures", "lambda_min", "--level", "0.5", "--static"]
    assert write(study, "--out", tmp_path / "new" / "p.html", "--quiet", *words) == 0
    text = (tmp_path / "new" / "p.html").read_text(encoding="utf-8")
    assert "<title>What &lt;b&gt; did</title>" in text and 'id="figure-lambda_min"' in text and "sgd-0, head" not in text
    command = re.search(r"landscape report .*", text)[0]
    assert "--title &#x27;What &lt;b&gt; did&#x27; --group tail --figures lambda_min --level 0.5 --static" in command


@pytest.mark.parametrize("words, message", [
    (["{study}", "--out", "{tmp}/page"], "page is no place for a page: expected a file name ending in .html"),
    (["{study}", "--out", "{tmp}"], "is no place for a page"),
    (["{study}", "--level", "1"], "level=1.0 is out of range: expected 0 < level < 1"),
    (["{study}", "--figures", "lamda_min"], "figure 'lamda_min' is unknown (did you mean lambda_min?)"),
    (["{study}", "--group", "head", "hed"], "group=hed: no stored record has it (did you mean head?); there are: head, tail"),
    (["{study}", "--surface", "nope"], "surface=nope: no stored record has it; there are: random-plane, tail-lambda_max"),
    (["{study}", "--epoch", "3"], "epoch=3: no stored record has it; there are: 60"),
    (["{tmp}/nowhere"], "no run folder, and none below it"),
    (["{study}/sgd-0", "{tmp}/other"], "out is missing: the runs lie in different folders"),
    ([], "arguments are required: RUN"),
])
def test_mistakes_are_one_clear_line(study, tmp_path, capsys, words, message):
    words = [word.replace("{study}", str(study)).replace("{tmp}", str(tmp_path)) for word in words]
    assert write(*words, "--static", "--quiet") == 2
    captured = capsys.readouterr()
    assert captured.out == "" and captured.err.count("\n") == 1 and message in captured.err
    assert not list(tmp_path.rglob("*.html"))


def test_a_run_with_nothing_to_show_is_one_line_that_says_what_to_run(tmp_path, capsys):
    run = RunStore.create(tmp_path / "run", {"opt": "sgd", "seed": 0, "epochs": 60})
    assert write(run.path, "--static", "--quiet") == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and "nothing can be shown of these runs" in error and "landscape" in error
