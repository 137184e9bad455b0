"""GroupSAM: hand-computed steps, an independent implementation of the formulas, reductions, cost, and what it leaves
alone."""

import copy
import math
from contextlib import nullcontext
from types import SimpleNamespace

import pytest
import torch
from torch import nn
from torch.func import functional_call
from torch.nn.functional import cross_entropy
from torch.utils._python_dispatch import TorchDispatchMode

from landscape.configuration import TrainConfig
from landscape.errors import InputError
from landscape.optimizers import SAM, SSESAM, GroupSAM, ImbSAM, switch_epoch
from landscape.optimizers.building import build_optimizer

LR, MOMENTUM, WEIGHT_DECAY, RHO = 0.1, 0.9, 0.01, 0.3
LABELS = torch.tensor([0, 0, 1, 2, 0, 1, 0, 2, 0, 0])
TAIL = LABELS == 2
INPUTS = torch.randn(10, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


def make_net(batchnorm=False, seed=0):
    torch.manual_seed(seed)
    middle = [nn.BatchNorm1d(5)] if batchnorm else []
    return nn.Sequential(nn.Linear(4, 5), *middle, nn.Tanh(), nn.Linear(5, 3)).double()


def make_base(net, momentum=MOMENTUM, weight_decay=WEIGHT_DECAY):
    return torch.optim.SGD(net.parameters(), lr=LR, momentum=momentum, weight_decay=weight_decay)


def closure_of(net, chosen=slice(None), tail=TAIL):
    def closure():
        losses = cross_entropy(net(INPUTS[chosen]), LABELS[chosen], reduction="none")
        return losses, {"head": ~tail[chosen], "tail": tail[chosen]}
    return closure


def weights(net):
    return [p.detach().clone() for p in net.parameters()]


def close(net, other, tolerance=1e-12):
    return all(torch.allclose(a, b, rtol=0, atol=tolerance) for a, b in zip(net.parameters(), other.parameters()))


def same_bits(net, other):
    return all(torch.equal(a, b) for a, b in zip(net.parameters(), other.parameters()))


def train(net, optimizer, steps=4, **options):
    for _ in range(steps):
        optimizer.step(closure_of(net, **options))
    return net


class Direct:
    """The formulas written out over plain tensors, with SGD's momentum and weight decay by hand."""

    def __init__(self, net, radii, weighting="batch"):
        self.net, self.radii, self.weighting = net, radii, weighting
        self.theta = {n: p.detach().clone() for n, p in net.named_parameters()}
        self.velocity = None

    def gradient(self, group, theta):
        theta = {n: p.clone().requires_grad_(True) for n, p in theta.items()}
        losses = cross_entropy(functional_call(self.net, theta, (INPUTS,)), LABELS, reduction="none")
        chosen = {"all": losses, "head": losses[~TAIL], "tail": losses[TAIL]}[group]
        scale = {"batch": 1 / 10, "double_tail": (2 if group == "tail" else 1) / 10, "group_mean": 1 / len(chosen)}
        return dict(zip(theta, torch.autograd.grad(chosen.sum() * scale[self.weighting], list(theta.values()))))

    def step(self):
        total = {n: torch.zeros_like(p) for n, p in self.theta.items()}
        for group, rho in self.radii.items():
            ascent = self.gradient(group, self.theta)
            length = math.sqrt(sum(float((g ** 2).sum()) for g in ascent.values()))
            moved = {n: p + rho * ascent[n] / length for n, p in self.theta.items()}
            for n, g in self.gradient(group, moved).items():
                total[n] += g
        total = {n: g + WEIGHT_DECAY * self.theta[n] for n, g in total.items()}
        self.velocity = (
            total if self.velocity is None else {n: MOMENTUM * self.velocity[n] + g for n, g in total.items()}
        )
        self.theta = {n: p - LR * self.velocity[n] for n, p in self.theta.items()}


# Each form with the radii that define it.
MADE = {
    "sgd": (lambda base, net, **o: GroupSAM(base, net, {"all": 0.0}, **o), {"all": 0.0}),
    "sam": (lambda base, net, **o: SAM(base, net, RHO, **o), {"all": RHO}),
    "imbsam": (lambda base, net, **o: ImbSAM(base, net, RHO, **o), {"head": 0.0, "tail": RHO}),
    "ssesam, stage I": (lambda base, net, **o: SSESAM(base, net, 0.2, RHO, 1.0, **o), {"head": 0.2, "tail": RHO}),
    "ssesam, stage II": (lambda base, net, **o: SSESAM(base, net, 0.2, RHO, 0.0, **o), {"head": 0.0, "tail": RHO}),
    "three groups": (
        lambda base, net, **o: GroupSAM(base, net, {"all": 0.1, "head": 0.0, "tail": RHO}, **o),
        {"all": 0.1, "head": 0.0, "tail": RHO},
    ),
}


@pytest.mark.parametrize("weighting", ["batch", "double_tail", "group_mean"])
@pytest.mark.parametrize("name", MADE)
def test_steps_equal_the_formulas_written_out(name, weighting):
    net = make_net()
    make, radii = MADE[name]
    optimizer, direct = make(make_base(net), net, weighting=weighting), Direct(make_net(), radii, weighting)
    for _ in range(4):
        optimizer.step(closure_of(net))
        direct.step()
    for name, p in net.named_parameters():
        assert torch.allclose(p, direct.theta[name], rtol=0, atol=1e-12)


class Point(nn.Module):
    """Two coordinates; sample i has the loss x' A_i x / 2."""

    def __init__(self, x):
        super().__init__()
        self.x = nn.Parameter(torch.tensor(x, dtype=torch.float64))


def quadratic(point, curvatures, tail):
    def closure():
        return (curvatures * point.x**2).sum(1) / 2, {"head": ~tail, "tail": tail}

    return closure


def test_sam_on_a_quadratic_takes_the_step_computed_by_hand():
    point = Point([3.0, 4.0])
    optimizer = SAM(torch.optim.SGD(point.parameters(), lr=0.5), point, rho=1.0)
    loss = optimizer.step(quadratic(point, torch.ones(1, 2).double(), torch.tensor([False])))
    # g = (3, 4), ||g|| = 5: ascent to (3.6, 4.8), whose gradient is itself.
    assert torch.allclose(point.x, torch.tensor([3 - 1.8, 4 - 2.4], dtype=torch.float64), rtol=0, atol=1e-15)
    assert loss == 12.5


def test_imbsam_and_ssesam_on_a_saddle_take_the_steps_computed_by_hand():
    curvatures, tail = torch.tensor([[4.0, 0.0], [0.0, -2.0]]).double(), torch.tensor([False, True])
    # batch of two: head gradient (2 x, 0), tail gradient (0, -y); at (1, 1) each ascent is along one axis by rho = 0.5.
    expected = {ImbSAM: (2.0, -0.5), SSESAM: (3.0, -0.5)}
    for form, gradient in expected.items():
        point = Point([1.0, 1.0])
        options = (0.5, 0.5, 1.0) if form is SSESAM else (0.5,)
        form(torch.optim.SGD(point.parameters(), lr=0.1), point, *options).step(quadratic(point, curvatures, tail))
        assert torch.allclose(point.x, 1 - 0.1 * torch.tensor(gradient, dtype=torch.float64), rtol=0, atol=1e-15)


def test_no_radius_is_sgd_bit_by_bit():
    plain, wrapped = make_net(), make_net()
    base = make_base(plain)
    for _ in range(4):
        base.zero_grad()
        cross_entropy(plain(INPUTS), LABELS).backward()
        base.step()
    train(wrapped, GroupSAM(make_base(wrapped), wrapped, {"all": 0.0}))
    assert same_bits(plain, wrapped)


NOWHERE, EVERYWHERE = torch.zeros(10, dtype=torch.bool), torch.ones(10, dtype=torch.bool)
REDUCTIONS = {
    "SAM with rho=0 is SGD": ("sgd", TAIL, lambda b, n: SAM(b, n, 0.0), TAIL),
    "ImbSAM with rho=0 is SGD": ("sgd", TAIL, lambda b, n: ImbSAM(b, n, 0.0), TAIL),
    "SSE-SAM with both radii 0 is SGD": ("sgd", TAIL, lambda b, n: SSESAM(b, n, 0.0, 0.0, 1.0), TAIL),
    "ImbSAM with all samples tail is SAM": ("sam", TAIL, lambda b, n: ImbSAM(b, n, RHO), EVERYWHERE),
    "ImbSAM with no tail sample is SGD": ("sgd", TAIL, lambda b, n: ImbSAM(b, n, RHO), NOWHERE),
    "SSE-SAM with no tail sample is SAM": ("sam", TAIL, lambda b, n: SSESAM(b, n, RHO, 0.7, 1.0), NOWHERE),
    "SSE-SAM with head_rho=0 is ImbSAM": ("imbsam", TAIL, lambda b, n: SSESAM(b, n, 0.0, RHO, 1.0), TAIL),
    "SSE-SAM after the switch is ImbSAM": ("imbsam", TAIL, lambda b, n: SSESAM(b, n, 0.7, RHO, 0.0), TAIL),
}


@pytest.mark.parametrize("name", REDUCTIONS)
def test_reductions(name):
    simple, tail, make, other_tail = REDUCTIONS[name]
    one, other = make_net(), make_net()
    train(one, MADE[simple][0](make_base(one), one), tail=tail)
    train(other, make(make_base(other), other), tail=other_tail)
    assert close(one, other)


@pytest.mark.parametrize("weighting", ["batch", "double_tail", "group_mean"])
@pytest.mark.parametrize("tail", [NOWHERE, EVERYWHERE], ids=["no tail", "no head"])
def test_a_group_absent_from_the_batch_adds_exactly_nothing(weighting, tail):
    net, without = make_net(), make_net()
    present = "head" if tail is NOWHERE else "tail"
    train(net, GroupSAM(make_base(net), net, {"head": 0.2, "tail": RHO}, weighting=weighting), tail=tail)
    radius = {present: 0.2 if present == "head" else RHO}
    train(without, GroupSAM(make_base(without), without, radius, weighting=weighting), tail=tail)
    assert same_bits(net, without)


def test_a_zero_gradient_gives_no_ascent():
    point = Point([0.0, 0.0])
    SAM(torch.optim.SGD(point.parameters(), lr=1.0), point, 1.0).step(
        quadratic(point, torch.ones(1, 2).double(), torch.tensor([False]))
    )
    assert torch.equal(point.x, torch.zeros(2).double())


@pytest.mark.parametrize("scale", [1e-30, 1e-8, 1e20])
def test_the_ascent_does_not_depend_on_the_scale_of_the_loss(scale):
    seen = {}
    for s in (1.0, scale):
        net, places = make_net().float(), []
        sgd = torch.optim.SGD(net.parameters(), lr=0.0)

        def closure():
            places.append(torch.cat([p.detach().flatten() for p in net.parameters()]))
            return s * cross_entropy(net(INPUTS.float()), LABELS, reduction="none")

        SAM(sgd, net, RHO).step(closure)
        seen[s] = places[1] - places[0]
    assert torch.allclose(seen[scale], seen[1.0], rtol=1e-4, atol=1e-7)
    assert abs(seen[scale].double().norm() - RHO) < 1e-6


@pytest.mark.parametrize("name", MADE)
def test_parameters_return_bit_by_bit(name):
    net = make_net().float()  # in single precision subtracting the step again would not
    before = weights(net)
    optimizer = MADE[name][0](torch.optim.SGD(net.parameters(), lr=0.0), net)
    optimizer.step(
        lambda: (cross_entropy(net(INPUTS.float()), LABELS, reduction="none"), {"head": ~TAIL, "tail": TAIL})
    )
    assert all(torch.equal(a, b) for a, b in zip(before, net.parameters()))


def test_parameters_return_also_when_a_perturbed_pass_fails():
    net = make_net()
    before, calls, good = weights(net), [], closure_of(net)

    def failing():
        calls.append(1)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return good()

    with pytest.raises(KeyboardInterrupt):
        SAM(make_base(net), net, RHO, batchnorm="clean").step(failing)
    assert all(torch.equal(a, b) for a, b in zip(before, net.parameters()))


class Counted(torch.autograd.Function):
    """The identity, counting its forwards and backwards."""

    count = {"forward": 0, "backward": 0}

    @staticmethod
    def forward(ctx, x):
        Counted.count["forward"] += 1
        return x.clone()

    @staticmethod
    def backward(ctx, slope):
        Counted.count["backward"] += 1
        return slope


COSTS = {"sgd": (1, 1), "sam": (2, 2), "imbsam": (2, 3), "ssesam, stage I": (3, 4), "ssesam, stage II": (2, 3)}


@pytest.mark.parametrize("name", COSTS)
def test_one_clean_forward_serves_every_group(name):
    net = make_net()
    optimizer = MADE[name][0](make_base(net), net)
    Counted.count.update(forward=0, backward=0)
    optimizer.step(
        lambda: (cross_entropy(Counted.apply(net(INPUTS)), LABELS, reduction="none"), {"head": ~TAIL, "tail": TAIL})
    )
    assert (Counted.count["forward"], Counted.count["backward"]) == COSTS[name]


def test_groups_without_radius_share_one_backward_also_when_each_is_divided_by_its_own_count():
    net = make_net()
    optimizer = ImbSAM(make_base(net), net, 0.0, weighting="group_mean")
    Counted.count.update(forward=0, backward=0)
    optimizer.step(
        lambda: (cross_entropy(Counted.apply(net(INPUTS)), LABELS, reduction="none"), {"head": ~TAIL, "tail": TAIL})
    )
    assert Counted.count == {"forward": 1, "backward": 1}


class NoWaiting(TorchDispatchMode):
    """Refuse every operation whose result the host has to wait for."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        assert func.overloadpacket.__name__ not in (
            "_local_scalar_dense",
            "nonzero",
            "is_nonzero",
            "equal",
            "masked_select",
        )
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("weighting", ["batch", "group_mean"])
@pytest.mark.parametrize("name", MADE)
def test_a_step_reads_nothing_back_from_the_device(name, weighting):
    net = make_net(batchnorm=True)
    optimizer = MADE[name][0](make_base(net), net, weighting=weighting)
    closures = closure_of(net, slice(0, 5)), closure_of(net, slice(5, 10))
    with NoWaiting():
        optimizer.step(*closures)


@pytest.mark.parametrize("cuts", [(0, 5, 10), (0, 1, 4, 10)], ids=["halves", "ragged"])
@pytest.mark.parametrize("weighting", ["batch", "double_tail", "group_mean"])
@pytest.mark.parametrize("name", MADE)
def test_several_closures_are_one_batch_in_pieces(name, weighting, cuts):
    whole, pieces = make_net(), make_net()
    one, other = (MADE[name][0](make_base(net), net, weighting=weighting) for net in (whole, pieces))
    for _ in range(3):
        loss = one.step(closure_of(whole))
        split = other.step(*(closure_of(pieces, slice(a, b)) for a, b in zip(cuts, cuts[1:])))
    assert close(whole, pieces)
    assert abs(loss - split) < 1e-12


def test_pieces_without_a_tail_sample_leave_its_mean_alone():
    whole, pieces = (
        make_net(),
        make_net(),
    )  # samples 4 to 6 hold no tail; they come first, so that the mean starts at 0/0
    order = [slice(4, 5), slice(5, 7), slice(0, 4), slice(7, 10)]
    ImbSAM(make_base(whole), whole, RHO, weighting="group_mean").step(closure_of(whole))
    ImbSAM(make_base(pieces), pieces, RHO, weighting="group_mean").step(*(closure_of(pieces, cut) for cut in order))
    assert close(whole, pieces)


MOVES = {("sgd", "every"): 1, ("sam", "every"): 2, ("imbsam", "every"): 2, ("ssesam, stage I", "every"): 3}


@pytest.mark.parametrize("batchnorm", ["every", "clean"])
@pytest.mark.parametrize("name", ["sgd", "sam", "imbsam", "ssesam, stage I"])
def test_batchnorm_policy_decides_how_often_running_statistics_move(name, batchnorm):
    net = make_net(batchnorm=True)
    MADE[name][0](make_base(net), net, batchnorm=batchnorm).step(closure_of(net))
    assert net[1].num_batches_tracked == MOVES.get((name, batchnorm), 1)


def test_the_clean_policy_moves_the_statistics_of_the_clean_pass_and_changes_no_parameter():
    nets = {policy: make_net(batchnorm=True) for policy in ("every", "clean")}
    for policy, net in nets.items():
        SAM(make_base(net), net, RHO, batchnorm=policy).step(closure_of(net))
    assert same_bits(nets["every"], nets["clean"])
    reference = make_net(batchnorm=True)
    reference(INPUTS)
    assert torch.equal(nets["clean"][1].running_mean, reference[1].running_mean)
    assert not torch.equal(nets["every"][1].running_mean, reference[1].running_mean)


@pytest.mark.parametrize("held", ["base", "wrapper"])
def test_a_scheduler_may_hold_either_object(held):
    net = make_net()
    base = make_base(net)
    optimizer = SAM(base, net)
    scheduler = torch.optim.lr_scheduler.StepLR(base if held == "base" else optimizer, step_size=1, gamma=0.5)
    optimizer.step(closure_of(net))
    scheduler.step()
    assert base.param_groups[0]["lr"] == optimizer.param_groups[0]["lr"] == LR / 2


def test_a_parameter_group_added_later_is_trained():
    net = make_net()
    optimizer = SAM(torch.optim.SGD(net[0].parameters(), lr=LR), net)
    before = weights(net[2])
    optimizer.add_param_group({"params": list(net[2].parameters())})
    optimizer.step(closure_of(net))
    assert not torch.equal(before[0], net[2].weight)


def test_parameters_without_gradient_stay_as_they_are():
    net = make_net()
    net.unused = nn.Parameter(torch.ones(2).double())
    net.frozen = nn.Parameter(torch.ones(2).double(), requires_grad=False)
    optimizer = SSESAM(torch.optim.SGD(net.parameters(), lr=LR, weight_decay=0.1), net, RHO, RHO, 1.0)
    forward = nn.Sequential(net[0], net[1], net[2])
    optimizer.step(closure_of(forward))
    assert net.unused.grad is None and torch.equal(net.unused, torch.ones(2).double())
    assert torch.equal(net.frozen, torch.ones(2).double())


def test_a_parameter_that_only_one_group_uses_is_trained():
    net = Point([1.0, 1.0])
    net.extra = nn.Parameter(torch.tensor(1.0).double())
    tail = torch.tensor([False, True])

    def closure():
        return torch.stack([net.x.square().sum(), net.extra**2]), {"head": ~tail, "tail": tail}

    ImbSAM(torch.optim.SGD(net.parameters(), lr=0.1), net, 0.5).step(closure)
    assert abs(net.extra - (1 - 0.1 * 1.5)) < 1e-15  # half the batch: gradient `extra`, taken at 1.5
    assert torch.allclose(net.x, torch.full((2,), 0.9, dtype=torch.float64), rtol=0, atol=1e-15)


def test_one_tensor_that_is_the_gradient_of_two_parameters_is_not_counted_twice():
    net = nn.ParameterList([torch.ones(2).double(), torch.ones(2).double()])
    tail = torch.tensor([False, True])

    def closure():
        both = net[0] + net[1]
        return both.sum() * torch.ones(2).double(), {"head": ~tail, "tail": tail}

    optimizer = ImbSAM(torch.optim.SGD(net.parameters(), lr=1.0), net, 0.1)

    def clip(base, arguments, options):
        torch.nn.utils.clip_grad_norm_(net.parameters(), 1.0)

    optimizer.base.register_step_pre_hook(clip)
    optimizer.step(closure)
    assert torch.allclose(
        net[0], torch.full((2,), 0.5).double(), rtol=0, atol=1e-6
    )  # gradient (1, 1, 1, 1) clipped to norm 1
    GroupSAM(torch.optim.SGD(net.parameters(), lr=1.0), net, {"all": 0.0}).step(closure)
    net[0].grad.mul_(2)  # an expanded or shared gradient would refuse, or change the other
    assert torch.equal(net[1].grad, torch.ones(2).double())


@pytest.mark.parametrize("name", MADE)
def test_state_survives_a_round_trip_stage_included(name):
    make = MADE[name][0]
    net = make_net()
    optimizer = make(make_base(net), net)
    train(net, optimizer, 2)
    optimizer.end_epoch()
    copied = make_net(seed=5)
    copied.load_state_dict(net.state_dict())
    other = make(make_base(copied), copied)
    other.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    assert other.epochs_done == 1 and other.radii == optimizer.radii and other.param_groups is other.base.param_groups
    assert same_bits(train(net, optimizer), train(copied, other))


def test_a_plain_optimizers_state_is_refused():
    net = make_net()
    with pytest.raises(InputError, match="plain optimizer's"):
        SAM(make_base(net), net).load_state_dict(make_base(net).state_dict())


def test_a_copy_of_model_and_optimizer_trains_on_its_own():
    net = make_net()
    optimizer = SSESAM(make_base(net), net, RHO, RHO, 0.5, 2)
    torch.optim.lr_scheduler.StepLR(optimizer, 1)  # hangs a step of its own on the original
    train(net, optimizer, 1)
    before = weights(net)
    copied_net, copied = copy.deepcopy((net, optimizer))
    train(copied_net, copied, 2)
    assert all(torch.equal(a, b) for a, b in zip(before, net.parameters()))
    assert same_bits(train(net, optimizer, 2), copied_net)


SWITCHES = {
    (0.7, 200): 140,
    (0.0, 200): 0,
    (1.0, 200): math.inf,
    (0.07, 100): 7,
    (0.55, 200): 110,
    (0.5, 5): 3,
    (1e-3, 200): 1,
    (0.1 + 0.2, 10): 3,
    (2 / 3, 3): 2,
}


@pytest.mark.parametrize("gamma, epochs", SWITCHES)
def test_the_switch_comes_after_the_ceiling_of_gamma_times_epochs(gamma, epochs):
    assert switch_epoch(gamma, epochs) == SWITCHES[gamma, epochs]


@pytest.mark.parametrize(
    "gamma, epochs, expected", [(0.7, 200, 140), (0.55, 200, 111), (0.0, 200, math.inf), (1.0, 200, math.inf)]
)
def test_the_released_rule_compares_the_product_as_it_rounds_and_never_switches_at_zero(gamma, epochs, expected):
    assert switch_epoch(gamma, epochs, "released") == expected


def test_ssesam_drops_the_heads_ascent_at_the_switch():
    net = make_net()
    optimizer = SSESAM(make_base(net), net, 0.05, 0.1, gamma=0.7, total_epochs=10)
    stages = []
    for _ in range(10):
        stages.append((optimizer.stage, optimizer.radii["head"], optimizer.radii["tail"]))
        optimizer.end_epoch()
    assert stages == [(1, 0.05, 0.1)] * 7 + [(2, 0.0, 0.1)] * 3


def test_gamma_zero_is_the_tail_alone_from_the_first_step_and_gamma_one_never_switches():
    net = make_net()
    assert SSESAM(make_base(net), net, 0.05, 0.1).radii == {"head": 0.0, "tail": 0.1}
    never = SSESAM(make_base(net), net, 0.05, 0.1, gamma=1, total_epochs=3)
    for _ in range(5):
        never.end_epoch()
    assert never.radii == {"head": 0.05, "tail": 0.1}


def test_radii_may_follow_a_schedule_and_stage_two_stays():
    net = make_net()
    optimizer = SSESAM(make_base(net), net, 0.05, 0.1)
    optimizer.set_radii({"head": 0.2, "tail": 0.3})
    assert optimizer.radii == {"head": 0.0, "tail": 0.3}


def config(**changes):
    settings = {
        "opt": "sgd",
        "opt_options": {},
        "rho": 0.1,
        "head_rho": 0.2,
        "tail_rho": 0.3,
        "gamma": 0.5,
        "gamma_rule": "ceil",
        "epochs": 4,
        "lr": LR,
        "momentum": MOMENTUM,
        "weight_decay": WEIGHT_DECAY,
        "weighting": "batch",
        "batchnorm": "clean",
        "restore": "copy",
        "norm_epsilon": 0.0,
        "fused": False,
    }
    return SimpleNamespace(**TrainConfig().as_dict() | settings | changes)


@pytest.mark.parametrize(
    "opt, radii",
    [
        ("sgd", {"all": 0.0}),
        ("sam", {"all": 0.1}),
        ("imbsam", {"head": 0.0, "tail": 0.1}),
        ("ssesam", {"head": 0.2, "tail": 0.3}),
    ],
)
def test_every_form_is_built_from_a_configuration(opt, radii):
    net = make_net()
    optimizer = build_optimizer(config(opt=opt), net)
    assert optimizer.radii == radii and optimizer.batchnorm == "clean"
    assert {name: optimizer.defaults[name] for name in ("lr", "momentum", "weight_decay")} == {
        "lr": LR,
        "momentum": MOMENTUM,
        "weight_decay": WEIGHT_DECAY,
    }


def test_any_base_optimizer_will_do():
    plain, wrapped = make_net(), make_net()
    adam = torch.optim.Adam(plain.parameters())
    cross_entropy(plain(INPUTS), LABELS).backward()
    adam.step()
    GroupSAM(torch.optim.Adam(wrapped.parameters()), wrapped, {"all": 0.0}).step(closure_of(wrapped))
    assert same_bits(plain, wrapped)


@pytest.mark.parametrize("name", MADE)
def test_a_gradient_scaler_changes_nothing_where_nothing_overflows(name):
    plain, scaled = make_net(), make_net()
    train(plain, MADE[name][0](make_base(plain), plain), 3)
    optimizer, scaler = MADE[name][0](make_base(scaled), scaled), torch.amp.GradScaler("cpu", init_scale=2.0**10)
    for _ in range(3):
        optimizer.step(closure_of(scaled), scaler=scaler)
        scaler.update()
    assert close(plain, scaled)


@pytest.mark.parametrize("failing_pass", [1, 2])
def test_an_overflow_skips_the_step_and_lowers_the_scale(failing_pass):
    net = make_net(batchnorm=True)
    optimizer, scaler = SAM(make_base(net), net, RHO), torch.amp.GradScaler("cpu", init_scale=2.0**10)
    before, calls, good = weights(net), [], closure_of(net)

    def overflowing():
        calls.append(1)
        losses, masks = good()
        return (losses * torch.inf if len(calls) == failing_pass else losses), masks

    optimizer.step(overflowing, scaler=scaler)
    scaler.update()
    assert all(torch.equal(a, b) for a, b in zip(before, net.parameters()))
    assert scaler.get_scale() == 2.0**9
    assert all(b.isfinite().all() for b in net.buffers())
    optimizer.step(good, scaler=scaler)
    assert not torch.equal(before[0], net[0].weight)


def test_an_autocast_region_around_the_step_does_not_freeze_the_cast_weights():
    nets, inputs = [make_net().float(), make_net().float()], INPUTS.float()
    for net, around in zip(nets, (True, False)):
        outer, inner = (autocast, nullcontext) if around else (nullcontext, autocast)
        optimizer = SAM(torch.optim.SGD(net.parameters(), lr=LR), net, 1.0)

        def closure():
            with inner():
                return cross_entropy(net(inputs).float(), LABELS, reduction="none")

        with outer():
            optimizer.step(closure)
    assert same_bits(*nets)


def autocast():
    return torch.autocast("cpu", dtype=torch.bfloat16)


def test_a_plain_sam_closure_may_return_the_losses_alone():
    one, other = make_net(), make_net()
    SAM(make_base(one), one).step(closure_of(one))
    SAM(make_base(other), other).step(lambda: closure_of(other)()[0])
    assert same_bits(one, other)


BAD_SETTINGS = {
    "rho=-0.1": lambda b, n: SAM(b, n, -0.1),
    "rho=nan": lambda b, n: ImbSAM(b, n, math.nan),
    "tail_rho=inf": lambda b, n: SSESAM(b, n, 0.1, math.inf),
    "head_rho=-1": lambda b, n: SSESAM(b, n, -1, 0.1),
    "gamma=1.5": lambda b, n: SSESAM(b, n, 0.1, 0.1, 1.5),
    "gamma=nan": lambda b, n: SSESAM(b, n, 0.1, 0.1, math.nan),
    "total_epochs=0": lambda b, n: SSESAM(b, n, 0.1, 0.1, 0.5, 0),
    "gamma_rule='floor'": lambda b, n: SSESAM(b, n, 0.1, 0.1, gamma_rule="floor"),
    "weighting='sum'": lambda b, n: SAM(b, n, weighting="sum"),
    "batchnorm='never'": lambda b, n: SAM(b, n, batchnorm="never"),
    "radii is empty": lambda b, n: GroupSAM(b, n, {}),
    "opt='adam'": lambda b, n: build_optimizer(config(opt="adam"), n),
    "no trainable parameter of the model": lambda b, n: SAM(b, make_net()),
}


@pytest.mark.parametrize("told", BAD_SETTINGS)
def test_bad_settings_are_refused_in_one_line(told):
    net = make_net()
    with pytest.raises(InputError) as caught:
        BAD_SETTINGS[told](make_base(net), net)
    assert told in str(caught.value) and "\n" not in str(caught.value)


BAD_CLOSURES = {
    "reduction='none'": lambda net: (closure_of(net)()[0].mean(), {}),
    "no mask for group 'tail'": lambda net: (closure_of(net)()[0], {}),
    "expected torch.bool": lambda net: (closure_of(net)()[0], {"head": LABELS, "tail": TAIL}),
    "(10,), one entry a sample": lambda net: (closure_of(net)()[0], {"head": ~TAIL[:3], "tail": TAIL[:3]}),
    "carry no gradient": lambda net: (closure_of(net)()[0].detach(), {"head": ~TAIL, "tail": TAIL}),
}


@pytest.mark.parametrize("told", BAD_CLOSURES)
def test_unusable_closures_are_refused(told):
    net = make_net()
    with pytest.raises(InputError) as caught:
        ImbSAM(make_base(net), net).step(lambda: BAD_CLOSURES[told](net))
    assert told in str(caught.value)


def test_a_step_without_a_closure_is_refused():
    net = make_net()
    with pytest.raises(InputError, match="needs a closure"):
        SAM(make_base(net), net).step()
