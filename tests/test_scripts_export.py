import json
from dataclasses import replace

import numpy as np
import pytest
from fabricated_runs import fake_run

from checkpoints.brief import portable
from checkpoints.records import Checkpoint, Curvature
from checkpoints.staleness import NO_CHECKPOINT, checkpoint_hash, staleness
from checkpoints.store import RunStore
from scripts.cli import main


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    """Two run folders with real files, and one without any record."""
    folder = tmp_path_factory.mktemp("study")
    for run in (fake_run(opt, 0, epochs=(0, 60), probes=2, steps=4) for opt in ("sgd", "ssesam")):
        store = RunStore.create(folder / run.path.name, run.config)
        for record in run.kept:
            store.write(record)
    RunStore.create(folder.parent / "empty", {"opt": "sgd"})
    return folder


def fake_store(path, opt):
    """A run folder with one curvature record of epoch 0."""
    store = RunStore.create(path, {"opt": opt})
    store.write(next(record for record in fake_run(opt, 0, epochs=(0,), probes=2, steps=4).kept if isinstance(record, Curvature)))
    return store


def export(*words):
    return main(["export", *map(str, words)])


def test_everything_stored_is_written_below_the_run(study, capsys):
    assert export(study / "sgd-0", "--format", "csv", "vtp", "h5") == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[-1].startswith(f"open {study / 'sgd-0' / 'export' / 'surfaces'}")
    written = {str(path.relative_to(study / "sgd-0" / "export")) for path in (study / "sgd-0" / "export").rglob("*.*")}
    assert {"surfaces/random-plane.vtp", "surfaces/random-plane-head.h5", "surfaces/random-plane.csv",
            "surfaces/tail-lambda_min-tail.h5", "spectra/epoch-0000-tail-nodes.csv",
            "spectra/epoch-0060-head-eigenpairs.csv"} <= written
    assert not any(name.endswith("lambda_min.vtp") for name in written)     # a line is no plane


def test_one_surface_and_one_epoch_alone(study, tmp_path):
    assert export(study / "sgd-0", "--format", "csv", "--surface", "random-plane", "--out", tmp_path / "a", "--quiet") == 0
    assert [path.name for path in (tmp_path / "a").rglob("*.csv")] == ["random-plane.csv"]
    assert export(study / "sgd-0", "--format", "npz", "--epoch", 0, "--out", tmp_path / "b", "--quiet") == 0
    assert sorted(path.name for path in (tmp_path / "b").rglob("*.npz")) == ["epoch-0000-head.npz", "epoch-0000-tail.npz"]


def test_several_runs_get_a_folder_each(study, tmp_path, capsys):
    assert export(study, "--format", "vtp", "--height", "tail", "--out", tmp_path, "--json") == 0
    files = json.loads(capsys.readouterr().out)["files"]
    assert files == {str(study / name): {"vtp": [str(tmp_path / name / "surfaces" / "random-plane.vtp")]}
                     for name in ("sgd-0", "ssesam-0")}


@pytest.mark.parametrize("words, message", [
    (["{study}/sgd-0", "--format", "vtp", "--surface", "moon"], "holds no surface of name=moon: it has random-plane"),
    (["{study}/sgd-0", "--format", "vtp", "--surface", "tail-lambda_min"], "is a line, and vtp is a format of planes"),
    (["{study}/sgd-0", "--format", "vtp", "--epoch", "7"], "no record at epoch 7 can be written as vtp"),
    (["{study}/sgd-0", "--format", "vtp", "--height", "moon"], "height=moon is not in surface 'random-plane'"),
    (["{study}/../empty", "--format", "csv"], "no record can be written as csv"),
    (["{study}/sgd-0", "--format", "xls"], "invalid choice: 'xls'"),
    (["{study}/sgd-0", "--format", "run", "csv"], "format=run csv: run makes run folders"),
    (["{study}/sgd-0"], "required: --format"),
    (["{study}/sgd-0", "{study}/../other/sgd-0", "--format", "csv"], "2 runs are called sgd-0"),
])
def test_mistakes_are_one_clear_line(study, tmp_path, capsys, words, message):
    other = RunStore.create(study.parent / "other" / "sgd-0", {"opt": "sgd"})
    words = [word.replace("{study}", str(study)) for word in words]
    assert export(*words, "--out", tmp_path / "out", "--quiet") == 2
    captured = capsys.readouterr()
    assert captured.out == "" and captured.err.count("\n") == 1 and message in captured.err
    assert other.path.exists() and not list((tmp_path / "out").rglob("*.*"))


def test_files_are_not_put_among_sources(study, tmp_path, capsys):
    (tmp_path / "__init__.py").touch()
    assert export(study / "sgd-0", "--format", "csv", "--out", tmp_path) == 2
    assert "is a folder of Python sources" in capsys.readouterr().err


def test_a_run_in_small_draws_the_same_figures_and_is_not_stale(study, tmp_path):
    assert export(study / "sgd-0", "--format", "run", "--out", tmp_path / "sgd-0", "--quiet") == 0
    whole, small = RunStore.open(study / "sgd-0"), RunStore.open(tmp_path / "sgd-0")
    assert small.config == whole.config and small.provenance == whole.provenance
    pairs = list(zip(whole.records(), small.records(), strict=True))
    assert len(pairs) > 3
    for one, other in pairs:
        assert staleness(small, other) == ""
        assert not len(getattr(other, "directions", ())) and not (isinstance(other, Curvature) and len(other.eigenpairs.vectors))
    assert main(["figures", "curvature_table", str(tmp_path / "sgd-0"), "--out", str(tmp_path), "--quiet"]) == 0
    assert main(["figures", "curvature_table", str(study / "sgd-0"), "--out", str(tmp_path / "w"), "--quiet"]) == 0
    pictures = [path / "curvature_table.png" for path in (tmp_path, tmp_path / "w")]
    assert pictures[0].read_bytes() == pictures[1].read_bytes()


def test_a_record_that_was_stale_stays_so_and_no_run_is_written_over_itself(tmp_path, capsys):
    store = RunStore.create(tmp_path / "run", {"opt": "sgd"})
    record = next(record for record in fake_run("sgd", 0, epochs=(0,), probes=2, steps=4).kept if isinstance(record, Curvature))
    store.write(Checkpoint(0, {"weight": np.ones(3)}, {}))
    store.write(replace(record, provenance={"inputs": {"checkpoint": "of other weights"}}))
    assert export(store.path, "--format", "run", "--out", tmp_path / "small", "--quiet") == 0
    small = RunStore.open(tmp_path / "small")
    assert staleness(small, next(small.records("curvature"))) == NO_CHECKPOINT
    assert export(store.path, "--format", "run", "--out", store.path) == 2
    assert "where other commands would find the run twice" in capsys.readouterr().err
    assert len(next(store.records("curvature")).eigenpairs.vectors)


def test_a_run_in_small_goes_outside_the_run_and_the_study(tmp_path, capsys):
    run = fake_store(tmp_path / "study" / "run", "sgd").path
    before = sorted(tmp_path.rglob("*"))
    for words in ([], ["--out", run / "export"], ["--out", tmp_path / "study" / "small"]):
        assert export(tmp_path / "study", "--format", "run", *words) == 2
        assert "with --out DIR" in capsys.readouterr().err.replace("give", "with") and sorted(tmp_path.rglob("*")) == before
    assert export(tmp_path / "study", "--format", "run", "--out", tmp_path / "small", "--quiet") == 0


def test_a_small_run_is_neither_written_over_itself_nor_mixed_with_another(tmp_path, capsys):
    store = fake_store(tmp_path / "run", "sgd")
    assert export(store.path, "--format", "run", "--out", store.path.parent / "run") == 2
    assert export(store.path, "--format", "run", "--out", tmp_path / "small", "--quiet") == 0
    assert export(store.path, "--format", "run", "--out", tmp_path / "small", "--quiet") == 0
    assert export(fake_store(tmp_path / "other", "sam").path, "--format", "run", "--out", tmp_path / "small") == 2
    assert "a run of other settings" in capsys.readouterr().err


def test_a_record_is_up_to_date_without_its_weights_only_where_it_was_exported_so(tmp_path):
    store = fake_store(tmp_path / "run", "sgd")
    store.write(Checkpoint(0, {"weight": np.ones(3)}, {}))
    record = next(store.records("curvature"))
    store.write(replace(record, provenance={"inputs": {"checkpoint": checkpoint_hash(store, 0)}}))
    assert export(store.path, "--format", "run", "--out", tmp_path / "small", "--quiet") == 0
    small = RunStore.open(tmp_path / "small")
    kept = next(small.records("curvature"))
    assert staleness(small, kept) == ""
    assert staleness(small, replace(kept, provenance={"inputs": kept.provenance["inputs"]})) == NO_CHECKPOINT


@pytest.mark.parametrize("command, said", [
    ("landscape study mine.toml --data_dir /home/me/data --out /tmp/runs/x", "landscape study mine.toml --data_dir data --out x"),
    ("landscape study '/home/A Person/mine.toml' --out='/tmp/my runs/x y' /etc/z", "landscape study 'mine.toml' --out='x y' z"),
    ("landscape spectrum runs/a ../b /c 'k/l' rho=1/2", "landscape spectrum runs/a ../b /c 'k/l' rho=1/2"),
])
def test_commands_name_no_folders_of_a_machine(command, said, tmp_path):
    assert portable(command) == said
    store = RunStore.create(tmp_path / "run", {"opt": "sgd"}, provenance={"command": command, "notes": ["/a/b"]})
    assert export(store.path, "--format", "run", "--out", tmp_path / "small", "--quiet") == 0
    assert RunStore.open(tmp_path / "small").provenance == {"command": said, "notes": ["/a/b"]}
