"""Time of one point of a loss surface in units of one plain forward pass over the data, beside loss-landscapes.

    python scripts/bench_surface.py --data_dir datasets --json docs/results/bench-surface.json

The unit is model(x) on every batch, eagerly, in evaluation mode, without gradients, in float32, logits thrown away. A point of
ours moves the parameters and gives loss and accuracy of every group and class. loss-landscapes 3.0.6 (pip install -e .[bench])
evaluates one metric a point, so loss and accuracy of all, head and tail are six sweeps; each is given the images of its group
alone, in batches, which is the kindest way. Where it is not installed, the same is done by hand. Every contestant's numbers
are compared with float64 at the same point.
"""

import argparse
import copy
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

if __name__ == "__main__":  # run as a file: Python has put this folder on the path, and not the one above it
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from analysis.surfaces.forward import FORMS
from analysis.surfaces.sweep import Samples, build_sweep
from landscape.data import load_data
from landscape.data.longtail import class_counts
from landscape.errors import InputError
from landscape.groups import ClassGroups
from landscape.models import ARCHITECTURES, build_model
from landscape.parameters import moved_to, theta
from scripts import bench_timing as timing
from scripts.cli import reported
from scripts.options import Parser

PROG = "bench_surface.py"
LIMIT = 0.75                    # of a plain pass, that a point of ours may cost
FASTER = 5.0                    # times, at least, that ours is to be as fast as the peer
GROUPS = ("all", "head", "tail")
OURS, PEER = "ours", "loss-landscapes"
BY_HAND = "loss-landscapes' way, by hand"
OTHER_BATCHES = (32, 500)       # sizes of batches in which the unit is timed too

Values = dict[str, list[float]]     # measure -> one number for each of GROUPS
Point = Callable[[], Values | None]


@dataclass(frozen=True, eq=False)
class Problem:
    """Images of a long-tailed data set, a network with statistics of its own, and a point at some distance from it."""

    batches: list[tuple[Tensor, Tensor]]
    groups: ClassGroups
    model: nn.Module
    point: Tensor       # (d,)
    device: torch.device
    data_name: str

    @property
    def num_images(self) -> int:
        return sum(len(labels) for _, labels in self.batches)

    def images_of(self, group: str) -> list[tuple[Tensor, Tensor]]:
        """Return the images of one group in batches of the same size."""
        images, labels = (torch.cat(parts) for parts in zip(*self.batches))
        mine = self.groups.masks(labels)[group]
        size = len(self.batches[0][1])
        return list(zip(images[mine].split(size), labels[mine].split(size)))


def main(argv: Sequence[str] | None = None) -> int:
    """Run the benchmark; exit status 2 and one line for a mistake of the user."""
    return reported(PROG, lambda: run(parser().parse_args(argv)))


def parser() -> Parser:
    made = Parser(prog=PROG, description=(__doc__ or "").partition("\n")[0])
    made.add_argument("--arch", default="resnet32", help=f"one of {', '.join(ARCHITECTURES)}, or module:callable")
    made.add_argument("--images", type=int, default=512, help="images that a point is evaluated on")
    made.add_argument("--batch_size", type=int, default=128, help="images in a batch of the unit and of the peer")
    made.add_argument("--rounds", type=int, default=9, help="rounds, each of them every contestant once")
    made.add_argument("--minutes", type=float, default=8.0, help="begin no further round after so many minutes of rounds")
    timing.add_place_arguments(made)
    return made


def run(args: argparse.Namespace) -> int:
    """Time, print and write everything."""
    device = timing.set_up_torch(args.threads, args.device)
    timing.at_least(args, images=100, batch_size=2, rounds=1)
    machine, problem = timing.machine(device), _problem(args, device)
    machine["versions"][PEER] = timing.installed(PEER)
    print(f"{args.arch}, {problem.num_images} {problem.data_name}, float32, evaluation mode; {machine['device']}, "
          f"{machine['threads']} threads, torch {machine['versions']['torch']}")
    with torch.no_grad():
        points, facts = _contestants(problem)
        errors = _errors(problem, points)
        rounds = timing.interleave(lambda: _pass(problem.model, problem.batches), {
            name: (lambda turn, point=point: point()) for name, point in points.items()}, rounds=args.rounds,
            minutes=args.minutes, device=device, progress=lambda done, total: timing.note(f"round {done} of {total}"))
    document = _document(args, machine, problem, rounds, errors, facts)
    timing.write_json(args.json, document)
    print("\n".join([_table(document), *_conclusion(document)]))
    return 0


def _problem(args: argparse.Namespace, device: torch.device) -> Problem:
    images, labels, name = _images(args, device)
    model = build_model(args.arch, 100, 3, 32, generator_seed=0).to(device)
    with torch.no_grad():
        model.train()(images[:args.batch_size])     # statistics that are not those of the initialization
    start, generator = theta(model), torch.Generator().manual_seed(1)
    step = torch.randn(len(start), generator=generator).to(device)
    groups = ClassGroups.standard(class_counts(500, 100, 100), 100).with_classes()
    present = set(labels.tolist())
    groups = ClassGroups(groups.counts, {name: kept for name, classes in groups.classes.items()
                                         if (kept := tuple(c for c in classes if c in present))})
    return Problem(list(zip(images.split(args.batch_size), labels.split(args.batch_size))), groups, model.eval(),
                   start + 0.1 * start.norm() / step.norm() * step, device, name)


def _images(args: argparse.Namespace, device: torch.device) -> tuple[Tensor, Tensor, str]:
    """Return CIFAR-100-LT's images, every n-th, where the folder is given, else random ones with its share of each class."""
    if args.data_dir is not None:
        data = load_data("cifar100", imb_factor=100, data_dir=args.data_dir, progress=False).to(device)
        chosen = torch.linspace(0, len(data.train) - 1, min(args.images, len(data.train))).long()
        (images, labels), = data.train.batches([chosen.to(device)])
        return data.inputs(images, torch.float32), labels, "CIFAR-100-LT images"
    generator = torch.Generator().manual_seed(0)
    shares = torch.tensor(class_counts(500, 100, 100), dtype=torch.float)
    labels = torch.multinomial(shares, args.images, replacement=True, generator=generator)
    return (torch.randn(args.images, 3, 32, 32, generator=generator).to(device), labels.to(device),
            "random images of CIFAR's shape")


def _contestants(problem: Problem) -> tuple[dict[str, Point], dict[str, Any]]:
    """Return every contestant, and which form ours chose."""
    points, facts = {}, {}
    for form in FORMS:
        try:
            ours, facts[form] = _ours(problem, form)
            points[OURS if form == "auto" else f"{OURS}, {form}"] = ours
        except InputError as reason:
            facts[form] = {"refused": str(reason)}
    points[f"{OURS}, bfloat16"], facts["bfloat16"] = _ours(problem, "auto", "bfloat16")
    for size in OTHER_BATCHES:
        images, labels = (torch.cat(parts) for parts in zip(*problem.batches))
        batches = list(zip(images.split(size), labels.split(size)))
        points[f"a plain pass, batches of {size}"] = lambda batches=batches: _pass(problem.model, batches)
    name, way = (PEER, _peer) if find_spec("loss_landscapes") else (BY_HAND, _by_hand)
    points[name] = way(problem)
    return points, facts


def _ours(problem: Problem, form: str, precision: str | None = None) -> tuple[Point, dict[str, Any]]:
    model, start = copy.deepcopy(problem.model), theta(problem.model)
    samples = Samples.of(problem.batches, problem.groups, problem.device)
    sweep, facts = build_sweep(model, _losses, samples, [start], precision=precision, form=form)
    step = problem.point - start

    def point() -> Values:
        loss, accuracy = sweep.at(torch.add(start.double(), step))
        places = [samples.names.index(group) for group in GROUPS]
        return {"loss": loss[places].tolist(), "accuracy": accuracy[places].tolist()}
    return point, facts


def _peer(problem: Problem) -> Point:
    """Evaluate each metric of each group by a call of loss-landscapes' own."""
    import loss_landscapes
    from loss_landscapes.metrics.metric import Metric

    class Mean(Metric):
        def __init__(self, measure: Callable, batches: list[tuple[Tensor, Tensor]]):
            super().__init__()
            self.measure, self.batches = measure, batches

        def __call__(self, wrapper) -> float:
            return _mean(self.measure, wrapper.forward, self.batches)
    start, end = copy.deepcopy(problem.model), copy.deepcopy(problem.model)
    nn.utils.vector_to_parameters(problem.point, end.parameters())
    data = {group: problem.images_of(group) for group in GROUPS}

    def point() -> Values:
        return {name: [float(loss_landscapes.linear_interpolation(start, end, Mean(measure, data[group]), steps=1,
                                                                  deepcopy_model=True)[0]) for group in GROUPS]
                for name, measure in MEASURES.items()}
    return point


def _by_hand(problem: Problem) -> Point:
    model, data = copy.deepcopy(problem.model), {group: problem.images_of(group) for group in GROUPS}

    def point() -> Values:
        found = {}
        for name, measure in MEASURES.items():
            found[name] = []
            for group in GROUPS:
                with moved_to(model, problem.point):
                    found[name].append(_mean(measure, model, data[group]))
        return found
    return point


def _losses(logits: Tensor, labels: Tensor) -> Tensor:
    return F.cross_entropy(logits, labels, reduction="none")


MEASURES = {"loss": _losses, "accuracy": lambda logits, labels: (logits.argmax(1) == labels).double()}


def _mean(measure: Callable, forward: Callable, batches: list[tuple[Tensor, Tensor]]) -> float:
    sums = [measure(forward(images), labels).sum() for images, labels in batches]
    return float(torch.stack(sums).sum()) / sum(len(labels) for _, labels in batches)


def _pass(model: nn.Module, batches: list[tuple[Tensor, Tensor]]) -> None:
    """The unit: one plain forward pass."""
    for images, _ in batches:
        model(images)


def _errors(problem: Problem, points: dict[str, Point]) -> dict[str, dict[str, float]]:
    """Return how far each contestant's numbers are from those in float64; it also makes everything warm."""
    exact = replace(problem, batches=[(images.double(), labels) for images, labels in problem.batches])
    model = copy.deepcopy(problem.model).double()
    with moved_to(model, problem.point.double()):
        truth = {name: [_mean(measure, model, exact.images_of(group)) for group in GROUPS] for name, measure in MEASURES.items()}
    found = {name: point() for name, point in points.items()}
    return {name: {measure: float(np.abs(np.subtract(values[measure], truth[measure])).max()) for measure in MEASURES}
            for name, values in found.items() if values}


def _document(args: argparse.Namespace, machine: dict, problem: Problem, rounds: timing.Rounds, errors: dict,
              facts: dict) -> dict[str, Any]:
    rows = [{"name": name, "seconds": rounds.seconds[name], "unit_seconds": rounds.reference[name],
             "ratio": timing.spread(rounds.ratios(name)), "limit": LIMIT if name == OURS else None,
             "error_against_float64": errors.get(name)} for name in rounds.seconds]
    peer = next(name for name in rounds.seconds if name.startswith(PEER))
    return {"benchmark": "surface", "unit": "one plain forward pass", "arch": args.arch, "images": problem.num_images,
            "batch_size": args.batch_size, "data": problem.data_name, "dtype": "float32",
            "groups_of_ours": list(problem.groups.names), "groups_of_the_peer": list(GROUPS), "measures": list(MEASURES),
            "machine": machine | {"load_average_after": timing.load_average()}, "forms": facts, "rows": rows, "peer": peer,
            "peer_over_ours": timing.spread(rounds.compare(peer, OURS))}


def _table(document: dict[str, Any]) -> str:
    head = ("a point", "of a plain pass", "quartiles", "min-max", "at most", "loss off by", "accuracy")
    return timing.table(head, [_line(row) for row in document["rows"]])


def _line(row: dict[str, Any]) -> list[str]:
    ratio, error = row["ratio"], row["error_against_float64"]
    return [row["name"], f"{ratio['median']:.2f}", f"{ratio['q1']:.2f}-{ratio['q3']:.2f}",
            f"{ratio['min']:.2f}-{ratio['max']:.2f}", "" if row["limit"] is None else f"{row['limit']:g}",
            *(["", ""] if error is None else [f"{error['loss']:.0e}", f"{error['accuracy']:.0e}"])]


def _conclusion(document: dict[str, Any]) -> list[str]:
    ours, factor = next(row for row in document["rows"] if row["name"] == OURS)["ratio"], document["peer_over_ours"]
    form = document["forms"]["auto"].get("form")
    groups = len(document["groups_of_ours"])
    return [f"a point of ours ({form}; {groups} groups and classes): {ours['median']:.2f} of a plain pass, at most {LIMIT} asked",
            f"loss and accuracy of {', '.join(GROUPS)}: {factor['median']:.1f} times as fast as {document['peer']} "
            f"(quartiles {factor['q1']:.1f}-{factor['q3']:.1f}), at least {FASTER:g} asked"]


if __name__ == "__main__":
    sys.exit(main())
