"""Parameters as one vector: order, sharing, cutting, and displacement that leaves no trace."""

import pytest
import torch
from torch import nn

from landscape.errors import InputError
from landscape.parameters import flatten, moved_to, split_like, theta, trainable, unflatten


@pytest.fixture
def net():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Tanh(), nn.Linear(4, 2, bias=False))


def test_theta_lists_the_trainable_parameters_row_by_row_in_named_order(net):
    names = tuple(trainable(net))
    assert names == ("0.weight", "0.bias", "1.weight", "1.bias", "3.weight")
    assert torch.equal(theta(net)[:12].view(4, 3), net[0].weight.detach())
    assert theta(net).shape == (12 + 4 + 4 + 4 + 8,)


def test_theta_is_a_copy(net):
    theta(net).zero_()
    assert theta(net).abs().sum() > 0


def test_a_shared_parameter_appears_once():
    layer = nn.Linear(2, 2)
    assert len(theta(nn.Sequential(layer, nn.Tanh(), layer))) == 6


def test_frozen_parameters_stay_out_of_theta(net):
    net[0].weight.requires_grad_(False)
    assert next(iter(trainable(net))) == "0.bias"
    assert len(theta(net)) == 20


def test_a_model_without_trainable_parameters_is_refused():
    with pytest.raises(InputError, match="no trainable parameter"):
        trainable(nn.ReLU())


def test_unflatten_undoes_flatten_with_shapes_by_name(net):
    vector = torch.arange(32.0)
    pieces = unflatten(vector, net)
    assert {name: piece.shape for name, piece in pieces.items()} == {n: p.shape for n, p in net.named_parameters()}
    assert torch.equal(flatten(pieces.values()), vector)


def test_rows_are_cut_into_stacked_pieces(net):
    rows = torch.arange(64.0).view(2, 32)
    pieces = split_like(rows, list(net.parameters()))
    assert pieces[0].shape == (2, 4, 3)
    assert torch.equal(pieces[0][1], unflatten(rows[1], net)["0.weight"])


@pytest.mark.parametrize("length", [0, 31, 33])
def test_a_vector_of_the_wrong_length_is_refused(net, length):
    with pytest.raises(InputError, match=f"length {length} does not fit: expected 32"):
        unflatten(torch.zeros(length), net)


def test_moved_to_gives_the_model_the_vector_and_returns_every_bit(net):
    before, objects = theta(net), list(net.parameters())
    with moved_to(net, torch.full((32,), 1 / 3)):
        assert torch.equal(theta(net), torch.full((32,), 1 / 3))
    assert torch.equal(theta(net), before)
    assert all(new is old for new, old in zip(net.parameters(), objects))


def test_moved_to_returns_every_bit_after_an_exception(net):
    before = theta(net)
    with pytest.raises(KeyboardInterrupt), moved_to(net, torch.full((32,), torch.nan)):
        raise KeyboardInterrupt
    assert torch.equal(theta(net), before)


def test_moved_to_nests(net):
    before = theta(net)
    with moved_to(net, torch.ones(32)), moved_to(net, torch.zeros(32)):
        assert not theta(net).any()
    assert torch.equal(theta(net), before)
