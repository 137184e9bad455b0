"""GKP-GSA: a step against its formulas in float64, what it reduces to, its degenerate cases, its cost, and its state."""

import math

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn.functional import cross_entropy

from landscape.data import load_data
from landscape.data.dataset import LongTailData, Split
from landscape.errors import InputError
from landscape.losses.contrastive import HEADS, add_contrastive_heads
from landscape.optimizers import SAM, SGD
from landscape.optimizers.building import hyperparameters
from landscape.optimizers.gkp_gsa import GKPGSA
from landscape.parameters import flatten, split_like
from landscape.recipes import filled
from landscape.training import TrainConfig, train

LR, EPOCHS = 0.1, 10
COUNTS = [20, 11, 6, 2]
GROUPS = [[0, 1], [2, 3]]                                   # by size, which is how they start
LABELS = torch.tensor([0, 0, 1, 3, 2, 0, 1, 0, 3, 2])
IMAGES = torch.randn(10, 5, generator=torch.Generator().manual_seed(3), dtype=torch.float64)


def net():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(5, 6), nn.Tanh(), nn.Linear(6, 4)).double()


def built(model, **options):
    settings = {"num_groups": 2, "scale": 0.2, "class_counts": COUNTS, "total_epochs": EPOCHS}
    if options.get("gkp_variant") == "released":
        settings.pop("scale")
    return GKPGSA(torch.optim.SGD(model.parameters(), lr=LR), model, **settings | options)


def keep(optimizer, seed=5):
    """Give the optimizer anchors and Fisher information, as an epoch's end would."""
    draw, kept = torch.Generator().manual_seed(seed), optimizer.preservation
    shape = kept.rule.num_groups, sum(p.numel() for p in kept.parameters)
    kept.anchors = torch.randn(shape, generator=draw, dtype=torch.float64)
    kept.fisher = torch.rand(shape, generator=draw, dtype=torch.float64) * 1e-2
    return optimizer


def closure_of(model, images=IMAGES, labels=LABELS, calls=None):
    def closure():
        if calls is not None:
            calls.append(1)
        return cross_entropy(model(images), labels, reduction="none"), {"labels": labels}
    return closure


def moved(model, step):
    """Theta after a step, as a vector."""
    step(closure_of(model))
    return flatten(model.parameters()).detach()


class Written:
    """The formulas over one vector theta, by autograd through functional calls."""

    def __init__(self, model, groups=GROUPS, labels=LABELS):
        self.model, self.groups, self.labels = model, groups, labels
        self.theta = flatten(model.parameters()).detach().clone()
        self.names = [name for name, _ in model.named_parameters()]

    def loss(self, theta, group=None, mean=False):
        pieces = dict(zip(self.names, split_like(theta, list(self.model.parameters()))))
        losses = cross_entropy(torch.func.functional_call(self.model, pieces, (IMAGES,)), self.labels, reduction="none")
        if group is None:
            return losses.mean()
        mask = torch.isin(self.labels, torch.tensor(self.groups[group]))
        return losses[mask].sum() / (mask.sum() if mean else len(losses))

    def slope(self, theta, group=None, mean=False):
        theta = theta.detach().requires_grad_()
        return torch.autograd.grad(self.loss(theta, group, mean), theta)[0]

    def radius(self, length, size, power=0.25):
        return (self.theta.norm() / (2 * length)) ** 0.5 * len(self.theta) ** -power * max(size - 1, 1) ** -0.25

    def penalty(self, theta, kept, strength, sizes, weights=(1.0, 1.0)):
        inner, total = theta[:kept.anchors.shape[1]], 0.0       # the classifier is the net's last layer
        for g, weight in enumerate(weights):
            for j in range(len(weights)):
                if j != g:
                    total = total + weight * strength / 2 * (kept.fisher[j] * (inner - kept.anchors[j]) ** 2).sum() / sizes[j]
        return total

    def of_penalty(self, theta, *arguments):
        theta = theta.detach().requires_grad_()
        return torch.autograd.grad(self.penalty(theta, *arguments), theta)[0]


CASES = [
    {}, {"weighting": "group_mean"}, {"dimension_power": 0.5, "scale": 3.0}, {"radius_size": "classes"},
    {"penalty_size": "classes", "penalty": 5.0}, {"direction": "full"}, {"direction": "projected"}, {"regularizer": True},
    {"alpha_start": 0.7, "alpha_end": 0.2},
]


@pytest.mark.parametrize("options", CASES, ids=str)
@pytest.mark.parametrize("epoch", [0, 4])
def test_a_step_is_equations_twelve_to_sixteen_written_out(options, epoch):
    model = net()
    optimizer = keep(built(model, **options))
    optimizer.epochs_done = epoch
    plain = {"weighting": "batch", "dimension_power": 0.25, "radius_size": "samples", "penalty_size": "samples", "scale": 0.2,
             "penalty": 100.0, "direction": "removed", "regularizer": False, "alpha_start": 0.95, "alpha_end": 0.6} | options
    w = Written(model)
    theta, d, by_mean = w.theta, len(w.theta), plain["weighting"] == "group_mean"
    whole, total, lengths = w.slope(theta), torch.zeros_like(theta), []
    for g, size in enumerate({"samples": [31, 8], "classes": [2, 2]}[plain["radius_size"]]):
        slope = w.slope(theta, g, by_mean)
        part = (slope @ whole) / (whole @ whole) * whole
        way = {"removed": slope - part, "full": slope, "projected": part}[plain["direction"]]
        rho = plain["scale"] * w.radius(way.norm(), size, plain["dimension_power"])
        total += w.slope(theta + math.sqrt(d) * rho * way / way.norm(), g, by_mean)
        lengths.append(float(math.sqrt(d) * rho))
        if plain["regularizer"]:
            total += theta / theta.norm() / (2 * math.sqrt(size - 1) * rho)
    alpha = plain["alpha_end"] + (plain["alpha_start"] - plain["alpha_end"]) * (1 + math.cos(math.pi * epoch / EPOCHS)) / 2
    sizes = {"samples": [31, 8], "classes": [2, 2]}[plain["penalty_size"]]
    total = alpha * total + (1 - alpha) * w.of_penalty(theta, optimizer.preservation, plain["penalty"], sizes)
    torch.testing.assert_close(moved(model, optimizer.step), theta - LR * total, rtol=1e-12, atol=1e-13)
    report = optimizer.report()
    assert report["alpha"] == pytest.approx(alpha) and report["gkp_penalty"] == optimizer.preservation.value()
    assert [report[f"ascent/group:{g}"] for g in range(2)] == pytest.approx(lengths)


@pytest.mark.parametrize("options", [
    {"scale": 0.0, "alpha_start": 1.0, "alpha_end": 1.0}, {"scale": 0.0, "alpha_start": 1.0, "alpha_end": 1.0, "penalty": 0.0},
    {"num_groups": 1, "alpha_start": 1.0, "alpha_end": 1.0}], ids=str)
def test_without_ascent_and_penalty_it_is_sgd(options):
    model, plain = net(), net()
    optimizer = built(model, **options)
    if optimizer.preservation.rule.num_groups == 2:
        keep(optimizer)
    sgd = SGD(torch.optim.SGD(plain.parameters(), lr=LR), plain)
    torch.testing.assert_close(moved(model, optimizer.step), moved(plain, sgd.step), rtol=1e-14, atol=1e-15)


def test_alpha_scales_what_is_left_without_a_penalty():
    model, plain = net(), net()
    optimizer = built(model, scale=0.0, penalty=0.0, alpha_start=0.5, alpha_end=0.5)
    sgd = SGD(torch.optim.SGD(plain.parameters(), lr=LR / 2), plain)
    torch.testing.assert_close(moved(model, optimizer.step), moved(plain, sgd.step), rtol=1e-14, atol=1e-15)


def test_one_group_along_its_full_gradient_is_sam_with_equation_thirteens_radius():
    model, plain = net(), net()
    w = Written(plain)
    rho = 0.2 * math.sqrt(len(w.theta)) * float(w.radius(w.slope(w.theta).norm(), sum(COUNTS)))
    optimizer = built(model, num_groups=1, direction="full", alpha_start=1.0, alpha_end=1.0)
    sam = SAM(torch.optim.SGD(plain.parameters(), lr=LR), plain, rho)
    torch.testing.assert_close(moved(model, optimizer.step), moved(plain, sam.step), rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_parallel_gradients_leave_nothing_to_ascend_and_no_noise(dtype):
    """Every group holds the same images and labels that the net treats alike: each gradient is a half of the batch's."""
    images, labels = IMAGES[:4].to(dtype), torch.tensor([0, 0, 2, 2])
    images[2:] = images[:2]
    models = [net().to(dtype) for _ in range(2)]
    for model in models:
        with torch.no_grad():
            model[2].weight[2], model[2].bias[2] = model[2].weight[0], model[2].bias[0]
        model[2].requires_grad_(False)      # below it, classes 0 and 2 have the same gradient
    optimizer = built(models[0], scale=10.0, alpha_start=1.0, alpha_end=1.0)
    optimizer.step(closure_of(models[0], images, labels))
    SGD(torch.optim.SGD(models[1].parameters(), lr=LR), models[1]).step(closure_of(models[1], images, labels))
    torch.testing.assert_close(*(flatten(m.parameters()) for m in models), rtol=1e-5 if dtype == torch.float32 else 1e-13, atol=0)


@pytest.mark.parametrize("variant", ["paper", "released"])
def test_a_group_absent_from_the_batch_adds_zero_and_keeps_its_penalty(variant):
    model = net()
    optimizer = keep(built(model, gkp_variant=variant, alpha_start=0.5, alpha_end=0.5))
    chosen = LABELS < 2
    w = Written(model)
    optimizer.step(closure_of(model, IMAGES[chosen], LABELS[chosen]))
    after = flatten(model.parameters()).detach()
    assert after.isfinite().all()
    if variant == "paper":      # what there is of the batch is the one group's: parallel, so SGD on it, and the penalty
        theta = w.theta.clone().requires_grad_()
        pieces = dict(zip(w.names, split_like(theta, list(model.parameters()))))
        losses = cross_entropy(torch.func.functional_call(model, pieces, (IMAGES[chosen],)), LABELS[chosen])
        slope, = torch.autograd.grad(losses, theta)
        total = 0.5 * slope + 0.5 * w.of_penalty(w.theta, optimizer.preservation, 100.0, [31, 8])
        torch.testing.assert_close(after, w.theta - LR * total, rtol=1e-12, atol=1e-13)


def test_a_group_of_one_class_has_a_radius():
    model = net()
    optimizer = built(model, num_groups=4, radius_size="classes")
    assert [optimizer._size_of(f"group:{g}") for g in range(4)] == [1, 1, 1, 1]
    assert built(net(), num_groups=4)._size_of("group:3") == 1      # two images
    assert moved(model, optimizer.step).isfinite().all()


@pytest.mark.parametrize("options, forwards, backwards", [
    ({"num_groups": 4}, 5, 8), ({"num_groups": 2}, 3, 4), ({"num_groups": 2, "weighting": "group_mean"}, 3, 5),
    ({"num_groups": 1}, 1, 1), ({"num_groups": 4, "scale": 0.0}, 1, 4),
    ({"num_groups": 4, "gkp_variant": "released"}, 2, 2)], ids=str)
def test_a_step_takes_so_many_forwards_and_backwards(options, forwards, backwards, monkeypatch):
    model, calls, slopes, grad = net(), [], [], torch.autograd.grad
    optimizer = keep(built(model, **options))
    monkeypatch.setattr(torch.autograd, "grad", lambda *a, **k: slopes.append(1) or grad(*a, **k))
    optimizer.step(closure_of(model, calls=calls))
    assert (len(calls), len(slopes)) == (forwards, backwards)


def test_pieces_of_a_batch_take_the_whole_batchs_step():
    whole, pieces = net(), net()
    one, other = (keep(built(model)) for model in (whole, pieces))
    one.step(closure_of(whole))
    other.step(*(closure_of(pieces, IMAGES[part], LABELS[part]) for part in (slice(0, 4), slice(4, 10))))
    torch.testing.assert_close(*(flatten(m.parameters()) for m in (whole, pieces)), rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("options", [{"regularizer": True}, {"gkp_variant": "released"}], ids=str)
def test_a_scaled_loss_takes_the_same_step_and_an_overflow_none(options):
    plain, scaled = net(), net()
    one, other = (keep(built(model, **options)) for model in (plain, scaled))
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0 ** 10)
    other.step(closure_of(scaled), scaler=scaler)
    scaler.update()
    one.step(closure_of(plain))
    torch.testing.assert_close(*(flatten(m.parameters()) for m in (plain, scaled)), rtol=1e-12, atol=1e-14)
    before = flatten(scaled.parameters()).detach().clone()
    other.step(closure_of(scaled, IMAGES * torch.inf), scaler=scaler)
    assert torch.equal(flatten(scaled.parameters()), before)


def released_by_hand(w, kept, averages, alpha):
    """The released code's step over one vector: shares of the batch, moving averages in place, ASAM, one joint ascent."""
    theta, sizes = w.theta, [31, 8]
    clean = alpha * w.slope(theta) + (1 - alpha) * w.of_penalty(theta, kept, 10.0, sizes)
    shares, residual, ascent = [0.6, 0.4], clean, torch.zeros_like(theta)
    for k in range(2):
        before = residual
        if k in averages:
            residual = before - averages[k]
            averages[k] = 0.9 * averages[k] + 0.1 * before
        else:
            averages[k] = before
        rho = (0.1 * w.radius(residual.norm(), sizes[k])).clamp(2e-3, 3e-3)
        ascent += shares[k] * math.sqrt(len(theta)) * rho * theta ** 2 * residual / (theta.abs() * residual).norm()
    perturbed = theta + ascent
    return alpha * w.slope(perturbed) + (1 - alpha) * w.of_penalty(perturbed, kept, 10.0, sizes, shares)


def test_the_released_variant_is_its_code_written_out_over_three_steps():
    model, averages = net(), {}
    optimizer = keep(built(model, gkp_variant="released"))
    for _ in range(3):
        w = Written(model)
        expected = w.theta - LR * released_by_hand(w, optimizer.preservation, averages, 0.9)
        torch.testing.assert_close(moved(model, optimizer.step), expected, rtol=1e-12, atol=1e-13)


def test_the_released_variant_differs_where_its_docstring_says():
    paper, released = built(net()), built(net(), gkp_variant="released")
    assert (paper.alphas, released.alphas) == ((0.95, 0.6), (0.9, 0.8))
    one, other = paper.preservation.rule, released.preservation.rule
    assert (one.strength, one.beta, one.quality) == (100.0, 0.5, "paper")
    assert (other.strength, other.beta, other.quality, other.similarity) == (10.0, 1.0, "released", "cosine")
    assert (other.penalty_size, other.fisher, other.fisher_at, other.heads) == ("samples", "batches", "current", True)
    assert (one.penalty_size, one.fisher, one.fisher_at, one.heads) == ("samples", "samples", "anchor", False)
    assert one.regroup_every == 1 and other.regroup_every == 0      # a tenth of ten epochs; once


class Flat(nn.Module):
    """A network of vectors that is given images."""

    def __init__(self, net):
        super().__init__()
        self.net = net

    def forward(self, images):
        return self.net(images.flatten(1))


def test_the_released_fisher_information_is_of_the_logit_adjusted_loss_and_of_encoder_and_heads():
    model = add_contrastive_heads(Flat(net()), s=3.0, hidden=6, dim=3).double()
    kept = built(model, gkp_variant="released").preservation
    shares = torch.tensor(COUNTS, dtype=torch.float64) / sum(COUNTS)

    def adjusted(logits, labels):
        return cross_entropy(logits + shares.log(), labels, reduction="none")
    logits = torch.randn(10, 4, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    torch.testing.assert_close(kept.rule.loss(logits, LABELS), adjusted(logits, LABELS))
    assert set(kept.names) == {name for name, _ in model.named_parameters()} - {"net.2.weight"}     # all but the classifier
    assert {name.partition(".")[0] for name in kept.names} == {"net", *HEADS}
    assert built(model).preservation.names == ["net.0.weight", "net.0.bias"]

    images = torch.randn(sum(COUNTS), 1, 1, 5, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    labels = torch.repeat_interleave(torch.arange(4), torch.tensor(COUNTS))
    split = Split(images, labels)
    kept.observe(LongTailData("four", split, split, tuple("abcd"), (0.0,), (1.0,)), 0)
    for group, members in enumerate(GROUPS):
        rows = torch.isin(labels, torch.tensor(members))
        loss = adjusted(model(images[rows]), labels[rows]).mean()
        slopes = torch.autograd.grad(loss, [model.get_parameter(name) for name in kept.names], materialize_grads=True)
        torch.testing.assert_close(kept.fisher[group], flatten(slopes).square() / rows.sum())


def test_with_one_group_the_released_penalty_is_zero_and_the_steps_are_friendly_sams():
    """Li et al. 2024: the ascent leaves out the average of the gradients before, which the first step does not have."""
    model, average = net(), None
    optimizer = keep(built(model, gkp_variant="released", num_groups=1))
    assert optimizer.preservation.gradient() == {} and optimizer.preservation.value() == 0
    for _ in range(3):
        w = Written(model, [[0, 1, 2, 3]])
        slope = 0.9 * w.slope(w.theta)
        way = slope if average is None else slope - average
        average = slope if average is None else 0.9 * average + 0.1 * slope
        rho = (0.1 * w.radius(way.norm(), 39)).clamp(2e-3, 3e-3)
        perturbed = w.theta + math.sqrt(len(w.theta)) * rho * w.theta ** 2 * way / (w.theta.abs() * way).norm()
        expected = w.theta - LR * 0.9 * w.slope(perturbed)
        torch.testing.assert_close(moved(model, optimizer.step), expected, rtol=1e-12, atol=1e-13)


def test_the_released_run_is_the_recipes_and_the_variant_alone_its_update_with_four_groups():
    alone = TrainConfig(opt="gkp_gsa", gkp_variant="released")
    whole = TrainConfig.from_dict(filled({"recipe": "gkp-gsa", "gkp_variant": "released"}))
    assert hyperparameters("gkp_gsa")["num_groups"] == 4 and not alone.opt_options and alone.batchnorm == "every"
    assert whole.opt_options["num_groups"] == 1 and whole.batchnorm == "clean"


def test_the_released_variant_finds_all_it_keeps_once_at_the_initial_weights():
    data = load_data("synthetic", imb_factor=10)
    result = train(TrainConfig(dataset="synthetic", opt="gkp_gsa", gkp_variant="released", epochs=1, batch_size=16, max_steps=1,
                               opt_options={"num_groups": 2}, lr=0.05, checkpoint_epochs="last"), data=data)
    assert result.metrics[0]["gkp_penalty"] > 0


class Memory:
    """A recorder that keeps everything."""

    def __init__(self):
        self.rows, self.checkpoints, self.point = {}, {}, None

    def checkpoint(self, epoch, arrays):
        self.checkpoints[epoch] = arrays

    def epoch(self, metrics):
        self.rows[metrics["epoch"]] = {name: value for name, value in metrics.items() if name != "seconds"}

    def resume(self, arrays):
        self.point = arrays

    def resumed(self):
        return self.point


SETTINGS = {"dataset": "digits", "arch": "mlp", "opt": "gkp_gsa", "epochs": 4, "batch_size": 128, "lr": 0.05, "eval_every": 4,
            "checkpoint_epochs": "last"}


@pytest.mark.parametrize("settings", [
    {"loss": "CE", "opt_options": {"num_groups": 3, "regroup_every": 2}},
    {"loss": "BCL", "loss_options": {"hidden": 8, "dim": 4, "s": 5.0}, "opt_options": {"regroup_every": 1, "penalty": 1.0}},
    {"loss": "BCL", "loss_options": {"hidden": 8, "dim": 4, "s": 5.0}, "gkp_variant": "released"}], ids=str)
def test_a_run_stopped_anywhere_ends_with_the_bits_of_an_undisturbed_one(settings):
    data, config = load_data("digits"), TrainConfig(**SETTINGS | settings)
    straight, broken, stops, steps = Memory(), Memory(), [2, 5, 6, 11], []
    train(config, data=data, recorder=straight)
    for stop in (*stops, None):
        torch.manual_seed(stop or 0)

        def ask():
            steps.append(1)
            return len(steps) == stop
        train(config, data=data, recorder=broken, stop=ask)
    assert straight.rows == broken.rows and straight.point.keys() == broken.point.keys()
    assert all(np.array_equal(straight.point[name], broken.point[name]) for name in straight.point)
    kept = {name.split("/")[1] for name in straight.point if name.startswith("kept/")}
    assert {"memory", "groups", "anchors", "fisher"} <= kept
    anchors = straight.point["kept/anchors"]    # the released ones are all the initial weights
    assert (np.ptp(anchors, axis=0).max() > 0) == (settings.get("gkp_variant") != "released")
    assert ("moving" in kept) == (settings.get("gkp_variant") == "released")


@pytest.mark.parametrize("call, words", [
    (lambda: built(net(), num_groups=5), "num_groups=5 is out of range: .* <= 4"),
    (lambda: built(net(), penalty=-1.0), "penalty=-1.0 is out of range: expected a finite number >= 0"),
    (lambda: built(net(), alpha_end=1.5), "alpha_end=1.5 is out of range: expected 0 <= alpha_end <= 1"),
    (lambda: built(net(), scale=math.inf), "scale=inf is out of range"),
    (lambda: built(net(), scale=0.0, regularizer=True), "scale=0 is out of range with regularizer=true"),
    (lambda: built(net(), class_counts=[9, 5, 4, 1]), "class 3 has 1 training image"),
    (lambda: built(net(), dimension_power=0.3), "dimension_power=0.3 is unknown: expected one of 0.25, 0.5"),
    (lambda: built(net(), direction="up"), "direction='up' is unknown"),
    (lambda: built(net(), gkp_variant="theirs"), "gkp_variant='theirs' is unknown: expected one of paper, released"),
    (lambda: built(net(), gkp_variant="released", direction="full"), "direction=full is of gkp_variant=paper"),
    (lambda: built(net(), weighting="double_tail"), "weighting=double_tail needs a group called tail"),
    (lambda: built(net(), friendly=1.0), "friendly is not for gkp_gsa"),
    (lambda: built(net()).step(), "needs a closure"),
    (lambda: built(net()).step(lambda: cross_entropy(net()(IMAGES), LABELS, reduction="none")), "labels"),
])
def test_bad_settings_are_one_line(call, words):
    with pytest.raises(InputError, match=words):
        call()
