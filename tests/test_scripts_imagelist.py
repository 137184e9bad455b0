"""Large data through the command: training, spectrum and surface of a run whose images stay in their files."""

import json
import sys
import types
from pathlib import Path

import pytest
from image_lists import imagenet_lt
from torch import nn

from checkpoints.store import RunStore
from landscape.configuration import TrainConfig
from landscape.training import build_network, training_data
from scripts.cli import main

TRAIN = ["train", "--dataset", "imagenet-lt", "--data_dir", ".", "--image_size", "12", "--arch", "mlp", "--epochs", "1",
         "--eta", "4", "--batch_size", "8", "--workers", "0", "--out", "run"]
BROKEN = Path("train/n01440760/n01440760_0.JPEG")


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    imagenet_lt((12, 6, 3))


def test_a_run_on_lists_is_trained_and_analysed_and_tells_what_it_left_out(capsys):
    BROKEN.write_bytes(b"")
    assert main([*TRAIN, "--broken_images", "skip"]) == 0
    assert "note: 1 broken images were left out, named in run/train.log" in capsys.readouterr().out
    log = Path("run/train.log").read_text()
    assert "1 broken images left out" in log and f"left out: {BROKEN} (not an image of a known format)" in log
    store = RunStore.open("run")
    assert store.config["broken_images"] == "skip" and "workers" not in store.config and store.config["imb_factor"] is None
    assert main([*TRAIN, "--broken_images", "skip", "--workers", "1", "--quiet"]) == 0     # the same run, finished before
    quick = ["--num_probes", "1", "--num_matvecs", "3", "--num_pairs", "1", "--max_matvecs", "3", "--trace_probes", "2"]
    assert main(["spectrum", "run", "--data_dir", ".", "--group", "head", "tail", "--max_samples", "18", *quick, "--quiet"]) == 0
    assert main(["surface", "run", "--data_dir", ".", "--points", "3", "--max_samples", "4", "--quiet"]) == 0
    counts = {group: store.read("curvature", epoch=1, group=group).num_samples for group in ("head", "tail")}
    assert counts == {"head": 17, "tail": 3}


def test_a_broken_or_missing_image_is_one_line_and_nothing_half_written(capsys):
    BROKEN.write_bytes(b"")
    assert main([*TRAIN, "--quiet"]) == 2
    err = capsys.readouterr().err
    assert len(err.splitlines()) == 1 and f"{BROKEN} cannot be read as an image" in err
    BROKEN.unlink()
    assert main([*TRAIN[:-1], "other", "--quiet"]) == 2
    assert "1 of the 21 images of ImageNet_LT_train.txt are not there" in capsys.readouterr().err and not Path("other").exists()


def test_the_networks_of_large_data_are_those_of_torchvision_and_timm(monkeypatch):
    asked = []

    def make(name, **options):
        asked.append((name, options["num_classes"]))
        return nn.Linear(1, 1)

    timm, torchvision, models = (types.ModuleType(name) for name in ("timm", "torchvision", "torchvision.models"))
    timm.is_model, timm.create_model = (lambda name: name == "resnext50_32x4d"), make
    models.list_models, models.get_model, torchvision.models = (lambda: ["resnet50"]), make, models
    for module in (timm, torchvision, models):
        monkeypatch.setitem(sys.modules, module.__name__, module)
    config = TrainConfig("imagenet-lt", workers=0)
    data = training_data(config, ".", progress=False)
    assert data.image_size == 224 and config.resolved(data).arch == "torchvision:resnet50"
    build_network(config.resolved(data), data)
    build_network(TrainConfig("imagenet-lt", arch="timm:resnext50_32x4d").resolved(data), data)
    assert asked == [("resnet50", 3), ("resnext50_32x4d", 3)]


def test_without_torchvision_the_extra_is_named(monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "torchvision", None)
    words = TRAIN.copy()
    del words[words.index("--arch"):words.index("--arch") + 2]
    assert main([*words, "--quiet"]) == 2
    err = capsys.readouterr().err
    assert len(err.splitlines()) == 1 and "pip install torchvision, or this package with its extra vision" in err
    assert not Path("run").exists()


def test_the_forecast_works_on_files(capsys):
    assert main([*TRAIN, "--dry_run", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["steps"] == 3
