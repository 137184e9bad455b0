"""`landscape study`, `spectrum` and `surface` from the command line, wrong input and kills included."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
import tomllib
from argparse import Namespace
from dataclasses import replace
from pathlib import Path

import pytest

from checkpoints.errors import RecordError
from checkpoints.schema import content_hash
from checkpoints.store import RunStore
from landscape.errors import InputError
from landscape.family import FAMILY, method
from landscape.losses import LOSSES, loss_options
from landscape.recipes import published
from scripts.cli import main
from scripts.run_study import _workers
from scripts.study_plan import Study
from scripts.study_presets import DIGITS
from scripts.study_work import Part, Work, passes_of_a_step
from scripts.study_worker import _Counter

ROOT = Path(__file__).resolve().parents[1]
TINY = """
name = "tiny"
seeds = [0]
workers = 1
[train]
dataset = "synthetic"
epochs = 2
eval_every = 1
[methods.sgd]
opt = "sgd"
[methods.ssesam]
opt = "ssesam"
gamma = 0.5
[spectrum]
epochs = [1, 2]
num_probes = 2
num_matvecs = 6
num_pairs = 1
max_matvecs = 4
trace_probes = 2
[[surfaces]]
points = 3
[[surfaces]]
points = 3
dims = 1
directions = "eigen"
[measures]
names = ["alignment", "toy"]
batches = 2
[figures]
names = ["overview"]
format = ["png"]
dpi = 60
page = false
"""


@pytest.fixture(scope="module")
def study_file(tmp_path_factory):
    path = tmp_path_factory.mktemp("study") / "tiny.toml"
    path.write_text(TINY, encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def finished(study_file):
    folder = study_file.parent / "undisturbed"
    assert main(["study", str(study_file), "--out", str(folder), "--quiet"]) == 0
    return folder


def same_bits(folder, other):
    """Tell whether two studies hold the same records, but for what timing chose otherwise: bits are a fixed choice's alone."""
    ours, theirs, chose, chose_there = hashes(folder), hashes(other), choices(folder), choices(other)
    turned = {name for name, choice in chose.items() if choice != chose_there.get(name)}
    places = {name.rpartition("-")[0] for name in turned}      # of spectra, and of the measures that read them
    compared = [name for name in theirs if not any(name.startswith(place) for place in places)]
    return ours.keys() == theirs.keys() and compared and all(ours[name] == theirs[name] for name in compared)


def choices(folder):
    """Return how the products of every spectrum were made, by file as in `hashes`."""
    stores = [RunStore.open(run) for run in sorted(folder.iterdir()) if (run / "run.json").is_file()]
    return {f"{store.path.name}/{path.name}": record.provenance["choice"] for store in stores
            for path, record in zip(store.paths("curvature"), store.records("curvature"))}


def hashes(folder):
    """Return the hash of every record of every run of a study, by file."""
    return {f"{run.name}/{path.name}": content_hash(record) for run in sorted(folder.iterdir()) if (run / "run.json").is_file()
            for store in [RunStore.open(run)] for kind in ("checkpoint", "curvature", "surface", "measurement")
            for path, record in zip(store.paths(kind), store.records(kind))}


def test_a_family_study_ends_with_one_table_of_every_method(tmp_path):
    rows = '[methods.focalsam]\nopt = "focalsam"\n[methods.gkp]\nopt = "gkp_gsa"\n[methods.balanced]\nopt = "sgd"\nloss = "BS"\n'
    text = TINY.replace('[methods.ssesam]\nopt = "ssesam"\ngamma = 0.5\n', rows).replace("epochs = [1, 2]", "epochs = [2]")
    text = text.replace("workers = 1", 'workers = 1\nvary = ["loss"]').replace('["overview"]', '["methods_table"]')
    text = text.replace('["alignment", "toy"]', '["alignment"]').replace("[[surfaces]]\npoints = 3\n", "", 1)
    (tmp_path / "family.toml").write_text(text, encoding="utf-8")
    assert main(["study", str(tmp_path / "family.toml"), "--out", str(tmp_path / "out"), "--quiet"]) == 0
    table = json.loads((tmp_path / "out" / "summary.json").read_text())["methods"]
    assert len({row["opt"] for row in table}) == 4 and {row["loss"] for row in table} == {"CE", "BS"}
    wanted = ["all", *(f"{group}_{name}" for group in ("head", "tail") for name in (
        "lambda_min", "lambda_max", "extreme_ratio", "negative_mass", "trace", "alignment_sam")), "cost"]
    assert all(row[name] is not None for row in table for name in wanted)
    assert (tmp_path / "out" / "figures" / "methods_table.png").is_file()


def test_a_study_ends_with_tables_a_summary_and_the_picture_to_open(finished, study_file, capsys):
    assert main(["study", str(study_file), "--out", str(finished)]) == 0
    printed = capsys.readouterr().out
    assert "test accuracy in %" in printed and "lambda_min" in printed
    assert printed.strip().splitlines()[-1] == f"open {finished / 'figures' / 'overview.png'}"
    assert (finished / "figures" / "overview.png").is_file()
    summary = json.loads((finished / "summary.json").read_text())
    assert {row["opt"] for row in summary["accuracy"]} == {"sgd", "ssesam"}
    assert {(row["epoch"], row["group"]) for row in summary["curvature"]} == {(e, g) for e in (1, 2) for g in ("head", "tail")}


def test_a_study_ends_with_a_page_where_it_is_not_told_otherwise(finished, tmp_path, capsys):
    folder, path = tmp_path / "paged", tmp_path / "paged.toml"
    shutil.copytree(finished, folder)
    path.write_text(TINY.replace("page = false", "page = true"), encoding="utf-8")
    (folder / "study.toml").unlink()
    (folder / "study.toml").write_text(Study.read(str(path)).as_toml(), encoding="utf-8")
    assert main(["study", str(path), "--out", str(folder)]) == 0
    assert capsys.readouterr().out.strip().splitlines()[-1] == f"open {folder / 'report.html'}"
    page = (folder / "report.html").read_text(encoding="utf-8")
    assert "Verdicts after epoch 2" in page and "landscape report" in page


def test_a_finished_study_computes_nothing_again(finished, study_file, monkeypatch):
    import analysis.pipeline
    before = {path: path.stat().st_mtime_ns for path in finished.glob("*/spectra/*.h5")}
    monkeypatch.setattr(analysis.pipeline, "krylov", None)      # any new product would fail
    assert main(["study", str(study_file), "--out", str(finished), "--quiet"]) == 0
    assert {path: path.stat().st_mtime_ns for path in finished.glob("*/spectra/*.h5")} == before and len(before) == 8


def start_study(study_file, folder, workers=1):
    return subprocess.Popen([sys.executable, "-m", "scripts.cli", "study", str(study_file), "--out", str(folder), "--quiet",
                             "--workers", str(workers)], cwd=ROOT, start_new_session=True,
                            stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)


def wait_for(condition, process, seconds=120):
    end = time.monotonic() + seconds
    while not condition() and process.poll() is None and time.monotonic() < end:
        time.sleep(0.02)


@pytest.mark.parametrize("moment", ["*/partial/*/*", "*/spectra/*.h5"], ids=["inside a spectrum", "between spectra"])
def test_a_killed_study_ends_in_the_same_records(moment, finished, study_file, tmp_path):
    folder = tmp_path / "killed"
    process = start_study(study_file, folder)
    wait_for(lambda: any(folder.glob(moment)), process)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    process.stderr.close()
    assert len(hashes(folder)) < len(hashes(finished))
    assert main(["study", str(study_file), "--out", str(folder), "--quiet"]) == 0
    assert same_bits(folder, finished)


@pytest.mark.parametrize(("moment", "workers"), [("*/resume.h5", 1), pytest.param("*/partial/*/*", 2, marks=pytest.mark.slow)])
def test_a_study_asked_to_end_says_that_nothing_is_lost_and_goes_on(moment, workers, finished, study_file, tmp_path):
    folder = tmp_path / "ended"
    process = start_study(study_file, folder, workers)
    wait_for(lambda: any(folder.glob(moment)), process)
    os.kill(process.pid, signal.SIGTERM)
    error = process.communicate(timeout=60)[1].decode()
    assert process.returncode == 0 and error == f"{folder}: stopped by SIGTERM, nothing is lost; the same command goes on\n"
    assert len(hashes(folder)) < len(hashes(finished))
    assert main(["study", str(study_file), "--out", str(folder), "--quiet"]) == 0
    assert same_bits(folder, finished)
    log = next(folder.glob("*/train.log")).read_text()
    assert "started by process" in log and log.rstrip().endswith("finished")


@pytest.mark.slow
@pytest.mark.parametrize("seconds", [6, 8, 10, 12, 14])
def test_a_study_killed_at_any_time_ends_in_the_same_records(seconds, finished, study_file, tmp_path):
    folder = tmp_path / "killed"
    process = start_study(study_file, folder, workers=2)
    wait_for(lambda: False, process, seconds)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    process.stderr.close()
    assert main(["study", str(study_file), "--out", str(folder), "--quiet", "--workers", "2"]) == 0
    assert hashes(folder).keys() == hashes(finished).keys()


@pytest.mark.slow
def test_workers_die_with_the_process_that_started_them(study_file, tmp_path):
    process = start_study(study_file, tmp_path / "orphans", workers=2)

    def children():
        found = subprocess.run(["pgrep", "-g", str(process.pid)], capture_output=True, text=True).stdout.split()
        return [pid for pid in found if int(pid) != process.pid]
    wait_for(lambda: len(children()) >= 2 and any((tmp_path / "orphans").glob("*/run.json")), process)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    process.stderr.close()
    end = time.monotonic() + 20
    while children() and time.monotonic() < end:
        time.sleep(0.2)
    assert not children()


def test_the_printed_config_is_a_study(capsys, tmp_path):
    assert main(["study", "digits", "--print-config"]) == 0
    path = tmp_path / "mine.toml"
    path.write_text(capsys.readouterr().out, encoding="utf-8")
    assert Study.read(str(path)) == Study.read("digits")


@pytest.mark.parametrize("asked, own, workers", [(None, 3, 3), (2, 3, 2), (None, 0, None), (0, 3, None)])
def test_workers_are_those_asked_for_or_of_the_study_and_zero_is_one_for_each_core(asked, own, workers, monkeypatch):
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    assert _workers(Namespace(workers=asked), replace(Study.read("digits"), workers=own)) == (workers or 1)


def test_a_negative_number_of_workers_and_a_seed_too_large_are_one_line(capsys, tmp_path):
    with pytest.raises(InputError, match="workers=-1 is out of range: expected processes, or 0"):
        _workers(Namespace(workers=-1), Study.read("digits"))
    with pytest.raises(InputError, match="seed=9223372036854775808 is out of range"):
        Study.from_dict({"name": "s", "train": {"dataset": "synthetic"}, "methods": {"sgd": {"opt": "sgd"}},
                         "spectrum": {"seed": 2**63}})


def test_a_study_given_as_a_file_of_options_is_told_how_it_is_run(capsys, study_file):
    for words in (["study", "digits", "--config", str(study_file)], ["train", "--config", str(study_file)]):
        assert main(words) == 2
        assert capsys.readouterr().err.endswith(f"is a study, not a file of options: run it by landscape study {study_file}\n")


def test_the_digits_study_has_four_methods_and_three_seeds():
    study = Study.read("digits")
    assert len(study.runs()) == 12 and {run.config.opt for run in study.runs()} == {"sgd", "sam", "imbsam", "ssesam"}
    assert all(len(run.spectrum_epochs) >= 3 and set(run.groups) == {"head", "tail"} for run in study.runs())


def test_the_family_study_has_every_optimizer_and_the_losses_that_papers_compare_with():
    study = Study.read("family")
    configs = [run.config for run in study.runs()]
    assert {config.opt for config in configs} == set(FAMILY) and len(configs) == 3 * len(study.methods)
    assert {config.loss for config in configs} == set(LOSSES) - {"LA"}      # BS is LA with tau = 1
    assert Study.from_dict(tomllib.loads(study.as_toml())) == study


@pytest.mark.parametrize("file", sorted((ROOT / "docs" / "studies").glob("*.toml")), ids=lambda file: file.stem)
def test_the_kept_study_files_are_studies(file):
    study = Study.read(str(file))
    assert study.name == file.stem and len(study.runs()) == len(study.methods) * len(study.seeds)


def runs_of(data):
    """Return the configurations of a kept family study by method."""
    study = Study.read(str(ROOT / "docs" / "studies" / f"{data}-family.toml"))
    return {name: run.config for name, run in zip(study.methods, study.runs())}


@pytest.mark.parametrize("name, focal, sam_rho, margin", [
    ("cifar10-lt", (0.2, 3.0, 0.5), 0.8, 0.5), ("cifar100-lt", (0.3, 3.2, 0.8), 0.8, 0.5),
    ("imagenet-lt", (0.1, 0.8, 0.8), 0.1, 0.3), ("inaturalist18", (0.2, 2.0, 1.1), 0.1, 0.3)])
def test_the_family_studies_have_the_options_that_papers_record_for_their_data(name, focal, sam_rho, margin):
    """Focal-SAM: rho, gamma and lambda of Li et al. 2025; SAM with LDAM-DRW: Rangwani et al. 2022; most epochs' of a schedule."""
    runs = runs_of(name)
    own = runs["focalsam"]
    assert (own.rho, own.opt_options["focal_gamma"], own.opt_options["focal_weight"]) == focal
    assert runs["sam-ldam-drw"].rho == sam_rho and runs["sam"].rho == runs["friendlysam"].rho == 0.05
    for run in (runs["ldam-drw"], runs["sam-ldam-drw"]):
        assert (loss_options("LDAM") | dict(run.loss_options))["max_m"] == margin
        assert run.drw_epoch == round(run.epochs * (0.8 if name.startswith("cifar") else 2 / 3))


@pytest.mark.parametrize("name, found", [
    ("cifar10-lt", {"bcl": 84.3, "gkp-gsa": 86.3}),
    ("cifar100-lt", {"bcl": 51.9, "gkp": 52.4, "gsa": 52.7, "gkp-gsa": 53.2, "sgd": 38.4}),
    ("imagenet-lt", {"bcl": 56.0, "gkp-gsa": 57.9}), ("inaturalist18", {"bcl": 71.8, "gkp-gsa": 74.4})])
def test_the_family_studies_rows_stand_beside_their_published_numbers(name, found):
    told = {row: published(config.stored()).get("all") for row, config in runs_of(name).items()}
    assert {row: value for row, value in told.items() if value is not None} == found


def test_the_cifar_100_study_begins_with_bcl_and_gkp_gsa():
    assert list(runs_of("cifar100-lt"))[:2] == ["bcl", "gkp-gsa"]


def test_methods_of_one_optimizer_are_told_apart_by_the_setting_named():
    methods = {"a": {"opt": "sam"}, "b": {"opt": "sam", "rho": 0.1}, "c": {"opt": "sgd", "rho": 0.1}}
    assert Study.from_dict(DIGITS | {"methods": methods, "vary": ["rho"]}).vary == ("rho",)
    for vary, word in ((["lr"], "a and b share an optimizer.*vary"), (["roh"], "roh"), (["seed"], "vary=seed"), ([3], "vary=")):
        with pytest.raises(InputError, match=word):
            Study.from_dict(DIGITS | {"methods": methods, "vary": vary})


@pytest.mark.parametrize("change, word", [
    (dict(sedes=[1]), "'sedes': did you mean seeds"), (dict(seeds=[-1]), "seeds="), (dict(workers=-2), "workers=-2"),
    (dict(train={"epoch": 3}), "'epoch' is unknown: did you mean epochs"), (dict(methods={}), "needs methods"),
    (dict(spectrum={"num_probs": 3}), "did you mean num_probes"),
    (dict(spectrum={"params": ["fc.*"]}), "'params'"), (dict(spectrum={"num_probes": 0}), "num_probes=0"),
    (dict(surfaces=[{"points": 4}]), "points=4"), (dict(figures={"names": ["spectrum"]}), "did you mean spectra"),
    (dict(seeds=0), "seeds=0"), (dict(spectrum={"epochs": 2}), "epochs=2 .*list of int"),
    (dict(spectrum={"groups": ["tial"]}), "tial"),
    (dict(spectrum={"num_probes": "2"}), "num_probes='2'"), (dict(figures={"format": "png"}), "list of str"),
    (dict(measures={"names": ["alignmnt"]}), "did you mean alignment"), (dict(measures={"batches": 0}), "batches=0"),
    (dict(measures={"names": ["alignment"], "epochs": [5]}), "alignment needs spectra at epoch 5"),
    (dict(figures={"dpi": "x"}), "dpi='x'"), (dict(figures={"page": 1}), "page=1"), (dict(name="../up"), "name='../up'"),
    (dict(methods={"../up": {"opt": "sam"}}), "name='../up'"),
    (dict(surfaces=[{"points": 3}, {"points": 5}]), "would share the file"),
    (dict(surfaces=[{"directions": "eigen", "group": "few"}]), "needs the spectrum of few"),
    (dict(methods={"a": {"opt": "sam"}, "b": {"opt": "sam"}}), "share an optimizer"),
    (dict(methods={"a": {"opt": "adam"}}), "opt='adam'")])
def test_a_mistaken_study_is_refused_before_anything_runs(change, word):
    with pytest.raises((InputError, RecordError), match=word):
        Study.from_dict(DIGITS | change)


def refusal(capsys, *words):
    assert main([str(word) for word in words]) == 2
    captured = capsys.readouterr()
    assert captured.err.count("\n") == 1 and captured.err.startswith("landscape")
    return captured.err


@pytest.mark.parametrize("words, word", [
    (["study", "nothing"], "neither a preset (digits, family) nor a file"),
    (["study", "{file}", "--out", "{folder}", "--workers", "-1"], "workers=-1"),
    (["spectrum", "{folder}/absent"], "absent"),
    (["spectrum", "{run}", "--epoch", "7"], "no checkpoint of epoch 7: expected last, all, or some of 1, 2"),
    (["spectrum", "{run}", "--group", "rare"], "group 'rare' is unknown"),
    (["spectrum", "{run}", "--num_matvecs", "0"], "num_matvecs=0"),
    (["spectrum", "{run}", "--device", "tpu"], "device"),
    (["surface", "{run}", "--points", "4"], "points=4"),
    (["surface", "{run}", "--directions", "eigen", "--group", "class:1"], "landscape spectrum"),
    (["figures", "spektra", "{run}"], "did you mean spectra")])
def test_a_mistake_is_one_line_and_exit_2(words, word, finished, study_file, capsys):
    places = dict(file=study_file, folder=finished, run=finished / "sgd-seed0")
    assert word in refusal(capsys, *(text.format(**places) for text in words))


def test_a_mistake_found_in_a_worker_is_one_line_too(study_file, capsys, tmp_path):
    path = tmp_path / "mistaken.toml"
    path.write_text(TINY.replace("epochs = [1, 2]", 'epochs = [1, 2]\ngroups = ["tail", "class:99"]'), encoding="utf-8")
    assert "group 'class:99' is unknown" in refusal(capsys, "study", path, "--out", tmp_path / "out", "--workers", "2", "--quiet")


def test_a_folder_of_another_study_is_refused_and_left_alone(finished, study_file, capsys, tmp_path):
    other = tmp_path / "other.toml"
    other.write_text(TINY.replace("dpi = 60", "dpi = 61"), encoding="utf-8")
    before = hashes(finished)
    assert "study of other settings" in refusal(capsys, "study", other, "--out", finished)
    assert hashes(finished) == before


def test_a_folder_of_somebody_else_is_not_adopted(study_file, capsys, tmp_path):
    (tmp_path / "mine.txt").write_text("mine")
    assert "no study folder and not empty" in refusal(capsys, "study", study_file, "--out", tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["mine.txt"]


def test_a_spectrum_of_other_settings_is_not_replaced_unasked(finished, capsys):
    before = hashes(finished)
    assert "--overwrite" in refusal(capsys, "spectrum", finished / "sgd-seed0", "--loss", "training", "--quiet")
    assert hashes(finished) == before


def test_spectrum_prints_numbers_with_their_kind_and_json_alone(finished, capsys):
    words = ["spectrum", str(finished / "sgd-seed0"), "--num_probes", "2", "--num_matvecs", "6", "--num_pairs", "1",
             "--max_matvecs", "4", "--trace_probes", "2"]
    assert main(words) == 0
    text = capsys.readouterr().out
    for part in ("lambda_min", "residual", "missed with probability 5%", "quadrature+probes, 95%", "next: landscape figures"):
        assert part in text
    assert main([*words, "--json"]) == 0
    rows = json.loads(capsys.readouterr().out)["spectra"]
    assert [row["group"] for row in rows] == ["head", "tail"] and all(row["stored_before"] for row in rows)


def test_a_forecast_computes_nothing(finished, capsys):
    before = hashes(finished)
    assert main(["spectrum", str(finished / "sgd-seed0"), "--group", "many", "--dry-run"]) == 0
    assert "forecast: at most" in capsys.readouterr().out and hashes(finished) == before


def test_a_studys_forecast_says_what_it_does_before_it_does_it(study_file, capsys, monkeypatch):
    def stopped(*_, **__):
        raise KeyboardInterrupt
    monkeypatch.setattr("analysis.subject.Subject.of", stopped)
    assert main(["study", str(study_file), "--dry_run"]) == 130
    shown = capsys.readouterr()
    assert "methods (" in shown.out and shown.err.startswith("timing a few steps of each of ")


def test_progress_adds_up_to_the_forecast():
    counted = []
    with Part(lambda steps, worked: counted.append((steps, worked)), 10) as part:
        part.skip(3)
        part.work(4)
        part.work(1)
    assert counted == [(3, False), (4, True), (1, True), (2, False)]
    with Part(lambda steps, worked: counted.append((steps, worked)), 10) as part:
        part.work(11)
    assert counted[4:] == [(10, True)]
    with Part(lambda steps, worked: counted.append((steps, worked)), 2, weight=3) as part:
        part.work(1)
    assert counted[5:] == [(3, True), (3, False)]


def test_the_parts_of_a_study_are_weighed_by_what_they_take():
    train = {"dataset": "digits", "epochs": 2, "batch_size": 64}
    methods = {"sgd": {"opt": "sgd"}, "sam": {"opt": "sam"}, "ssesam": {"opt": "ssesam", "gamma": 0.7}}
    document = {"name": "weighed", "train": train, "methods": methods,
                "spectrum": {"num_probes": 1, "num_matvecs": 10, "num_pairs": 1, "max_matvecs": 5, "trace_probes": 3},
                "surfaces": [{"directions": "random", "dims": 1, "points": 7, "max_samples": 64}]}
    runs = {run.config.opt: run for run in Study.from_dict(document).runs()}
    assert [passes_of_a_step(run.config) for run in runs.values()] == [3, 6, (11 + 8) / 2]
    work = Work(runs["sgd"], 640)
    steps, products, points = work.training(), work.spectrum(), work.surface(runs["sgd"].surfaces[0][2])
    assert steps.units == 2 * 10 * 3 and points.units == 7 * 2
    assert products.units == runs["sgd"].spectrum.products * 6 * 5      # a product: two gradients over half of 640 images
    assert work.units == steps.units + 2 * products.units + points.units
    assert Work(runs["sam"], 640).units - work.units == steps.units


@pytest.mark.parametrize("train, passes, images", [
    ({"opt": "ccsam"}, [p for p in method("ccsam").passes if p.stage == "classifier"], 64),       # its default
    ({"opt": "lpfsgd", "opt_options": {"lpf_draws": 8}}, [p for p in method("lpfsgd").passes if p.stage == "eight draws"], 64),
    ({"opt": "lpfsgd"}, [p for p in method("lpfsgd").passes if p.stage == "one draw"], 64),
    ({"opt": "sgd", "loss": "BCL"}, method("sgd").passes, 3 * 64),                              # views of every image
])
def test_a_steps_weight_is_that_of_the_options_it_has_and_of_all_images(train, passes, images):
    document = {"name": "one", "train": {"dataset": "digits", "epochs": 2} | train, "methods": {"one": {}}}
    run = Study.from_dict(document).runs()[0]
    forwards, backwards = passes[0].of(10)
    assert passes_of_a_step(run.config) == forwards + 2 * backwards
    assert Work(run, 640).training().weight == (forwards + 2 * backwards) * images // 64


def test_no_more_steps_are_weighed_than_are_taken():
    document = {"name": "short", "train": {"dataset": "digits", "epochs": 9, "max_steps": 5}, "methods": {"sgd": {"opt": "sgd"}}}
    assert Work(Study.from_dict(document).runs()[0], 640).training().units == 5 * 3


def test_recalled_products_took_no_work():
    told = []
    counter = _Counter(Part(lambda units, worked: told.append((units, worked)), 10), lambda: False)
    counter.recalled(3)
    counter.update(2)
    counter.update(2)
    counter.update()
    assert told == [(2, False), (1, False), (1, True), (1, True)]


def test_a_study_keeps_the_checkpoints_it_was_asked_for_beside_those_it_needs():
    document = {"name": "kept", "train": {"dataset": "digits", "epochs": 8, "checkpoint_epochs": [0, 3]},
                "methods": {"sgd": {"opt": "sgd"}}, "spectrum": {"epochs": [5]}}
    assert Study.from_dict(document).runs()[0].config.checkpoint_epochs == (0, 3, 5, 8)
