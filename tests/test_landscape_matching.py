from pathlib import Path

import pytest
import torch
from released_layouts import saddle, saddle_file, sse_sam
from torch import nn

from landscape.errors import InputError
from landscape.models import CosineHead, build_model
from landscape.models.matching import load_weights
from landscape.models.weights import Weights, read_weights


def held(tensors):
    """Return tensors as if they had been read from a file."""
    return Weights(Path("w.pth"), "0" * 64, dict(tensors), "", (), None)


def small(**options):
    return build_model("digitnet", 4, 1, 8, **options)


def images(channels=3, side=32):
    return torch.randn(3, channels, side, side, generator=torch.Generator().manual_seed(0))


def assert_same_logits(ours, theirs):
    logits = theirs(images()).detach()
    assert logits.std(dim=0).mean() > 1e-3 and logits.std(dim=1).mean() > 1e-3   # or agreement would say little
    torch.testing.assert_close(ours.eval()(images()).detach(), logits, rtol=1e-5, atol=1e-5)


def assert_holds(model, state):
    for name, value in model.state_dict().items():
        assert torch.equal(value, state[name]), name


def test_the_sse_sam_layout_is_loaded_bit_for_bit_and_gives_its_logits(tmp_path):
    theirs, ours = sse_sam(10), build_model("resnet34", 10)
    torch.save(theirs.state_dict(), tmp_path / "CE_best_100.0.pth")
    changes = load_weights(ours, read_weights(tmp_path / "CE_best_100.0.pth"))
    assert_holds(ours, {name.removeprefix("encoder."): value for name, value in theirs.state_dict().items()})
    assert changes == ("218 names changed (encoder.conv1.weight is conv1.weight)",)
    assert_same_logits(ours, theirs)


@pytest.mark.parametrize("parallel", [True, False])
@pytest.mark.parametrize("cosine", [True, False])
@pytest.mark.parametrize("num_classes", [10, 64])
def test_the_saddle_longtail_layout_is_loaded_bit_for_bit_and_gives_its_logits(tmp_path, cosine, parallel, num_classes):
    theirs, ours = saddle(num_classes, cosine), build_model("resnet32", num_classes, cosine=cosine)
    torch.save(saddle_file(theirs, 160, parallel), tmp_path / "160_ckpt.pth.tar")
    weights = read_weights(tmp_path / "160_ckpt.pth.tar")
    changes = load_weights(ours, weights)
    assert (weights.epoch, weights.entry, weights.beside) == (160, "state_dict", ("epoch", "arch", "best_acc1", "optimizer"))
    state = {name.replace("linear.", "fc."): value for name, value in theirs.state_dict().items()}
    if cosine:  # stored (features, classes); with 64 classes only the name `linear` tells
        state["fc.weight"] = state["fc.weight"].T
    assert_holds(ours, state)
    assert ("fc.weight transposed" in changes) == cosine
    assert_same_logits(ours, theirs)


@pytest.mark.parametrize("prefix", ["module.", "_orig_mod.", "model.", "net.", "module._orig_mod.model.", "model.module."])
def test_wrappers_are_stripped_in_any_nesting(prefix):
    source, target = small(generator_seed=1), small()
    load_weights(target, held({prefix + name: value for name, value in source.state_dict().items()}))
    assert_holds(target, source.state_dict())


def test_real_wrappers_are_stripped_also_inside():
    source, target = small(generator_seed=1), small()
    state = {name: value.clone() for name, value in source.state_dict().items()}
    source.layer1 = nn.DataParallel(source.layer1)
    load_weights(target, held(nn.DataParallel(torch.compile(source)).state_dict()))
    assert_holds(target, state)


class Wrapped(nn.Module):
    """A user's model whose own names look like wrappers."""

    def __init__(self, seed=0):
        super().__init__()
        torch.manual_seed(seed)
        self.model, self.encoder, self.linear = nn.Linear(3, 3), nn.Linear(3, 3), nn.Linear(3, 3)


@pytest.mark.parametrize("prefix", ["", "module."])
def test_a_models_own_names_are_never_mistaken_for_wrappers(prefix):
    source, target = Wrapped(1), Wrapped(2)
    state = {prefix + name: value for name, value in source.state_dict().items()}
    if not prefix:
        load_weights(target, held(state))
        assert_holds(target, source.state_dict())
    else:   # `model.weight` and `encoder.weight` would both become `weight`
        with pytest.raises(InputError, match="does not fit"):
            load_weights(target, held(state))


def test_a_cosine_head_of_ours_is_taken_as_it_is_also_where_it_is_square():
    source, target = CosineHead(5, 5), CosineHead(5, 5)
    assert load_weights(target, held(source.state_dict())) == ()
    assert torch.equal(target.weight, source.weight)


def test_absent_counters_of_batchnorm_become_zero_and_are_reported():
    source, target = small(generator_seed=1), small()
    target.bn1.num_batches_tracked.fill_(9)
    old = {name: value for name, value in source.state_dict().items() if not name.endswith("num_batches_tracked")}
    assert load_weights(target, held(old)) == ("5 counters num_batches_tracked absent, set to 0",)
    assert target.bn1.num_batches_tracked.item() == 0 and torch.equal(target.fc.weight, source.fc.weight)


def test_a_shared_parameter_may_be_stored_once():
    class Tied(nn.Module):
        def __init__(self):
            super().__init__()
            self.embedding, self.head = nn.Embedding(4, 3), nn.Linear(3, 4, bias=False)
            self.head.weight = self.embedding.weight

    target, value = Tied(), torch.arange(12.0).reshape(4, 3)
    load_weights(target, held({"embedding.weight": value}))
    assert torch.equal(target.head.weight, value)
    with pytest.raises(InputError, match="must be the same under both"):
        load_weights(target, held({"embedding.weight": value, "head.weight": value + 1}))
    assert torch.equal(target.head.weight, value)


def test_float64_weights_are_not_rounded_unasked():
    state = {name: value.double() + 1e-12 if value.is_floating_point() else value for name, value in small().state_dict().items()}
    with pytest.raises(InputError, match="float64 weights need dtype=float64"):
        load_weights(small(), held(state))
    target = small().double()
    load_weights(target, held(state))
    assert_holds(target, state)


def without(name):
    return {key: value for key, value in small().state_dict().items() if key != name}


MISFITS = {
    "missing": (without("fc.bias"), r"1 missing \(fc.bias\); it fits arch=digitnet with 4 classes, 1 channels, a cosine head"),
    "unexpected": (small().state_dict() | {"projection.weight": torch.ones(2, 2)},
                   r"1 unexpected \(projection.weight\); --ignore PATTERN leaves names out"),
    "all": ({f"layer.{i}": torch.ones(1) for i in range(9)}, r"27 missing \(conv1.weight, .* and 24 more\); "
            r"9 unexpected \(layer.0, layer.1, layer.2 and 6 more\)$"),     # no pattern would mend it
    "type": (small().state_dict() | {"fc.bias": torch.ones(4, dtype=torch.int8)},
             r"1 misshapen \(fc.bias is of type int8, the model's fc.bias of float32\)"),
    "empty": ({}, "missing"),
}


@pytest.mark.parametrize("case", MISFITS)
def test_what_does_not_fit_is_one_line_with_the_first_few_names(case):
    state, message = MISFITS[case]
    target = small(generator_seed=3)
    with pytest.raises(InputError, match=f"w.pth does not fit arch=digitnet: .*{message}") as caught:
        load_weights(target, held(state), called="arch=digitnet")
    assert "\n" not in str(caught.value)
    assert_holds(target, small(generator_seed=3).state_dict())


@pytest.mark.parametrize("arch, classes, channels, side, cosine, words", [
    ("digitnet", 4, 1, 8, False, "it fits arch=digitnet with 4 classes, 1 channels, a linear head"),
    ("digitnet", 7, 3, 8, True, r"it fits arch=digitnet with 7 classes, 3 channels, a cosine head \(loss=LDAM\)"),
    ("resnet20", 100, 3, 32, False, "it fits arch=resnet20 with 100 classes, 3 channels, a linear head"),
    ("mlp", 10, 3, 8, False, "it fits arch=mlp with 10 classes, 3 channels"),
    ("mlp", 10, 1, 8, False, "it fits arch=mlp with 10 classes, 1 channels"),
])
def test_a_misfit_says_what_the_file_would_fit(arch, classes, channels, side, cosine, words):
    state = build_model(arch, classes, channels, side, cosine=cosine).state_dict()
    with pytest.raises(InputError, match=words):
        load_weights(build_model("digitnet", 3, 1, 8), held({f"module.{name}": value for name, value in state.items()}))


def test_weights_that_are_not_finite_are_refused_by_name():
    state = small().state_dict() | {"fc.bias": torch.tensor([1.0, float("nan"), 0.0, float("inf")])}
    with pytest.raises(InputError, match="w.pth holds NaN or infinite numbers in fc.bias"):
        load_weights(small(), held(state))


def test_names_are_left_out_on_request_only_and_a_pattern_must_match():
    state = small(generator_seed=1).state_dict() | {"projection.0.weight": torch.ones(2), "projection.0.bias": torch.ones(2)}
    target = small()
    load_weights(target, held(state), ignore=["projection.*"])
    assert_holds(target, state)
    with pytest.raises(InputError, match=r"--ignore 'proj' matches no name in w.pth: expected a pattern such as 'conv1.weight'"):
        load_weights(target, held(state), ignore=["proj"])
