import argparse
import hashlib
import os
import pickle
import sys
import zipfile

import numpy as np
import pytest
import torch
from torch import nn

from landscape.errors import InputError
from landscape.models.weights import read_weights


def tensors():
    return {"fc.weight": torch.arange(6.0).reshape(2, 3), "fc.bias": torch.tensor([1.0, 2.0])}


@pytest.fixture
def save(tmp_path):
    def write(content, name="weights.pth", **options):
        torch.save(content, tmp_path / name, **options)
        return tmp_path / name
    return write


@pytest.mark.parametrize("legacy", [False, True], ids=["zip", "legacy"])
@pytest.mark.parametrize("name", ["a.pth", "a.pt", "a.pth.tar", "a.ckpt"])
def test_a_bare_state_dict_is_read_bit_for_bit(save, name, legacy):
    path = save(tensors(), name, _use_new_zipfile_serialization=not legacy)
    weights = read_weights(path)
    assert list(weights.tensors) == ["fc.weight", "fc.bias"] and (weights.entry, weights.beside) == ("", ())
    assert all(torch.equal(weights.tensors[name], value) for name, value in tensors().items())
    assert weights.epoch is None and weights.sha256 == hashlib.sha256(path.read_bytes()).hexdigest()


def test_safetensors_hold_the_same(tmp_path):
    save_file = pytest.importorskip("safetensors.torch").save_file
    save_file(tensors(), tmp_path / "weights.safetensors")
    found = read_weights(tmp_path / "weights.safetensors").tensors
    assert found.keys() == tensors().keys() and all(torch.equal(found[name], value) for name, value in tensors().items())


def test_without_the_safetensors_package_the_extra_is_named(tmp_path, monkeypatch):
    (tmp_path / "weights.safetensors").write_bytes(b"")
    monkeypatch.setitem(sys.modules, "safetensors", None)
    with pytest.raises(InputError, match=r"needs the safetensors package .*pip install 'saddle-landscape\[import\]'"):
        read_weights(tmp_path / "weights.safetensors")


@pytest.mark.parametrize("content", [b"", b"text", b"\xff" * 40, b"\x10" + b"\0" * 7 + b'{"a": {"dtype"}}'])
def test_a_damaged_file_of_safetensors_is_one_clear_error(tmp_path, content):
    pytest.importorskip("safetensors")
    (tmp_path / "weights.safetensors").write_bytes(content)
    with pytest.raises(InputError, match="is damaged, or no file of safetensors") as caught:
        read_weights(tmp_path / "weights.safetensors")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("entry", ["state_dict", "model", "model_state_dict", "net", "module", "params"])
def test_a_dictionary_around_the_state_dict_is_opened_and_what_lay_beside_is_named(save, entry):
    weights = read_weights(save({"epoch": 60, "best": torch.tensor(1.0), entry: tensors(), "optimizer": {"state": {}}}))
    assert weights.tensors.keys() == tensors().keys() and weights.epoch == 60
    assert weights.entry == entry and weights.beside == ("epoch", "best", "optimizer")


def test_dictionaries_may_be_nested(save):
    weights = read_weights(save({"model": {"state_dict": tensors(), "name": "x"}, "step": 3}))
    assert weights.entry == "model.state_dict" and weights.beside == ("step", "name")


def test_an_entry_of_any_name_can_be_chosen(save):
    path = save({"state_dict": tensors(), "ema": {"w": torch.ones(2)}})
    assert list(read_weights(path, "ema").tensors) == ["w"] and list(read_weights(path).tensors) == list(tensors())


@pytest.mark.parametrize("epoch", [-1, 10**12, True, 1.5, "3", torch.tensor(3)])
def test_an_epoch_that_is_no_count_counts_as_not_said(save, epoch):
    assert read_weights(save({"epoch": epoch, "state_dict": tensors()})).epoch is None


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float8_e4m3fn])
def test_narrow_floats_widen_without_rounding(save, dtype):
    value = torch.tensor([0.5, -1.25, 3.0]).to(dtype)
    found = read_weights(save({"w": value})).tensors["w"]
    assert found.dtype == torch.float32 and found.tolist() == [0.5, -1.25, 3.0]


def test_integers_and_float64_stay_as_they_are(save):
    found = read_weights(save({"n": torch.tensor(7), "w": torch.tensor([0.1], dtype=torch.float64)})).tensors
    assert found["n"].dtype == torch.int64 and found["w"].dtype == torch.float64


class Harmful:
    def __reduce__(self):
        return os.mkdir, ("harm",)


@pytest.fixture
def broken(tmp_path, monkeypatch):
    """Files that hold no weights, by name."""
    monkeypatch.chdir(tmp_path)
    torch.save({"args": argparse.Namespace(lr=1), "state_dict": tensors()}, "namespace.pth")
    torch.save(nn.Linear(2, 2), "module.pth")
    torch.save({"state_dict": tensors(), "best": np.float64(1)}, "numpy.pth")
    torch.save({"state_dict": tensors(), "harm": Harmful()}, "harmful.pth")
    (tmp_path / "pickle.pth").write_bytes(pickle.dumps(Harmful()))
    (tmp_path / "text.pth").write_text("epoch,accuracy\n1,0.5\n")
    (tmp_path / "empty.pth").write_bytes(b"")
    whole = pickle.dumps({"a": 1}, protocol=2)
    (tmp_path / "cut.pth").write_bytes(whole[:-4])
    torch.save(tensors(), "whole.pth")
    (tmp_path / "half.pth").write_bytes((tmp_path / "whole.pth").read_bytes()[:700])
    torch.save({"w": torch.ones(3000)}, "whole.pth")
    (tmp_path / "short.pth").write_bytes((tmp_path / "whole.pth").read_bytes()[:6765])      # torch gives an OSError, EINVAL
    with zipfile.ZipFile("zip.pth", "w") as archive:
        archive.writestr("a.txt", "b")
    (tmp_path / "folder.pth").mkdir()
    torch.save([tensors()], "list.pth")
    torch.save({"lr": 1, "other": {"w": torch.ones(1)}}, "elsewhere.pth")
    torch.save({"net": tensors(), "model": tensors()}, "two.pth")
    torch.save({"state_dict": {}}, "nothing.pth")
    torch.save({"w\x1b[2J": torch.ones(1)}, "escape.pth")
    around = {}
    around["model"] = around
    torch.save(around, "around.pth")
    torch.save({"w": torch.ones(1).expand(9)}, "expanded.pth")
    torch.save({"w": torch.eye(2).to_sparse()}, "sparse.pth")
    torch.save({"w": torch.ones(2, dtype=torch.complex64)}, "complex.pth")
    torch.save({"w": torch.ones(2, device="meta")}, "meta.pth")
    return tmp_path


@pytest.mark.parametrize("name, message", [
    ("absent", "does not exist: expected a file of weights"),
    ("folder", "is a folder: expected a file of weights"),
    ("namespace", "it holds a Python object, argparse.Namespace, and reading such objects can run code; .*convert it"),
    ("module", "it holds a Python object, torch.nn.modules.linear.Linear,"),
    ("numpy", r"it holds a Python object, numpy.\w+.multiarray.scalar,"),
    ("harmful", r"it holds a Python object, \w+.mkdir,"),
    ("pickle", "it is a pickle of Python objects, and reading those can run code"),
    ("text", "it is no file that torch.save wrote, or a damaged one"),
    ("empty", "it is no file that torch.save wrote"),
    ("cut", "it is no file that torch.save wrote"),
    ("half", "it is no file that torch.save wrote"),
    ("short", "it is no file that torch.save wrote, or a damaged one"),
    ("zip", "it is no file that torch.save wrote"),
    ("list", "holds list and no weights: expected a dictionary of tensors, or one under state_dict, "),
    ("elsewhere", r"holds no weights under state_dict, .*its dictionaries are other \(entry=NAME chooses one\)"),
    ("two", "holds weights under net, model: say which with entry=NAME"),
    ("nothing", "holds no weights under"),
    ("escape", "holds no weights under"),
    ("around", "holds dict and no weights"),
    ("expanded", r"holds w of shape \(9,\) on too little memory"),
    ("sparse", "holds w as a sparse tensor"),
    ("complex", "holds w as a complex tensor"),
    ("meta", "holds w as a meta tensor"),
])
def test_a_file_without_readable_weights_is_one_clear_error(broken, name, message):
    with pytest.raises(InputError, match=f"{name}.pth.*{message}") as caught:
        read_weights(f"{name}.pth")
    assert "\n" not in str(caught.value) and not (broken / "harm").exists()


def test_an_entry_that_is_not_there_is_refused_with_those_that_are(save):
    with pytest.raises(InputError, match="holds no weights under ema: .*its dictionaries are state_dict"):
        read_weights(save({"state_dict": tensors()}), "ema")
