"""`landscape measure`: its table, what it prints and keeps, forecasts, and what a newcomer gets wrong."""

import json

import pytest

from analysis.measures.catalogue import MEASURES
from checkpoints.store import RunStore
from scripts.cli import main
from scripts.measure_mechanism import next_command

QUICK = ["--num_probes", "1", "--num_matvecs", "6", "--num_pairs", "2", "--max_matvecs", "4", "--trace_probes", "2",
         "--engine", "reverse"]
MECHANISM = ["alignment", "amplification", "ablation"]


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    path = tmp_path_factory.mktemp("measure") / "run"
    assert main(["train", "--dataset", "synthetic", "--epochs", "2", "--checkpoint_epochs", "1,2", "--lr", "0.05", "--quiet",
                 "--out", str(path)]) == 0
    assert main(["spectrum", str(path), "--epoch", "2", *QUICK, "--quiet"]) == 0
    return path


def landscape(*words):
    return main([str(word) for word in words])


def document(capsys, *words):
    assert landscape("measure", *words, "--json") == 0
    return json.loads(capsys.readouterr().out)


def refused(capsys, *words):
    assert landscape("measure", *words) == 2
    lines = capsys.readouterr().err.splitlines()
    return lines[-1].removeprefix("landscape measure: error: ")


def test_the_table_tells_of_every_measure_what_it_shows_needs_and_where_it_is_from(capsys):
    assert landscape("measure", "--list") == 0
    out = capsys.readouterr().out
    for name, measure in MEASURES.items():
        assert f"{name:16} {measure.shows}\n" in out and measure.needs in out and measure.source in out


def test_several_measures_of_a_run_are_kept_shown_and_given_back(run, capsys):
    assert landscape("measure", *MECHANISM, run, "--batches", 2, "--overwrite") == 0
    out, err = capsys.readouterr()
    store = RunStore.open(run)
    for name in MECHANISM:
        assert str(run / "measures" / f"epoch-0002-{name}.h5") in out
        assert store.read("measurement", epoch=2, name=name).labels["group"]
    assert out.splitlines()[-1] == f"next: landscape figures alignment {run}" and "(100%)" in err
    assert landscape("measure", *MECHANISM, run, "--batches", 2) == 0
    assert capsys.readouterr().out.count("(stored before)") == 3


def test_json_holds_every_column_and_what_the_caption_states(run, capsys):
    row, = document(capsys, "amplification", run, "--overwrite")["measurements"]
    record = RunStore.open(run).read("measurement", epoch=2, name="amplification")
    assert row["columns"]["measured"] == record.numbers["measured"].tolist() and row["about"]["d"] == record.about["d"]
    assert row["columns"]["group"] == list(record.labels["group"]) and not row["stored_before"]


def test_a_measure_of_no_checkpoint_reads_no_data(run, capsys, monkeypatch):
    monkeypatch.setattr("analysis.subject.Subject.open", lambda *_, **__: pytest.fail("data were read"))
    assert document(capsys, "toy", run, "--overwrite")["measurements"][0]["epoch"] == 0


def test_the_next_command_draws_what_has_a_figure():
    assert next_command([{"name": "nothing", "run": "a b"}, {"name": "toy", "run": "c"}]) == "figures toy 'a b' c"
    assert next_command([{"name": "nothing", "run": "a"}]) == "inspect a"


def test_a_forecast_computes_nothing_and_counts_what_is_missing(run, capsys):
    landscape("measure", "ablation", run, "--quiet")
    before = sorted(run.rglob("*"))
    assert landscape("measure", "ablation", "alignment", run, "--dry_run", "--overwrite") == 0
    out = capsys.readouterr().out
    assert "2 of 2 measurements to make: ablation, epoch 2, alignment, epoch 2" in out and "image gradients, " in out
    forecast = document(capsys, "ablation", run, "--dry-run")["forecast"]
    assert forecast["measurements"] == 0 and sorted(run.rglob("*")) == before


def test_what_cannot_be_measured_is_one_line_and_costs_nothing_of_the_rest(run, capsys):
    assert landscape("measure", "ablation", "toy", run, "--epoch", "all", "--overwrite") == 2
    out, err = capsys.readouterr()
    assert "epoch-0002-ablation.h5" in out and "epoch-0000-toy.h5" in out
    assert err.splitlines()[-1] == (f"landscape measure: error: {run}: no spectrum of group head at epoch 1; make it with: "
                                    f"landscape spectrum {run} --epoch 1 --group head")


def test_other_settings_are_refused_naming_both(run, capsys):
    landscape("measure", *MECHANISM, run, "--batches", 2, "--overwrite", "--quiet")
    said = refused(capsys, *MECHANISM, run, "--batches", 2, "--rho", 0.5)
    assert said.startswith("3 of 3 measurements were not made: ") and "rho=None there, 0.5 here" in said and "--overwrite" in said


@pytest.mark.parametrize("words, message", [
    (["aligment", "RUN"], "measure 'aligment' is unknown (did you mean alignment?): expected one of alignment, "),
    (["RUN", "RUN"], "measure 'RUN' is unknown: expected one of"), (["alignment"], "the following arguments are required: RUN"),
    (["alignment", "all"], "RUN is missing: expected run folders behind"), (["alignment", "/nowhere"], "/nowhere"),
    (["alignment", "ablaton", "RUN"], "measure 'ablaton' is unknown (did you mean ablation?)"),
    (["toy", "RUN", "--batches", "0"], "batches=0 is out of range"), (["toy", "RUN", "--rho", "-1"], "rho=-1.0 is out of range"),
    (["alignment", "RUN", "--group", "torso"], "group 'torso' is unknown"),
    (["alignment", "RUN", "--epoch", "7"], "holds no checkpoint of epoch 7"),
    (["alignment", "RUN", "--overwrite", "--num_pairs", "3"], "num_pairs=3 is out of range: the spectrum of head at epoch 2"),
    (["alignment", "RUN", "--device", "gpu"], "device='gpu' is unknown"), (["alignment", "."], "run.json")])
def test_a_mistake_is_one_line(run, capsys, words, message):
    assert message in refused(capsys, *(str(run) if word == "RUN" else word for word in words)).replace(f"'{run}'", "'RUN'")
