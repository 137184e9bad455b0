import hashlib
import json
import subprocess
import sys
import types
from dataclasses import fields
from pathlib import Path

import numpy as np
import pytest
import torch
from released_layouts import saddle, saddle_file
from torch import nn

from analysis.subject import Subject
from checkpoints.store import RunStore
from landscape.configuration import TrainConfig
from landscape.data import load_data
from landscape.models import build_model
from scripts.cli import main
from scripts.show_run import USED

SYNTHETIC = ["--dataset", "synthetic", "--arch", "mlp"]


def network(seed=1):
    data = load_data("synthetic")
    return build_model("mlp", data.num_classes, data.in_channels, data.image_size, generator_seed=seed)


def landscape(*words):
    return main([str(word) for word in words])


@pytest.fixture
def files(tmp_path, monkeypatch):
    """a.pth and b.pth hold two networks' bare weights, wrapped.pth.tar the first as DataParallel would save it."""
    monkeypatch.chdir(tmp_path)
    for name, seed in (("a.pth", 1), ("b.pth", 2)):
        torch.save(network(seed).state_dict(), name)
    torch.save({"epoch": 7, "state_dict": nn.DataParallel(network()).state_dict(), "lr": 0.1}, "wrapped.pth.tar")
    return tmp_path


def digest(name):
    return hashlib.sha256(Path(name).read_bytes()).hexdigest()


def test_weights_become_a_run_with_their_origin(files, capsys):
    assert landscape("import", "wrapped.pth.tar", *SYNTHETIC, "--opt", "sam", "--out", "run") == 0
    text = capsys.readouterr().out
    assert "6 tensors fit arch=mlp with the 4 classes of dataset=synthetic and loss=CE; epoch 7" in text
    assert "taken from the entry state_dict; left beside it: epoch, lr" in text and "6 names changed (module.hidden.0" in text
    assert "test accuracy in %" in text and text.splitlines()[-1] == "next: landscape spectrum run"
    store = RunStore.open("run")
    checkpoint, expected = store.read("checkpoint", epoch=7), network().state_dict()
    assert {name: array.tobytes() for name, array in checkpoint.arrays.items()} == {
        name: value.numpy().tobytes() for name, value in expected.items()}
    source = checkpoint.provenance["imported"]
    assert source["file"] == "wrapped.pth.tar" and source["sha256"] == digest("wrapped.pth.tar")
    assert source["entry"] == "state_dict" and source["epoch_in_file"] == 7
    assert store.epochs == [7] and store.finished and (store.config["opt"], store.config["epochs"]) == ("sam", 7)
    assert store.provenance["imported"] == {"7": {"file": "wrapped.pth.tar", "sha256": digest("wrapped.pth.tar")}}
    assert store.provenance["stated"] == ["arch", "dataset", "opt"]


def test_inspect_says_that_a_run_was_imported(files, capsys):
    assert landscape("import", "a.pth", "b.pth", "--epoch", 3, 12, *SYNTHETIC, "--out", "run", "--quiet") == 0
    assert landscape("inspect", "run") == 0
    text = capsys.readouterr().out
    assert text.startswith("run: imported, finished\n") and "checkpoints at epochs: 3, 12" in text
    assert f"epoch 3: a.pth, SHA-256 {digest('a.pth')}\n  epoch 12: b.pth, SHA-256 {digest('b.pth')}" in text
    assert landscape("inspect", "run", "--json") == 0
    assert json.loads(capsys.readouterr().out)["provenance"]["imported"]["12"]["file"] == "b.pth"


def test_inspect_claims_no_setting_of_a_training_that_nobody_has_stated(files, capsys):
    words = ["import", "a.pth", *SYNTHETIC, "--epoch", 3, "--out", "run", "--quiet"]
    assert landscape(*words, "--lr", "0.01") == 0 and landscape("inspect", "run", "--json") == 0
    config = json.loads(capsys.readouterr().out)["config"]
    assert config["lr"] == 0.01 and config["arch"] == "mlp" and config["imb_factor"] == 10
    assert {config[name] for name in ("opt", "loss", "rho", "epochs", "weight_decay", "seed", "schedule")} == {"unknown"}
    words[1:2] = ["b.pth"]
    words[words.index(3)] = 2
    assert landscape(*words, "--opt", "sgd") == 0 and landscape("inspect", "run") == 0     # stated later, and the same
    shown = dict(line.split()[:2] for line in capsys.readouterr().out.splitlines() if len(line.split()) == 2)
    assert (shown["opt"], shown["lr"], shown["momentum"]) == ("sgd", "0.01", "unknown")
    assert USED <= {f.name for f in fields(TrainConfig)}


def test_the_metrics_are_those_of_the_imported_weights(files):
    from landscape import ClassGroups, evaluate
    assert landscape("import", "a.pth", "b.pth", "--epoch", 3, 12, *SYNTHETIC, "--out", "run", "--quiet") == 0
    data, rows = load_data("synthetic"), RunStore.open("run").metrics()
    assert rows["epoch"].tolist() == [3, 12]
    for seed, row in zip((1, 2), rows.to_dict("records")):
        expected = evaluate(network(seed), data, ClassGroups.head_tail(data.counts, 20))
        assert expected.items() <= row.items()


def test_epochs_can_be_added_and_repeated_and_settings_need_not_be(files, capsys):
    assert landscape("import", "b.pth", "--epoch", 9, *SYNTHETIC, "--out", "run") == 0
    assert landscape("import", "a.pth", "--epoch", 4, "--out", "run") == 0
    assert landscape("import", "a.pth", "--epoch", 4, "--out", "run") == 0
    store = RunStore.open("run")
    assert store.epochs == [4, 9] and store.metrics()["epoch"].tolist() == [4, 9]
    assert {epoch: source["file"] for epoch, source in store.provenance["imported"].items()} == {"9": "b.pth", "4": "a.pth"}
    capsys.readouterr()
    for words, told in {
        ("b.pth", "--epoch", 4): "run holds epoch 4 from another file",
        ("b.pth", "--epoch", 10, "--epochs", 9): "epoch=10 of b.pth is out of range: expected 0 <= epoch <= epochs=9",
        ("b.pth", "--epoch", 3, "--epochs", 8): "epochs=8 is out of range: run speaks of 9 epochs",
        ("b.pth", "--epoch", 5, "--imb_factor", 3): "run holds a run of another configuration (imb_factor=10.0 there, 3.0 here)",
    }.items():
        assert landscape("import", *words, "--out", "run") == 2
        error = capsys.readouterr().err
        assert told in error and error.count("\n") == 1
    assert RunStore.open("run").epochs == [4, 9]


def test_a_training_elsewhere_that_goes_on_becomes_longer_unless_its_length_was_stated(files, capsys):
    assert landscape("import", "a.pth", "--epoch", 4, *SYNTHETIC, "--out", "run", "--quiet") == 0
    for epoch, words in ((9, ()), (12, ("--epochs", 20))):
        assert landscape("import", "b.pth", "--epoch", epoch, *words, "--out", "run", "--quiet") == 0
    store = RunStore.open("run")
    assert store.epochs == [4, 9, 12] and store.config["epochs"] == 20 and store.metrics()["epoch"].tolist() == [4, 9, 12]
    assert landscape("import", "b.pth", "--epoch", 21, "--out", "run", "--quiet") == 2
    assert "epoch=21 of b.pth is out of range: expected 0 <= epoch <= epochs=20" in capsys.readouterr().err


def test_weights_of_other_images_are_one_line(files, capsys):
    assert landscape("import", "a.pth", "--arch", "mlp", "--dataset", "digits", "--out", "other", "--quiet") == 2
    assert capsys.readouterr().err.count("\n") == 1


def test_without_a_word_of_the_epoch_it_is_the_last_and_that_is_said(files, capsys):
    assert landscape("import", "a.pth", *SYNTHETIC, "--epochs", 30, "--out", "run") == 0
    assert "a.pth does not say after how many epochs it was saved: taken for the last, 30" in capsys.readouterr().out
    assert RunStore.open("run").epochs == [30]


def test_the_analysis_sees_the_imported_network(files):
    assert landscape("import", "a.pth", "--epoch", 5, *SYNTHETIC, "--out", "run", "--quiet") == 0
    subject = Subject.open(RunStore.open("run"), device="cpu")
    subject.load(5)
    assert all(torch.equal(value, network().state_dict()[name]) for name, value in subject.model.state_dict().items())


FEW = ["--num_matvecs", 6, "--num_probes", 2, "--trace_probes", 2, "--max_matvecs", 30, "--quiet"]


def test_an_imported_run_has_spectra(files):
    assert landscape("import", "a.pth", "--epoch", 5, *SYNTHETIC, "--out", "run", "--quiet", "--no-evaluate") == 0
    assert landscape("spectrum", "run", "--group", "tail", *FEW) == 0
    assert RunStore.open("run").has("curvature", epoch=5, group="tail")


@pytest.mark.slow
def test_an_imported_run_has_surfaces_and_figures(files):
    assert landscape("import", "a.pth", "--epoch", 5, *SYNTHETIC, "--out", "run", "--quiet") == 0
    assert landscape("spectrum", "run", "--group", "head", "tail", *FEW) == 0
    assert landscape("surface", "run", "--points", 3, "--quiet") == 0
    assert landscape("figures", "spectra", "run", "--quiet") == 0
    assert list(Path("run/figures").glob("*.pdf"))


def test_the_document_says_what_was_done(files, capsys):
    assert landscape("import", "wrapped.pth.tar", *SYNTHETIC, "--no-evaluate", "--json", "--out", "run") == 0
    document = json.loads(capsys.readouterr().out)
    assert document["epochs"] == [7] and document["config"]["arch"] == "mlp"
    assert document["imported"][0]["beside"] == ["epoch", "lr"] and document["imported"][0]["metrics"] == {}
    assert RunStore.open("run").metrics().empty


def test_a_cosine_head_of_saddle_longtail_comes_with_the_loss_that_has_one(files, capsys):
    images = np.random.RandomState(0).randint(0, 256, (12, 16, 16, 3)).astype(np.uint8)
    labels = np.repeat([0, 1, 2], 4)
    np.savez("own.npz", x_train=images, y_train=labels, x_test=images, y_test=labels)
    theirs = saddle(3, cosine=True)
    torch.save(saddle_file(theirs, 100), "100_ckpt.pth.tar")
    words = ["import", "100_ckpt.pth.tar", "--arch", "resnet32", "--dataset", "npz:own.npz", "--out", "run"]
    assert landscape(*words, "--quiet") == 2
    assert "it fits arch=resnet32 with 3 classes, 3 channels, a cosine head (loss=LDAM)" in capsys.readouterr().err
    assert not Path("run").exists()
    assert landscape(*words, "--loss", "LDAM") == 0
    assert "fc.weight transposed" in capsys.readouterr().out
    stored = RunStore.open("run").read("checkpoint", epoch=100).arrays
    assert np.array_equal(stored["fc.weight"], theirs.linear.weight.detach().numpy().T)


OWN = """
import numpy as np
from torch import nn

def build(num_classes, in_channels, image_size):
    return nn.Sequential(nn.Flatten(), nn.Linear(in_channels * image_size ** 2, num_classes))

def ignorant(num_classes):
    return nn.Sequential(nn.Flatten(), nn.Linear(16, 5))

def load():
    images = np.random.RandomState(0).randint(0, 256, (12, 4, 4)).astype(np.uint8)
    labels = np.array([0] * 6 + [1] * 4 + [2] * 2)
    return images, labels, images, labels
"""


@pytest.fixture
def own(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "landscape_test_import.py").write_text(OWN)
    model = nn.Sequential(nn.Flatten(), nn.Linear(16, 3))
    torch.save({"model": model.state_dict()}, "own.pth")
    yield model
    sys.modules.pop("landscape_test_import", None)


def test_own_network_and_own_data_come_from_the_working_folder(own):
    assert landscape("import", "own.pth", "--arch", "landscape_test_import:build", "--dataset", "landscape_test_import:load",
                     "--epoch", 2, "--eta", 3, "--out", "run", "--quiet") == 0
    store = RunStore.open("run")
    assert np.array_equal(store.read("checkpoint", epoch=2).arrays["1.weight"], own[1].weight.detach().numpy())
    assert store.config["dataset"] == "landscape_test_import:load" and store.provenance["class_counts"] == [6, 4, 2]


@pytest.fixture
def libraries(monkeypatch):
    def make(inputs, num_classes):
        return nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(inputs, num_classes))

    timm, torchvision, models = (types.ModuleType(name) for name in ("timm", "torchvision", "torchvision.models"))
    timm.is_model = models.list_models = lambda name="net": name == "net" and ["net"]
    timm.create_model = lambda name, pretrained, num_classes, in_chans: make(in_chans, num_classes)
    models.get_model = lambda name, weights, num_classes: make(3, num_classes)
    torchvision.models = models
    for module in (timm, torchvision, models):
        monkeypatch.setitem(sys.modules, module.__name__, module)


@pytest.mark.parametrize("library", ["timm", "torchvision"])
def test_networks_of_a_library_are_built_by_name(files, libraries, library):
    images = np.random.RandomState(0).randint(0, 256, (4, 4, 4, 3)).astype(np.uint8)
    np.savez("own.npz", x_train=images, y_train=[0, 0, 0, 1], x_test=images, y_test=[0, 0, 1, 1])
    torch.save({"2.weight": torch.ones(2, 3), "2.bias": torch.zeros(2)}, "library.pth")
    assert landscape("import", "library.pth", "--arch", f"{library}:net", "--dataset", "npz:own.npz", "--epoch", 1,
                     "--out", "run", "--quiet") == 0
    assert RunStore.open("run").read("checkpoint", epoch=1).arrays["2.weight"].tolist() == [[1, 1, 1]] * 2


def test_safetensors_come_as_they_are(files):
    save_file = pytest.importorskip("safetensors.torch").save_file
    save_file(network().state_dict(), "a.safetensors")
    assert landscape("import", "a.safetensors", "--epoch", 1, *SYNTHETIC, "--out", "run", "--quiet") == 0
    assert np.array_equal(RunStore.open("run").read("checkpoint", epoch=1).arrays["fc.weight"], network().fc.weight.detach())


def spoil(name):
    state = network().state_dict()
    state["fc.bias"][0] = float("nan")
    torch.save(state, name)


MISTAKES = {
    "absent.pth does not exist": ["absent.pth"],
    "text.pth cannot be read: it is no file that torch.save wrote": ["text.pth"],
    "it holds a Python object, torch.nn.modules.linear.Linear, and reading such objects can run code": ["code.pth"],
    "nan.pth holds NaN or infinite numbers in fc.bias": ["nan.pth"],
    "it fits arch=mlp with 4 classes": ["a.pth", "--arch", "digitnet"],
    "a.pth does not fit arch=mlp with the 10 classes of dataset=digits": ["a.pth", "--dataset", "digits"],
    "--epoch names 1 epochs for 2 files": ["a.pth", "b.pth", "--epoch", "3"],
    "--epoch names 3 for 2 files, the same: expected another epoch for each": ["a.pth", "b.pth", "--epoch", "3", "3"],
    "both say epoch 7: give --epoch, one a file": ["wrapped.pth.tar", "wrapped.pth.tar"],
    "epoch=-1 of a.pth is out of range": ["a.pth", "--epoch", "-1"],
    "epoch=50 of a.pth is out of range: expected 0 <= epoch <= epochs=40": ["a.pth", "--epoch", "50", "--epochs", "40"],
    "a.pth does not say after how many epochs": ["a.pth", "b.pth"],
    "more.pth does not fit": ["a.pth", "more.pth", "--epoch", "1", "2"],      # the first file is in order
    "--ignore 'head.*' matches no name": ["a.pth", "--ignore", "head.*"],
    "holds no weights under ema": ["wrapped.pth.tar", "--entry", "ema"],
    "arch='mpl' is unknown": ["a.pth", "--arch", "mpl"],
    "--out": ["a.pth", "--out"],
}


@pytest.mark.parametrize("told", MISTAKES)
def test_each_mistake_is_one_line_and_leaves_nothing_behind(told, files, capsys):
    Path("text.pth").write_text("no weights\n")
    torch.save(nn.Linear(2, 2), "code.pth")
    spoil("nan.pth")
    torch.save(network().state_dict() | {"extra": torch.ones(3)}, "more.pth")
    before = sorted(files.rglob("*"))
    assert landscape("import", *SYNTHETIC, "--quiet", "--out", "run", *MISTAKES[told]) == 2
    shown = capsys.readouterr()
    assert told in shown.err and shown.err.count("\n") == 1 and shown.out == ""
    assert sorted(files.rglob("*")) == before


def test_a_trained_run_and_a_folder_of_others_are_refused(files, capsys):
    assert landscape("train", "--dataset", "synthetic", "--epochs", 1, "--out", "trained", "--quiet") == 0
    (files / "others").mkdir()
    (files / "others" / "notes.txt").write_text("mine")
    before = {path: path.read_bytes() for path in files.rglob("*") if path.is_file()}
    for folder, told in {"trained": "holds a run that was trained here", "others": "but 1 other files",
                         "a.pth": "is a file"}.items():
        assert landscape("import", "b.pth", "--epoch", 1, *SYNTHETIC, "--out", folder) == 2
        assert told in capsys.readouterr().err
    assert {path: path.read_bytes() for path in files.rglob("*") if path.is_file()} == before


def test_an_imported_run_is_not_trained_on(files, capsys):
    assert landscape("import", "a.pth", "--epoch", 1, "--epochs", 1, *SYNTHETIC, "--out", "run", "--quiet") == 0
    assert landscape("train", "--resume", "--out", "run", "--quiet") == 2
    assert "run holds weights imported from elsewhere, which are not trained on" in capsys.readouterr().err


def test_a_network_that_gives_other_logits_than_a_class_each_is_refused(own, capsys):
    assert landscape("import", "own.pth", "--arch", "landscape_test_import:ignorant", "--dataset", "landscape_test_import:load",
                     "--epoch", 2, "--out", "run", "--quiet") == 2
    assert "the model returns shape (2, 5) for 2 images: expected (2, 3)" in capsys.readouterr().err
    assert not Path("run").exists()


def test_a_file_that_changes_while_it_is_imported_is_refused(files, monkeypatch, capsys):
    from scripts import import_weights
    create = import_weights.RunStore.create

    def replaced(*words, **options):
        Path("b.pth").replace("a.pth")
        return create(*words, **options)
    monkeypatch.setattr(import_weights.RunStore, "create", replaced)
    assert landscape("import", "a.pth", "--epoch", 1, *SYNTHETIC, "--out", "run", "--quiet") == 2
    assert "a.pth has changed meanwhile: import it again" in capsys.readouterr().err
    assert not RunStore.open("run").finished and RunStore.open("run").epochs == []


def test_the_help_does_not_wait_for_torch_and_names_the_command():
    done = subprocess.run([sys.executable, "-m", "scripts.cli", "--help"], cwd=Path(__file__).resolve().parents[1],
                          capture_output=True, text=True)
    assert "bring weights trained elsewhere into a run folder" in done.stdout + done.stderr
