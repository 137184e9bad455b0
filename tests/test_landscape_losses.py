import math

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from landscape.errors import InputError
from landscape.losses import (LOSSES, build_loss, drw_weights, loss_name, loss_options, needs_cosine_head, needs_views,
                              register_loss)

COUNTS = np.array([81, 16, 1])
OF_LOGITS = [name for name in LOSSES if not needs_views(name)]


def assert_same_bits(first, second):
    torch.testing.assert_close(first, second, rtol=0, atol=0)


@pytest.fixture
def batch():
    logits = torch.randn(6, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    return logits, torch.tensor([0, 1, 2, 2, 1, 0])


def by_hand(logits, targets):
    """-log softmax(z)_y written out, one sample after another."""
    return torch.tensor([math.log(sum(math.exp(z) for z in row)) - row[y]
                         for row, y in zip(logits.tolist(), targets.tolist())], dtype=torch.float64)


def test_ce_is_minus_log_softmax(batch):
    torch.testing.assert_close(build_loss("CE", COUNTS)(*batch), by_hand(*batch))


@pytest.mark.parametrize("options, s, m", [({}, 30, 0.5), ({"max_m": 0.3, "s": 20.0}, 20, 0.3)])
def test_ldam_takes_a_scaled_margin_off_the_true_cosine(batch, options, s, m):
    cosines, targets = torch.tanh(batch[0]), batch[1]
    margins = [m / 3, m / 2, m]  # n^(-1/4) of 81, 16, 1 is 1/3, 1/2, 1
    adjusted = s * cosines.clone()
    for i, y in enumerate(targets.tolist()):
        adjusted[i, y] = s * (cosines[i, y] - margins[y])
    torch.testing.assert_close(build_loss("LDAM", COUNTS, **options)(cosines, targets), by_hand(adjusted, targets))


def test_ldam_release_takes_up_to_fifteen_off_the_raw_logit(batch):
    logits, targets = batch
    adjusted = logits.clone()
    for i, y in enumerate(targets.tolist()):
        adjusted[i, y] -= [5.0, 7.5, 15.0][y]
    torch.testing.assert_close(build_loss("LDAM", COUNTS, form="release")(logits, targets), by_hand(adjusted, targets))


def test_ldam_without_margin_is_ce(batch):
    ce = build_loss("CE", COUNTS)
    logits, targets = batch
    assert_same_bits(build_loss("LDAM", COUNTS, form="release", max_m=0.0)(*batch), ce(*batch))
    assert_same_bits(build_loss("LDAM", COUNTS, max_m=0.0)(*batch), ce(30 * logits, targets))


@pytest.mark.parametrize("tau", [1.0, 0.75])
def test_la_adds_the_log_prior(batch, tau):
    logits, targets = batch
    adjusted = logits + tau * torch.tensor([math.log(n / 98) for n in COUNTS.tolist()], dtype=torch.float64)
    torch.testing.assert_close(build_loss("LA", COUNTS, tau=tau)(*batch), by_hand(adjusted, targets))


def test_vs_divides_by_delta_and_adds_the_log_prior(batch):
    logits, targets = batch
    delta = torch.tensor([1.0, (81 / 16) ** 0.3, 81 ** 0.3], dtype=torch.float64)
    prior = torch.tensor([math.log(n / 98) for n in COUNTS.tolist()], dtype=torch.float64)
    torch.testing.assert_close(build_loss("VS", COUNTS)(*batch), by_hand(logits / delta + prior, targets))


@pytest.mark.parametrize("name, options", [("LA", {"tau": 0.0}), ("VS", {"gamma": 0.0, "tau": 0.0})])
def test_without_adjustment_a_loss_is_ce(batch, name, options):
    assert_same_bits(build_loss(name, COUNTS, **options)(*batch), build_loss("CE", COUNTS)(*batch))


def test_vs_without_scaling_is_la(batch):
    assert_same_bits(build_loss("VS", COUNTS, gamma=0.0)(*batch), build_loss("LA", COUNTS)(*batch))


def test_balanced_softmax_counts_each_exponential_by_its_classs_images(batch):
    logits, targets = batch
    shares = logits.exp() * torch.tensor(COUNTS) / (logits.exp() * torch.tensor(COUNTS)).sum(1, keepdim=True)
    torch.testing.assert_close(build_loss("BS", COUNTS)(*batch), -shares[range(6), targets].log())
    torch.testing.assert_close(build_loss("BS", COUNTS)(*batch), build_loss("LA", COUNTS)(*batch))


@pytest.mark.parametrize("options, gamma, beta", [({}, 1.0, 0.0), ({"focal_gamma": 0.5, "beta": 0.9}, 0.5, 0.9)])
def test_focal_loss_is_the_formula(batch, options, gamma, beta):
    logits, targets = batch
    p = logits.softmax(1)[range(6), targets]
    weights = torch.tensor([(1 - beta) / (1 - beta ** n) for n in COUNTS.tolist()], dtype=torch.float64)
    weights = (3 * weights / weights.sum())[targets]
    torch.testing.assert_close(build_loss("Focal", COUNTS, **options)(*batch), -weights * (1 - p) ** gamma * p.log())


@pytest.mark.parametrize("gamma", [0.5, 1.0, 2.0])
def test_focal_loss_has_finite_derivatives_where_the_network_is_sure(gamma):
    logits = torch.tensor([[800.0, 0.0, 0.0], [0.0, 800.0, 0.0]], requires_grad=True)
    loss = build_loss("Focal", COUNTS, focal_gamma=gamma)(logits, torch.tensor([0, 0]))
    slope, = torch.autograd.grad(loss.sum(), logits, create_graph=True)
    assert loss[0] < 1e-12 and loss[1] == 800 and slope.isfinite().all()
    assert torch.autograd.grad(slope.square().sum(), logits)[0].isfinite().all()


def test_class_balanced_weights_are_those_of_drw(batch):
    expected = drw_weights(COUNTS, 0.9999)[batch[1]] * build_loss("CE", COUNTS)(*batch)
    torch.testing.assert_close(build_loss("CB", COUNTS)(*batch), expected)


@pytest.mark.parametrize("name, options", [("Focal", {"focal_gamma": 0.0}), ("CB", {"beta": 0.0})])
def test_without_weights_a_loss_is_ce(batch, name, options):
    assert_same_bits(build_loss(name, COUNTS, **options)(*batch), build_loss("CE", COUNTS)(*batch))


def test_with_balanced_classes_class_balanced_is_ce(batch):
    torch.testing.assert_close(build_loss("CB", [5, 5, 5])(*batch), build_loss("CE", COUNTS)(*batch))
    torch.testing.assert_close(build_loss("BS", [5, 5, 5])(*batch), build_loss("CE", COUNTS)(*batch))


def tempered(class_counts, *, temperature=2.0):
    """A loss of one's own: cross-entropy of z / temperature."""
    ce = build_loss("CE", class_counts)
    return lambda logits, targets: ce(logits / temperature, targets)


def test_a_loss_of_ones_own_is_one_row_or_a_module_and_a_callable(batch, monkeypatch, tmp_path):
    monkeypatch.setattr("landscape.losses.table.LOSSES", dict(LOSSES))
    register_loss("mine", tempered)
    assert loss_options("mine") == {"temperature": 2.0}
    logits, targets = batch
    expected = by_hand(logits / 4, targets)
    torch.testing.assert_close(build_loss("mine", COUNTS, temperature=4.0)(*batch), expected)
    torch.testing.assert_close(build_loss(f"{__name__}:tempered", COUNTS, temperature=4.0)(*batch), expected)
    with pytest.raises(InputError, match="loss='mine' is taken"):
        register_loss("mine", tempered)
    with pytest.raises(InputError, match="'nowhere:loss' cannot be imported"):
        loss_options("nowhere:loss")


def test_with_balanced_classes_la_is_ce_and_ldam_has_one_margin(batch):
    torch.testing.assert_close(build_loss("LA", [5, 5, 5])(*batch), build_loss("CE", COUNTS)(*batch))
    assert build_loss("LDAM", [5, 5, 5]).margin.tolist() == [15.0, 15.0, 15.0]


def test_the_gradient_of_ce_is_softmax_minus_onehot(batch):
    logits, targets = batch
    logits.requires_grad_()
    gradient, = torch.autograd.grad(build_loss("CE", COUNTS)(logits, targets).sum(), logits)
    torch.testing.assert_close(gradient, logits.detach().softmax(1) - F.one_hot(targets, 3))


@pytest.mark.parametrize("name", OF_LOGITS)
def test_a_loss_is_one_number_a_sample_in_the_type_of_the_logits(batch, name):
    logits, targets = batch
    loss = build_loss(name, COUNTS)
    assert loss(logits, targets).shape == (6,)
    assert loss(logits.float(), targets).dtype == torch.float32
    torch.testing.assert_close(loss(logits[2:3], targets[2:3]), loss(logits, targets)[2:3])
    assert not list(loss.parameters())


@pytest.mark.parametrize("name", OF_LOGITS)
def test_constants_follow_the_logits_to_another_device(batch, name):
    logits, targets = batch
    assert build_loss(name, COUNTS)(logits.to("meta"), targets.to("meta")).device.type == "meta"


@pytest.mark.filterwarnings("ignore:`torch.jit.script` is deprecated")  # torch's own, when forward mode is first used
@pytest.mark.parametrize("name", OF_LOGITS)
def test_forward_over_reverse_and_vmap_agree_with_the_dense_hessian(batch, name):
    logits, targets = batch
    loss = build_loss(name, COUNTS)

    def mean(z):
        return loss(z, targets).mean()

    dense = torch.autograd.functional.hessian(mean, logits).reshape(18, 18)
    basis = torch.eye(18, dtype=torch.float64).reshape(18, 6, 3)
    product = torch.func.vmap(lambda v: torch.func.jvp(torch.func.grad(mean), (logits,), (v,))[1])(basis)
    torch.testing.assert_close(product.reshape(18, 18), dense)
    persample = torch.func.vmap(lambda z, y: loss(z[None], y[None])[0])(logits, targets)
    torch.testing.assert_close(persample, loss(logits, targets))


def test_the_readme_spelling_va_is_la():
    assert loss_name("VA") == "LA"
    assert torch.equal(build_loss("VA", COUNTS, tau=0.75).shift, build_loss("LA", COUNTS, tau=0.75).shift)


def test_only_the_paper_form_of_ldam_needs_a_cosine_head():
    assert [name for name in LOSSES if needs_cosine_head(name)] == ["LDAM"]
    assert not needs_cosine_head("LDAM", form="release")


def test_options_are_listed_with_their_defaults():
    assert loss_options("VS") == {"gamma": 0.3, "tau": 1.0}
    assert loss_options("LDAM") == {"form": "paper", "max_m": 0.5, "s": 30.0}


@pytest.mark.parametrize("name, counts, options, message", [
    ("BCE", COUNTS, {}, "loss='BCE' is unknown: expected one of CE, LDAM, LA, VS"),
    ("LA", COUNTS, {"gamma": 1.0}, "option 'gamma' is unknown to loss LA: expected tau"),
    ("CE", COUNTS, {"tau": 1.0}, "option 'tau' is unknown to loss CE: expected none"),
    ("LA", [3, 0], {}, r"class_counts\[1\]=0 is out of range: LA"),
    ("VS", [3, math.nan], {}, r"class_counts\[1\]=nan is out of range: VS"),
    ("LDAM", [], {}, "class_counts has shape"),
    ("LDAM", COUNTS, {"form": "other"}, "form='other' is unknown: expected 'paper' .* or 'release'"),
    ("LDAM", COUNTS, {"s": 0.0}, "s=0.0 is out of range: expected a finite number > 0"),
    ("LDAM", COUNTS, {"max_m": -1.0}, "max_m=-1.0 is out of range: expected a finite number >= 0"),
    ("VS", COUNTS, {"gamma": -1.0}, "gamma=-1.0 is out of range"),
    ("Focal", COUNTS, {"focal_gamma": -1.0}, "focal_gamma=-1.0 is out of range"),
    ("CB", COUNTS, {"beta": 1.0}, "beta=1.0 is out of range: expected 0 <= beta < 1"),
    ("BS", [3, 0], {}, r"class_counts\[1\]=0 is out of range: BS"),
    ("LA", COUNTS, {"tau": math.inf}, "tau=inf is out of range"),
])
def test_what_cannot_be_used_is_refused_by_name(name, counts, options, message):
    with pytest.raises(InputError, match=message):
        build_loss(name, counts, **options)


def test_ce_accepts_a_class_without_images(batch):
    assert build_loss("CE", [3, 0, 1])(*batch).shape == (6,)


def test_drw_weights_sum_to_the_number_of_classes_and_follow_the_formula():
    weights = drw_weights([500, 20, 5], beta=0.9999)
    expected = np.array([(1 - 0.9999) / (1 - 0.9999 ** n) for n in (500, 20, 5)])
    assert weights.sum().item() == pytest.approx(3)
    np.testing.assert_allclose(weights.numpy(), 3 * expected / expected.sum(), rtol=1e-10)


def test_drw_runs_from_equal_weights_to_inverse_counts():
    assert drw_weights(COUNTS, beta=0.0).tolist() == [1.0, 1.0, 1.0]
    inverse = 1 / COUNTS
    np.testing.assert_allclose(drw_weights(COUNTS, beta=1 - 1e-15).numpy(), 3 * inverse / inverse.sum(), rtol=1e-12)


@pytest.mark.parametrize("beta", [-0.1, 1.0, math.nan])
def test_drw_refuses_beta_outside_its_range(beta):
    with pytest.raises(InputError, match="beta=.* is out of range: expected 0 <= beta < 1"):
        drw_weights(COUNTS, beta=beta)


def test_drw_refuses_an_empty_class():
    with pytest.raises(InputError, match=r"class_counts\[0\]=0 is out of range: DRW"):
        drw_weights([0, 3], beta=0.9)


def test_what_a_loss_of_ones_own_needs_is_said_in_its_row(monkeypatch):
    monkeypatch.setattr("landscape.losses.table.LOSSES", dict(LOSSES))
    builder = LOSSES["LDAM"].builder
    register_loss("margins", builder, cosine={"form": "paper"})
    register_loss("always", builder, cosine={})
    register_loss("pairs", builder, views=True)
    assert needs_cosine_head("margins") and not needs_cosine_head("margins", form="release") and not needs_views("margins")
    assert needs_cosine_head("always", form="release")
    assert needs_views("pairs") and not needs_cosine_head("pairs")
    assert not needs_views("nowhere:at_all") and not needs_cosine_head("nowhere:at_all")
