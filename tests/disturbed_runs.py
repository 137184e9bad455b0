"""Short trainings from the command line that are disturbed at a chosen step, and compared with undisturbed ones."""

import os
from datetime import datetime

import numpy as np
import torch
from torch import nn

from checkpoints.store import RunStore
from landscape.training import train
from scripts import train_stored
from scripts.cli import main

EPOCHS, STEPS = 4, 7
SETTINGS = f"""--dataset synthetic --epochs {EPOCHS} --batch_size 16 --print_freq 2 --opt ssesam --gamma 0.5 --eta 30
 --checkpoint_epochs every:2 --seed 3 --arch {__name__}:Net""".split()


class Net(nn.Module):
    """What makes it hard to go on in the middle: running statistics and dropout."""

    def __init__(self, num_classes):
        super().__init__()
        self.layers = nn.Sequential(nn.Conv2d(3, 4, 3, stride=2), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Dropout(0.2),
                                    nn.Linear(36, num_classes))

    def forward(self, x):
        return self.layers(x)


class Indeterminate(Net):
    def forward(self, x):
        return super().forward(x) + torch.zeros(1).put_(torch.tensor([0]), torch.zeros(1))


def landscape_train(out, *words):
    return main(["train", *SETTINGS, "--quiet", "--out", str(out), *map(str, words)])


def at_step(monkeypatch, step, action):
    """Do something after the step of this number, counted from 1 over all steps of one call of the trainer."""
    def counting(config, *, on_step, **options):
        done = [0]

        def counted(steps):
            on_step(steps)
            done[0] += steps
            if done[0] == step:
                action()
        return train(config, on_step=counted, **options)
    monkeypatch.setattr(train_stored, "train", counting)


def send(number):
    return lambda: os.kill(os.getpid(), number)


def same_runs(one, other):
    stores = [RunStore.open(path) for path in (one, other)]
    points = []
    for store in stores:
        with store.writer():
            points.append({"resume": store.recorder().resumed()} | {r.epoch: r.arrays for r in store.records("checkpoint")})
    tables = [store.metrics().drop(columns="seconds") for store in stores]
    return (tables[0].equals(tables[1]) and points[0].keys() == points[1].keys()
            and all(points[0][key].keys() == points[1][key].keys() for key in points[0])
            and all(np.array_equal(points[0][key][name], points[1][key][name]) for key in points[0] for name in points[0][key])
            and all(store.finished for store in stores))


def texts_of_log(path):
    lines = [line.split("  ", 1) for line in (path / "train.log").read_text().splitlines()]
    assert all(datetime.fromisoformat(time).tzinfo for time, _ in lines)
    return [text for _, text in lines]
