"""Cosines of gradients against autograd on a tiny network, and against each other."""

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from analysis.measures.similarity import batch_cosines, cosine, extreme_classes, mean_cosine, mean_gradient
from landscape.errors import InputError


def losses(logits, labels):
    return F.cross_entropy(logits, labels, reduction="none")


@pytest.fixture
def model():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 3), nn.BatchNorm1d(3), nn.Tanh(), nn.Dropout(0.5), nn.Linear(3, 3)).double()
    model[1].running_mean.normal_()
    model[0].bias.requires_grad_(False)
    return model


@pytest.fixture
def samples():
    generator = torch.Generator().manual_seed(1)
    return torch.randn(11, 4, generator=generator, dtype=torch.float64), torch.arange(11) % 3


def dense(model, x, y):
    """The gradient of the mean loss over everything at once."""
    value = losses(model(x), y).mean()
    return torch.cat([g.flatten() for g in torch.autograd.grad(value, [p for p in model.parameters() if p.requires_grad])])


def test_the_mean_gradient_is_that_of_all_samples_at_once_however_they_are_split(model, samples):
    for sizes in ([11], [4, 4, 3], [1, 10]):
        found = mean_gradient(model, losses, zip(samples[0].split(sizes), samples[1].split(sizes)))
        torch.testing.assert_close(found, dense(model.eval(), *samples), rtol=1e-12, atol=1e-14)
        model.train()


def test_the_model_is_left_as_it_was(model, samples):
    before = {name: value.clone() for name, value in model.state_dict().items()}
    model[1].eval()
    for statistics in ("running", "batch"):
        mean_gradient(model, losses, [samples], statistics=statistics)
    assert model.training and not model[1].training and model[3].training
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert all(p.grad is None for p in model.parameters())


def test_a_mini_batch_may_be_normalized_as_in_training(model, samples):
    found = mean_gradient(model, losses, [samples], statistics="batch")
    model.train()[3].eval()
    torch.testing.assert_close(found, dense(model, *samples), rtol=1e-12, atol=1e-14)


def test_gradients_in_float32_are_summed_in_float64(model, samples):
    exact = mean_gradient(model, losses, [samples])
    found = mean_gradient(model.float(), losses, [(samples[0].float(), samples[1])] * 3)
    assert found.dtype == torch.float64
    torch.testing.assert_close(found, exact, rtol=1e-4, atol=1e-6)


def test_cosines_of_known_vectors():
    u, v = torch.tensor([3.0, 4.0]), torch.tensor([4.0, 3.0])
    assert cosine(u, v) == pytest.approx(24 / 25, rel=1e-7)
    assert cosine(u, -2 * u) == pytest.approx(-1.0, abs=1e-15)
    assert cosine(1e-150 * u.double(), 1e-150 * v.double()) == pytest.approx(24 / 25)
    assert np.isnan(cosine(u, torch.zeros(2)))


def test_a_class_agrees_with_batches_as_autograd_says(model, samples):
    model.eval()
    x, y = samples
    gradients = {f"class:{c}": mean_gradient(model, losses, [(x[y == c], y[y == c])]) for c in range(3)}
    batches = [(x[:5], y[:5]), (x[5:], y[5:])]
    found = batch_cosines(gradients, (mean_gradient(model, losses, [batch]) for batch in batches))
    for c in range(3):
        expected = [F.cosine_similarity(dense(model, x[y == c], y[y == c]), dense(model, *batch), dim=0) for batch in batches]
        np.testing.assert_allclose(found[f"class:{c}"], torch.stack(expected).detach().numpy(), rtol=1e-12)


def test_the_whole_data_in_one_batch_is_in_line_with_their_mean(model, samples):
    whole = mean_gradient(model, losses, [samples])
    parts = [mean_gradient(model, losses, [(samples[0][samples[1] == c], samples[1][samples[1] == c])]) for c in range(3)]
    counts = torch.bincount(samples[1]) / len(samples[1])
    assert cosine(whole, sum(n * part for n, part in zip(counts, parts))) == pytest.approx(1.0, abs=1e-12)


def test_the_mean_has_a_t_interval_over_batches():
    found = mean_cosine([0.1, 0.3, 0.2, 0.4])
    assert found.value == pytest.approx(0.25)
    assert found.high - found.value == pytest.approx(3.1824463 * np.std([0.1, 0.3, 0.2, 0.4], ddof=1) / 2)
    assert np.isnan(mean_cosine([0.3]).low) and np.isnan(mean_cosine([0.3, np.nan]).value)


def test_the_two_largest_and_the_two_smallest_classes():
    assert extreme_classes([50, 90, 20, 10, 50]) == ((1, 0), (2, 3))
    assert extreme_classes([5, 5, 5]) == ((0,), (2,))
    assert extreme_classes([7]) == ((), ())
    assert extreme_classes([9, 8, 7, 6], number=1) == ((0,), (3,))


def test_mistakes_are_told(model, samples):
    with pytest.raises(InputError, match="statistics='train' is unknown"):
        mean_gradient(model, losses, [samples], statistics="train")
    with pytest.raises(InputError, match="no sample"):
        mean_gradient(model, losses, [])
