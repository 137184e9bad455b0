"""Every switch between this package's way and a released code's way, and its effect, on one page.

    switch          here       as released                                             what changes
    weighting       batch      SSE-SAM; ImbSAM: double_tail; its baseline: group_mean  the tail's share of the gradient
    batchnorm       every      every (davda54/sam: clean)                              running statistics, no parameter
    restore         copy       SSE-SAM, ImbSAM: subtract                               the last bits of the parameters
    norm_epsilon    0          1e-16, davda54/sam 1e-12                                ascents along tiny gradients
    scheduler_at    end        SSE-SAM, ImbSAM: start                                  the last epoch has the rate 0
    gamma_rule      ceil       released                                                the epoch of the switch
    subset          first      SSE-SAM, ImbSAM: first; Rangwani, GKP-GSA: seeded       which images are trained on
    loss_options    form=paper SSE-SAM: form=release                                   LDAM's head, and its scale
    flip_average    no         SSE-SAM, ImbSAM: yes                                    the accuracy that is reported
    selection       last       all: test_best                                          the epoch that is reported

The optimizers' formulas are tested in test_landscape_optimizers.py, the schedules in test_landscape_schedules.py, the
subsets in test_landscape_data_longtail.py, LDAM's forms in test_landscape_losses.py.
"""

from fractions import Fraction

import pandas as pd
import pytest
import torch
from torch import nn
from torch.nn.functional import cross_entropy

from checkpoints.chosen_epoch import choose
from landscape.configuration import TrainConfig
from landscape.data import load_data
from landscape.errors import InputError
from landscape.optimizers import SAM, GroupSAM, ImbSAM, switch_epoch
from landscape.optimizers.ascent import AscentRule, displace, put_back
from landscape.schedules import learning_rate
from landscape.training import train

EIGHT = torch.tensor([0, 0, 1, 1, 2, 0, 2, 1])
EDGE = 2.0 ** -24       # half the last bit of 1 in float32


def tiny(dtype=torch.float64, norm=False):
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 5), *([nn.BatchNorm1d(5)] if norm else []), nn.Tanh(), nn.Linear(5, 3)).to(dtype)


def batch_of(net, tail, labels=EIGHT):
    inputs = torch.randn(len(labels), 4, generator=torch.Generator().manual_seed(1)).to(next(net.parameters()))
    return lambda: (cross_entropy(net(inputs), labels, reduction="none"), {"head": ~tail, "tail": tail})


def descent(tail, rho=0.3, radii=None, **switches):
    """Return the gradient that the base optimizer is given, as one vector: SGD without momentum and with the rate 1."""
    net = tiny()
    base = torch.optim.SGD(net.parameters(), lr=1.0)
    before = nn.utils.parameters_to_vector(net.parameters()).detach().clone()
    GroupSAM(base, net, radii or {"head": 0.0, "tail": rho}, **switches).step(batch_of(net, tail))
    return before - nn.utils.parameters_to_vector(net.parameters()).detach()


def trained(steps=6, **settings):
    """Return the parameters after a few steps on the small data set, as one vector, and the model's buffers."""
    config = TrainConfig(**{"dataset": "synthetic", "opt": "ssesam", "gamma": 1.0, "eta": 40.0, "lr": 0.1, "epochs": 4,
                            "max_steps": steps, "batch_size": 32} | settings)
    model = train(config).model
    return nn.utils.parameters_to_vector(model.parameters()).detach(), dict(model.named_buffers())


# --- which of them move the parameters ----------------------------------------------------------------------

MOVES = {
    "weighting=double_tail": {"weighting": "double_tail"},
    "weighting=group_mean": {"weighting": "group_mean"},
    "restore=subtract": {"restore": "subtract"},
    "norm_epsilon=0.1": {"norm_epsilon": 0.1},
    "scheduler_at=start": {"scheduler_at": "start"},
    "subset=seeded": {"subset": "seeded"},
    "drw_epoch=0": {"drw_epoch": 0},
}


@pytest.fixture(scope="module")
def usual():
    return trained()[0]


@pytest.mark.parametrize("switch", MOVES)
def test_a_switch_moves_the_parameters_within_a_few_steps(switch, usual):
    moved = trained(**MOVES[switch])[0]
    assert torch.isfinite(moved).all() and not torch.equal(moved, usual)


def test_switches_that_are_no_part_of_the_steps_move_nothing(usual):
    labels = {"selection": "test_best", "flip_average": True, "recipe": "sse-sam"}
    assert torch.equal(trained(**labels)[0], usual)


# --- weighting ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("rho", [0.0, 0.3])
def test_double_tail_adds_the_tails_gradient_once_more(rho):
    tail = EIGHT == 2
    both = descent(tail, rho)
    alone = descent(tail, rho, radii={"tail": rho})
    assert torch.allclose(descent(tail, rho, weighting="double_tail"), both + alone, rtol=0, atol=1e-14)


def test_group_means_are_twice_the_batchs_share_where_half_the_batch_is_tail():
    half = torch.arange(8) < 4
    assert torch.allclose(descent(half, weighting="group_mean"), 2 * descent(half), rtol=0, atol=1e-14)


def test_group_means_weight_a_rare_tail_by_its_inverse_share():
    one = torch.arange(8) == 3      # one sample of eight: each group's gradient is divided by 7 and 1 instead of 8
    head, tail = (descent(one, radii=radii) for radii in ({"head": 0.0}, {"tail": 0.3}))
    assert torch.allclose(descent(one, weighting="group_mean"), 8 / 7 * head + 8 * tail, rtol=0, atol=1e-13)


# --- BatchNorm in the perturbed pass ------------------------------------------------------------------------


def test_batchnorm_policy_moves_the_running_statistics_and_no_parameter():
    nets = {}
    for policy in ("every", "clean"):
        nets[policy] = net = tiny(norm=True)
        optimizer = SAM(torch.optim.SGD(net.parameters(), lr=0.1), net, 0.3, batchnorm=policy)
        for _ in range(3):
            optimizer.step(batch_of(net, EIGHT == 2))
    every, clean = nets["every"], nets["clean"]
    assert all(torch.equal(a, b) for a, b in zip(every.parameters(), clean.parameters()))
    assert not torch.equal(every[1].running_mean, clean[1].running_mean)
    assert (int(every[1].num_batches_tracked), int(clean[1].num_batches_tracked)) == (6, 3)


# --- the way back -------------------------------------------------------------------------------------------


def there_and_back(value, step, rule):
    """Return where one number stands after a step of the given length and back."""
    p = torch.tensor([value])
    put_back(displace({p: torch.ones(1)}, step, rule))
    return p.item()


def test_subtracting_the_step_drifts_by_rounding_where_copying_does_not():
    # 1 + EDGE is a tie that rounds to 1; 1 - EDGE is a number, for below 1 the spacing halves.
    assert there_and_back(1.0, EDGE, AscentRule("copy")) == 1.0
    assert there_and_back(1.0, EDGE, AscentRule("subtract")) == 1.0 - EDGE


def test_subtracting_is_exact_where_nothing_rounds():
    value, step = 0.75, 0.125
    assert Fraction(value) + Fraction(step) - Fraction(step) == Fraction(value)
    assert there_and_back(value, step, AscentRule("subtract")) == value


def test_one_step_drifts_by_a_few_last_places():
    copied, drifted = (trained(steps=1, restore=restore)[0] for restore in ("copy", "subtract"))
    assert 0 < (copied - drifted).abs().max() < 8 * torch.finfo(torch.float32).eps * copied.abs().max()


def test_in_double_precision_both_ways_back_take_the_same_step():
    tail = EIGHT == 2
    assert torch.allclose(descent(tail, restore="subtract"), descent(tail), rtol=0, atol=1e-14)


# --- what is added to the norm ------------------------------------------------------------------------------


@pytest.mark.parametrize("epsilon", [1e-16, 1e-12, 1.0])
def test_the_step_shrinks_by_the_norm_over_the_norm_plus_epsilon(epsilon):
    for length in (1e-14, 1e-6, 5.0):
        p = torch.zeros(2, dtype=torch.float64)
        displace({p: torch.tensor([0.6, 0.8], dtype=torch.float64) * length}, 0.05, AscentRule(norm_epsilon=epsilon))
        assert p.norm().item() == pytest.approx(0.05 * length / (length + epsilon), rel=1e-12)


def test_released_epsilons_leave_usual_gradients_alone():
    tail = EIGHT == 2
    for epsilon in (1e-16, 1e-12):
        assert torch.allclose(descent(tail, norm_epsilon=epsilon), descent(tail), rtol=0, atol=1e-11)


@pytest.mark.parametrize("settings, told", [
    ({"restore": "undo"}, "restore='undo' is unknown: expected one of copy, subtract"),
    ({"norm_epsilon": -1.0}, "norm_epsilon=-1.0 is out of range: expected a"),
    ({"norm_epsilon": float("inf")}, "norm_epsilon=inf is out of range: expected a"),
])
def test_unusable_rules_are_refused(settings, told):
    net = tiny()
    makers = (lambda: TrainConfig(**settings), lambda: ImbSAM(torch.optim.SGD(net.parameters(), lr=1), net, **settings))
    for make in makers:
        with pytest.raises(InputError) as caught:
            make()
        assert str(caught.value).startswith(told) and "\n" not in str(caught.value)


# --- the schedule and the switch ----------------------------------------------------------------------------


def test_stepped_at_the_start_the_release_begins_below_its_rate_and_ends_at_zero():
    start, end = (TrainConfig(lr=0.01, epochs=200, scheduler_at=at) for at in ("start", "end"))
    assert learning_rate(start, 0) == pytest.approx(0.00999938, abs=5e-9) and learning_rate(start, 199) == 0
    assert learning_rate(end, 0) == 0.01 and learning_rate(end, 199) > 0
    assert [learning_rate(start, epoch) for epoch in range(199)] == [learning_rate(end, epoch) for epoch in range(1, 200)]


def test_the_last_epoch_as_released_changes_no_parameter_of_a_network_without_memory():
    # Of two epochs the second has the rate 0: the parameters are those after the first.
    whole, first = (trained(steps=steps, epochs=2, scheduler_at="start", momentum=0.0, batch_size=1000) for steps in (2, 1))
    assert torch.equal(whole[0], first[0])


@pytest.mark.parametrize("gamma, ceil, released", [(0.7, 140, 140), (0.55, 110, 111), (0.0, 0, float("inf"))])
def test_the_released_rule_switches_where_its_product_rounds_to(gamma, ceil, released):
    assert (switch_epoch(gamma, 200, "ceil"), switch_epoch(gamma, 200, "released")) == (ceil, released)


def test_as_released_a_training_switches_where_its_product_rounds_to():
    # 0.28 * 25 is 7.000000000000001 in floating point: with one step an epoch, the eighth differs and no earlier one.
    parameters = {(rule, steps): trained(steps, epochs=25, batch_size=1000, gamma=0.28, gamma_rule=rule)[0]
                  for rule in ("ceil", "released") for steps in (7, 8)}
    assert torch.equal(parameters["ceil", 7], parameters["released", 7])
    assert not torch.equal(parameters["ceil", 8], parameters["released", 8])


def test_as_released_a_gamma_of_zero_trains_in_the_first_stage_for_ever(usual):
    assert torch.equal(trained(gamma=0.0, gamma_rule="released")[0], usual)     # of gamma = 1, which never switches
    assert not torch.equal(trained(gamma=0.0)[0], usual)


# --- which images -------------------------------------------------------------------------------------------


def test_a_seeded_subset_has_the_same_sizes_and_other_images():
    first, seeded = (load_data("synthetic", subset=subset) for subset in ("first", "seeded"))
    assert first.counts.tolist() == seeded.counts.tolist() and first.hash != seeded.hash


# --- what is reported ---------------------------------------------------------------------------------------

METRICS = pd.DataFrame({
    "epoch": [1, 2, 3, 4], "test_accuracy/all": [0.25, 0.75, 0.75, 0.5], "test_accuracy/tail": [0.0, 0.5, 0.25, 0.125],
    "test_accuracy_flip/all": [0.375, 0.625, 0.875, 0.5], "test_accuracy_flip/tail": [0.0, 0.625, 0.5, 0.25],
})


@pytest.mark.parametrize("selection, flip, epoch, tail, words", [
    ("last", False, 4, 0.125, "epoch 4, last"),
    ("last", True, 4, 0.25, "epoch 4, last, flips averaged"),
    ("test_best", False, 2, 0.5, "epoch 2, best, selected on the test set"),
    # Chosen without flips, as in the SSE-SAM release, though epoch 3 is better with them.
    ("test_best", True, 2, 0.625, "epoch 2, best, selected on the test set, flips averaged"),
])
def test_the_result_is_the_chosen_epochs_and_says_how_it_was_chosen(selection, flip, epoch, tail, words):
    result = choose(METRICS, selection, flip)
    assert (result.epoch, result.accuracy["tail"], result.words) == (epoch, tail, words)
    assert result.document["selected_on_test_set"] == (selection == "test_best")


def test_without_evaluation_there_is_no_result_and_without_flips_the_plain_accuracy_is_it():
    assert choose(METRICS[["epoch"]], "last", False) is None
    plain = choose(METRICS[["epoch", "test_accuracy/all"]], "last", True)
    assert plain.accuracy == {"all": 0.5} and not plain.flip_average
