"""Precision, pieces and memory formats of a training step: what each changes, what it must not, and what waits."""

from itertools import islice
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn.functional import cross_entropy
from torch.utils._python_dispatch import TorchDispatchMode
from training_ranks import Memory

from landscape.configuration import TrainConfig
from landscape.data import load_data
from landscape.data.batches import batch_sizes, shuffled_batches
from landscape.errors import InputError
from landscape.family import FAMILY
from landscape.precision import PRECISIONS, autocast, check_precision, float32_precision
from landscape.steps import TrainingStep
from landscape.training import build_optimizer, train

OPTIMIZERS = tuple(FAMILY)
CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def data():
    return load_data("synthetic", imb_factor=10)


def config(**changes):
    plain = {"dataset": "synthetic", "epochs": 2, "batch_size": 16, "lr": 0.05, "gamma": 0.5, "eta": 30, "arch": "digitnet"}
    return TrainConfig(**plain | changes)


def vector(model):
    return torch.cat([value.double().reshape(-1) for value in model.state_dict().values()]).numpy()


def result(data, **changes):
    return vector(train(config(**changes), data=data).model)


@pytest.mark.parametrize("opt", OPTIMIZERS)
@pytest.mark.parametrize("switch, tolerance", [({"precision": "bf16"}, 0.1), ({"precision": "amp16"}, 0.02),
                                               ({"channels_last": True}, 1e-4), ({"fused": True}, 1e-4)])
def test_every_optimizer_trains_with_every_switch_to_its_rounding(data, opt, switch, tolerance):
    plain, other = result(data, opt=opt, max_steps=4), result(data, opt=opt, max_steps=4, **switch)
    gap = np.abs(plain - other).max() / np.abs(plain).max()
    assert gap < tolerance and (gap > 1e-5 or "precision" not in switch)


class Seen(TorchDispatchMode):
    """The type of every product of matrices or convolution, and how often something is read from the device or sent there.

    "lift_fresh" is what a tensor made of Python's or NumPy's numbers begins with.
    """

    READS = ("_local_scalar_dense", "nonzero", "is_nonzero", "equal", "masked_select", "lift_fresh")

    def __init__(self):
        super().__init__()
        self.types, self.reads = set(), 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name = func.overloadpacket.__name__
        out = func(*args, **(kwargs or {}))
        self.reads += name in self.READS
        if name in ("convolution", "addmm", "mm", "convolution_backward"):
            self.types |= {value.dtype for value in (out if isinstance(out, tuple) else (out,)) if value is not None}
        return out


def step_of(data, opt, **changes):
    settings = config(opt=opt, **changes).resolved(data)
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 4, 3, stride=2), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(36, 4))
    optimizer = build_optimizer(settings, model, class_counts=data.counts)
    optimizer.observe(data)
    return model, TrainingStep(settings, data, model, optimizer, CPU, torch.float32)


def batch(data, size=16):
    return data.inputs(data.train.images[-size:]), data.train.labels[-size:]


@pytest.mark.parametrize("precision, expected", [("float32", torch.float32), ("bf16", torch.bfloat16),
                                                 ("amp16", torch.float16)])
def test_forward_and_backward_run_in_the_type_asked_for_and_parameters_stay_float32(data, precision, expected):
    model, step = step_of(data, "ssesam", precision=precision)
    with Seen() as seen:
        loss = step(*batch(data), epoch=0)
    assert seen.types == {expected} and loss.dtype == torch.float32
    assert {value.dtype for value in (*model.parameters(), *(p.grad for p in model.parameters()))} == {torch.float32}


@pytest.mark.parametrize("opt", OPTIMIZERS)
def test_inside_an_epoch_nothing_is_read_from_the_device_or_sent_there_but_overflow_under_a_scaler(data, opt):
    reads = {}
    for name, changes in {"float32": {}, "bf16": {"precision": "bf16"}, "pieces": {"accumulate": 3},
                          "weights": {"weighting": "group_mean", "drw_epoch": 0}, "channels_last": {"channels_last": True},
                          "fused": {"fused": True}, "amp16": {"precision": "amp16"}}.items():
        _, step = step_of(data, opt, **changes)
        batches = shuffled_batches(data, batch_sizes(len(data.train), 16), 0, 0, torch.float32)
        step(*batch(data), epoch=0)     # the first allocates momentum
        with Seen() as seen:
            for images, labels in islice(batches, 2):
                step(images, labels, epoch=0)
        reads[name] = seen.reads
    assert reads.pop("amp16") > 0 and not any(reads.values()), reads


@pytest.mark.parametrize("opt", OPTIMIZERS)
def test_a_step_that_overflows_is_left_out_its_scale_halved_and_the_next_one_taken(data, opt):
    model, step = step_of(data, opt, precision="amp16")
    inputs, labels = batch(data)
    step(inputs, labels, epoch=0)
    before, scale = [p.clone() for p in model.parameters()], step.scaler.get_scale()
    step.scaler.update(2.0**40)         # beyond float16: the backward overflows, the forward does not
    loss = step(inputs, labels, epoch=0)
    assert loss.isfinite() and all(torch.equal(p, old) for p, old in zip(model.parameters(), before))
    assert step.scaler.get_scale() == 2.0**39
    step.scaler.update(scale)
    step(inputs, labels, epoch=0)
    assert not torch.equal(model[0].weight, before[0]) and all(p.isfinite().all() for p in model.parameters())


def test_a_run_with_a_scaler_goes_on_from_its_resume_point_in_the_same_bits(data):
    whole, memory, answers = Memory(), Memory(), iter([False, False, True])
    settings = config(opt="ssesam", precision="amp16")
    train(settings, data=data, recorder=whole)
    train(settings, data=data, recorder=memory, stop=lambda: next(answers))
    memory.point["scaler/scale"] = np.float64(memory.point["scaler/scale"])     # as a file gives it back
    train(settings, data=data, recorder=memory)
    assert whole.point.keys() == memory.point.keys() and "scaler/_growth_tracker" in whole.point
    assert all(np.array_equal(whole.point[name], memory.point[name]) for name in whole.point)


def test_norms_and_the_way_back_do_not_depend_on_the_scale(data):
    """A loss scaled by a power of two ascends to the same point in the same bits."""
    found = []
    for scale in (2.0**4, 2.0**12):
        model, step = step_of(data, "sam", precision="amp16")
        step.config = SimpleNamespace(precision="float32", accumulate=1, channels_last=False, compile=False)
        step.scaler = torch.amp.GradScaler("cpu", init_scale=scale)
        step(*batch(data), epoch=0)
        found.append(vector(model))
    assert np.array_equal(*found)


def test_channels_last_keeps_parameters_and_gradients_in_that_order(data):
    model = train(config(opt="imbsam", channels_last=True, max_steps=2), data=data).model
    for p in model.parameters():
        if p.ndim == 4 and 1 not in p.shape[1:]:
            assert p.is_contiguous(memory_format=torch.channels_last)
            assert p.grad.stride() == p.stride()


def test_pieces_are_one_forward_each_and_no_more_than_there_are_images(data):
    model, step = step_of(data, "sgd", accumulate=5)
    sizes = []
    model.register_forward_hook(lambda module, inputs, out: sizes.append(len(out)))
    step(*batch(data, 16), epoch=0)
    assert sizes == [4, 3, 3, 3, 3]
    assert len(list(step._closures(*batch(data, 3), epoch=0))) == 3


def switches():
    matmul, cudnn = torch.backends.cuda.matmul, torch.backends.cudnn
    return [matmul.fp32_precision, cudnn.conv.fp32_precision, cudnn.rnn.fp32_precision]


def test_tf32_is_switched_and_put_back_also_after_an_error():
    before = switches()
    for precision, expected in (("tf32", "tf32"), ("float32", "ieee"), ("bf16", "ieee")):
        with pytest.raises(KeyError), float32_precision(precision):
            assert switches() == [expected] * 3
            raise KeyError
        assert switches() == before


def test_training_leaves_torchs_switches_as_they_were(data):
    before = switches()
    train(config(max_steps=1), data=data)
    assert switches() == before


@pytest.mark.parametrize("changes, match", [
    ({"precision": "tf32"}, "precision='tf32' is not here: it needs a GPU of compute capability 8.0 or later and the device is"
                            " cpu; use float32 or bf16"),
    ({"precision": "fp16"}, "precision='fp16' is unknown: expected one of float32, tf32, bf16, amp16"),
    ({"precision": "amp16", "dtype": "float64"}, "precision='amp16' lowers float32: expected dtype='float32'"),
    ({"accumulate": 0}, "accumulate=0 is out of range: expected an integer >= 1")])
def test_what_cannot_be_had_is_one_line(data, changes, match):
    with pytest.raises(InputError, match=match) as caught:
        train(config(**changes, device="cpu"), data=data)
    assert "\n" not in str(caught.value)


def test_bfloat16_is_refused_where_the_gpu_lacks_it(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda **_: False)
    with pytest.raises(InputError, match="precision='bf16' is not here: cuda"):
        check_precision("bf16", torch.device("cuda"))
    for precision in set(PRECISIONS) - {"tf32"}:
        check_precision(precision, CPU)


def test_autocast_ends_before_the_loss(data):
    with autocast("bf16", CPU):
        assert torch.is_autocast_enabled("cpu")
    _, step = step_of(data, "sgd", precision="bf16")
    step.loss = lambda logits, labels: _checked(logits, labels)
    step(*batch(data), epoch=0)


def _checked(logits, labels):
    assert logits.dtype == torch.float32 and not torch.is_autocast_enabled("cpu")
    return cross_entropy(logits, labels, reduction="none")


COMPILED = {opt: {"opt": opt} for opt in OPTIMIZERS if opt != "ccsam"} | {
    "ccsam, whole network": {"opt": "ccsam", "opt_options": {"perturb": "network"}},
    "gkp_gsa, released": {"opt": "gkp_gsa", "gkp_variant": "released"},
    "running statistics held": {"opt": "ssesam", "batchnorm": "clean"}}


@pytest.mark.slow
@pytest.mark.parametrize("name", COMPILED)
def test_a_compiled_network_trains_as_the_plain_one_to_other_rounding(data, name):
    plain, compiled = (result(data, max_steps=4, compile=compile, **COMPILED[name]) for compile in (False, True))
    assert 0 < np.abs(plain - compiled).max() < 1e-5        # in the same bits, nothing was compiled


@pytest.mark.slow
def test_a_compiled_network_without_batchnorm_trains_as_the_plain_one(data):
    plain, compiled = (result(data, opt="ssesam", max_steps=8, arch="mlp", compile=compile) for compile in (False, True))
    assert np.abs(plain - compiled).max() < 1e-5


def test_the_last_batch_of_a_run_in_pieces_may_be_smaller_than_their_number(data):
    assert 0 < batch_sizes(len(data.train), 101)[-1] < 8
    assert np.isfinite(result(data, batch_size=101, accumulate=8, epochs=1, arch="mlp")).all()
