"""The training loop: one network, one long-tailed data set, one optimizer of the family.

The data live on the device as bytes, and are augmented and normalized there. Nothing waits for the device inside an
epoch: losses stay there, and the first one that is not finite is found at the epoch's end. All randomness comes from
generators seeded by (seed, epoch), so a resumed run needs no generator state and repeats the undisturbed one bit by bit
on the CPU. Nothing is written here: a Recorder is told of checkpoints, metrics and the point to resume from, as NumPy
arrays.
"""

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor, nn

from landscape.batchnorm import evaluation_mode
from landscape.configuration import TrainConfig
from landscape.data import LongTailData, load_data
from landscape.data.batches import batch_sizes, shuffled_batches
from landscape.distributed import Processes
from landscape.determinism import without_deterministic_form
from landscape.errors import DivergedError, InputError, first_line
from landscape.evaluation import evaluate
from landscape.groups import ClassGroups
from landscape.losses import loss_options, needs_cosine_head, needs_views
from landscape.losses.contrastive import add_contrastive_heads
from landscape.models import build_model
from landscape.optimizers import GroupSAM
from landscape.optimizers.ascent import is_finite
from landscape.optimizers.building import build_optimizer
from landscape.parallel import average_running_statistics, batchnorm_note, one_gpu_each, synchronized
from landscape.partial_epoch import PartialEpoch
from landscape.precision import float32_precision
from landscape.schedules import learning_rate
from landscape.seeding import global_seed
from landscape.snapshot import restore_snapshot, snapshot, state_arrays
from landscape.steps import TrainingStep, views_for

__all__ = ["Recorder", "TrainConfig", "TrainResult", "build_network", "check_outputs", "choose_device", "train", "training_data"]


class Recorder(Protocol):
    """What the loop tells of a run: after each epoch `checkpoint` (if chosen), then `epoch`, then `resume`."""

    def checkpoint(self, epoch: int, arrays: dict[str, np.ndarray]) -> None:
        """Keep parameters and buffers after `epoch` epochs, by their state_dict names."""

    def epoch(self, metrics: dict[str, float]) -> None:
        """Keep one epoch's row of metrics."""

    def resume(self, arrays: dict[str, Any]) -> None:
        """Replace the point from which training would go on."""

    def resumed(self) -> Mapping[str, Any] | None:
        """Return the arrays last given to `resume`, or None in a fresh run."""


@dataclass(frozen=True, eq=False)
class TrainResult:
    """What a call of `train` did."""

    model: nn.Module
    metrics: list[dict[str, float]]  # the rows of the epochs that this call ran; earlier ones are the recorder's
    epochs_done: int                 # over all calls; an epoch cut short by max_steps counts
    config: TrainConfig              # with the defaults that depend on the data filled in
    stopped: bool = False            # whether `stop` ended it before its last epoch was done
    notes: tuple[str, ...] = ()      # in what the result is another than one process's


def train(config: TrainConfig, *, data: LongTailData | None = None, model: nn.Module | None = None,
          recorder: Recorder | None = None, progress: Callable[[dict[str, float]], None] | None = None,
          on_step: Callable[[int], None] | None = None, stop: Callable[[], bool] | None = None,
          processes: Processes = Processes()) -> TrainResult:
    """Train a network; return it with one row of metrics an epoch.

    `data` and `model` replace what the configuration names; a model is trained in place. Where the recorder has a point
    to resume from, training goes on behind it. `progress` is called with each epoch's row, `on_step` with 1 after each
    step. After each step `stop` is asked, too: once it answers True, the recorder is given a point in the middle of the
    epoch, from which another call ends in the same bits, and this one returns. A row holds epoch (the number of epochs
    done), lr, train_loss (mean over the epoch, at the parameters before each step), head_rho, tail_rho and seconds, on
    evaluated epochs what `evaluate` returns, what the optimizer reports (alpha, gkp_penalty), and skipped_images, the number
    so far, where broken images were left out.
    Raises DivergedError, naming epoch and step, where the training loss stops being finite; nothing is recorded of that
    epoch.

    With `processes`, as `landscape.distributed.init_from_environment` gives them, each takes its share of every batch.
    All must be given the same data and the same initial weights; the first alone evaluates, records and calls `progress`.
    """
    data = training_data(config) if data is None else data
    config = config.resolved(data)
    recorder = recorder if processes.rank == 0 else None
    with _threads(config.threads), float32_precision(config.precision):
        run = _Run(config, data, model, processes)
        point = processes.on_first(lambda: recorder and recorder.resumed())
        start, rows = run.resume_from(point), []
        if recorder and point is None and 0 in config.kept_epochs():
            recorder.checkpoint(0, state_arrays(run.model))
        note = batchnorm_note(run.model, processes, run.device)
        notes = (note,) if note else ()
        for epoch in range(start, run.num_epochs):
            row = run.epoch(epoch, on_step or (lambda steps: None), stop or (lambda: False))
            if row is None:
                if recorder:
                    recorder.resume(run.snapshot() | run.partial.arrays())
                return TrainResult(run.model, rows, epoch, config, True, notes)
            rows.append(row)
            processes.on_first(lambda: recorder and _record(recorder, run, row))
            if progress and processes.rank == 0:
                progress(row)
    return TrainResult(run.model, rows, max(start, run.num_epochs), config, notes=notes)


def training_data(config: TrainConfig, data_dir: str | Path | None = None, progress: bool = True) -> LongTailData:
    """Load the data set that a configuration names."""
    return load_data(config.dataset, imb_factor=config.imb_factor, profile=config.profile, subset=config.subset,
                     seed=config.data_seed, normalization=config.normalization, image_size=config.image_size,
                     workers=config.workers, broken_images=config.broken_images, data_dir=data_dir, progress=progress)


def build_network(config: TrainConfig, data: LongTailData) -> nn.Module:
    """Build the network of a resolved configuration, with its initial weights and the heads that its loss trains."""
    cosine = needs_cosine_head(config.loss, **config.loss_options)
    model = build_model(
        config.arch, data.num_classes, data.in_channels, data.image_size, cosine=cosine, generator_seed=config.seed
    )
    if needs_views(config.loss):
        views_for(config, data)     # what they lack is said before anything is computed
        options = loss_options(config.loss) | config.loss_options
        # Another stream than the network's: the same would give the heads the numbers of its first layers.
        seed = int(np.random.SeedSequence((config.seed, 1)).generate_state(1)[0])
        add_contrastive_heads(model, **{name: options[name] for name in ("s", "hidden", "dim")}, seed=seed)
    return model


def choose_device(name: str) -> torch.device:
    """Return the device of that name; "auto" is a GPU where there is one. A device that is not here is an error."""
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise InputError(f"device={name!r} is unknown: expected auto, cpu, cuda or cuda:N") from error
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise InputError(f"device={name!r} is not here: this machine shows {torch.cuda.device_count()} CUDA devices; "
                         "use auto or cpu")
    return device


class _Run:
    """A network, its data, and what is needed to train the one on the other."""

    def __init__(self, config: TrainConfig, data: LongTailData, model: nn.Module | None, processes: Processes):
        self.config, self.device, self.dtype = config, choose_device(config.device), getattr(torch, config.dtype)
        one_gpu_each(self.device, processes)
        self.processes, self.data = processes, data.to(self.device)
        model = synchronized(build_network(config, data) if model is None else model, processes, self.device)
        self.model = model.to(self.device, self.dtype)
        if config.channels_last:
            self.model.to(memory_format=torch.channels_last)
        check_outputs(self.model, self.data, self.dtype)
        self.optimizer: GroupSAM = build_optimizer(config, self.model, processes, data.counts.tolist())
        self.step = TrainingStep(config, data, self.model, self.optimizer, self.device, self.dtype, processes)
        self.groups = ClassGroups.standard(data.counts, config.eta, config.many, config.few).with_classes()
        self.sizes = batch_sizes(len(data.train), config.batch_size)
        self.partial = PartialEpoch()   # steps done in the epoch at hand, before it is begun or after a stop

    @property
    def num_epochs(self) -> int:
        """Epochs to run, the last of them perhaps in part."""
        steps = self.config.max_steps
        return self.config.epochs if steps is None else min(self.config.epochs, -(-steps // len(self.sizes)))

    def resume_from(self, arrays: Mapping[str, Any] | None) -> int:
        """Continue where `arrays` were taken; return the number of epochs done."""
        if arrays is None:
            self.optimizer.observe(self.data)
            return 0
        self.partial = PartialEpoch.read(arrays, self.device)
        return restore_snapshot(self.model, self.optimizer, arrays, self.step.scaler)

    def snapshot(self) -> dict[str, Any]:
        """Return what `resume_from` takes."""
        return snapshot(self.model, self.optimizer, self.step.scaler)

    def epoch(self, epoch: int, on_step: Callable[[int], None], stop: Callable[[], bool]) -> dict[str, float] | None:
        """Train the epoch with this index, evaluate where it is due, and return the row of metrics; None once stopped."""
        start, lr, radii = time.perf_counter(), learning_rate(self.config, epoch), self.optimizer.radii
        for group in self.optimizer.param_groups:
            group["lr"] = lr
        train_loss = self._train_epoch(epoch, on_step, stop)
        average_running_statistics(self.model, self.processes)
        if train_loss is None:
            return None
        reported = self.optimizer.report()      # of this epoch: from here on it is the next one's
        self.optimizer.end_epoch()
        self.optimizer.observe(self.data)
        row = {"epoch": epoch + 1, "lr": lr, "train_loss": train_loss, "head_rho": radii.get("head", radii.get("all")),
               "tail_rho": radii.get("tail", radii.get("all")), "seconds": self.partial.seconds + time.perf_counter() - start}
        row |= reported
        self.partial = PartialEpoch()
        if (epoch + 1) % self.config.eval_every == 0 or epoch + 1 == self.num_epochs:
            row |= self.processes.on_first(lambda: evaluate(self.model, self.data, self.groups))
        return row | ({"skipped_images": len(self.data.skipped)} if self.data.skipped else {})

    def _train_epoch(self, epoch: int, on_step: Callable[[int], None], stop: Callable[[], bool]) -> float | None:
        self.model.train()
        start, steps = time.perf_counter(), self.config.max_steps
        sizes = self.sizes if steps is None else self.sizes[:steps - epoch * len(self.sizes)]
        order, augmentation, network = _seeds(self.config.seed, epoch)
        augmentation = augmentation if self.config.augment else None
        batches = shuffled_batches(self.data, self.sizes, order, augmentation, self.dtype, self.step.views)
        losses = list(self.partial.losses)
        # One stream for each process: the same dropout in all shares of a batch would be no chance.
        with global_seed(network + self.processes.rank, self.device):
            if self.processes.rank == 0:    # whose state the resume point holds; the others draw from the epoch's start
                self.partial.set_generators(self.device)
            for inputs, labels in islice(batches, len(losses), len(sizes)):
                losses.append(self.step(inputs, labels, epoch))
                on_step(1)
                if stop():
                    _mean_loss(torch.stack(losses), sizes[:len(losses)], epoch, self.model, self.config)
                    seconds = self.partial.seconds + time.perf_counter() - start
                    self.partial = PartialEpoch.of(losses, self.device, seconds)
                    return None
        return _mean_loss(torch.stack(losses), sizes, epoch, self.model, self.config)


def _record(recorder: Recorder, run: _Run, row: dict[str, float]) -> None:
    done = row["epoch"]
    if done in run.config.kept_epochs() or done == run.num_epochs:
        recorder.checkpoint(done, state_arrays(run.model))
    recorder.epoch(row)
    recorder.resume(run.snapshot())


@torch.no_grad()
def check_outputs(model: nn.Module, data: LongTailData, dtype: torch.dtype) -> None:
    """Raise InputError where the model does not return one logit a class for the data's images."""
    # Also finds a label that no output stands for, which on a GPU would end in an assertion of the device.
    # Black images will do: those that are files need not be opened for it.
    count, device = min(2, len(data.train)), data.train.labels.device
    images = torch.zeros(count, *data.train.images.shape[1:], dtype=data.train.images.dtype, device=device)
    with evaluation_mode(model), torch.random.fork_rng(devices=[]):
        try:
            shape = tuple(model(data.inputs(images, dtype)).shape)
        except RuntimeError as reason:
            if without_deterministic_form(reason):
                raise
            raise InputError(f"the model does not take the data's images, {tuple(images.shape[1:])} each "
                             f"({first_line(reason)}): choose the dataset that it is for") from reason
    expected = (count, data.num_classes)
    if shape != expected:
        raise InputError(
            f"the model returns shape {shape} for {expected[0]} images: expected {expected}, one logit a class"
        )


def _mean_loss(losses: Tensor, sizes: list[int], epoch: int, model: nn.Module, config: TrainConfig) -> float:
    """Return the mean over samples of an epoch's losses (steps,); raise DivergedError where one is not finite."""
    values = losses.double().cpu().numpy()
    bad = np.flatnonzero(~np.isfinite(values))
    advice = f"lower lr={config.lr:g} or the radius, or add warmup_epochs"
    if bad.size:
        raise DivergedError(
            f"training diverged: the loss is {values[bad[0]]} in epoch {epoch} at step {bad[0]} "
            f"(both count from 0); {advice}"
        )
    if not is_finite({p: p.detach() for p in model.parameters()}):
        raise DivergedError(
            f"training diverged: a parameter is not finite in epoch {epoch} after step {len(values) - 1} "
            f"(both count from 0); {advice}"
        )
    return float(np.average(values, weights=sizes))


def _seeds(seed: int, epoch: int) -> tuple[int, int, int]:
    """Return an epoch's seeds: of the order of images, of their augmentation, and of what the network draws."""
    words = np.random.SeedSequence((seed, epoch)).generate_state(3, np.uint64) >> np.uint64(1)
    return tuple(map(int, words))


@contextmanager
def _threads(number: int | None) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(number or before)
    try:
        yield
    finally:
        torch.set_num_threads(before)
