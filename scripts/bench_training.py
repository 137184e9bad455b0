"""Time of one training step in units of one plain SGD step, for every optimizer, beside the step that SSE-SAM released.

    python scripts/bench_training.py --data_dir datasets --json docs/results/bench-training.json

The unit is what a training script without this package does for a batch: forward, mean cross-entropy, backward,
torch.optim.SGD. Everyone sees the same batches, already augmented, on the device, and the network is in training mode.
Ours stands there twice: laid out in memory like the unit, and with the channels last, as `landscape train` has it.
The released step is written here from its description (Lyu et al. 2025, section 2 of its README and its four-call
protocol): four forwards and four backwards in both stages, and copies of every parameter-sized tensor, one by one.
Its throughput is compared with the staged average of ours, gamma of the steps in stage I and the rest in stage II.
"""

import argparse
import copy
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import cycle, islice
from pathlib import Path
from typing import Any

if __name__ == "__main__":  # run as a file: Python has put this folder on the path, and not the one above it
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from landscape.data.batches import batch_sizes, shuffled_batches
from landscape.data import load_data
from landscape.data.longtail import class_counts
from landscape.errors import InputError
from landscape.groups import ClassGroups
from landscape.models import ARCHITECTURES, build_model
from landscape.optimizers import SAM, SSESAM, GroupSAM, ImbSAM
from scripts import bench_timing as timing
from scripts.cli import reported
from scripts.options import Parser

PROG = "bench_training.py"
RELEASED = "SSE-SAM as released"
STAGES = ("ssesam, stage I", "ssesam, stage II")
LAST = ", channels last"
LIMITS = {"sam": 2.15, "imbsam": 2.9, STAGES[0]: 3.9, STAGES[1]: 2.9}     # what each may cost at most
NUM_BATCHES = 8
SGD = {"lr": 0.01, "momentum": 0.9, "weight_decay": 1e-3}

Masks = dict[str, Tensor]
Batch = tuple[Tensor, Tensor, Masks]
Step = Callable[[Batch], Any]


@dataclass(frozen=True, eq=False)
class Problem:
    """Batches of one long-tailed data set, and the network that every contestant copies."""

    batches: list[Batch]
    model: nn.Module
    device: torch.device
    data_name: str

    def network(self) -> tuple[nn.Module, torch.optim.Optimizer]:
        """Return a copy of the network in training mode, and an SGD of the recipe for it."""
        model = copy.deepcopy(self.model).train()
        return model, torch.optim.SGD(model.parameters(), **SGD)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the benchmark; exit status 2 and one line for a mistake of the user."""
    return reported(PROG, lambda: run(parser().parse_args(argv)))


def parser() -> Parser:
    made = Parser(prog=PROG, description=(__doc__ or "").partition("\n")[0])
    made.add_argument("--arch", default="resnet32", help=f"one of {', '.join(ARCHITECTURES)}, or module:callable")
    made.add_argument("--batch_size", type=int, default=64, help="images a step")
    made.add_argument("--steps", type=int, default=3, help="steps a contestant takes in each round")
    made.add_argument("--rounds", type=int, default=15, help="rounds, each of them every contestant once")
    made.add_argument("--minutes", type=float, default=8.0, help="begin no further round after so many minutes of rounds")
    made.add_argument("--eta", type=float, default=100, help="tail classes have fewer training images than this")
    made.add_argument("--gamma", type=float, default=0.7, help="share of the steps in stage I")
    timing.add_place_arguments(made)
    return made


def run(args: argparse.Namespace) -> int:
    """Time, print and write everything."""
    device = timing.set_up_torch(args.threads, args.device)
    _check(args)
    machine, problem = timing.machine(device), _problem(args, device)
    print(f"{args.arch}, batches of {args.batch_size} {problem.data_name}, float32, training mode; {machine['device']}, "
          f"{machine['threads']} threads, torch {machine['versions']['torch']}")
    rounds = _measure(problem, args)
    document = _document(args, machine, problem, rounds)
    timing.write_json(args.json, document)
    print("\n".join([_table(document), *_conclusion(document)]))
    return 0


def _check(args: argparse.Namespace) -> None:
    timing.at_least(args, batch_size=2, steps=1, rounds=1)
    if not 0 <= args.gamma <= 1:
        raise InputError(f"gamma={args.gamma} is out of range: expected 0 <= gamma <= 1, the share of steps in stage I")


def _problem(args: argparse.Namespace, device: torch.device) -> Problem:
    images, name = _images(args, device)
    counts = class_counts(500, 100, 100)
    membership = ClassGroups.head_tail(counts, args.eta).membership(device)
    batches = [(x, y, {group: table[y] for group, table in membership.items()}) for x, y in images]
    return Problem(batches, build_model(args.arch, 100, 3, 32, generator_seed=0).to(device), device, name)


def _images(args: argparse.Namespace, device: torch.device) -> tuple[list[tuple[Tensor, Tensor]], str]:
    """Return a few batches of CIFAR-100-LT where the folder is given, else random images with its share of each class."""
    if args.data_dir is not None:
        data = load_data("cifar100", imb_factor=100, data_dir=args.data_dir, progress=False).to(device)
        sizes = batch_sizes(len(data.train), args.batch_size)
        return list(islice(shuffled_batches(data, sizes, 0, 0, torch.float32), NUM_BATCHES)), "CIFAR-100-LT images"
    generator = torch.Generator(device).manual_seed(0)
    shares = torch.tensor(class_counts(500, 100, 100), dtype=torch.float, device=device)
    draw = {"generator": generator, "device": device}
    return [(torch.randn(args.batch_size, 3, 32, 32, **draw),
             torch.multinomial(shares, args.batch_size, replacement=True, generator=generator))
            for _ in range(NUM_BATCHES)], "random images of CIFAR's shape"


def _measure(problem: Problem, args: argparse.Namespace) -> timing.Rounds:
    steps = {name: make(problem) for name, make in CONTESTANTS.items()}
    batches = {name: cycle(problem.batches) for name in (*steps, "reference")}

    def several(name: str, step: Step) -> None:
        for batch in islice(batches[name], args.steps):
            step(batch)

    reference = plain_sgd(problem)
    for name, step in steps.items():    # first steps allocate
        several(name, step)
    several("reference", reference)
    return timing.interleave(lambda: several("reference", reference),
                             {name: (lambda turn, name=name, step=step: several(name, step)) for name, step in steps.items()},
                             rounds=args.rounds, minutes=args.minutes, device=problem.device,
                             progress=lambda done, total: timing.note(f"round {done} of {total}"))


def plain_sgd(problem: Problem) -> Step:
    """The unit: one plain SGD step."""
    model, optimizer = problem.network()

    def step(batch: Batch) -> None:
        optimizer.zero_grad()
        F.cross_entropy(model(batch[0]), batch[1]).backward()
        optimizer.step()
    return step


def released(problem: Problem) -> Step:
    """The released SSE-SAM step, for head and then tail: forward, backward, ascend, forward, backward, return."""
    model, optimizer = problem.network()
    radii, parameters = {"head": 0.05, "tail": 0.1}, [p for p in model.parameters() if p.requires_grad]

    def backward(batch: Batch, group: str) -> None:
        losses = F.cross_entropy(model(batch[0]), batch[1], reduction="none")
        (losses * batch[2][group]).sum().div(len(losses)).backward()

    @torch.no_grad()
    def ascend(rho: float) -> list[Tensor]:
        length = torch.norm(torch.stack([p.grad.norm(p=2) for p in parameters]), p=2)
        moves = [p.grad.clone() * (rho / (length + 1e-16)) for p in parameters]
        for p, move in zip(parameters, moves):
            p.add_(move)
        optimizer.zero_grad()
        return moves

    @torch.no_grad()
    def come_back(moves: list[Tensor], total: list[Tensor] | None) -> list[Tensor]:
        gradients = [p.grad.clone() for p in parameters]
        for p, move in zip(parameters, moves):
            p.sub_(move)
        optimizer.zero_grad()
        return gradients if total is None else [a + b for a, b in zip(total, gradients)]

    def step(batch: Batch) -> None:
        total = None
        for group, rho in radii.items():
            backward(batch, group)
            moves = ascend(rho)
            backward(batch, group)
            total = come_back(moves, total)
        for p, gradient in zip(parameters, total):
            p.grad = gradient
        optimizer.step()
        optimizer.zero_grad()
    return step


def ours(form: Callable[[torch.optim.Optimizer, nn.Module], GroupSAM],
         layout: torch.memory_format = torch.contiguous_format) -> Callable[[Problem], Step]:
    """A step of ours: one closure, the clean forward shared by all groups."""
    def make(problem: Problem) -> Step:
        model, base = problem.network()
        optimizer = form(base, model.to(memory_format=layout))

        def step(batch: Batch) -> Tensor:
            x, y, masks = batch
            x = x.contiguous(memory_format=layout)
            return optimizer.step(lambda: (F.cross_entropy(model(x), y, reduction="none"), masks))
        return step
    return make


FORMS: dict[str, Callable[[torch.optim.Optimizer, nn.Module], GroupSAM]] = {
    "sgd": lambda base, model: GroupSAM(base, model, {"all": 0.0}),
    "sam": SAM,
    "imbsam": ImbSAM,
    STAGES[0]: lambda base, model: SSESAM(base, model, 0.05, 0.1, gamma=1.0),
    STAGES[1]: lambda base, model: SSESAM(base, model, 0.05, 0.1, gamma=0.0),
}
CONTESTANTS: dict[str, Callable[[Problem], Step]] = {
    **{name: ours(form) for name, form in FORMS.items()},
    **{name + LAST: ours(form, torch.channels_last) for name, form in FORMS.items()},
    RELEASED: released,
}


def _document(args: argparse.Namespace, machine: dict, problem: Problem, rounds: timing.Rounds) -> dict[str, Any]:
    rows = [{"name": name, "seconds": rounds.seconds[name], "sgd_seconds": rounds.reference[name],
             "ratio": timing.spread(rounds.ratios(name)), "limit": LIMITS.get(name),
             "images_per_second": args.steps * args.batch_size / float(np.median(rounds.seconds[name]))}
            for name in rounds.seconds]
    staged = {layout: args.gamma * rounds.ratios(STAGES[0] + layout) + (1 - args.gamma) * rounds.ratios(STAGES[1] + layout)
              for layout in ("", LAST)}
    over = {layout: timing.spread(rounds.ratios(RELEASED) / ratio) for layout, ratio in staged.items()}
    return {"benchmark": "training", "unit": "one plain SGD step", "arch": args.arch, "batch_size": args.batch_size,
            "steps_per_round": args.steps, "data": problem.data_name, "dtype": "float32", "gamma": args.gamma,
            "machine": machine | {"load_average_after": timing.load_average()}, "rows": rows,
            "staged_ratio": timing.spread(staged[""]), "released_over_staged": over[""],
            "staged_ratio_channels_last": timing.spread(staged[LAST]), "released_over_staged_channels_last": over[LAST]}


def _table(document: dict[str, Any]) -> str:
    head = ("optimizer", "step / SGD step", "quartiles", "min-max", "at most", "images a second")
    return timing.table(head, [_line(row) for row in document["rows"]])


def _line(row: dict[str, Any]) -> list[str]:
    ratio, limit = row["ratio"], row["limit"]
    return [row["name"], f"{ratio['median']:.2f}", f"{ratio['q1']:.2f}-{ratio['q3']:.2f}",
            f"{ratio['min']:.2f}-{ratio['max']:.2f}", "" if limit is None else f"{limit:g}", f"{row['images_per_second']:.1f}"]


def _conclusion(document: dict[str, Any]) -> list[str]:
    def line(suffix: str, words: str) -> str:
        factor, staged = document["released_over_staged" + suffix], document["staged_ratio" + suffix]
        return (f"ssesam over both stages at gamma = {document['gamma']:g}, {words}: {staged['median']:.2f} SGD steps, "
                f"{factor['median']:.2f} times the released step's throughput (quartiles {factor['q1']:.2f}-{factor['q3']:.2f})")
    return [line("", "laid out alike"), line("_channels_last", "channels last")]


if __name__ == "__main__":
    sys.exit(main())
