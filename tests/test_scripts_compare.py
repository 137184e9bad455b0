"""`landscape compare` on stored runs whose numbers are known."""

import json
from pathlib import Path

import pandas as pd
import pytest
from fabricated_runs import fake_run

from analysis.findings import side_by_side
from checkpoints.comparison import compare
from checkpoints.errors import RecordError
from checkpoints.store import RunStore
from scripts.cli import main

FEW = {"epochs": (0, 60), "probes": 2, "steps": 6}


def stored(folder, opt, seed, tail, **config):
    """Store a fabricated run whose tail accuracy is `tail` at every evaluated epoch."""
    run = fake_run(opt, seed, **FEW, **config)
    store = RunStore.create(folder, run.config)
    run.table.assign(**{"test_accuracy/tail": tail}).to_csv(store.path / "metrics.csv", index=False)
    for record in run.records("curvature"):
        store.write(record)
    return store.path


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs")
    return [stored(folder / name, opt, seed, tail, **config) for name, opt, seed, tail, config in (
        ("sgd-0", "sgd", 0, 0.30, {}), ("sgd-1", "sgd", 1, 0.40, {}),
        ("sam-0", "sam", 0, 0.50, {"rho": 0.1}), ("sam-1", "sam", 1, 0.62, {"rho": 0.1}), ("other", "sgd", 0, 0.9, {"eta": 30}))]


def say(*words):
    return main(["compare", *map(str, words)])


def test_pools_differ_in_more_than_the_seed_and_differences_are_paired(runs, capsys):
    assert say(*runs[:4]) == 0
    out = capsys.readouterr().out
    assert f"A  {runs[0]}, {runs[1]} (sgd)" in out and f"B  {runs[2]}, {runs[3]} (sam)" in out
    lines = {line.split("  ")[1]: line.split() for line in out.splitlines() if line.startswith("  ")}
    assert lines["opt"][1:] == ["sgd", "sam"] and lines["rho"][1:] == ["-", "0.1"] and "lr" not in lines
    assert any(line.split() == ["tail,", "test", "accuracy", "[%]", "+21.0", "±", "12.7"] for line in out.splitlines())
    assert "2 of 2" in out and "t interval, paired by seed" in out and "landscape figures all" in out.splitlines()[-1]


def test_json_is_one_document_of_the_same_numbers(runs, capsys):
    assert say(*runs[:4], "--json", "--eps_g", "1", "--eps_H", "0.01") == 0
    document = json.loads(capsys.readouterr().out)
    assert document["pools"]["B"]["seeds"] == [0, 1] and document["not_compared"] == []
    row = next(row for row in document["differences"] if (row["quantity"], row["group"]) == ("test_accuracy", "tail"))
    assert row["value"] == pytest.approx(0.21) and row["kind"] == "paired"
    assert {row["strict saddle"] for row in document["verdicts"]} == {2} and document["verdicts"][0]["eps_g"] == 1
    assert {row["setting"] for row in document["settings"]} == {"opt", "rho"}


def test_tables_are_written_as_csv_and_latex(runs, tmp_path, capsys):
    assert say(*runs[:4], "--out", tmp_path / "here") == 0
    names = {path.name for path in (tmp_path / "here").iterdir()}
    assert names == {f"{name}.{end}" for name in ("settings", "accuracy", "curvature", "verdicts", "differences")
                     for end in ("csv", "tex")}
    table = pd.read_csv(tmp_path / "here" / "differences.csv").set_index(["quantity", "group"])
    assert table.loc[("test_accuracy", "tail"), "value"] == pytest.approx(0.21)
    assert r"\begin{tabular}" in (tmp_path / "here" / "verdicts.tex").read_text()
    assert capsys.readouterr().out.splitlines()[-1] == f"open {tmp_path / 'here' / 'settings.csv'}"


def test_other_data_or_groups_are_shown_and_no_difference_is_taken(runs, capsys):
    assert say(runs[0], runs[4]) == 0
    out = capsys.readouterr().out
    assert "differences: none taken, for eta differ" in out and "less A" not in out


def test_one_seed_a_side_has_no_interval(runs, capsys):
    assert say(runs[0], runs[2]) == 0
    out = capsys.readouterr().out
    assert "one seed on a side, whose spread is not known" in out and "t interval" not in out.partition("differences")[2]


def test_what_a_run_does_not_hold_is_named_and_the_rest_is_shown(runs, tmp_path, capsys):
    bare = RunStore.create(tmp_path / "bare", fake_run("sam", 0, **FEW).config)
    (bare.path / "metrics.csv").write_text((runs[2] / "metrics.csv").read_text())
    assert say(runs[0], bare.path) == 0
    out = capsys.readouterr().out
    assert "not compared: curvature, verdicts: " in out and f"landscape spectrum {bare.path} --epoch 60 --group head" in out
    assert "+20.0" in out


@pytest.mark.parametrize("words, message", [
    (["{run}", "--level", "2"], "level=2.0 is out of range"), (["{run}", "--eps_g", "-1"], "eps_g=-1.0 is out of range"),
    (["{run}", "--group", "hed"], "group=hed: no stored record has it (did you mean head?)"),
    (["{run}", "--epoch", "3"], "epoch=3: no stored record has it; there are: 0, 60"),
    (["nowhere"], "nowhere: no run folder"), (["{run}", "--out", "figures"], "out=figures is a folder of Python sources")])
def test_mistakes_are_one_line(runs, capsys, words, message, monkeypatch):
    monkeypatch.chdir(Path(__file__).resolve().parents[1])
    assert say(*(word.replace("{run}", str(runs[0])) for word in words)) == 2
    captured = capsys.readouterr()
    assert message in captured.err and captured.err.count("\n") == 1 and captured.out == ""


def test_a_seed_that_repeats_starts_another_pool():
    runs = [fake_run("sgd", seed, **FEW) for seed in (0, 1, 0)]
    pools = side_by_side.side_by_side(runs)
    assert [[member.config["seed"] for member in members] for members in pools.members.values()] == [[0, 1], [0]]
    assert not len(side_by_side.settings_table(pools))
    with pytest.raises(RecordError, match="repeat a seed"):
        compare(runs)
