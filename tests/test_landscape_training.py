"""The loop: what it sees, what it records, where it stops, and that an interruption leaves no trace."""

import copy
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn.functional import cross_entropy
from torch.utils._python_dispatch import TorchDispatchMode

from landscape.data import load_data
from landscape.data.batches import batch_sizes
from landscape.errors import DivergedError, InputError
from landscape.losses import drw_weights
from landscape.models import CosineHead
from landscape.schedules import learning_rate
from landscape.training import TrainConfig, choose_device, train

OPTIMIZERS = ("sgd", "sam", "imbsam", "ssesam")


class Memory:
    """A recorder that keeps everything in lists."""

    def __init__(self):
        self.calls, self.checkpoints, self.rows, self.point = [], {}, {}, None

    def checkpoint(self, epoch, arrays):
        self.calls.append(f"checkpoint {epoch}")
        self.checkpoints[epoch] = arrays

    def epoch(self, metrics):
        self.calls.append(f"epoch {metrics['epoch']}")
        self.rows[metrics["epoch"]] = {name: value for name, value in metrics.items() if name != "seconds"}

    def resume(self, arrays):
        self.calls.append("resume")
        self.point = arrays

    def resumed(self):
        return self.point


class Killed(Exception):
    pass


class Killing(Memory):
    """A memory that fails at the given calls, before or after it has kept what it was given."""

    def __init__(self, failures):
        super().__init__()
        self.failures, self.count = failures, 0

    def __getattribute__(self, name):
        method = super().__getattribute__(name)
        if name not in ("checkpoint", "epoch", "resume"):
            return method

        def call(*arguments):
            self.count += 1
            when = self.failures.pop(self.count, None)
            if when == "before":
                raise Killed
            method(*arguments)
            if when == "after":
                raise Killed
        return call


@pytest.fixture(scope="module")
def data():
    return load_data("synthetic", imb_factor=10)


def config(**changes):
    settings = {
        "dataset": "synthetic",
        "epochs": 6,
        "batch_size": 16,
        "lr": 0.05,
        "eval_every": 3,
        "gamma": 0.5,
        "eta": 30,
        "checkpoint_epochs": "every:2",
    }
    return TrainConfig(**settings | changes)


class Net(nn.Module):
    """What makes a resume hard: running statistics and dropout."""

    def __init__(self, seed=0):
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            self.layers = nn.Sequential(
                nn.Conv2d(3, 4, 3, stride=2),
                nn.BatchNorm2d(4),
                nn.ReLU(),
                nn.Flatten(),
                nn.Dropout(0.2),
                nn.Linear(36, 4),
            )

    def forward(self, x):
        return self.layers(x)


def same_arrays(one, other):
    return one.keys() == other.keys() and all(np.array_equal(one[name], other[name]) for name in one)


def same_records(one, other):
    return (
        one.rows == other.rows
        and one.checkpoints.keys() == other.checkpoints.keys()
        and same_arrays(one.point, other.point)
        and all(same_arrays(one.checkpoints[e], other.checkpoints[e]) for e in one.checkpoints)
    )


@pytest.mark.parametrize("opt", OPTIMIZERS)
def test_an_interrupted_run_ends_with_the_bits_of_an_undisturbed_one(data, opt):
    settings = config(opt=opt, drw_epoch=4, batchnorm="clean", warmup_epochs=2)
    straight = Memory()
    train(settings, data=data, model=Net(), recorder=straight)
    random = np.random.default_rng(OPTIMIZERS.index(opt))
    killing = Killing(
        {
            int(call): str(random.choice(["before", "after"]))
            for call in random.choice(np.arange(1, 18), 5, replace=False)
        }
    )
    attempts = 0
    while True:
        attempts += 1
        torch.manual_seed(attempts)  # another process would come with another random state
        try:
            train(settings, data=data, model=Net(seed=attempts if killing.point else 0), recorder=killing)
            break
        except Killed:
            continue
    assert attempts > 1
    assert same_records(straight, killing)


@pytest.mark.parametrize("step", [0, 9, 17])
def test_an_interruption_inside_an_epoch_costs_that_epoch_alone(data, step):
    straight, memory, steps = Memory(), Memory(), []
    train(config(opt="ssesam"), data=data, recorder=straight)

    def stop(count):
        steps.append(count)
        if len(steps) == step + 1:
            raise Killed

    with pytest.raises(Killed):
        train(config(opt="ssesam"), data=data, recorder=memory, on_step=stop)
    train(config(opt="ssesam"), data=data, recorder=memory)
    assert same_records(straight, memory)


def test_a_finished_run_has_nothing_left_to_train(data):
    memory = Memory()
    first = train(config(), data=data, recorder=memory)
    calls = list(memory.calls)
    again = train(config(), data=data, recorder=memory)
    assert memory.calls == calls and again.metrics == [] and again.epochs_done == first.epochs_done == 6
    assert all(torch.equal(a, b) for a, b in zip(first.model.parameters(), again.model.parameters()))


def test_the_same_seed_gives_the_same_bits_and_another_seed_another_run(data):
    runs = [train(config(seed=seed, opt="sam"), data=data) for seed in (0, 0, 1)]
    weights = [torch.cat([p.flatten() for p in run.model.parameters()]) for run in runs]
    assert torch.equal(weights[0], weights[1]) and not torch.equal(weights[0], weights[2])


def test_global_random_state_and_threads_are_left_as_they_were(data):
    state, threads = torch.get_rng_state(), torch.get_num_threads()
    train(config(epochs=1, checkpoint_epochs="last", threads=1), data=data, model=Net())
    assert torch.equal(state, torch.get_rng_state()) and torch.get_num_threads() == threads


def test_recorders_are_told_of_checkpoint_metrics_and_resume_point_in_this_order(data):
    memory = Memory()
    train(config(epochs=3, checkpoint_epochs=[0, 2]), data=data, recorder=memory)
    assert memory.calls == [
        "checkpoint 0",
        "epoch 1",
        "resume",
        "checkpoint 2",
        "epoch 2",
        "resume",
        "checkpoint 3",
        "epoch 3",
        "resume",
    ]


def test_a_checkpoint_is_the_state_dict_and_keeps_its_values(data):
    memory = Memory()
    result = train(config(epochs=2, checkpoint_epochs=[0, 2]), data=data, recorder=memory)
    final = {name: value.numpy() for name, value in result.model.state_dict().items()}
    assert same_arrays(memory.checkpoints[2], final)
    assert not same_arrays(memory.checkpoints[0], final)


def test_rows_hold_rates_radii_and_on_evaluated_epochs_the_groups(data):
    seen = []
    result = train(config(opt="ssesam", head_rho=0.1, tail_rho=0.2, eta=0), data=data, progress=seen.append)
    assert seen == result.metrics and [row["epoch"] for row in seen] == [1, 2, 3, 4, 5, 6]
    assert [row["lr"] for row in seen] == [learning_rate(result.config, e) for e in range(6)]
    assert [(row["head_rho"], row["tail_rho"]) for row in seen] == [(0.1, 0.2)] * 3 + [(0.0, 0.2)] * 3
    evaluated = [row["epoch"] for row in seen if "test_accuracy/all" in row]
    assert evaluated == [3, 6]
    assert {"test_loss/head", "test_accuracy_flip/class:3", "test_accuracy/medium"} <= set(seen[-1])
    assert not any(name.endswith("/tail") for name in seen[-1])  # eta=0: the group is absent
    assert all(row["seconds"] > 0 for row in seen)


@pytest.mark.parametrize("opt, radii", [("sgd", (0.0, 0.0)), ("sam", (0.05, 0.05)), ("imbsam", (0.0, 0.05))])
def test_every_form_reports_its_radii(data, opt, radii):
    row = train(config(opt=opt, epochs=1, checkpoint_epochs="last"), data=data).metrics[0]
    assert (row["head_rho"], row["tail_rho"]) == radii


def test_it_learns(data):
    row = train(config(epochs=20, opt="ssesam", loss="LA"), data=data).metrics[-1]
    assert row["test_accuracy_flip/all"] > 0.8


def full_batch(data, weights, epochs=3):
    """SGD with momentum and weight decay on the whole training set, written out."""
    net = Net().double()
    optimizer = torch.optim.SGD(net.parameters(), lr=0.05, momentum=0.9, weight_decay=1e-3)
    inputs, losses = data.inputs(data.train.images, torch.float64), []
    for epoch in range(epochs):
        optimizer.zero_grad()
        loss = cross_entropy(net(inputs), data.train.labels, weight=weights if epoch >= 1 else None)
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    return net, losses


@pytest.mark.parametrize("drw", [False, True])
def test_a_run_equals_the_loop_written_out_with_torchs_weighted_mean_under_drw(data, drw):
    settings = config(
        epochs=3,
        batch_size=1000,
        schedule="constant",
        augment=False,
        dtype="float64",
        checkpoint_epochs="last",
        drw_epoch=1 if drw else None,
    )
    model = Net()
    model.layers[4].p = 0.0
    result = train(settings, data=data, model=model)
    weights = drw_weights(data.counts, 0.9999) if drw else None
    expected, losses = full_batch_without_dropout(data, weights)
    assert all(
        torch.allclose(a, b, rtol=0, atol=1e-12) for a, b in zip(result.model.parameters(), expected.parameters())
    )
    assert [row["train_loss"] for row in result.metrics] == pytest.approx(losses, abs=1e-12)


def full_batch_without_dropout(data, weights):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(nn.Dropout, "forward", lambda self, x: x)
        return full_batch(data, weights)


class Spy(nn.Module):
    """A linear model that keeps what it was shown in training."""

    def __init__(self):
        super().__init__()
        self.linear, self.shown = nn.Linear(192, 4), []

    def forward(self, x):
        if self.training:
            self.shown.append(x.detach().flatten(1))
        return self.linear(x.flatten(1))


def rows_of(images):
    return sorted(tuple(row.tolist()) for row in images)


def test_without_augmentation_every_epoch_shows_each_image_once_in_a_new_order(data):
    spy = Spy()
    train(config(epochs=2, checkpoint_epochs="last", augment=False), data=data, model=spy)
    steps = len(batch_sizes(len(data.train), 16))
    first, second = torch.cat(spy.shown[:steps]), torch.cat(spy.shown[steps:])
    images = data.inputs(data.train.images).flatten(1)
    assert rows_of(first) == rows_of(second) == rows_of(images)
    assert not torch.equal(first, second) and not torch.equal(first, images)


def test_augmentation_is_drawn_anew_each_epoch(data):
    spy = Spy()
    train(config(epochs=2, checkpoint_epochs="last"), data=data, model=spy)
    steps = len(batch_sizes(len(data.train), 16))
    first, second = torch.cat(spy.shown[:steps]), torch.cat(spy.shown[steps:])
    assert rows_of(first) != rows_of(second)
    assert rows_of(first) != rows_of(data.inputs(data.train.images).flatten(1))


@pytest.mark.parametrize(
    "num_images, batch_size, sizes",
    [
        (10, 5, [5, 5]),
        (12, 5, [5, 5, 2]),
        (11, 5, [5, 6]),
        (3, 5, [3]),
        (1, 5, [1]),
        (6, 5, [6]),
        (3, 1, [1, 1, 1]),
        (5, 2, [2, 3]),
    ],
)
def test_a_ragged_last_batch_is_kept_and_a_lone_image_joins_the_batch_before(num_images, batch_size, sizes):
    assert batch_sizes(num_images, batch_size) == sizes and sum(sizes) == num_images


def test_a_lone_last_image_does_not_stop_a_network_with_batchnorm(data):
    class OnVectors(nn.Module):
        def __init__(self):
            super().__init__()
            self.layers = nn.Sequential(nn.Flatten(), nn.Linear(192, 4), nn.BatchNorm1d(4))

        def forward(self, x):
            return self.layers(x)

    lone = len(data.train) - 1
    result = train(config(epochs=1, checkpoint_epochs="last", batch_size=lone), data=data, model=OnVectors())
    assert np.isfinite(result.metrics[0]["train_loss"])


@pytest.mark.parametrize("max_steps", [1, 8, 9, 10, 100])
def test_max_steps_ends_the_run_there_with_a_checkpoint_and_an_evaluation(data, max_steps):
    steps, memory = [], Memory()
    per_epoch = len(batch_sizes(len(data.train), 16))
    settings = config(max_steps=max_steps, checkpoint_epochs="last")
    result = train(settings, data=data, recorder=memory, on_step=steps.append)
    assert sum(steps) == min(max_steps, 6 * per_epoch)
    assert result.epochs_done == min(-(-max_steps // per_epoch), 6)
    assert list(memory.checkpoints) == [result.epochs_done] and "test_accuracy/all" in result.metrics[-1]
    assert train(settings, data=data, recorder=memory).metrics == []


class NoWaiting(TorchDispatchMode):
    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        assert func.overloadpacket.__name__ not in (
            "_local_scalar_dense",
            "nonzero",
            "is_nonzero",
            "equal",
            "masked_select",
        )
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("opt", OPTIMIZERS)
def test_nothing_is_read_back_from_the_device_between_the_first_and_the_last_step(data, opt):
    mode, steps = NoWaiting(), []
    per_epoch = len(batch_sizes(len(data.train), 4))

    def watch(count):
        steps.append(count)
        if len(steps) == 1:
            mode.__enter__()
        if len(steps) == per_epoch:
            mode.__exit__(None, None, None)

    train(
        config(epochs=1, opt=opt, drw_epoch=0, batch_size=4, checkpoint_epochs="last"),
        data=data,
        model=Net(),
        on_step=watch,
    )
    assert len(steps) == per_epoch


class Faulty(nn.Module):
    """A linear model whose training logits turn NaN at one forward, or whose weights do."""

    def __init__(self, forward=None):
        super().__init__()
        self.linear, self.at, self.count = nn.Linear(192, 4), forward, 0

    def forward(self, x):
        if self.training:
            self.count += 1
        return self.linear(x.flatten(1)) * (torch.nan if self.count == self.at else 1.0)


def test_the_first_loss_that_is_not_finite_is_named_and_nothing_of_its_epoch_is_recorded(data):
    memory, per_epoch = Memory(), len(batch_sizes(len(data.train), 16))
    with pytest.raises(DivergedError, match="the loss is nan in epoch 2 at step 3") as caught:
        train(config(checkpoint_epochs="every:1"), data=data, model=Faulty(2 * per_epoch + 4), recorder=memory)
    assert "\n" not in str(caught.value)
    assert list(memory.rows) == [1, 2] and sorted(memory.checkpoints) == [0, 1, 2] and memory.point["epochs_done"] == 2


def test_a_rate_that_is_too_high_ends_in_one_line(data):
    with pytest.raises(DivergedError, match=r"training diverged: .* in epoch \d+ .*lower lr=1e\+30"):
        train(config(lr=1e30), data=data)


def test_parameters_that_are_not_finite_after_the_last_step_are_not_recorded(data):
    memory, model = Memory(), Faulty()
    per_epoch = len(batch_sizes(len(data.train), 16))

    def spoil(count):
        if model.count == per_epoch:
            with torch.no_grad():
                model.linear.bias.fill_(torch.inf)

    with pytest.raises(DivergedError, match=f"a parameter is not finite in epoch 0 after step {per_epoch - 1}"):
        train(config(), data=data, model=model, recorder=memory, on_step=spoil)
    assert not memory.rows


def test_arrays_have_the_type_that_was_asked_for(data):
    memory = Memory()
    train(config(epochs=1, checkpoint_epochs="last", dtype="float64"), data=data, recorder=memory)
    assert {a.dtype for a in memory.checkpoints[1].values()} == {np.dtype("float64")}


def test_ldam_gets_the_cosine_head_it_needs_and_its_release_form_a_linear_one(data):
    heads = [
        train(config(epochs=1, checkpoint_epochs="last", loss="LDAM", loss_options={"form": form}), data=data).model.fc
        for form in ("paper", "release")
    ]
    assert isinstance(heads[0], CosineHead) and isinstance(heads[1], nn.Linear)


def test_a_model_is_trained_in_place_and_returned(data):
    model = Net()
    before = copy.deepcopy(model.state_dict())
    assert train(config(epochs=1, checkpoint_epochs="last"), data=data, model=model).model is model
    assert not torch.equal(before["layers.0.weight"], model.state_dict()["layers.0.weight"])


def test_data_are_loaded_by_name_where_none_are_given():
    result = train(config(epochs=1, checkpoint_epochs="last", imb_factor=4))
    assert result.config.imb_factor == 4 and result.config.arch == "mlp"


def test_a_model_with_the_wrong_outputs_is_refused(data):
    with pytest.raises(InputError, match=r"returns shape \(2, 3\) for 2 images: expected \(2, 4\)"):
        train(config(), data=data, model=nn.Sequential(nn.Flatten(), nn.Linear(192, 3)))


def test_a_resume_point_of_another_model_is_refused(data):
    memory = Memory()
    train(config(epochs=1, checkpoint_epochs="last"), data=data, recorder=memory)
    with pytest.raises(InputError, match="do not fit the model"):
        train(config(), data=data, model=Net(), recorder=memory)


def test_a_device_that_is_not_here_is_refused():
    assert choose_device("cpu") == torch.device("cpu") and choose_device("auto").type in ("cpu", "cuda")
    with pytest.raises(InputError, match="device='abacus' is unknown"):
        choose_device("abacus")
    with pytest.raises(InputError, match="device='cuda:99' is not here"):
        choose_device("cuda:99")


def test_images_in_floating_point_are_trained_too(data):
    floating = replace(
        data,
        train=replace(data.train, images=data.train.images.float() / 255),
        test=replace(data.test, images=data.test.images.float() / 255),
    )
    one, other = (
        train(config(epochs=1, checkpoint_epochs="last", dtype="float64"), data=d).metrics[0] for d in (data, floating)
    )
    assert abs(one["train_loss"] - other["train_loss"]) < 1e-6
