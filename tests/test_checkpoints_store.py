import json
import multiprocessing
import os
import shutil
import subprocess
import sys
from datetime import datetime
from pathlib import Path

import numpy as np
import pytest
from sample_records import checkpoint, curvature, estimate, measurement, surface

from checkpoints.schema import RecordError, content_hash, write_record
from checkpoints.store import RunStore

ROOT = Path(__file__).resolve().parents[1]
CONFIG = {"opt": "sgd", "lr": 0.1, "milestones": (160, 180), "loss_options": {"s": 30}, "device": "cpu"}


@pytest.fixture
def store(tmp_path):
    return RunStore.create(tmp_path / "run", CONFIG, provenance={"seed": 1})


def content(folder: Path) -> dict[str, bytes | None]:
    return {str(path.relative_to(folder)): path.read_bytes() if path.is_file() else None for path in folder.rglob("*")}


def test_a_new_run_can_be_opened_with_its_configuration_and_provenance(store):
    again = RunStore.open(store.path)
    assert again.config == CONFIG | {"milestones": [160, 180]} and again.provenance == {"seed": 1}
    assert again.epochs == [] and again.metrics().empty and not again.finished and list(again.records()) == []


def test_the_same_configuration_continues_and_keeps_the_first_provenance(store):
    again = RunStore.create(store.path, CONFIG | {"milestones": [160, 180], "lr": 0.1}, provenance={"seed": 2})
    assert again.provenance == {"seed": 1} and again.origin == {"seed": 2}


def test_device_and_threads_do_not_make_another_run(store):
    assert RunStore.create(store.path, CONFIG | {"device": "cuda", "threads": 8}).config["device"] == "cpu"


def test_an_integer_equals_the_same_floating_point_number_but_not_a_truth_value(tmp_path):
    RunStore.create(tmp_path / "run", {"lr": 1, "flip": True, "missing": float("nan")})
    RunStore.create(tmp_path / "run", {"lr": 1.0, "flip": True, "missing": float("nan")})
    with pytest.raises(RecordError, match="flip=true there, 1 here"):
        RunStore.create(tmp_path / "run", {"lr": 1, "flip": 1, "missing": float("nan")})


def test_another_configuration_is_refused_naming_keys_and_both_values(store):
    before = content(store.path)
    other = CONFIG | {"opt": "sam", "loss_options": {"s": 10}, "rho": 0.05}
    with pytest.raises(RecordError) as error:
        RunStore.create(store.path, other)
    named = 'loss_options.s=30 there, 10 here; opt="sgd" there, "sam" here; rho=absent there, 0.05 here'
    assert named in str(error.value)
    assert "choose another folder" in str(error.value) and content(store.path) == before


def test_at_most_five_differences_are_named(tmp_path):
    RunStore.create(tmp_path / "run", {f"key{i}": 0 for i in range(9)})
    with pytest.raises(RecordError, match=r"key4=0 there, 1 here, and 4 more\)"):
        RunStore.create(tmp_path / "run", {f"key{i}": 1 for i in range(9)})


def test_a_folder_with_foreign_files_is_refused_and_left_untouched(tmp_path):
    (tmp_path / "thesis.tex").write_text("years of work")
    with pytest.raises(RecordError, match=r"holds no run.json, but 1 other files \(such as thesis.tex\)"):
        RunStore.create(tmp_path, CONFIG)
    assert content(tmp_path) == {"thesis.tex": b"years of work"}


def test_a_foreign_run_json_is_refused_and_left_untouched(tmp_path):
    (tmp_path / "run.json").write_text('{"name": "jog"}')
    with pytest.raises(RecordError, match="was not written by this package"):
        RunStore.create(tmp_path, CONFIG)
    assert content(tmp_path) == {"run.json": b'{"name": "jog"}'}


def test_an_empty_folder_and_what_a_process_killed_at_birth_left_are_no_obstacle(tmp_path):
    (tmp_path / "writer.lock").touch()
    (tmp_path / ".run.json.00000000-1-00000000-0.tmp").write_text('{"conf')
    assert RunStore.create(tmp_path, CONFIG).config["opt"] == "sgd"


def test_a_file_in_place_of_the_folder_is_refused(tmp_path):
    (tmp_path / "run").write_text("")
    for make in (lambda path: RunStore.create(path, CONFIG), RunStore.open):
        with pytest.raises(RecordError, match="is a file"):
            make(tmp_path / "run")


def test_opening_what_is_no_run_says_what_it_is(tmp_path, store):
    with pytest.raises(RecordError, match="nowhere does not exist"):
        RunStore.open(tmp_path / "nowhere")
    with pytest.raises(RecordError, match=r"it holds 1 of them \(run\)"):
        RunStore.open(tmp_path)
    with pytest.raises(RecordError, match="spectra does not exist"):
        RunStore.open(store.path / "spectra")


@pytest.mark.parametrize("text, message", [
    ("", "is damaged"), ("[" * 100_000, "is damaged"), ("[]", "was not written by"), ("\xff", "is damaged"),
    ('{"record": "Run", "schema_version": 2}', "has schema version 2, expected 1"),
    ('{"record": "Run", "schema_version": 1, "config": []}', "holds no configuration"),
    (" " * (17 * 1024**2), "is too large")])
def test_a_damaged_run_json_is_one_line(store, text, message):
    (store.path / "run.json").write_text(text, encoding="latin-1")
    with pytest.raises(RecordError, match=message):
        RunStore.open(store.path)


def test_a_configuration_that_json_cannot_hold_is_refused_before_anything_is_made(tmp_path):
    with pytest.raises(RecordError, match="cannot be stored as JSON"):
        RunStore.create(tmp_path / "run", {"opt": object()})
    assert not (tmp_path / "run").exists()


def test_records_lie_where_the_layout_says_and_come_back(store):
    records = [checkpoint(60), curvature(60, "tail"), curvature(60, "class:3"), surface("tail-plane_1.v2"),
               measurement("alignment", 60)]
    assert [str(store.write(record).relative_to(store.path)) for record in records] == [
        "checkpoints/epoch-0060.h5", "spectra/epoch-0060-tail.h5", "spectra/epoch-0060-class-3.h5",
        "surfaces/tail-plane_1.v2.h5", "measures/epoch-0060-alignment.h5"]
    back = [store.read("checkpoint", epoch=60), store.read("curvature", epoch=60, group="tail"),
            store.read("curvature", epoch=60, group="class:3"), store.read("surface", name="tail-plane_1.v2"),
            store.read("measurement", name="alignment", epoch=60)]
    assert [content_hash(record) for record in back] == [content_hash(record) for record in records]
    assert store.has("curvature", epoch=60, group="class:3") and not store.has("curvature", epoch=0, group="tail")
    assert len(list(store.records())) == 5
    assert [record.group for record in store.records("curvature")] == ["class:3", "tail"]


def test_epochs_are_sorted_as_numbers(store):
    for epoch in (10000, 9999, 0):
        store.write(checkpoint(epoch))
    assert store.epochs == [0, 9999, 10000] == [record.epoch for record in store.records("checkpoint")]


def test_writing_again_replaces(store):
    store.write(checkpoint(seed=1))
    store.write(checkpoint(seed=2))
    assert content_hash(store.read("checkpoint", epoch=2)) == content_hash(checkpoint(seed=2))


def test_an_absent_record_names_those_that_exist(store):
    store.write(checkpoint(4))
    with pytest.raises(RecordError, match="holds no checkpoint of epoch=5: it has epoch-0004"):
        store.read("checkpoint", epoch=5)
    with pytest.raises(RecordError, match="holds no curvature of epoch=4, group=tail: it has none"):
        store.read("curvature", epoch=4, group="tail")


@pytest.mark.parametrize("name", ["", ".", "..", ".hidden", "a/b", "../up", "a\\b", "name\n", "a b", "x" * 101, "é", 3])
def test_no_name_leads_out_of_the_run_folder(store, name):
    for action in (lambda: store.has("surface", name=name), lambda: store.journal(name),
                   lambda: store.write(surface(name)), lambda: store.has("measurement", epoch=1, name=name)):
        with pytest.raises(RecordError, match="is out of range"):
            action()


@pytest.mark.parametrize("group", ["", "../head", "class:", "class:x", "a:1:2", ":3", "class-3", ".head", "a/b", 3])
def test_no_group_leads_out_of_the_run_folder(store, group):
    with pytest.raises(RecordError, match="group=.* is out of range"):
        store.has("curvature", epoch=1, group=group)


@pytest.mark.parametrize("epoch", [-1, 1.5, "1", True, 10**9, None])
def test_epochs_are_non_negative_integers(store, epoch):
    with pytest.raises(RecordError, match="epoch=.* is out of range"):
        store.has("checkpoint", epoch=epoch)


def test_numpy_integers_are_epochs(store):
    store.write(checkpoint(np.int64(3)))
    assert store.read("checkpoint", epoch=np.int32(3)).epoch == 3


def test_unknown_kinds_and_keys_name_the_choices(store):
    with pytest.raises(RecordError, match="kind 'spectrum' is unknown: expected one of checkpoint, curvature, surface"):
        store.read("spectrum", epoch=1)
    with pytest.raises(RecordError, match="expected epoch, group"):
        store.read("curvature", epoch=1)
    with pytest.raises(RecordError, match="Estimate has no file of its own"):
        store.write(estimate())


def test_a_renamed_file_is_refused(store):
    path = store.write(checkpoint(3))
    path.rename(path.with_name("epoch-0004.h5"))
    with pytest.raises(RecordError, match="holds the record epoch=3, whose file is epoch-0003.h5: it was renamed"):
        store.read("checkpoint", epoch=4)


def test_a_name_inside_a_file_never_becomes_a_path(store):
    write_record(store.write(surface("plane")), surface("../../escape"))
    with pytest.raises(RecordError, match="plane.h5: name='../../escape' is out of range"):
        store.read("surface", name="plane")


def test_files_of_others_and_leftovers_are_passed_over(store):
    store.write(checkpoint(1))
    for name in ("epoch-1.h5", "notes.h5", ".epoch-0002.h5.00000000-1-00000000-0.tmp", "epoch-0003.txt"):
        (store.path / "checkpoints" / name).write_text("")
    assert store.epochs == [1]


def test_finished_is_seen_by_other_processes(store):
    other = RunStore.open(store.path)
    store.mark_finished()
    assert other.finished and RunStore.open(store.path).provenance == {"seed": 1}


def test_the_log_is_appended(store):
    store.log("one")
    store.log("two\n")
    times, texts = zip(*(line.split("  ") for line in (store.path / "train.log").read_text().splitlines()))
    assert texts == ("one", "two") and all(datetime.fromisoformat(time).tzinfo for time in times)


def test_the_figures_folder_is_made_on_first_use(store):
    assert store.figures.is_dir() and store.figures == store.path / "figures"


def test_a_second_writer_is_refused_naming_the_process(store):
    with store.writer():
        with pytest.raises(RecordError, match=f"is being written by process {os.getpid()}: wait until it ends"):
            with RunStore.open(store.path).writer():
                pass
    with RunStore.open(store.path).writer():
        assert not store._is_writer


def test_records_can_be_added_while_another_process_trains(store):
    with store.writer():
        RunStore.open(store.path).write(curvature())
    assert store.has("curvature", epoch=2, group="tail")


def test_a_killed_writer_leaves_no_lock(store):
    code = ("import os, sys; from checkpoints.store import RunStore; store = RunStore.open(sys.argv[1])\n"
            "with store.writer(): os.kill(os.getpid(), 9)")
    killed = subprocess.run([sys.executable, "-c", code, str(store.path)], cwd=ROOT)
    assert killed.returncode == -9 and (store.path / "writer.pid").exists()
    with store.writer():
        assert (store.path / "writer.pid").read_text() == f"{os.getpid()}\n"
    assert not (store.path / "writer.pid").exists()


def test_the_writer_clears_what_killed_processes_left(store):
    store.write(checkpoint(1))
    store.journal("tail").append({"v": np.ones(1)})
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    from checkpoints.atomic import _HOST
    folders = (store.path, store.path / "checkpoints", store.path / "partial" / "tail")
    left = [folder / f".x.{_HOST}-{process.pid}-00000000-0.tmp" for folder in folders]
    for path in left:
        path.write_text("half")
    with store.writer():
        assert not any(path.exists() for path in left)
    assert len(store.journal("tail").steps()) == 1


def test_the_writer_can_say_more_of_where_a_run_comes_from(store):
    with pytest.raises(RuntimeError, match="amend_provenance.. needs this process to be the writer"):
        store.amend_provenance(imported={"3": "a.pth"})
    with store.writer():
        store.amend_provenance(imported={"3": "a.pth"})
        store.mark_finished()
        store.amend_provenance(imported={"4": "b.pth"}, more=1)
    again = RunStore.open(store.path)
    assert again.provenance == store.provenance == {"seed": 1, "imported": {"4": "b.pth"}, "more": 1}
    assert again.finished and again.config == store.config


def test_recording_needs_the_writer(store):
    with pytest.raises(RuntimeError, match="inside `with store.writer"):
        store.recorder()


def create_in_another_process(path, opt, results):
    try:
        results.put(RunStore.create(path, {"opt": opt}).config["opt"])
    except RecordError:
        results.put("refused")


def test_of_two_processes_that_create_different_runs_at_once_one_is_refused(tmp_path):
    context = multiprocessing.get_context("spawn")
    results = context.Queue()
    processes = [context.Process(target=create_in_another_process, args=(tmp_path / "run", opt, results))
                 for opt in ("a", "b")]
    for process in processes:
        process.start()
    answers = {results.get(timeout=60) for _ in processes}
    for process in processes:
        process.join()
    winner = json.loads((tmp_path / "run" / "run.json").read_text())["config"]["opt"]
    assert answers == {winner, "refused"}


def test_a_read_only_run_can_still_be_read(store):
    store.write(checkpoint(1))
    shutil.copytree(store.path, store.path.with_name("copy"))
    copy = store.path.with_name("copy")
    for path in (*copy.rglob("*"), copy):
        path.chmod(0o555 if path.is_dir() else 0o444)
    assert len(list(RunStore.open(copy).records())) == 1
    for path in (copy, *copy.rglob("*")):
        path.chmod(0o755)
