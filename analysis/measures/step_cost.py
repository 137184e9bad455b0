"""Cost of a training step of every optimizer of the family, on a run's own network, data and batch size, relative to SGD's.

Forwards and backwards of the network are counted, by hooks on its call and on the gradient of its logits, in one step of
each; they are not taken from the formulas. Seconds are those of the step that training takes (`landscape.steps`): loss,
ascents, base optimizer, without reading and augmenting images. Every optimizer runs once a round, beside SGD
(`analysis.operators.rounds`); medians over rounds, low and high their quartiles. SSE-SAM stands there in both stages and
stepped by the release's four calls; its arithmetic is ours there too, not the release's own code.

Every optimizer steps its own copy of the weights; the network is not compiled, and a batch not cut into pieces. A radius of 0
would be a cheaper method under the same name: the default one takes its place. GKP-GSA looks at the training data beforehand, so
that its steps bear their penalty; what it costs to look, at the end of epochs, is no part of a step: it is in the seconds of an
epoch, which the table of methods has.
"""

import copy
from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from itertools import cycle, islice
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from analysis.measures.perturbations import drawn
from analysis.measures.table import Table, table
from analysis.operators.rounds import interleave, spread
from landscape.configuration import TrainConfig
from landscape.data import LongTailData
from landscape.errors import InputError
from landscape.family import FAMILY, Passes
from landscape.optimizers.building import FLAGS, build_optimizer
from landscape.steps import TrainingStep

NUM_BATCHES = 8             # different batches that steps go around
MINUTES = 2.0               # after which no further round begins
RELEASED = Passes(4, 4, "four calls, as released", {"gamma": 1.0})
RADII = ("rho", "head_rho", "tail_rho")

Batch = tuple[Tensor, Tensor]
Step = Callable[[Tensor, Tensor], Any]


@dataclass(frozen=True, eq=False)
class Contestant:
    """An optimizer in one of its stages: what takes its step."""

    opt: str
    stage: str
    model: nn.Module
    step: Step


def cost(case) -> Table:
    """Return forwards, backwards and seconds of a step of every optimizer; one row an optimizer and stage."""
    subject, settings = case.subject, case.settings
    model, config = subject.cast(subject.config.dtype), subject.config
    data = subject.data.to(subject.device)
    batches = list(islice(drawn(config, data, next(model.parameters()).dtype, settings.seed), NUM_BATCHES))
    found, left_out = contestants(config, data, model)
    counts = {(c.opt, c.stage): count_passes(c, batches[0]) for c in found}
    rows = _rows(found, counts, batches, case)
    subject.cast("float32")
    about = {"arch": config.arch, "batch_size": config.batch_size, "device": str(subject.device),
             "threads": torch.get_num_threads(), "precision": config.precision,
             "layout": "channels last" if config.channels_last else "channels first", "rounds": settings.batches,
             "interval": "quartiles over rounds", "reference": "sgd", "left_out": left_out}
    return table(rows, {"value": "s", "low": "s", "high": "s"}, about)


def work(case) -> int:
    """Return about how many image gradients the rounds take: forwards count a third, backwards two, SGD beside each."""
    config = case.subject.config
    passes = [each.of(min(case.subject.data.num_classes, config.batch_size)) for row in FAMILY.values() for each in row.passes]
    return case.settings.batches * config.batch_size * sum(3 + f + 2 * b for f, b in [*passes, RELEASED.of(0)]) // 3


def contestants(config: TrainConfig, data: LongTailData, model: nn.Module) -> tuple[list[Contestant], dict[str, str]]:
    """Return every optimizer and stage of the family, SGD first, and why others cannot run here."""
    config, found, left_out = _plain(config), [], {}
    for opt, row in FAMILY.items():
        for passes in (*row.passes, *([RELEASED] if opt == "ssesam" else [])):
            make = four_calls if passes is RELEASED else _contestant
            try:
                found.append(make(_configured(config, opt, passes), data, model, passes.stage))
            except InputError as reason:
                left_out[f"{opt} {passes.stage}".strip()] = str(reason)
    return sorted(found, key=lambda c: c.opt != "sgd"), left_out


def four_calls(config: TrainConfig, data: LongTailData, model: nn.Module, stage: str) -> Contestant:
    """Return SSE-SAM stepped as its README documents: a forward and a backward before each of four calls, then an update."""
    if config.precision != "float32":
        raise InputError(f"precision={config.precision!r} is unknown to the four calls: expected float32")
    own = _copied(model, config)
    optimizer = build_optimizer(config, own)
    made = TrainingStep(config, data, own, optimizer, *_place(own))     # for its loss and its groups

    def step(inputs: Tensor, labels: Tensor) -> None:
        if config.channels_last and inputs.ndim == 4:
            inputs = inputs.contiguous(memory_format=torch.channels_last)
        for n_i, group in enumerate(("head", "tail")):
            mask = made.membership[group][labels]
            for call in (lambda: optimizer.compute_and_add_epsilon(n_i), optimizer.compute_grad_sum_and_restore_p):
                (made.loss(own(inputs), labels) * mask).sum().div(len(labels)).backward()
                call()
        optimizer.update()
    return Contestant(config.opt, stage, own, step)


def count_passes(contestant: Contestant, batch: Batch) -> tuple[int, int]:
    """Return how often a step runs the network forward, and how often the gradient comes back to its outputs."""
    forwards, backwards = [], []

    def watch(module: nn.Module, inputs: Any, output: Tensor) -> None:
        forwards.append(output.shape)
        output.register_hook(lambda gradient: backwards.append(gradient.shape))
    hook = contestant.model.register_forward_hook(watch)
    try:
        contestant.step(*batch)
    finally:
        hook.remove()
    return len(forwards), len(backwards)


def _rows(found: list[Contestant], counts: dict[tuple[str, str], tuple[int, int]], batches: list[Batch],
          case) -> list[dict[str, Any]]:
    turns = {(c.opt, c.stage): _turn(c, batches) for c in found}
    for turn in turns.values():     # first steps allocate
        turn()
    reference, *others = turns
    measured = interleave(turns[reference], {key: (lambda number, turn=turns[key]: turn()) for key in others},
                          rounds=case.settings.batches, minutes=MINUTES, device=case.subject.device,
                          progress=lambda done, total: case.progress(work(case) // total))
    beside = np.concatenate([measured.reference[key] for key in others])
    rows = [_row(reference, counts[reference], spread(beside), 1.0)]
    return rows + [_row(key, counts[key], spread(measured.seconds[key]), float(np.median(measured.ratios(key))))
                   for key in others]


def _row(key: tuple[str, str], passes: tuple[int, int], seconds: dict[str, float], ratio: float) -> dict[str, Any]:
    return {"opt": key[0], "stage": key[1], "forwards": passes[0], "backwards": passes[1], "value": seconds["median"],
            "low": seconds["q1"], "high": seconds["q3"], "ratio": ratio}


def _turn(contestant: Contestant, batches: list[Batch]) -> Callable[[], Any]:
    endless = cycle(batches)
    return lambda: contestant.step(*next(endless))


def _contestant(config: TrainConfig, data: LongTailData, model: nn.Module, stage: str) -> Contestant:
    own = _copied(model, config)
    optimizer = build_optimizer(config, own, class_counts=data.counts)
    optimizer.renew(data)
    step = TrainingStep(config, data, own, optimizer, *_place(own))
    return Contestant(config.opt, stage, own, lambda inputs, labels: step(inputs, labels, 0))


def _plain(config: TrainConfig) -> TrainConfig:
    """Return a configuration whose step is one piece, not compiled, with radii above zero."""
    radii = {f.name: f.default for f in fields(TrainConfig) if f.name in RADII and not getattr(config, f.name)}
    return replace(config, compile=False, accumulate=1, opt_options={}, **radii)


def _configured(config: TrainConfig, opt: str, passes: Passes) -> TrainConfig:
    flags = {name: value for name, value in passes.options.items() if name in FLAGS}
    others = {name: value for name, value in passes.options.items() if name not in FLAGS}
    return replace(config, opt=opt, opt_options=others, **flags)


def _copied(model: nn.Module, config: TrainConfig) -> nn.Module:
    twin = copy.deepcopy(model).train()
    return twin.to(memory_format=torch.channels_last) if config.channels_last else twin


def _place(model: nn.Module) -> tuple[torch.device, torch.dtype]:
    like = next(model.parameters())
    return like.device, like.dtype
