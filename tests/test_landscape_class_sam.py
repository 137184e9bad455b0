"""Focal-SAM, CC-SAM, ASAM and Friendly-SAM against their formulas written out, and what they reduce to."""

import math
from functools import partial

import pytest
import torch
from test_landscape_optimizers import INPUTS, LABELS, Counted, make_base, make_net
from torch import nn
from torch.func import functional_call
from torch.nn.functional import cross_entropy

from landscape.distributed import Processes
from landscape.errors import InputError
from landscape.optimizers import ASAM, SAM, SGD, FriendlySAM, GroupSAM, ImbSAM
from landscape.optimizers.cc_sam import CCSAM
from landscape.optimizers.cc_sam_second import adversarial_lengths, adversarial_share, class_weights, first_epoch
from landscape.optimizers.focal_sam import FocalSAM
from landscape.optimizers.scaling import class_radius

COUNTS, RHO = [60, 20, 5], 0.3
EACH = torch.full((10,), 0.1, dtype=torch.float64)      # of the mean over the batch
HEAD = ["2.weight", "2.bias"]   # the last layer's parameters
WITHOUT_2 = torch.where(LABELS == 2, 0, LABELS)     # a batch in which class 2 is absent


def closure_of(net, labels=LABELS, chosen=slice(None)):
    def closure():
        losses = cross_entropy(net(INPUTS[chosen]), labels[chosen], reduction="none")
        return losses, {"labels": labels[chosen], "head": labels[chosen] != 2, "tail": labels[chosen] == 2}
    return closure


def gradient(net, theta, weights, labels=LABELS):
    """Return the gradient of the weighted sum of the losses at theta, by parameter name."""
    theta = {name: p.clone().requires_grad_(True) for name, p in theta.items()}
    losses = cross_entropy(functional_call(net, theta, (INPUTS,)), labels, reduction="none")
    return dict(zip(theta, torch.autograd.grad((losses * weights).sum(), list(theta.values()))))


def length(g):
    return math.sqrt(sum(float((x ** 2).sum()) for x in g.values()))


def moved(theta, g, rho):
    return {name: p + rho * g[name] / length(g) if name in g and length(g) else p for name, p in theta.items()}


def plus(*gradients):
    return {name: sum(g[name] for g in gradients) for name in gradients[0]}


def times(g, factor):
    return {name: factor * x for name, x in g.items()}


def compare(make, formula, steps=3, labels=LABELS, pieces=(slice(None),)):
    """Step the optimizer, and beside it torch's SGD with the formula's gradient; compare the parameters."""
    net, direct = make_net(), make_net()
    optimizer, base, memory = make(make_base(net), net), make_base(direct), {}
    for _ in range(steps):
        optimizer.step(*(closure_of(net, labels, piece) for piece in pieces))
        found = formula(direct, {name: p.detach() for name, p in direct.named_parameters()}, labels, memory)
        for name, p in direct.named_parameters():
            p.grad = found[name]
        base.step()
    for p, q in zip(net.parameters(), direct.parameters()):
        assert torch.allclose(p, q, rtol=0, atol=1e-12)


def focal(net, theta, labels, memory, gamma=2.0, weight=1.3):
    counts = torch.tensor(COUNTS).double()
    share = (weight * (1 - counts / counts.sum()) ** gamma)[labels] / 10
    ascent = gradient(net, theta, share, labels)
    return plus(gradient(net, moved(theta, ascent, RHO), share, labels), gradient(net, theta, 0.1 - share, labels))


@pytest.mark.parametrize("pieces", [(slice(None),), (slice(0, 4), slice(4, 10))], ids=["whole", "pieces"])
def test_focal_sam_takes_the_steps_of_its_formula(pieces):
    compare(lambda base, net: FocalSAM(base, net, COUNTS, RHO, focal_gamma=2.0, focal_weight=1.3), focal, pieces=pieces)


def cc(perturbed, scale, ratio):
    """Return CC-SAM's formula with the parameters named in `perturbed`."""
    def formula(net, theta, labels, memory):
        total = times(gradient(net, theta, EACH, labels), 1 - ratio)
        size = sum(theta[name].numel() for name in perturbed)
        norm = length({name: theta[name] for name in perturbed})
        for c, images in enumerate(COUNTS):
            own = (labels == c).double()
            if own.sum() == 0:
                continue
            ascent = {name: g for name, g in gradient(net, theta, own / own.sum(), labels).items() if name in perturbed}
            radius = (norm / (2 * length(ascent))) ** 0.5 * size ** -0.25 * (images - 1) ** -0.25     # rho*_c
            there = moved(theta, ascent, scale * math.sqrt(size) * radius)
            total = plus(total, times(gradient(net, there, own / 10, labels), ratio))
        return total
    return formula


EVERYTHING = [name for name, _ in make_net().named_parameters()]


@pytest.mark.parametrize("labels", [LABELS, WITHOUT_2], ids=["all classes", "one absent"])
@pytest.mark.parametrize("ratio", [1.0, 0.3])
@pytest.mark.parametrize("perturb, perturbed", [("classifier", HEAD), ("network", EVERYTHING)])
@pytest.mark.parametrize("pieces", [(slice(None),), (slice(0, 4), slice(4, 10))], ids=["whole", "pieces"])
def test_cc_sam_takes_the_steps_of_its_formula(perturb, perturbed, ratio, labels, pieces):
    compare(lambda base, net: CCSAM(base, net, COUNTS, perturb=perturb, radius_scale=0.2, flat_ratio=ratio),
            cc(perturbed, 0.2, ratio), labels=labels, pieces=pieces)


def test_cc_sam_over_a_classifier_without_bias_takes_the_steps_of_its_formula():
    torch.manual_seed(0)
    nets = [nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 3, bias=False)).double() for _ in range(2)]
    nets[1].load_state_dict(nets[0].state_dict())
    CCSAM(torch.optim.SGD(nets[0].parameters(), lr=1.0), nets[0], COUNTS, radius_scale=0.2).step(closure_of(nets[0]))
    theta = {name: p.detach() for name, p in nets[1].named_parameters()}
    found = cc(["2.weight"], 0.2, 1.0)(nets[1], theta, LABELS, {})
    assert all(torch.allclose(p, theta[name] - found[name], rtol=0, atol=1e-12) for name, p in nets[0].named_parameters())


def test_both_ways_of_cc_sam_agree_where_the_network_is_its_classifier():
    nets = [nn.Sequential(nn.Linear(4, 3)).double() for _ in range(2)]
    nets[1].load_state_dict(nets[0].state_dict())
    for net, perturb in zip(nets, ("classifier", "network")):
        CCSAM(make_base(net), net, COUNTS, perturb=perturb, radius_scale=0.5).step(closure_of(net))
    assert all(torch.allclose(a, b, rtol=0, atol=1e-13) for a, b in zip(nets[0].parameters(), nets[1].parameters()))


def test_the_radius_of_a_class_grows_as_its_images_get_fewer_and_is_zero_without_a_gradient():
    one = torch.tensor(1.0).double()
    assert class_radius(8 * one, one / 4, 16, 17) == pytest.approx(16 ** 0.25 * (8 / 0.5) ** 0.5 / 16 ** 0.25)
    assert class_radius(one, one, 16, 2) == 2 * class_radius(one, one, 16, 17) and class_radius(one, 0 * one, 16, 9) == 0


def asam(net, theta, labels, memory):
    g = gradient(net, theta, EACH, labels)
    norm = length({name: theta[name].abs() * g[name] for name in g})
    there = {name: p + RHO * p ** 2 * g[name] / norm for name, p in theta.items()}
    return gradient(net, there, EACH, labels)


def friendly(net, theta, labels, memory, sigma=0.7, decay=0.8):
    """Written over the present gradient and the average of the steps before; the first step has none."""
    g = gradient(net, theta, EACH, labels)
    average = memory.get("average")
    direction = g if average is None else {name: g[name] - sigma * average[name] for name in g}
    memory["average"] = g if average is None else {name: decay * average[name] + (1 - decay) * g[name] for name in g}
    return gradient(net, moved(theta, direction, RHO), EACH, labels)


def test_asam_takes_the_steps_of_its_formula():
    compare(lambda base, net: ASAM(base, net, RHO), asam)


def test_friendly_sam_takes_the_steps_of_its_formula():
    compare(lambda base, net: FriendlySAM(base, net, RHO, friendly=0.7, friendly_decay=0.8), friendly, steps=4)


def test_asam_does_not_see_a_rescaling_of_layers_that_leaves_the_function_alone():
    """Weights of one layer times 4, of the next by 1/4: SAM goes elsewhere, ASAM ascends to the same function."""
    torch.manual_seed(0)
    nets = [nn.Sequential(nn.Linear(4, 5, bias=False), nn.ReLU(), nn.Linear(5, 3, bias=False)).double() for _ in range(2)]
    nets[1].load_state_dict({"0.weight": 4 * nets[0][0].weight.detach(), "2.weight": nets[0][2].weight.detach() / 4})
    seen = {ASAM: [], SAM: []}
    for form, outputs in seen.items():
        for net in nets:
            found = []

            def closure():
                found.append(net(INPUTS))
                return cross_entropy(found[-1], LABELS, reduction="none")
            form(torch.optim.SGD(net.parameters(), lr=0.0), net, RHO).step(closure)
            outputs.append(found[1].detach())
    assert torch.allclose(*seen[ASAM], rtol=0, atol=1e-12) and not torch.allclose(*seen[SAM], atol=1e-3)


def test_both_options_hold_for_any_groups_radius():
    net, other = make_net(), make_net()
    optimizer = ImbSAM(make_base(net), net, RHO, friendly=1.0, scaling="asam")
    for _ in range(3):
        optimizer.step(closure_of(net))
    ascents = optimizer.direction.averages
    assert set(ascents) == {"tail"} and len(ascents["tail"]) == 4       # the head has no radius, and so no average
    plain = ImbSAM(make_base(other), other, RHO)
    for _ in range(3):
        plain.step(closure_of(other))
    assert not torch.allclose(net[0].weight, other[0].weight, atol=1e-6)


def test_an_absent_group_leaves_its_average_alone():
    net = make_net()
    optimizer = ImbSAM(make_base(net), net, RHO, friendly=1.0)
    optimizer.step(closure_of(net))
    before = {p: a.clone() for p, a in optimizer.direction.averages["tail"].items()}
    optimizer.step(closure_of(net, WITHOUT_2))
    assert all(torch.equal(a, before[p]) for p, a in optimizer.direction.averages["tail"].items())


def test_the_average_of_a_group_that_comes_late_starts_with_its_first_gradient():
    late, prompt = make_net(), make_net()
    optimizers = [ImbSAM(torch.optim.SGD(net.parameters(), lr=0.0), net, RHO, friendly=1.0) for net in (late, prompt)]
    optimizers[0].step(closure_of(late, WITHOUT_2))
    for optimizer, net in zip(optimizers, (late, prompt)):
        optimizer.step(closure_of(net))
    first, second = (list(optimizer.direction.averages["tail"].values()) for optimizer in optimizers)
    assert all(torch.equal(a, b) for a, b in zip(first, second))


EQUAL = [7, 7, 7]
REDUCTIONS = {
    "Focal-SAM with rho=0 is SGD": (SGD, lambda b, n: FocalSAM(b, n, COUNTS, 0.0)),
    "Focal-SAM with weight 0 is SGD": (SGD, lambda b, n: FocalSAM(b, n, COUNTS, RHO, focal_weight=0.0)),
    "Focal-SAM with gamma=0 and weight 1 is SAM": (
        lambda b, n: SAM(b, n, RHO), lambda b, n: FocalSAM(b, n, COUNTS, RHO, focal_gamma=0.0, focal_weight=1.0)),
    "Focal-SAM of equal classes is SAM where its weight is 1": (
        lambda b, n: SAM(b, n, RHO), lambda b, n: FocalSAM(b, n, EQUAL, RHO, focal_gamma=2.0, focal_weight=9 / 4)),
    "CC-SAM of the classifier with Z=0 is SGD": (SGD, lambda b, n: CCSAM(b, n, COUNTS, radius_scale=0.0)),
    "CC-SAM of the network with Z=0 is SGD": (SGD, lambda b, n: CCSAM(b, n, COUNTS, perturb="network", radius_scale=0.0)),
    "CC-SAM of the classifier with r=0 is SGD": (SGD, lambda b, n: CCSAM(b, n, COUNTS, radius_scale=1.0, flat_ratio=0.0)),
    "CC-SAM of the network with r=0 is SGD": (
        SGD, lambda b, n: CCSAM(b, n, COUNTS, perturb="network", radius_scale=1.0, flat_ratio=0.0)),
    "ASAM with rho=0 is SGD": (SGD, lambda b, n: ASAM(b, n, 0.0)),
    "ASAM without scaling is SAM": (lambda b, n: SAM(b, n, RHO), lambda b, n: ASAM(b, n, RHO, scaling="none")),
    "Friendly-SAM with sigma=0 is SAM": (lambda b, n: SAM(b, n, RHO), lambda b, n: FriendlySAM(b, n, RHO, friendly=0.0)),
    "One group of everything is SAM": (lambda b, n: SAM(b, n, RHO), lambda b, n: GroupSAM(b, n, {"all": RHO})),
}


@pytest.mark.parametrize("name", REDUCTIONS)
def test_reductions(name):
    nets = make_net(), make_net()
    for net, make in zip(nets, REDUCTIONS[name]):
        optimizer = make(make_base(net), net)
        for _ in range(3):
            optimizer.step(closure_of(net))
    assert all(torch.allclose(a, b, rtol=0, atol=1e-12) for a, b in zip(nets[0].parameters(), nets[1].parameters()))


BAD = {
    "class_counts[2]=1 is out of range: CC-SAM expects each class to have at least 2": lambda b, n: CCSAM(b, n, [9, 5, 1]),
    "class_counts[1]=0 is out of range: Focal-SAM expects": lambda b, n: FocalSAM(b, n, [9, 0, 1]),
    "Focal-SAM needs class_counts": lambda b, n: FocalSAM(b, n, None),
    "class_counts has shape (1, 3)": lambda b, n: FocalSAM(b, n, [[1, 2, 3]]),
    "second_stage=1.5 is out of range: expected 0 <= second_stage <= 1": lambda b, n: CCSAM(b, n, [9, 5, 2], second_stage=1.5),
    "adversarial=-1 is out of range": lambda b, n: CCSAM(b, n, [9, 5, 2], adversarial=-1),
    "adversarial_length='plain' is unknown: expected one of rarity, equal": (
        lambda b, n: CCSAM(b, n, [9, 5, 2], second_stage=0.5, adversarial_length="plain")),
    "second stage knows one process": (
        lambda b, n: CCSAM(b, n, [9, 5, 2], perturb="network", second_stage=0.5, processes=Processes(0, 2))),
    "needs a linear last layer of 4 outputs": lambda b, n: CCSAM(b, n, [9, 5, 3, 2]),
}


@pytest.mark.parametrize("told", BAD)
def test_mistakes_are_one_clear_line(told):
    net = make_net()
    with pytest.raises(InputError) as caught:
        BAD[told](make_base(net), net)
    assert told in str(caught.value) and "\n" not in str(caught.value)


def test_a_classifier_that_answers_otherwise_than_once_a_sample_is_told():
    net = make_net()
    optimizer = CCSAM(make_base(net), net, COUNTS)
    for outputs, told in ((lambda: cross_entropy(torch.cat([net(INPUTS), net(INPUTS)])[:10], LABELS, reduction="none"),
                           r"shape \(10, 3\), \(10, 3\) in a closure: expected one \(10, 3\)"),
                          (lambda: net[0](INPUTS).sum(1), "shape none in a closure")):
        with pytest.raises(InputError, match=told):
            optimizer.step(lambda: (outputs(), {"labels": LABELS}))


@pytest.mark.parametrize("make", [lambda b, n: FocalSAM(b, n, COUNTS), lambda b, n: CCSAM(b, n, COUNTS),
                                  lambda b, n: CCSAM(b, n, COUNTS, perturb="network")])
def test_a_closure_without_labels_is_told_what_is_missing(make):
    net = make_net()
    with pytest.raises(InputError, match=r"labels: none; this optimizer goes by classes and expects \{'labels': torch.int64"):
        make(make_base(net), net).step(lambda: (closure_of(net)()[0], {}))


@pytest.mark.parametrize("perturb, counts", [("classifier", (2, 3)), ("network", (4, 6))])
def test_of_a_mixture_with_the_loss_in_place_a_step_takes_so_many_forwards_and_backwards(perturb, counts):
    net = make_net()
    Counted.count.update(forward=0, backward=0)

    def closure():
        return cross_entropy(Counted.apply(net(INPUTS)), LABELS, reduction="none"), {"labels": LABELS}
    CCSAM(make_base(net), net, COUNTS, perturb=perturb, flat_ratio=0.3).step(closure)
    assert (Counted.count["forward"], Counted.count["backward"]) == counts


def second(net, theta, labels, memory, strength=1.7, share=0.4, length="rarity"):
    """The second stage written over the features: balanced classes, a share of features moved along their own gradient."""
    counts = torch.tensor(COUNTS).double()
    weights = (counts.sum() / (3 * counts))[labels]
    z = net[1](net[0](INPUTS)).detach().requires_grad_()
    head = {name.removeprefix("2."): theta[name].clone().requires_grad_(True) for name in HEAD}

    def loss(features):
        return cross_entropy(functional_call(net[2], head, (features,)), labels, reduction="none")
    slope = torch.autograd.grad(loss(z).sum(), z)[0]
    rarity = {"rarity": (counts.max() / counts + 0.01).log() / 2, "equal": torch.ones(3).double()}[length][labels]
    there = z.detach() + strength * rarity[:, None] * slope / slope.norm(dim=1, keepdim=True)
    whole = (weights * ((1 - share) * loss(z.detach()) + share * loss(there))).mean()
    found = dict(zip(HEAD, torch.autograd.grad(whole, [head["weight"], head["bias"]])))
    return {name: found.get(name) for name in theta}


@pytest.mark.parametrize("perturb", ["classifier", "network"])
@pytest.mark.parametrize("length", ["rarity", "equal"])
@pytest.mark.parametrize("pieces", [(slice(None),), (slice(0, 4), slice(4, 10))], ids=["whole", "pieces"])
def test_the_second_stage_of_cc_sam_takes_the_steps_of_its_formula(pieces, length, perturb):
    options = {"second_stage": 1.0, "adversarial": 1.7, "adversarial_cap": 0.4, "total_epochs": 1, "adversarial_length": length}
    compare(lambda base, net: CCSAM(base, net, COUNTS, perturb=perturb, **options), partial(second, length=length), pieces=pieces)


def test_the_papers_cc_sam_runs_whole_each_class_over_the_network_then_equal_moves_of_the_features():
    net, direct = make_net(), make_net()
    optimizer = CCSAM(make_base(net), net, COUNTS, perturb="network", radius_scale=0.2, second_stage=0.5, total_epochs=4,
                      adversarial=1.7, adversarial_length="equal")
    base, stages = make_base(direct), []
    for epoch in range(4):
        stages.append(optimizer.stage)
        optimizer.step(closure_of(net))
        formula = cc(EVERYTHING, 0.2, 1.0) if epoch < 2 else partial(second, share=(epoch - 1) / 2, length="equal")
        found = formula(direct, {name: p.detach() for name, p in direct.named_parameters()}, LABELS, {})
        for name, p in direct.named_parameters():
            p.grad = found[name]
        base.step()
        optimizer.end_epoch()
    assert stages == [1, 1, 2, 2] and optimizer.compiles is False
    assert all(torch.allclose(p, q, rtol=0, atol=1e-12) for p, q in zip(net.parameters(), direct.parameters()))


def test_the_second_stage_leaves_the_backbone_and_running_statistics_alone():
    net = make_net(batchnorm=True)
    before = {name: value.clone() for name, value in net.state_dict().items()}
    optimizer = CCSAM(make_base(net), net, COUNTS, second_stage=1.0)
    for _ in range(2):
        optimizer.step(closure_of(net))
    changed = [name for name, value in net.state_dict().items() if not torch.equal(value, before[name])]
    assert changed == ["3.weight", "3.bias"]


def test_the_second_stage_comes_at_the_end_and_the_share_of_moved_features_grows_to_its_cap():
    net = make_net()
    optimizer = CCSAM(make_base(net), net, COUNTS, second_stage=30 / 230, total_epochs=230)
    stages = []
    for _ in range(230):
        stages.append(optimizer.stage)
        optimizer.end_epoch()
    assert stages == [1] * 200 + [2] * 30
    assert [adversarial_share(epoch, 200, 230, 0.5) for epoch in (200, 214, 229)] == pytest.approx([1 / 30, 0.5, 0.5])
    assert first_epoch(0.0, 230) == 230 and first_epoch(1.0, 7) == 0


def test_of_equal_classes_the_second_stage_moves_next_to_nothing_and_weighs_all_alike():
    images = torch.tensor([7.0, 7.0, 7.0]).double()
    weights, rarity = class_weights(images), adversarial_lengths(images, "rarity")
    assert weights.tolist() == [1.0] * 3 and (rarity == math.log(1.01) / 2).all()
