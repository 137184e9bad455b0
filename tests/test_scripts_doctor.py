import configparser
import json
import re
from pathlib import Path

import pytest
import torch

from scripts import check_setup
from scripts.cli import main

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture
def engines(monkeypatch):
    """Save the time of the engines where a test is not about them."""
    monkeypatch.setattr(check_setup, "_engines", lambda: {"jvp": {"product_ms": 2.0, "gradient_ms": 1.0, "gradients": 2.0}})


@pytest.fixture
def complete(monkeypatch, engines):
    """Pretend that every library is installed."""
    monkeypatch.setattr(check_setup, "_version", lambda name: "1.0")


@pytest.fixture
def product(monkeypatch, engines):
    """Save the time of the real product where a test is not about it."""
    result = {"device": "cpu", "parameters": 1, "samples": 1, "gradient_ms": 1.0, "product_ms": 2.0, "asymmetry": 0.0}
    monkeypatch.setattr(check_setup, "_product", lambda: result)
    return result


def test_a_ready_machine_is_told_what_to_do_next(complete, capsys):
    assert main(["doctor"]) == 0
    out, err = capsys.readouterr()
    assert err == "" and out.endswith("ready; next: landscape study digits --out runs/digits\n")
    assert "one product" in out and "good for" in out and "data      digits: embedded" in out


def test_json_holds_hardware_and_one_product_that_is_symmetric(complete, capsys):
    assert main(["doctor", "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert document["cores"] >= 1 and document["memory_gib"] > 0.1 and document["disk_free_gib"] >= 0
    assert document["devices"][0]["name"] == "cpu" and document["problems"] == []
    assert document["product"]["asymmetry"] < 1e-5 and document["product"]["parameters"] == 64 * 64 + 64 * 10
    assert document["product"]["product_ms"] > 0 and document["product"]["gradient_ms"] > 0


def test_every_engine_is_timed_in_gradients_or_its_reason_given():
    engines = check_setup._engines()
    assert {"linearized", "jvp", "reverse", "differences"} <= engines.keys()
    assert all(1 < engine["gradients"] < 50 for engine in engines.values())


def test_an_engine_that_does_not_serve_is_said_and_a_compiler_that_is_not_found(complete, product, monkeypatch, capsys):
    monkeypatch.setattr(check_setup, "_engines", lambda: {"linearized": {"reason": "it is broken"}})
    monkeypatch.setattr(check_setup.shutil, "which", lambda name: None)
    assert main(["doctor"]) == 2
    out, err = capsys.readouterr()
    assert "linearized does not serve: it is broken" in out and "need a C++ compiler" in out and "no engine" in err


def test_a_missing_library_is_an_error_with_its_remedy(monkeypatch, product, capsys):
    monkeypatch.setattr(check_setup, "_version", lambda name: None if name == "seaborn" else "1.0")
    assert main(["doctor"]) == 2
    out, err = capsys.readouterr()
    assert err == "landscape doctor: error: seaborn is not installed: python -m pip install seaborn\n"
    assert "seaborn MISSING" in out and "not ready" in out


def test_without_torch_the_rest_is_still_examined(monkeypatch, capsys):
    monkeypatch.setattr(check_setup, "_version", lambda name: None if name == "torch" else "1.0")
    assert main(["doctor", "--json"]) == 2
    document = json.loads(capsys.readouterr().out)
    assert document["devices"] == [] and document["product"] is None and "need torch" in document["good_for"]


def test_an_unsymmetric_product_is_an_error(complete, product, capsys):
    product["asymmetry"] = 0.1
    assert main(["doctor", "--quiet"]) == 2
    assert "products are not symmetric here" in capsys.readouterr().err


def test_data_are_found_or_it_says_what_to_put_where(complete, product, tmp_path, monkeypatch, capsys):
    (tmp_path / "cifar-100-python").mkdir()
    for words in (["--data_dir", str(tmp_path)], []):
        monkeypatch.setenv("LANDSCAPE_DATA_DIR", str(tmp_path))
        main(["doctor", *words])
        out = capsys.readouterr().out
        assert f"cifar100: found at {tmp_path / 'cifar-100-python'}" in out
        assert "cifar10: missing: put cifar-10-python.tar.gz, or its folder cifar-10-batches-py, into" in out
    (tmp_path / "cifar-10-python.tar.gz").touch()
    main(["doctor"])
    assert f"cifar10: found at {tmp_path / 'cifar-10-python.tar.gz'}" in capsys.readouterr().out


def test_an_unset_data_folder_is_datasets_here(monkeypatch):
    monkeypatch.delenv("LANDSCAPE_DATA_DIR", raising=False)
    assert check_setup._data_dir(None) == Path("datasets")


@pytest.mark.parametrize("devices, memory, words", [
    ([{"name": "cpu"}], 16.0, "papers' 200-epoch tables want a GPU"), ([{"name": "cpu"}], 2.0, "one command at a time"),
    ([{"name": "cpu"}, {"name": "cuda:0", "memory_gib": 80.0}], 16.0, "everything"),
    ([{"name": "cpu"}, {"name": "cuda:0", "memory_gib": 4.0}], 16.0, "small batches"), ([], 16.0, "need torch")])
def test_what_a_machine_is_good_for_depends_on_card_and_memory(devices, memory, words):
    assert words in check_setup._good_for({"devices": devices, "memory_gib": memory})


def test_a_quota_of_the_control_group_limits_the_cores(monkeypatch):
    monkeypatch.setattr(check_setup, "_first_words", lambda path: ["100000", "100000"])
    assert check_setup._cores() == 1
    monkeypatch.setattr(check_setup, "_first_words", lambda path: ["max", "100000"])
    assert check_setup._cores() >= 1


def test_memory_is_what_the_control_group_allows(monkeypatch):
    monkeypatch.setattr(check_setup, "_first_words", lambda path: [str(2**30)])
    assert check_setup._memory() == 2**30


def test_the_product_equals_the_dense_hessian():
    generator = torch.Generator().manual_seed(3)
    inputs, labels = torch.randn(7, 2, generator=generator), torch.tensor([0, 1, 2, 0, 1, 2, 2])
    weights = [torch.randn(*shape, generator=generator).requires_grad_() for shape in ((2, 3), (3, 3))]
    _, product = check_setup._gradient_and_product(inputs, labels, weights)

    def loss(theta):
        first, second = theta[:6].view(2, 3), theta[6:].view(3, 3)
        return torch.nn.functional.cross_entropy(torch.tanh(inputs @ first) @ second, labels)

    hessian = torch.autograd.functional.hessian(loss, torch.cat([w.detach().flatten() for w in weights]))
    v = [torch.randn(w.shape, generator=generator) for w in weights]
    expected = hessian @ torch.cat([part.flatten() for part in v])
    torch.testing.assert_close(torch.cat([part.flatten() for part in product(v)]), expected)


def test_the_libraries_looked_for_are_those_that_the_package_requires():
    setup = configparser.ConfigParser()
    setup.read(ROOT / "setup.cfg")
    lines = setup["options"]["install_requires"].strip().split("\n")
    required = [re.split(r"[><=~!\s]", line.strip())[0] for line in lines]
    assert sorted(required) == sorted(check_setup.REQUIRED)
