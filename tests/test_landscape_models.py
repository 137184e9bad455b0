import sys
import types

import numpy as np
import pytest
import torch
from torch import nn

from landscape.errors import InputError
from landscape.models import ARCHITECTURES, CosineHead, build_model
from landscape.models.zoo import PadShortcut


def count(model):
    return sum(p.numel() for p in model.parameters())


def block_count(before, width, projected):
    convolutions = 9 * before * width + 9 * width * width
    return convolutions + 4 * width + (before * width + 2 * width if projected else 0)


@pytest.mark.parametrize("num_classes, expected", [(10, 464_154), (100, 470_004)])
def test_resnet32_has_the_published_number_of_parameters(num_classes, expected):
    assert count(build_model("resnet32", num_classes)) == expected


@pytest.mark.parametrize("num_classes", [10, 100])
def test_resnet34_has_the_number_of_parameters_that_its_layers_add_up_to(num_classes):
    widths = [64] * 3 + [128] * 4 + [256] * 6 + [512] * 3
    pairs = list(zip([64] + widths, widths))
    blocks = sum(block_count(a, b, projected=a != b) for a, b in pairs)
    stem, head = 27 * 64 + 2 * 64, 512 * num_classes + num_classes
    # 21,328,292 for 100 classes: torchvision's resnet34 (21,797,672 for 1,000) with a 3x3 stem and 900 classes less.
    assert count(build_model("resnet34", num_classes)) == stem + blocks + head == 21_276_992 + 513 * num_classes


@pytest.mark.parametrize("arch, depth", [("resnet20", 20), ("resnet32", 32), ("resnet56", 56), ("resnet34", 34)])
def test_a_residual_net_has_as_many_weight_layers_as_its_name_says(arch, depth):
    layers = [m for m in build_model(arch, 10).modules() if isinstance(m, nn.Linear)
              or isinstance(m, nn.Conv2d) and m.kernel_size == (3, 3)]
    assert len(layers) == depth


def test_digitnet_stays_within_twenty_thousand_parameters():
    assert count(build_model("digitnet", 10, 1, 8)) == 13_834


@pytest.mark.parametrize("cosine", [False, True])
@pytest.mark.parametrize("arch", ["mlp", "digitnet", "resnet20"])
@pytest.mark.parametrize("in_channels, image_size", [(1, 8), (3, 9)])
def test_logits_are_the_head_of_the_features(arch, in_channels, image_size, cosine):
    model = build_model(arch, 5, in_channels, image_size, cosine=cosine).eval()
    images = torch.randn(3, in_channels, image_size, image_size, generator=torch.Generator().manual_seed(0))
    assert model(images).shape == (3, 5)
    assert torch.equal(model(images), model.fc(model.features(images)))


@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_the_same_seed_gives_the_same_bits_and_leaves_the_global_generator_alone(arch):
    before = torch.get_rng_state()
    first, again, other = (build_model(arch, 4, 1, 8, generator_seed=seed).state_dict() for seed in (1, 1, 2))
    assert torch.equal(before, torch.get_rng_state())
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert any(not torch.equal(first[name], other[name]) for name in first)


def test_the_seed_decides_under_another_default_device_or_global_seed():
    first = build_model("mlp", 4, 1, 8, generator_seed=7)
    torch.manual_seed(123)
    with torch.device("meta"):
        again = build_model("mlp", 4, 1, 8, generator_seed=7)
    assert torch.equal(first.fc.weight, again.fc.weight)


def test_weights_start_with_the_variance_of_he():
    model = build_model("resnet32", 10)
    last = model.layer3[4].conv2.weight
    assert last.std().item() == pytest.approx((2 / (9 * 64)) ** 0.5, rel=0.02)
    projection = build_model("resnet34", 10).layer2[0].conv1.weight
    assert projection.std().item() == pytest.approx((2 / (9 * 128)) ** 0.5, rel=0.02)


def test_the_padding_shortcut_takes_every_second_pixel_between_zero_channels():
    x = torch.arange(2 * 25, dtype=torch.float64).reshape(1, 2, 5, 5)
    out = PadShortcut(2, 5, stride=2)(x)
    assert out.shape == (1, 5, 3, 3)
    assert torch.equal(out[:, 1:3], x[:, :, ::2, ::2])
    assert not out[:, :1].any() and not out[:, 3:].any()


def test_cosine_logits_are_cosines_whatever_the_lengths():
    generator = torch.Generator().manual_seed(0)
    head = CosineHead(4, 3).double()
    features = torch.randn(6, 4, generator=generator, dtype=torch.float64)
    weight = head.weight.detach()
    expected = torch.stack([torch.nn.functional.cosine_similarity(features, w[None], dim=1) for w in weight], dim=1)
    torch.testing.assert_close(head(features), expected)
    with torch.no_grad():
        head.weight.mul_(5)
    torch.testing.assert_close(head(features * 3), expected)


def test_no_architecture_writes_in_place_to_its_input():
    for arch in ("mlp", "digitnet", "resnet20"):
        images = torch.randn(2, 1, 8, 8, generator=torch.Generator().manual_seed(0))
        copy = images.clone()
        build_model(arch, 4, 1, 8)(images)
        assert torch.equal(images, copy)


def test_an_unknown_name_lists_the_choices():
    with pytest.raises(InputError, match="arch='resnet33' is unknown: expected one of mlp, digitnet, .*timm:NAME"):
        build_model("resnet33", 10)


@pytest.mark.parametrize("name", ["num_classes", "in_channels", "image_size"])
def test_a_size_below_one_is_refused_by_name(name):
    with pytest.raises(InputError, match=f"{name}=0 is out of range"):
        build_model("mlp", **({"num_classes": 2} | {name: 0}))


@pytest.fixture
def own_module(monkeypatch, tmp_path):
    (tmp_path / "my_own_nets.py").write_text(
        "from torch import nn\n"
        "size = 3\n"
        "class Nets:\n    small = staticmethod(lambda num_classes: nn.Linear(2, num_classes))\n"
        "def sized(num_classes, in_channels): return nn.Linear(in_channels, num_classes)\n"
        "def wrong(num_classes): return [num_classes]\n")
    monkeypatch.chdir(tmp_path)
    yield
    sys.modules.pop("my_own_nets", None)


def test_a_callable_from_the_current_folder_builds_the_model(own_module):
    path = list(sys.path)
    assert build_model("my_own_nets:Nets.small", 7).out_features == 7
    assert build_model("my_own_nets:sized", 7, in_channels=5).in_features == 5
    assert sys.path == path
    first, again = (build_model("my_own_nets:sized", 7, generator_seed=3).weight for _ in range(2))
    assert torch.equal(first, again)


@pytest.mark.parametrize("target, message", [
    ("my_own_nets:absent", "has no 'absent'"),
    ("my_own_nets:size", "is of type int: expected something to call"),
    ("my_own_nets:wrong", "returned list: expected a torch.nn.Module"),
    ("no_such_module_here:build", "cannot be imported .*No module named 'no_such_module_here'"),
    ("my_own_nets:", "is no module:callable"),
    (":build", "is no module:callable"),
])
def test_a_target_that_builds_no_module_is_refused(own_module, target, message):
    with pytest.raises(InputError, match=message):
        build_model(target, 7)


def test_a_cosine_head_is_refused_where_the_model_is_not_ours():
    with pytest.raises(InputError, match="cosine=True is not available for arch='timm:resnet18'"):
        build_model("timm:resnet18", 7, cosine=True)


@pytest.mark.parametrize("library", ["timm", "torchvision"])
def test_an_absent_library_is_named_with_its_remedy(monkeypatch, library):
    monkeypatch.setitem(sys.modules, library, None)
    monkeypatch.setitem(sys.modules, f"{library}.models", None)
    with pytest.raises(InputError, match=f"'{library}:resnet18' cannot be imported.*pip install {library}"):
        build_model(f"{library}:resnet18", 7)


@pytest.fixture
def libraries(monkeypatch):
    timm, torchvision, models = (types.ModuleType(name) for name in ("timm", "torchvision", "torchvision.models"))
    models.list_models = lambda: ["net"]
    timm.is_model = lambda name: name == "net"
    timm.create_model = lambda name, pretrained, num_classes, in_chans: nn.Linear(in_chans, num_classes)
    models.get_model = lambda name, weights, num_classes: nn.Linear(3, num_classes)
    torchvision.models = models
    for module in (timm, torchvision, models):
        monkeypatch.setitem(sys.modules, module.__name__, module)


def test_library_models_are_built_untrained_with_our_number_of_classes(libraries):
    assert build_model("timm:net", 7, in_channels=2).weight.shape == (7, 2)
    assert build_model("torchvision:net", 7).weight.shape == (7, 3)


@pytest.mark.parametrize("library", ["timm", "torchvision"])
def test_a_name_that_a_library_does_not_know_is_refused(libraries, library):
    with pytest.raises(InputError, match=f"arch='{library}:other' is unknown"):
        build_model(f"{library}:other", 7)


def test_torchvision_takes_three_channels_only(libraries):
    with pytest.raises(InputError, match="in_channels=1 is out of range for arch='torchvision:net'"):
        build_model("torchvision:net", 7, in_channels=1)


@pytest.mark.parametrize("arch, size", [     # both libraries' counts for 1,000 classes, less 993 rows of 2,048 weights and a bias
    ("torchvision:resnet50", 25_557_032 - 993 * 2_049), ("timm:resnext50_32x4d", 25_028_904 - 993 * 2_049)])
def test_the_networks_of_large_data_are_built_where_their_libraries_are_installed(arch, size):
    pytest.importorskip(arch.partition(":")[0], exc_type=ImportError)
    model = build_model(arch, 7, image_size=64)
    assert sum(p.numel() for p in model.parameters()) == size
    assert model.eval()(torch.zeros(2, 3, 64, 64)).shape == (2, 7)


@pytest.mark.slow
def test_digitnet_learns_the_digits():
    datasets = pytest.importorskip("sklearn.datasets")
    digits = datasets.load_digits()
    images = torch.tensor(digits.images / 8 - 1, dtype=torch.float32)[:, None]
    labels = torch.tensor(digits.target)
    order = torch.from_numpy(np.random.default_rng(0).permutation(len(labels)))
    train, test = order[:1250], order[1250:]
    model = build_model("digitnet", 10, 1, 8)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9, weight_decay=1e-3)
    for _ in range(10):
        for batch in train.split(64):
            optimizer.zero_grad()
            nn.functional.cross_entropy(model(images[batch]), labels[batch]).backward()
            optimizer.step()
    model.eval()
    assert (model(images[test]).argmax(1) == labels[test]).double().mean() > 0.95
