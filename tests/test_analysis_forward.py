import math

import pytest
import torch
from torch import nn

from analysis.surfaces import forward as forms
from analysis.surfaces.forward import FORMS, Folded, Forward, build_forward, difference, untouched
from landscape.batchnorm import evaluation_mode
from landscape.errors import InputError
from landscape.models import build_model


def seeded(model, dtype=torch.float64):
    """Give BatchNorm statistics, scales and shifts of its own."""
    generator = torch.Generator().manual_seed(1)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d) and module.running_mean is not None:
            module.running_mean.normal_(0, 0.3, generator=generator)
            module.running_var.uniform_(0.4, 2, generator=generator)
            if module.affine:
                with torch.no_grad():
                    module.weight.uniform_(-1, 2, generator=generator)
                    module.bias.normal_(generator=generator)
    return model.to(dtype).eval()


def images(count=9, size=8, channels=3, dtype=torch.float64):
    return torch.randn(count, channels, size, size, generator=torch.Generator().manual_seed(2), dtype=dtype)


@pytest.mark.parametrize("arch, dtype, rounding", [("resnet20", torch.float64, 1e-13), ("digitnet", torch.float64, 1e-13),
                                                   ("digitnet", torch.float32, 1e-5)])
def test_folding_gives_the_networks_own_logits(arch, dtype, rounding):
    model, x = seeded(build_model(arch, 5, 3, 8), dtype), images(dtype=dtype)
    with torch.no_grad():
        folded = build_forward(model, images=[x])
        assert folded.name == "folded" and difference(Forward(model), folded, x) < rounding
        with untouched(model):
            for p in model.parameters():
                p.mul_(1.3)
            assert difference(Forward(model), folded, x) > 0.01     # still the old parameters
            folded.refresh()
            assert difference(Forward(model), folded, x) < rounding


class Odd(nn.Module):
    """Everything that folding must get right or leave alone."""

    def __init__(self):
        super().__init__()
        self.plain, self.first = nn.Conv2d(3, 4, 3, padding=1), nn.BatchNorm2d(4)               # a convolution with a bias
        self.strided = nn.Conv2d(4, 4, 3, stride=2, padding=1, groups=2, bias=False, padding_mode="circular")
        self.second = nn.BatchNorm2d(4, affine=False)
        self.read_twice, self.third = nn.Conv2d(4, 4, 1), nn.BatchNorm2d(4)
        self.lonely, self.fourth = nn.BatchNorm2d(4), nn.BatchNorm2d(4, track_running_stats=False)
        self.relu, self.fc = nn.ReLU(), nn.Linear(4, 5)

    def forward(self, x):
        x = self.relu(self.first(self.plain(x)))
        y = self.second(self.strided(x))
        y = torch.relu(y + y.mean())
        z = self.read_twice(y)
        y = z.sigmoid() + self.third(z)
        before = y + 0
        after = before.relu()
        y = self.lonely(before) + after + nn.functional.relu(before)
        return self.fc((y.relu() + y).mean((2, 3)))


def test_shared_convolutions_groups_biases_and_padding_fold_and_the_rest_is_left_alone():
    model, x = seeded(Odd()), images()
    with torch.no_grad():
        folded = build_forward(model, "folded", images=[x])
        assert len(folded.pairs) == 2 and difference(Forward(model), folded, x) < 1e-13


def test_nan_and_infinity_come_through_folding():
    model, x = seeded(build_model("digitnet", 5, 3, 8)), images()
    x[0] = math.nan
    x[1] = math.inf
    with torch.no_grad():
        own, folded = model(x), Folded(model)
        torch.testing.assert_close(folded(folded.pieces(x)[0]), own, equal_nan=True, rtol=1e-12, atol=1e-12)


class Branching(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv, self.norm, self.fc = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Linear(4, 5)

    def forward(self, x):
        x = self.norm(self.conv(x))
        return self.fc((x if x.sum() > 0 else -x).mean((2, 3)))


class Counting(Branching):
    """Traces, and then goes on with what it counted while it was traced."""

    def __init__(self):
        super().__init__()
        self.calls = 0

    def forward(self, x):
        self.calls += 1
        return self.fc(self.norm(self.conv(x)).mean((2, 3))) * (2 if self.calls == 1 else 1)


@pytest.mark.parametrize("make, reason", [(Branching, "symbolically traced variables"), (Counting, "its logits differ")])
def test_a_network_that_cannot_be_folded_keeps_its_own_forward(make, reason):
    x = images()
    with torch.no_grad():
        model = seeded(make())
        assert build_forward(model, images=[x]).name == "channels_last"
        assert difference(Forward(model), build_forward(model, images=[x]), x) < 1e-13
        with pytest.raises(InputError, match=f"form='folded' is not for this network: .*{reason}.*; leave it at auto"):
            build_forward(seeded(make()), "folded", images=[x])


def test_a_network_without_convolutions_is_plain_and_one_whose_batches_count_is_not_folded():
    mlp, net = build_model("mlp", 5, 3, 8).double(), seeded(build_model("digitnet", 5, 3, 8))
    with torch.no_grad():
        assert build_forward(mlp, images=[images()]).name == "plain"
        whole = build_forward(net, images=[images()], whole=True)
    assert whole.name == "channels_last" and [len(p) for p in whole.pieces(images(900))] == [900]


def test_pieces_fit_a_cache_and_keep_every_image_in_order(monkeypatch):
    monkeypatch.setattr(forms, "PIXELS", 9 * 64)
    x = images(20)
    pieces = build_forward(seeded(build_model("digitnet", 5, 3, 8)), "channels_last", images=[x]).pieces(x)
    assert [len(piece) for piece in pieces] == [9, 9, 2] and torch.equal(torch.cat(pieces), x)
    assert all(piece.is_contiguous(memory_format=torch.channels_last) for piece in pieces)


def test_lower_precision_is_lower_and_comes_back_in_float32():
    model, x = seeded(build_model("digitnet", 5, 3, 8), torch.float32), images(dtype=torch.float32)
    with torch.no_grad():
        low = build_forward(model, images=[x], precision="bfloat16")
        assert low.name == "folded" and low(low.pieces(x)[0]).dtype == torch.float32
        assert 1e-5 < difference(Forward(model), low, x) < 0.1


def test_a_trace_is_of_evaluation_and_does_not_change_the_model():
    model = seeded(nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Dropout(), nn.Flatten(),
                                 nn.Linear(144, 5))).train()
    names, state = [type(m) for m in model.modules()], {k: v.clone() for k, v in model.state_dict().items()}
    with torch.no_grad(), evaluation_mode(model):
        assert difference(Forward(model), build_forward(model, "folded", images=[images()]), images()) < 1e-13
    assert names == [type(m) for m in model.modules()] and not model[2].inplace and model.training
    assert all(torch.equal(v, state[k]) for k, v in model.state_dict().items())


def test_an_unknown_form_is_refused():
    with pytest.raises(InputError, match="form='fast' is unknown: expected one of auto, folded, channels_last, plain"):
        build_forward(nn.Linear(1, 1), "fast", images=[])
    assert FORMS[0] == "auto"
