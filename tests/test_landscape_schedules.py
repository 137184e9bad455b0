"""Learning rates against torch's own schedulers and the values that the papers' recipes name."""

from types import SimpleNamespace

import pytest
import torch

from landscape.schedules import learning_rate


def config(**changes):
    settings = {"lr": 0.01, "epochs": 200, "schedule": "cosine", "scheduler_at": "end", "warmup_epochs": 0,
                "milestones": (160, 180), "decay": 0.1}
    return SimpleNamespace(**settings | changes)


def rates(settings):
    return [learning_rate(settings, epoch) for epoch in range(settings.epochs)]


def torchs(scheduler, settings):
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=settings.lr)
    schedule, found = scheduler(optimizer), []
    for _ in range(settings.epochs + 1):
        found.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        schedule.step()
    return found


def test_cosine_is_torchs():
    expected = torchs(lambda o: torch.optim.lr_scheduler.CosineAnnealingLR(o, 200), config())
    assert rates(config()) == pytest.approx(expected[:-1], abs=1e-12)


def test_stepped_at_the_start_it_is_the_ssesam_releases_first_and_last_rate():
    found = rates(config(scheduler_at="start"))
    expected = torchs(lambda o: torch.optim.lr_scheduler.CosineAnnealingLR(o, 200), config())
    assert found == pytest.approx(expected[1:], abs=1e-12)
    assert round(found[0], 8) == 0.00999938 and found[-1] == 0


@pytest.mark.parametrize("at, shift", [("end", 0), ("start", 1)])
def test_step_is_torchs_multistep(at, shift):
    expected = torchs(lambda o: torch.optim.lr_scheduler.MultiStepLR(o, [160, 180], 0.1), config())
    found = rates(config(schedule="step", scheduler_at=at))
    assert found == pytest.approx(expected[shift:200 + shift], rel=1e-12)


def test_the_recipe_of_rangwani_warms_up_over_five_epochs_and_drops_twice_by_a_hundred():
    found = rates(config(lr=0.1, schedule="step", warmup_epochs=5, decay=0.01))
    assert found[:6] == pytest.approx([0.02, 0.04, 0.06, 0.08, 0.1, 0.1])
    assert found[159:161] == pytest.approx([0.1, 0.001])
    assert found[179:181] == pytest.approx([0.001, 1e-5])


def test_cosine_after_a_warm_up_starts_at_the_full_rate_and_falls_throughout():
    found = rates(config(warmup_epochs=10))
    assert found[9] == found[10] == 0.01
    assert all(a > b > 0 for a, b in zip(found[10:], found[11:]))


@pytest.mark.parametrize("at", ["end", "start"])
def test_a_warm_up_of_all_epochs_never_exceeds_the_rate(at):
    found = rates(config(epochs=5, warmup_epochs=5, scheduler_at=at))
    assert found == sorted(found) and max(found) <= 0.01


def test_constant_is_constant():
    assert set(rates(config(schedule="constant"))) == {0.01}
