"""Which statistics a pass uses and which it moves; every block leaves modes as they were."""

import pytest
import torch
from torch import nn

from landscape.batchnorm import batch_statistics, evaluation_mode, normalizers, running_statistics_held

INPUTS = torch.linspace(-2, 5, 24, dtype=torch.float64).view(8, 3)


@pytest.fixture
def net():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Dropout(0.5), nn.BatchNorm1d(4)).double()


def modes(net):
    return [(m.training, getattr(m, "track_running_stats", None)) for m in net.modules()]


def buffers(net):
    return [b.clone() for b in net.buffers()]


def unmoved(net, before):
    return all(torch.equal(a, b) for a, b in zip(net.buffers(), before))


@pytest.mark.parametrize("block", [evaluation_mode, batch_statistics, running_statistics_held])
@pytest.mark.parametrize("training", [True, False])
def test_every_block_returns_each_modules_own_mode_also_after_an_exception(net, block, training):
    net.train(training)
    net[1].train(not training)
    before = modes(net)
    with pytest.raises(KeyboardInterrupt), block(net):
        raise KeyboardInterrupt
    assert modes(net) == before


def test_evaluation_mode_uses_and_keeps_the_running_statistics(net):
    before = buffers(net)
    with evaluation_mode(net):
        whole, single = net(INPUTS), net(INPUTS[:1])
    assert torch.allclose(whole[:1], single, rtol=0, atol=1e-14)
    assert unmoved(net, before)


def test_held_statistics_still_normalize_with_the_batch(net):
    net[2].p = 0.0
    before, free = buffers(net), net(INPUTS)
    moved = buffers(net)
    assert not unmoved(net, before)
    with running_statistics_held(net):
        held = net(INPUTS)
    assert torch.equal(held, free)
    assert unmoved(net, moved)


def test_held_statistics_respect_a_layer_that_the_user_has_frozen(net):
    net[1].eval()
    net[2].p = 0.0
    frozen = net(INPUTS)
    with running_statistics_held(net):
        assert torch.equal(net(INPUTS), frozen)


def test_batch_statistics_in_an_evaluated_model_leave_dropout_off_and_move_nothing(net):
    net.eval()
    before = buffers(net)
    with batch_statistics(net):
        first, second = net(INPUTS), net(INPUTS)
    assert torch.equal(first, second)
    assert torch.allclose(first.mean(0), torch.zeros(4, dtype=torch.float64), atol=1e-12)
    assert unmoved(net, before)


def test_batch_statistics_move_the_running_ones_when_asked(net):
    net.eval()
    with batch_statistics(net, update=True):
        net(INPUTS)
    assert net[1].num_batches_tracked == 1


def test_only_layers_with_running_statistics_are_listed():
    net = nn.Sequential(nn.BatchNorm1d(2), nn.BatchNorm1d(2, track_running_stats=False), nn.InstanceNorm1d(2),
                        nn.InstanceNorm1d(2, track_running_stats=True), nn.LayerNorm(2))
    assert normalizers(net) == [net[0], net[3]]
