"""The family's table: what every row inherits, each in every stage, and what a row of one's own takes."""

import copy
import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from test_landscape_optimizers import INPUTS, LABELS, TAIL, Counted, NoWaiting, close, make_net, same_bits, weights
from torch.nn.functional import cross_entropy
from training_ranks import Memory

from landscape.configuration import TrainConfig
from landscape.data import load_data
from landscape.errors import InputError
from landscape.family import FAMILY, Method, Passes, method, register_optimizer
from landscape.optimizers import SAM, SSESAM
from landscape.optimizers.building import build_optimizer, constructor_of, hyperparameters, opt_options, settings_read
from landscape.training import train

CLASS_COUNTS = [60, 20, 5]
NOISY = {"pgd": {"noise_radius": 0.3}, "lpfsgd": {"lpf_std": 0.05}}
SMALL = {"gkp_gsa": {"num_groups": 2}}      # there are three classes here
STAGES = {f"{opt} {passes.stage}".strip(): (opt, passes) for opt, row in FAMILY.items() for passes in row.passes}


def config(opt, options=None, **changes):
    options = {**NOISY.get(opt, {}), **SMALL.get(opt, {}), **(options or {})}
    plain = {"lr": 0.1, "momentum": 0.9, "weight_decay": 0.01, "rho": 0.3, "head_rho": 0.2, "tail_rho": 0.3, "gamma": 0.5,
             "epochs": 4}
    flags = {name: options.pop(name) for name in tuple(options) if name in plain}
    return TrainConfig(opt=opt, opt_options=options, **plain | flags | changes)


def made(stage, net, **changes):
    opt, passes = STAGES[stage]
    return build_optimizer(config(opt, dict(passes.options), **changes), net, class_counts=CLASS_COUNTS)


def closure_of(net, chosen=slice(None), through=lambda logits: logits):
    def closure():
        losses = cross_entropy(through(net(INPUTS[chosen].to(net[0].weight.dtype))), LABELS[chosen], reduction="none")
        return losses, {"head": ~TAIL[chosen], "tail": TAIL[chosen], "labels": LABELS[chosen]}
    return closure


def trained(stage, net, steps=3, pieces=None, scaler=None, **changes):
    """Train with noise that is the same in every call."""
    torch.manual_seed(3)
    optimizer = made(stage, net, **changes)
    for _ in range(steps):
        optimizer.step(*[closure_of(net, piece) for piece in pieces or [slice(None)]], scaler=scaler)
        if scaler:
            scaler.update()
    return net


@pytest.mark.parametrize("stage", [stage for stage in STAGES if stage != "gkp_gsa paper"])    # of four groups: its own tests
def test_a_step_takes_the_forwards_and_backwards_of_its_row(stage):
    net = make_net()
    optimizer = made(stage, net)
    Counted.count.update(forward=0, backward=0)
    optimizer.step(closure_of(net, through=Counted.apply))
    assert (Counted.count["forward"], Counted.count["backward"]) == STAGES[stage][1].of(num_classes=3)


@pytest.mark.parametrize("stage", STAGES)
def test_parameters_return_bit_by_bit(stage):
    net = make_net(batchnorm=True).float()
    before = weights(net)
    made(stage, net, lr=0.0).step(closure_of(net))
    assert all(torch.equal(a, b) for a, b in zip(before, net.parameters()))


@pytest.mark.parametrize("stage", STAGES)
def test_every_optimizer_moves_the_parameters_otherwise_than_sgd(stage):
    if stage != "sgd":
        assert not close(trained(stage, make_net()), trained("sgd", make_net()), 1e-6)


@pytest.mark.parametrize("stage", STAGES)
def test_a_scaler_changes_nothing_where_nothing_overflows(stage):
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**10, growth_interval=2)     # the scale moves on the way
    assert close(trained(stage, make_net(), 5), trained(stage, make_net(), 5, scaler=scaler))


@pytest.mark.parametrize("batchnorm", ["every", "clean"])
@pytest.mark.parametrize("stage", [stage for stage, (_, passes) in STAGES.items() if not passes.waits])
def test_a_step_reads_nothing_back_from_the_device_unless_its_row_says_so(stage, batchnorm):
    net = make_net(batchnorm=True)
    optimizer = made(stage, net, batchnorm=batchnorm)
    closures = [closure_of(net, slice(0, 5)), closure_of(net, slice(5, 10))]
    optimizer.step(*closures)       # the first allocates momentum
    with NoWaiting():
        optimizer.step(*closures)


@pytest.mark.parametrize("cuts", [(0, 5, 10), (0, 1, 4, 10)], ids=["halves", "ragged"])
@pytest.mark.parametrize("stage", [stage for stage in STAGES if not stage.startswith("lpfsgd")])   # a draw a piece
def test_several_closures_are_one_batch_in_pieces(stage, cuts):
    pieces = [slice(a, b) for a, b in zip(cuts, cuts[1:])]
    assert close(trained(stage, make_net()), trained(stage, make_net(), pieces=pieces))


@pytest.mark.parametrize("stage", STAGES)
def test_state_survives_a_round_trip(stage):
    net = make_net()
    optimizer = made(stage, net)
    for _ in range(2):
        optimizer.step(closure_of(net))
    other_net = make_net(seed=5)
    other_net.load_state_dict(net.state_dict())
    other = made(stage, other_net)
    other.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    other.load_arrays(copy.deepcopy(optimizer.arrays()))
    for each, own in ((optimizer, net), (other, other_net)):
        torch.manual_seed(3)
        for _ in range(2):
            each.step(closure_of(own))
    assert same_bits(net, other_net)


@pytest.mark.parametrize("stage", STAGES)
def test_a_copy_of_model_and_optimizer_trains_on_its_own(stage):
    net = make_net()
    optimizer = made(stage, net)
    optimizer.step(closure_of(net))
    before, (copied_net, copied) = weights(net), copy.deepcopy((net, optimizer))
    copied.step(closure_of(copied_net))
    assert all(torch.equal(a, b) for a, b in zip(before, net.parameters())) and not same_bits(net, copied_net)


@pytest.fixture(scope="module")
def data():
    return load_data("synthetic", imb_factor=10)


@pytest.mark.parametrize("stage", STAGES)
def test_a_run_stopped_in_an_epoch_goes_on_to_the_same_bits(stage, data):
    opt, passes = STAGES[stage]
    run = replace(config(opt, dict(passes.options), epochs=2), dataset="synthetic", eta=30, arch="mlp", lr=0.05, batch_size=64)
    whole, memory, answers = Memory(), Memory(), iter([False, True])
    train(run, data=data, recorder=whole)
    train(run, data=data, recorder=memory, stop=lambda: next(answers))
    train(run, data=data, recorder=memory)
    assert whole.point.keys() == memory.point.keys()
    assert all(np.array_equal(whole.point[name], memory.point[name]) for name in whole.point)


@pytest.mark.parametrize("opt", FAMILY)
def test_every_row_says_where_it_is_from_and_how_it_is_drawn(opt):
    row = FAMILY[opt]
    assert row.opt == opt and row.name and row.source and row.color and len({p.stage for p in row.passes}) == len(row.passes)
    for passes in row.passes:
        assert set(passes.options) <= set(hyperparameters(opt))


def test_rows_differ_in_name_color_and_marker():
    for looks in ([row.name for row in FAMILY.values()], [(row.color, row.marker) for row in FAMILY.values()]):
        assert len(set(looks)) == len(FAMILY)


def test_passes_are_printed_as_the_cost_table_has_them():
    assert [Passes(2, 3).words, Passes(1, 0, each=(1, 2)).words, Passes(2, 1, each=(0, 1)).words] == [
        "2 / 3", "1 + C / 2C", "2 / 1 + C"]


def test_hyperparameters_are_those_of_the_signature_and_of_the_rule():
    assert hyperparameters("sam") == {"rho": 0.05, "scaling": "none", "friendly": 0.0, "friendly_decay": 0.9}
    assert list(hyperparameters("ssesam"))[:4] == ["head_rho", "tail_rho", "gamma", "gamma_rule"]
    assert hyperparameters("asam")["scaling"] == "asam" and opt_options("lpfsgd")["lpf_draws"] == 1
    assert settings_read("ssesam") == ("head_rho", "tail_rho", "gamma", "gamma_rule", "eta", "weighting")
    assert settings_read("sgd") == settings_read("pgd") == () and settings_read("focalsam") == ("rho",)


def test_an_option_with_a_flag_of_its_own_is_stored_there_once():
    assert TrainConfig(opt="sam", opt_options={"rho": 0.2}) == TrainConfig(opt="sam", rho=0.2)
    assert TrainConfig(opt="focalsam", opt_options={"focal_gamma": 1}).opt_options == {"focal_gamma": 1.0}


class Mine(SAM):
    """SAM under another name, with a hyperparameter of its own."""

    def __init__(self, optimizer, model, rho=0.05, *, times=2.0, **options):
        self.times = times
        super().__init__(optimizer, model, rho * times, **options)


@pytest.fixture
def family():
    before = dict(FAMILY)
    yield FAMILY
    FAMILY.clear()
    FAMILY.update(before)


def test_a_row_of_ones_own_is_configured_trained_and_drawn_like_the_others(family, data):
    from figures.style import look
    row = register_optimizer("mine", Mine, name="My SAM", source="this test", color="#123456")
    run = TrainConfig(dataset="synthetic", opt="mine", rho=0.1, opt_options={"times": 3}, epochs=1, eta=30, arch="mlp")
    same = TrainConfig(dataset="synthetic", opt="sam", rho=0.1 * 3.0, epochs=1, eta=30, arch="mlp")
    assert same_bits(train(run, data=data).model, train(same, data=data).model)
    assert method("mine") is row and look("mine").name == "My SAM" and look("mine").color == "#123456"
    assert run.stored()["opt_options"] == {"times": 3.0}
    with pytest.raises(InputError, match="opt='mine' is taken by My SAM"):
        register_optimizer("mine", Mine)


def test_an_optimizer_named_by_module_and_callable_needs_no_row(data, tmp_path, monkeypatch):
    (tmp_path / "my_optimizers.py").write_text(
        "from landscape import SAM\n\n\ndef doubled(optimizer, model, rho=0.05, **options):\n"
        "    return SAM(optimizer, model, 2 * rho, **options)\n")
    monkeypatch.chdir(tmp_path)
    plain = {"dataset": "synthetic", "epochs": 1, "eta": 30, "arch": "mlp"}
    mine = train(TrainConfig(opt="my_optimizers:doubled", rho=0.1, **plain), data=data)
    assert same_bits(mine.model, train(TrainConfig(opt="sam", rho=0.2, **plain), data=data).model)
    assert method("my_optimizers:doubled").name == "doubled"


class WithoutDefault(SAM):
    def __init__(self, optimizer, model, amount, **options):
        super().__init__(optimizer, model, **options)


class OtherDefault(SAM):
    def __init__(self, optimizer, model, rho=0.7, **options):
        super().__init__(optimizer, model, rho, **options)


def no_optimizer(optimizer, model):
    return optimizer


def test_rows_that_cannot_be_used_are_refused_in_one_line(family):
    register_optimizer("without", WithoutDefault)
    register_optimizer("other", OtherDefault)
    register_optimizer("none", no_optimizer)
    for settings, told in (({"opt": "without"}, "has no default for amount"),
                           ({"opt": "other"}, "gives rho the default 0.7, and --rho is 0.05 by default"),
                           ({"opt": "nowhere:at_all"}, "'nowhere:at_all' cannot be imported"),
                           ({"opt": "math:pi"}, "'math:pi' is of type float: expected something to call")):
        with pytest.raises(InputError) as caught:
            TrainConfig(**settings)
        assert told in str(caught.value) and "\n" not in str(caught.value)
    with pytest.raises(InputError, match="opt='none' built a SGD: expected a GroupSAM"):
        build_optimizer(config("none"), make_net())
    with pytest.raises(InputError, match="groups='halves' is unknown: expected one of all, head_tail, classes"):
        Method("x", "X", SAM, (), "", groups="halves")


BAD = {
    "opt_options: 'tau' is unknown to opt sam: expected rho, scaling, friendly": ("sam", {"tau": 1}),
    "opt_options: lpf_draws='two' is out of range: expected an integer, such as 1": ("lpfsgd", {"lpf_draws": "two"}),
    "opt_options: lpf_std=True is out of range: expected a number": ("lpfsgd", {"lpf_std": True}),
    "lpf_draws=0 is out of range: expected an integer >= 1": ("lpfsgd", {"lpf_draws": 0}),
    "lpf_std=-1.0": ("lpfsgd", {"lpf_std": -1}),
    "noise_radius=nan": ("pgd", {"noise_radius": math.nan}),
    "focal_weight=-0.5 is out of range: expected a finite number >= 0": ("focalsam", {"focal_weight": -0.5}),
    "focal_gamma=-1.0": ("focalsam", {"focal_gamma": -1}),
    "perturb='head' is unknown: expected one of classifier, network": ("ccsam", {"perturb": "head"}),
    "radius_scale=inf": ("ccsam", {"radius_scale": math.inf}),
    "flat_ratio=1.5 is out of range: expected 0 <= flat_ratio <= 1": ("ccsam", {"flat_ratio": 1.5}),
    "leave scaling and friendly out": ("ccsam", {"scaling": "asam"}),
    "scaling='adam' is unknown: expected one of none, asam": ("sam", {"scaling": "adam"}),
    "friendly=-1.0 is out of range: expected a finite number >= 0": ("sam", {"friendly": -1}),
    "friendly_decay=1.0 is out of range: expected 0 <= friendly_decay < 1": ("friendlysam", {"friendly_decay": 1}),
}


@pytest.mark.parametrize("told", BAD)
def test_bad_hyperparameters_are_one_clear_line(told):
    opt, options = BAD[told]
    with pytest.raises(InputError) as caught:
        build_optimizer(TrainConfig(opt=opt, opt_options=options), make_net(), class_counts=CLASS_COUNTS)
    assert told in str(caught.value) and "\n" not in str(caught.value)


def test_what_a_compiled_network_hides_is_refused():
    with pytest.raises(InputError, match="opt=ccsam with these options watches layers of the network"):
        build_optimizer(TrainConfig(opt="ccsam", compile=True), make_net(), class_counts=CLASS_COUNTS)
    network = TrainConfig(opt="ccsam", opt_options={"perturb": "network"}, compile=True)
    assert build_optimizer(network, make_net(), class_counts=CLASS_COUNTS).compiles


def test_a_value_given_twice_is_refused():
    with pytest.raises(InputError, match="rho is 0.1 by its flag and 0.2 in opt_options: give it once"):
        TrainConfig(opt="sam", rho=0.1, opt_options={"rho": 0.2})
    assert SSESAM.__init__ and constructor_of("ssesam") is SSESAM
