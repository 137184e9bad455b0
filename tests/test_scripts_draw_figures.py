import json
import re
from dataclasses import replace

import pandas as pd
import pytest
from fabricated_runs import fake_runs
from matplotlib import image
from matplotlib.text import Text

from checkpoints.comparison import compare
from checkpoints.records import Checkpoint
from checkpoints.schema import content_hash
from checkpoints.store import RunStore
from figures import Options
from figures import draw as render
from figures.catalogue import CATALOGUE
from scripts.cli import main


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    """Four run folders, two optimizers of two seeds, with real files."""
    folder = tmp_path_factory.mktemp("study")
    groups = ("head", "tail", "all")
    for run in fake_runs(("sgd", "ssesam"), (0, 1), epochs=(0, 60), groups=groups, probes=2, steps=8, measures=True):
        store = RunStore.create(folder / run.path.name, run.config)
        run.table.to_csv(store.path / "metrics.csv", index=False)
        for record in run.kept:
            store.write(record)
    return folder


def draw(*words):
    return main(["figures", *map(str, words)])


def test_all_figures_of_a_run_are_drawn(study, tmp_path):
    assert draw("all", study / "ssesam-0", "--out", tmp_path, "--format", "png", "--dpi", 50, "--quiet") == 0
    written = {path.stem for path in tmp_path.iterdir()}
    assert written == {name for name, entry in CATALOGUE.items() if not {"rho", "weighting"} & set(entry.vary)}


def test_the_last_line_says_what_to_open(study, tmp_path, capsys):
    assert draw("accuracy_table", study, "--out", tmp_path, "--dpi", 50) == 0
    assert capsys.readouterr().out.splitlines()[-1] == f"open {tmp_path / 'accuracy_table.png'}"
    assert (tmp_path / "accuracy_table.pdf").exists()
    assert set(pd.read_csv(tmp_path / "accuracy_table.csv")["num_seeds"]) == {2}


def test_json_names_every_file_and_nothing_else_is_printed(study, tmp_path, capsys):
    assert draw("accuracy_curves", study / "sgd-0", "--out", tmp_path, "--format", "png", "--dpi", 50, "--json") == 0
    document = json.loads(capsys.readouterr().out)
    assert document["figures"] == {"accuracy_curves": [str(tmp_path / f"accuracy_curves.{kind}") for kind in ("png", "csv")]}
    assert document["refused"] == {} and document["stale"] == []


def test_options_before_the_runs_are_understood(study, tmp_path):
    assert draw("--out", tmp_path, "accuracy_curves", "--dpi", 50, study / "sgd-0", "--format", "png") == 0


@pytest.mark.parametrize("paths, expected", [(["sgd-0"], "sgd-0/figures"), (["sgd-0", "sgd-1"], "figures"),
                                             ([""], "figures")])
def test_figures_go_beside_their_runs(study, paths, expected):
    assert draw("accuracy_table", *(study / path for path in paths), "--format", "png", "--dpi", 50, "--quiet") == 0
    assert (study / expected / "accuracy_table.png").exists()


def test_the_catalogue_is_listed_without_a_run(capsys):
    assert draw("--list") == 0
    listed = capsys.readouterr().out
    assert all(re.search(rf"^ +[-0-9]+  {name} ", listed, re.MULTILINE) for name in CATALOGUE)
    assert "negative ratio" not in listed.lower() and "quantity: extreme_ratio\n" in listed
    assert "records: alignment, made by: landscape measure alignment RUN --epoch all" in listed
    items = [int(word) for word in re.findall(r"^ +(\d+)  ", listed, re.MULTILINE)]
    assert items == sorted(items) and set(items) == set(range(1, 19))


def test_groups_are_chosen_in_every_figure(study, tmp_path, capsys):
    words = ("--out", tmp_path, "--format", "png", "--dpi", 50, "--quiet")
    assert draw("accuracy_curves", study / "sgd-0", "--group", "many", "few", *words) == 0
    assert list(dict.fromkeys(pd.read_csv(tmp_path / "accuracy_curves.csv")["group"])) == ["many", "few"]
    assert draw("quality", study / "sgd-0", "--group", "many", *words) == 2
    assert "groups=many: none of them was measured: expected some of head, tail" in capsys.readouterr().err


def test_one_column_is_a_width_of_its_own(study, tmp_path):
    for width in ("one", "two"):
        assert draw("accuracy_table", study, "--width", width, "--out", tmp_path / width, "--format", "png", "--dpi", 100,
                    "--quiet") == 0
    one, two = (image.imread(tmp_path / width / "accuracy_table.png").shape[1] for width in ("one", "two"))
    assert one <= 325 < two <= 675
    assert (tmp_path / "one" / "accuracy_table.tex").read_text() == (tmp_path / "two" / "accuracy_table.tex").read_text()


@pytest.mark.parametrize("words, message", [
    (["spektra", "{study}"], r"figure 'spektra' is unknown \(did you mean spectra\?\)"),
    (["spectra", "{study}", "--epoch", "7"], r"no spectrum of group head at epoch 7; make it with: landscape spectrum"),
    (["spectra", "{study}/nowhere"], r"nowhere: no run folder, and none below it"),
    (["spectra", "{study}", "--dpi", "3"], r"dpi=3 is out of range: expected 50 <= dpi <= 1200"),
    (["spectra", "{study}", "--level", "1.5"], r"level=1.5 is out of range"),
    (["spectra", "{study}", "--rc", "font.size"], r"rc=font.size is out of range: expected KEY=VALUE"),
    (["spectra", "{study}", "--rc", "font.sizze=3"], r"rc font.sizze=3 is not a matplotlib setting"),
    (["spectra", "{study}", "--group", "few", "class:9"], r"group=class:9: no stored record has it|no spectrum of group few"),
    (["spectra", "{study}", "--group", "head", "hed"], r"group=hed: no stored record has it \(did you mean head\?\); there"),
    (["surface", "{study}", "--surface", "moon"], r"no surface 'moon' \(there are: .*random-plane"),
    (["spectra", "{study}/sgd-0", "{study}/sgd-0/../sgd-0"], r"repeat a seed"),
    (["spectra"], r"arguments are required: RUN"),
])
def test_mistakes_are_one_clear_line(study, tmp_path, capsys, words, message):
    words = [word.replace("{study}", str(study)) for word in words]
    assert draw(*words, "--out", tmp_path, "--quiet") == 2
    captured = capsys.readouterr()
    assert captured.out == "" and captured.err.count("\n") == 1
    assert re.search(message, captured.err) and not list(tmp_path.iterdir())


def test_runs_in_several_folders_need_a_place_for_their_figures(study, tmp_path, capsys):
    assert draw("accuracy_table", study / "sgd-0", tmp_path / "other") == 2
    assert "out is missing" in capsys.readouterr().err


def test_figures_are_not_put_among_sources(study, tmp_path, capsys):
    (tmp_path / "__init__.py").touch()
    assert draw("accuracy_table", study, "--out", tmp_path) == 2
    assert "is a folder of Python sources" in capsys.readouterr().err


def test_all_draws_what_it_can_and_names_the_rest(study, tmp_path, capsys):
    run = RunStore.create(tmp_path / "run", {"opt": "sgd", "seed": 0, "epochs": 60})
    (run.path / "metrics.csv").write_text((study / "sgd-0" / "metrics.csv").read_text())
    assert draw("all", run.path, "--format", "png", "--dpi", 50) == 0
    captured = capsys.readouterr()
    reasons = [line for line in captured.err.splitlines() if line.startswith("not drawn: ")]
    assert len(reasons) == len({line.partition(": ")[2].partition(": ")[2] for line in reasons}) < 20
    assert any(", spectra, " in line and "landscape spectrum" in line for line in reasons)
    assert {path.stem for path in (run.path / "figures").iterdir()} == {"accuracy_curves", "accuracy_table"}


def store_some(study, folder, groups, **change):
    """Store the spectra of `groups` of one run in a folder of its own, some fields changed."""
    source = RunStore.open(study / "sgd-0")
    store = RunStore.create(folder / "run", source.config)
    classes = {f"test_accuracy/{group}": 0.5 for group in groups if group.startswith("class:")}
    source.metrics().assign(**classes).to_csv(store.path / "metrics.csv", index=False)
    for group in groups:
        record = source.read("curvature", epoch=60, group=group if group in ("head", "tail") else "tail")
        store.write(replace(record, group=group, **change))
    return store


@pytest.mark.parametrize("stored, drawn", [(["tail"], ["tail"]), (["class:1", "head"], ["head"]),
                                           (["class:1", "class:3"], ["class:1", "class:3"])])
def test_the_groups_that_have_spectra_are_drawn_by_default(study, tmp_path, stored, drawn):
    store = store_some(study, tmp_path, stored)
    assert draw("curvature_table", store.path, "--format", "png", "--dpi", 50, "--quiet") == 0
    assert list(pd.read_csv(store.path / "figures" / "curvature_table.csv")["group"]) == drawn


def test_all_classes_are_one_word(study, tmp_path):
    store = store_some(study, tmp_path, ["class:10", "class:2", "tail"])
    assert draw("curvature_table", store.path, "--group", "classes", "--format", "png", "--dpi", 50, "--quiet") == 0
    assert list(pd.read_csv(store.path / "figures" / "curvature_table.csv")["group"]) == ["class:2", "class:10"]


def test_inexact_spectra_are_marked_and_never_beside_exact_ones(study, tmp_path, capsys):
    store = store_some(study, tmp_path, ["tail"], provenance={"engine": "differences"})
    runs = compare([store])
    assert not any(record.eigenpairs.verified.any() for record in runs.everyone[0].curvatures.values())
    for name in ("spectra", "curvature_table"):
        figure = render(name, runs, Options(groups=("tail",)))
        assert any("INEXACT (finite differences)" in text.get_text() for text in figure.findobj(Text)), name
    store.write(RunStore.open(study / "sgd-0").read("curvature", epoch=60, group="head"))
    assert draw("spectra", store.path, "--quiet") == 2
    assert "the spectrum of tail at epoch 60 is inexact: finite differences, others are exact" in capsys.readouterr().err


def test_what_could_not_be_drawn_is_said_when_quiet_too(tmp_path, capsys):
    run = RunStore.create(tmp_path / "run", {"opt": "sgd", "seed": 0, "epochs": 60})
    assert draw("all", run.path, "--quiet") == 2
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) > 2 and lines[-1].endswith("no figure could be drawn")


def test_a_stale_record_that_is_drawn_gets_a_line_on_standard_error(tmp_path, capsys):
    run = fake_runs(("sgd",), (0,), epochs=(60,), probes=1, steps=4)[0]
    store = RunStore.create(tmp_path / "r", run.config)
    run.table.to_csv(store.path / "metrics.csv", index=False)
    weights = Checkpoint(60, {}, {})
    store.write(weights)
    for record in run.records("curvature"):
        inputs = record.provenance["inputs"] | {"checkpoint": "as it was" if record.group == "tail" else content_hash(weights)}
        store.write(replace(record, provenance={"inputs": inputs}))
    words = (store.path, "--out", tmp_path / "figures", "--format", "png", "--dpi", 50, "--quiet")
    assert draw("lambda_min", *words) == 0
    told = [line for line in capsys.readouterr().err.splitlines() if line.startswith("stale")]
    assert told == ["stale: r, tail, epoch 60 (of other weights): compute it again, then draw again"]
    assert draw("accuracy_curves", *words) == 0     # which reads no spectrum
    assert "stale" not in capsys.readouterr().err
