"""The four calls that the SSE-SAM README documents: they run as printed there and give what step(closure) gives."""

import pytest
import torch
from torch import nn

from landscape.errors import InputError
from landscape.optimizers import SSESAM

TAIL_CLASSES = torch.tensor([2])
LABELS = torch.tensor([0, 0, 1, 2, 0, 1, 0, 2, 0, 0])
IMAGES = torch.randn(10, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
WITHOUT_TAIL = torch.tensor([0, 1, 1, 1, 0, 1, 0, 1, 0, 0])
TAIL_ALONE = torch.full((10,), 2)


def make(gamma=0.5, batchnorm="every", norm_layer=False):
    torch.manual_seed(0)
    middle = [nn.BatchNorm1d(5)] if norm_layer else []
    net = nn.Sequential(nn.Linear(4, 5), *middle, nn.Tanh(), nn.Linear(5, 3)).double()
    base = torch.optim.SGD(net.parameters(), lr=0.1, momentum=0.9, weight_decay=0.01)
    return net, SSESAM(base, net, 0.05, 0.10, gamma, 4, batchnorm=batchnorm)


def four_calls(model, optimizer, images=IMAGES, targets=LABELS, tail_classes=TAIL_CLASSES):
    """One batch in the order of the README's example."""
    lossFunc = nn.CrossEntropyLoss(reduction="none")
    tail_mask = torch.where((targets[:, None] == tail_classes[None, :].to(targets.device)).sum(1) == 1, True, False)
    for n_i, mask in ((0, ~tail_mask), (1, tail_mask)):
        logits = model(images)
        loss = lossFunc(logits[mask], targets[mask]).sum() / targets.size(0)
        loss.backward(retain_graph=True)
        optimizer.compute_and_add_epsilon(n_i=n_i)
        logits = model(images)
        loss = lossFunc(logits[mask], targets[mask]).sum() / targets.size(0)
        loss.backward(retain_graph=True)
        optimizer.compute_grad_sum_and_restore_p()
    optimizer.update()


def one_call(model, optimizer, images=IMAGES, targets=LABELS):
    tail = targets == 2
    optimizer.step(lambda: (nn.functional.cross_entropy(model(images), targets, reduction="none"),
                            {"head": ~tail, "tail": tail}))


def close(net, other):
    return all(torch.allclose(a, b, rtol=0, atol=1e-12) for a, b in zip(net.parameters(), other.parameters()))


@pytest.mark.parametrize("gamma", [0.0, 0.5, 1.0])
@pytest.mark.parametrize("targets", [LABELS, WITHOUT_TAIL, TAIL_ALONE], ids=["mixed", "no tail", "no head"])
def test_four_calls_and_one_step_give_the_same_parameters_in_both_stages(gamma, targets):
    (net, optimizer), (other, direct) = make(gamma), make(gamma)
    for _ in range(4):
        for _ in range(3):
            four_calls(net, optimizer, targets=targets)
            one_call(other, direct, targets=targets)
        optimizer.update_rho()
        direct.end_epoch()
    assert optimizer.radii == direct.radii
    assert close(net, other)
    assert all(p.isfinite().all() for p in net.parameters())


def test_update_rho_switches_after_the_share_gamma_of_the_epochs():
    _, optimizer = make(gamma=0.5)
    heads = []
    for _ in range(4):
        heads.append(optimizer.radii["head"])
        optimizer.update_rho()
    assert heads == [0.05, 0.05, 0.0, 0.0]


def test_an_epsilon_has_the_length_of_the_radius_and_is_undone_bit_by_bit():
    net, optimizer = make(gamma=1.0)
    before = [p.detach().clone() for p in net.parameters()]
    for n_i, rho in enumerate((0.05, 0.10)):
        net(IMAGES).square().sum().backward()
        optimizer.compute_and_add_epsilon(n_i)
        length = torch.cat([(p - q).flatten() for p, q in zip(net.parameters(), before)]).norm()
        assert abs(length - rho) < 1e-12
        assert all(p.grad is None for p in net.parameters())
        optimizer.compute_grad_sum_and_restore_p()
        assert all(torch.equal(p, q) for p, q in zip(net.parameters(), before))


def test_gradients_are_cleared_after_update_so_that_the_next_batch_starts_clean():
    net, optimizer = make()
    four_calls(net, optimizer)
    assert all(p.grad is None for p in net.parameters())


def test_a_parameter_without_gradient_is_left_alone():
    net, optimizer = make()
    net.unused = nn.Parameter(torch.ones(2).double())
    optimizer.add_param_group({"params": [net.unused]})
    four_calls(nn.Sequential(*list(net)[:3]), optimizer)
    assert torch.equal(net.unused, torch.ones(2).double())


@pytest.mark.parametrize("batchnorm, moves", [("every", 4), ("clean", 1)])
def test_running_statistics_move_in_every_forward_or_in_the_first_alone(batchnorm, moves):
    net, optimizer = make(batchnorm=batchnorm, norm_layer=True)
    four_calls(net, optimizer)
    assert net[1].num_batches_tracked == moves
    assert net[1].track_running_stats
    net(IMAGES)
    assert net[1].num_batches_tracked == moves + 1


def test_a_scheduler_made_from_the_optimizer_sees_its_updates():
    net, optimizer = make()
    scheduler = torch.optim.lr_scheduler.StepLR(optimizer, 1, gamma=0.5)
    four_calls(net, optimizer)
    scheduler.step()  # would warn, an error here, had no step been seen
    assert optimizer.base.param_groups[0]["lr"] == 0.05


MISTAKES = {
    "n_i=2 is out of range": lambda o: o.compute_and_add_epsilon(2),
    "called twice": lambda o: (o.compute_and_add_epsilon(0), o.compute_and_add_epsilon(1)),
    "nothing to undo": lambda o: o.compute_grad_sum_and_restore_p(),
    "no finished gradient": lambda o: o.update(),
}


@pytest.mark.parametrize("told", MISTAKES)
def test_calls_out_of_order_are_refused(told):
    net, optimizer = make()
    net(IMAGES).sum().backward()
    with pytest.raises(InputError, match=told):
        MISTAKES[told](optimizer)
