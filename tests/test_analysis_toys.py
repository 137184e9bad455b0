from dataclasses import replace
from itertools import islice
from math import inf, isnan

import numpy as np
import pytest
import torch
from torch import nn

from analysis.measures.toys import (METHODS, RHOS, Loss, Method, Setting, closed_form, escape_steps, escape_table,
                                    geometric_steps, trajectory)
from landscape.optimizers import SAM, SSESAM, GroupSAM, ImbSAM

SETTING = Setting()
KNOWN = [(toy, name) for toy, methods in METHODS.items() for name, method in methods.items() if not method.noisy]


def walked(toy, name, rho, steps, setting=SETTING):
    walk = trajectory(setting.toys[toy], METHODS[toy][name], [rho], setting)
    return np.array([theta[0, 0] for theta in islice(walk, steps + 1)])


def escaped(toy, name, rhos, setting=SETTING):
    return escape_steps(setting.toys[toy], METHODS[toy][name], rhos, setting)[:, 0].tolist()


@pytest.mark.parametrize("toy, name", KNOWN)
def test_simulated_steps_are_those_of_the_closed_form_wherever_there_is_one(toy, name):
    for rho, found in zip(RHOS, escaped(toy, name, RHOS)):
        expected = closed_form(METHODS[toy][name], rho, SETTING)
        assert found == expected or isnan(expected) and (toy, name) == ("two_group", "sam") and rho > 0


def test_gradient_descent_grows_by_one_plus_lr_b_a_step():
    y = walked("single", "gd", 0.0, 20)[:, 1]
    np.testing.assert_allclose(y, SETTING.start * 1.1 ** np.arange(21), rtol=1e-13)
    assert closed_form(METHODS["single"]["gd"], 0.0, SETTING) == 32      # log 20 / log 1.1 = 31.4


@pytest.mark.parametrize("rho, expected", [(0.0, 1.17), (0.05, 0.115), (0.1, 0.01), (0.15, 7.7e-4), (0.3, 1.4e-7)])
def test_un_normalized_sam_gives_the_published_toy(rho, expected):
    """lambda = -10, lr 0.01, from 0.01, 50 steps: |x| is as tabulated, attracted for rho > 0.1."""
    y = walked("single", "sam_unnormalized", rho, 50, replace(SETTING, start=0.01))[-1, 1]
    assert abs(y) == pytest.approx(expected, rel=0.02)
    assert y == pytest.approx(0.01 * (1 + 0.1 * (1 - 10 * rho)) ** 50, rel=1e-10)


def test_un_normalized_sam_is_out_again_where_its_sign_flips_fast():
    rhos = (2.0, 2.1, 2.2)      # lr b (rho b - 1) = 1.9, 2, 2.1
    steps = [closed_form(METHODS["single"]["sam_unnormalized"], rho, SETTING) for rho in rhos]
    assert steps == escaped("single", "sam_unnormalized", rhos) and steps[:2] == [inf, inf] and np.isfinite(steps[2])


def test_normalized_ascent_moves_the_border_of_attraction_to_rho():
    for rho in (0.02, 0.049):
        y = walked("single", "sam", rho, 30)[:, 1]
        np.testing.assert_allclose(y - rho, 1.1 ** np.arange(31) * (SETTING.start - rho), rtol=1e-10)
    inside = np.abs(walked("single", "sam", 0.06, 500)[:, 1])
    assert inside.max() <= SETTING.start and inside[-100:].max() < 0.1 * 0.06     # lr b rho


def test_the_heads_slope_takes_the_ascent_from_the_tail():
    """SAM's perturbation is the head's: it leaves as gradient descent does; ImbSAM's and SSE-SAM's is the tail's."""
    losses = SETTING.toys["two_group"]
    steps = {name: escaped("two_group", name, [0.1])[0] for name in ("gd", "sam", "imbsam", "ssesam")}
    assert steps["gd"] <= steps["sam"] <= steps["gd"] + 4 and steps["imbsam"] == steps["ssesam"] == inf
    theta = np.array([[0.0, SETTING.start]])
    slopes = [loss.gradient(theta)[0] for loss in losses]
    assert np.linalg.norm(slopes[0]) == 20 * np.linalg.norm(slopes[1]) and slopes[0] @ slopes[1] == 0


def test_closed_forms_hold_for_other_settings_too():
    for setting in (replace(SETTING, b=4.0, lr=0.05), replace(SETTING, start=0.2, radius=3.0, a=1.0)):
        for toy, name in KNOWN:
            rhos = (0.0, 0.03, 0.15, 0.4)
            for rho, found in zip(rhos, escaped(toy, name, rhos, setting)):
                expected = closed_form(METHODS[toy][name], rho, setting)
                assert isnan(expected) or found == expected


def test_what_is_not_known_is_not_given_as_known():
    assert isnan(closed_form(METHODS["single"]["noisy_sam"], 0.0, SETTING))
    assert isnan(closed_form(METHODS["single"]["gd"], 0.0, replace(SETTING, quartic=1.0)))
    coarse = replace(SETTING, lr=0.2)        # lr b = 2: steps over the saddle are as long as rho
    assert isnan(closed_form(METHODS["single"]["sam"], 0.3, coarse))


@pytest.mark.parametrize("factor, start, radius, steps", [
    (2, 1, 8, 3), (2, 1, 8.001, 4), (-2, 1, 8, 3), (1, 1, 2, inf), (0.5, 1, 2, inf), (3, 2, 1, 0), (1.1, 1, 1.1 ** 7, 7)])
def test_geometric_growth_is_counted_to_the_step(factor, start, radius, steps):
    assert geometric_steps(factor, start, radius) == steps


def test_gradients_are_those_of_the_loss():
    loss, theta = Loss((3.0, -2.0), (0.5, -0.1), quartic=4.0), np.array([[0.3, -0.7]])
    x = torch.tensor(theta[0], requires_grad=True)
    value = 1.5 * (x[0] - 0.5) ** 2 - (x[1] + 0.1) ** 2 + x[1] ** 4
    np.testing.assert_allclose(loss.gradient(theta)[0], torch.autograd.grad(value, x)[0].numpy(), rtol=1e-13)


def test_a_quartic_term_keeps_gradient_descent_at_its_minimum():
    setting = replace(SETTING, quartic=40.0)     # minima at |y| = sqrt(b / q) = 0.5
    assert walked("single", "gd", 0.0, 400, setting)[-1, 1] == pytest.approx(0.5)
    assert escaped("single", "gd", [0.0], setting) == [inf]


class Plane(nn.Module):
    """Two parameters, and the toys' losses as the losses of samples of a batch."""

    def __init__(self, losses):
        super().__init__()
        self.theta, self.losses = nn.Parameter(torch.tensor([0.0, SETTING.start], dtype=torch.float64)), losses

    def closure(self):
        kinds = ([getattr(loss, name) for loss in self.losses] for name in ("curvature", "center"))
        h, c = (torch.tensor(values, dtype=torch.float64) for values in kinds)
        values = (h * (self.theta - c) ** 2).sum(1) / 2 * len(h)        # the optimizer divides by the batch
        return values, {"head": torch.tensor([True, False])[:len(h)], "tail": torch.tensor([False, True])[:len(h)]}


@pytest.mark.parametrize("toy, name, make", [
    ("single", "gd", lambda base, model: GroupSAM(base, model, {"all": 0.0})),
    ("single", "sam", lambda base, model: SAM(base, model, 0.03)),
    ("two_group", "sam", lambda base, model: SAM(base, model, 0.03)),
    ("two_group", "imbsam", lambda base, model: ImbSAM(base, model, 0.03)),
    ("two_group", "ssesam", lambda base, model: SSESAM(base, model, 0.03, 0.03, gamma=1.0))])
def test_the_optimizers_themselves_walk_the_toys_in_the_same_steps(toy, name, make):
    model = Plane(SETTING.toys[toy])
    optimizer, places = make(torch.optim.SGD(model.parameters(), lr=SETTING.lr), model), []
    for _ in range(41):
        places.append(model.theta.detach().numpy().copy())
        optimizer.step(model.closure)
    np.testing.assert_allclose(np.array(places), walked(toy, name, 0.03, 40), rtol=1e-11, atol=1e-15)


def test_a_step_sees_one_noise_at_both_places():
    """With rho = 0 the second gradient is the first, noise included; noisy SAM at rho = 0 is noisy gradient descent."""
    losses = SETTING.toys["single"]
    first, second = (np.array(list(islice(trajectory(losses, METHODS["single"][name], [0.0], SETTING, draws=3, seed=4), 20)))
                     for name in ("sgd", "noisy_sam"))
    np.testing.assert_array_equal(first, second)
    theta, noise = first[0, 0, 0], first[1, 0, 0]
    assert not np.allclose(noise, theta - SETTING.lr * losses[0].gradient(theta[None])[0])


def test_noise_has_the_stated_spread_and_draws_differ():
    flat = replace(SETTING, a=0.0, b=0.0, max_steps=1)
    walk = trajectory(flat.toys["single"], METHODS["single"]["sgd"], [0.0], flat, draws=4000)
    steps = np.diff(np.array(list(islice(walk, 2))), axis=0)
    np.testing.assert_allclose(steps.std(axis=(0, 1, 2)), SETTING.lr * SETTING.noise, rtol=0.05)


def test_the_table_has_a_row_for_each_case_intervals_for_noise_alone_and_never_hides_who_stayed():
    found = escape_table(SETTING, rhos=(0.0, 0.06, 0.3), draws=6)
    labels, numbers = found.labels, found.numbers
    assert len(labels["toy"]) == 3 * sum(len(methods) for methods in METHODS.values())
    noisy = np.array([name.startswith("noisy") or name == "sgd" for name in labels["method"]])
    assert np.isnan(numbers["low"][~noisy]).all() and np.isfinite(numbers["low"][noisy & np.isfinite(numbers["value"])]).all()
    np.testing.assert_array_equal(np.isinf(numbers["value"]), numbers["escaped"] < 1)
    assert found.about["draws"] == 6 and found.about["head_slope"] == 10 and found.units["value"] == "steps"
    assert np.isnan(escape_table(SETTING, rhos=(0.0,), draws=1).numbers["low"]).all()


def test_the_same_seed_gives_the_same_steps():
    first, again, other = (escape_table(SETTING, rhos=(0.02,), seed=seed).numbers["value"] for seed in (1, 1, 2))
    np.testing.assert_array_equal(first, again)
    assert (first != other).any()


def test_a_gradient_of_zero_is_no_ascent():
    method = Method((((0,), True),))
    still = list(islice(trajectory((Loss((1.0, 1.0), (0.0, SETTING.start)),), method, [0.1], SETTING), 3))
    np.testing.assert_array_equal(still[-1], [[[0.0, SETTING.start]]])
