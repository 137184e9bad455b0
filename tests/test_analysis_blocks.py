import pytest
import torch
from networks import Attention, InPlaceResidual, Shared, dense_hessian, images, losses, make
from torch import nn

from analysis.operators import HessianOperator
from analysis.operators.blocks import choose, parameter_blocks
from landscape.errors import InputError
from landscape.models import ARCHITECTURES, build_model

X, Y = images()


def rows_of(model, names):
    return torch.tensor([name in names for name, p in model.named_parameters() if p.requires_grad for _ in range(p.numel())])


@pytest.mark.parametrize("by", ["layer", "stage", "batchnorm", "head", "all"])
def test_the_hessian_of_a_block_is_a_part_of_the_whole_one(by):
    model = make(InPlaceResidual)
    H = dense_hessian(model, X, Y)
    for names in parameter_blocks(model, by).values():
        rows = rows_of(model, names)
        operator = HessianOperator(model, losses, [(X, Y)], params=names, engine="reverse")
        block = operator.matmat(torch.eye(int(rows.sum()), dtype=torch.float64))
        assert float((block - H[rows][:, rows]).norm() / H.norm()) < 1e-14


@pytest.mark.parametrize("arch", ARCHITECTURES)
@pytest.mark.parametrize("by", ["layer", "stage", "all"])
def test_the_blocks_of_a_model_are_a_partition_of_its_parameters(arch, by):
    model = build_model(arch, 10)
    names = [name for block in parameter_blocks(model, by).values() for name in block]
    assert sorted(names) == sorted(name for name, _ in model.named_parameters())


def test_a_residual_net_has_the_blocks_that_papers_name():
    model = build_model("resnet20", 10)
    assert list(parameter_blocks(model, "stage")) == ["conv1", "bn1", "layer1", "layer2", "layer3", "fc"]
    assert parameter_blocks(model, "head") == {"head": ("fc.weight", "fc.bias")}
    assert parameter_blocks(model)["layer1.0.conv1"] == ("layer1.0.conv1.weight",)
    norms, = parameter_blocks(model, "batchnorm").values()
    assert len(norms) == 2 * 19 and all(".bn" in f".{name}" for name in norms)


@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_every_architecture_here_has_its_head_in_fc(arch):
    assert all(name.startswith("fc.") for name in parameter_blocks(build_model(arch, 10), "head")["head"])


def test_the_head_of_a_stranger_is_its_last_layer():
    vgg = nn.Module()
    vgg.features, vgg.classifier = nn.Conv2d(1, 2, 3), nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 3))
    assert parameter_blocks(vgg, "head")["head"] == ("classifier.2.weight", "classifier.2.bias")
    assert parameter_blocks(nn.Sequential(nn.Linear(4, 4), nn.Tanh(), nn.Linear(4, 2)), "head")["head"] == ("2.weight", "2.bias")
    assert parameter_blocks(nn.Linear(4, 2), "head")["head"] == ("weight", "bias")
    assert parameter_blocks(make(Attention), "head")["head"] == ("head.weight", "head.bias")


def test_frozen_and_shared_parameters_appear_once_or_not_at_all():
    blocks = parameter_blocks(make(Shared), "layer")
    assert blocks == {"first": ("first.weight",), "head": ("head.bias",)}


@pytest.mark.parametrize("wanted, expected", [
    ("layer1.*", 6), (["layer1.*", "layer1.0.*"], 6), ("*.bn?.weight", 4), ("*bn?.weight", 5), ("fc.bias", 1),
    (["fc.bias", "conv1.weight"], 2)])
def test_names_and_patterns_choose_in_the_order_of_theta(wanted, expected):
    model = build_model("digitnet", 10, 1, 8)
    chosen = choose(model, wanted)
    order = [name for name, _ in model.named_parameters()]
    assert len(chosen) == expected and list(chosen) == sorted(chosen, key=order.index)


@pytest.mark.parametrize("wanted, word", [("layer9.*", "'layer9.*' matches no trainable parameter"),
                                          (["fc.bias", "fc.wieght"], "'fc.wieght'.*expected some of fc.weight"),
                                          ([], "params is empty")])
def test_a_pattern_without_a_match_is_named_with_what_is_near(wanted, word):
    with pytest.raises(InputError, match=word) as refusal:
        choose(build_model("digitnet", 10, 1, 8), wanted)
    assert "\n" not in str(refusal.value)


def test_a_part_that_the_model_does_not_have_is_refused():
    with pytest.raises(InputError, match="by='batchnorm' finds nothing"):
        parameter_blocks(build_model("mlp", 10), "batchnorm")
    with pytest.raises(InputError, match="by='row' is unknown: expected one of layer"):
        parameter_blocks(build_model("mlp", 10), "row")
