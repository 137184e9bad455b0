"""Time of a whole spectrum of a stored checkpoint: ours beside PyHessian, with the errors of both.

    python scripts/bench_spectrum.py RUN --data_dir datasets --group tail --json docs/results/bench-spectrum-tail.json

A spectrum is: five eigenpairs at each end to a stated residual, a density of 100 Lanczos steps, and the trace to a
standard error of 5 %. Ours is timed as a whole and split into set-up with compiling, products and the rest, and once more
for what PyHessian gives alone: the five eigenvalues largest by magnitude, density and trace. PyHessian is run by its own
stopping rules, then extrapolated to the same residuals and the same error of the trace; its product takes so many times as
long as ours as an interleaved measurement of both shows. The reference is in float64, with a tighter residual, and its
trace from many more probes. `--parts` bounds the time: parts already in the `--json` file are kept there.
"""

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

if __name__ == "__main__":  # run as a file: Python has put this folder on the path, and not the one above it
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch

from analysis.subject import Subject
from checkpoints.store import RunStore
from landscape.errors import InputError
from scripts import bench_comparison as comparison, bench_timing as timing
from scripts.bench_case import Case
from scripts.cli import reported
from scripts.options import Parser
from scripts.run_arguments import add_place_arguments, chosen_epochs

PROG = "bench_spectrum.py"


def main(argv: Sequence[str] | None = None) -> int:
    """Run the benchmark; exit status 2 and one line for a mistake of the user."""
    return reported(PROG, lambda: run(parser().parse_args(argv)))


def parser() -> Parser:
    made = Parser(prog=PROG, description=(__doc__ or "").partition("\n")[0])
    made.add_argument("run", type=Path, metavar="RUN", help="run folder")
    made.add_argument("--epoch", default="last", help="last, or the number of a stored epoch")
    made.add_argument("--group", nargs="+", default=["tail", "head"], metavar="GROUP", help="groups of classes")
    made.add_argument("--max_samples", nargs="+", type=int, metavar="N", help="images of each group, one number for all or "
                      "one a group, 0 for all images (default: all of the tail, 256 of any other)")
    made.add_argument("--batch_size", type=int, default=128, help="images of a batch of ours")
    made.add_argument("--num_matvecs", type=int, default=100, help="Lanczos steps of the density, ours and PyHessian's")
    made.add_argument("--num_probes", type=int, default=1, help="random starts of our density; PyHessian's default is 1")
    made.add_argument("--num_pairs", type=int, default=5, help="eigenpairs at each end")
    made.add_argument("--tol", type=float, default=1e-3, help="residual of a pair, relative to its eigenvalue")
    made.add_argument("--trace_error", type=float, default=0.05, help="standard error of the trace, relative")
    made.add_argument("--engine", default="auto", help="of our products")
    made.add_argument("--further_matvecs", type=int, default=150, help="products beyond the density that our automatic choice "
                      "is told to expect")
    made.add_argument("--parts", nargs="*", default=list(comparison.PARTS), choices=comparison.PARTS,
                      help="what to run now; none: print what --json holds")
    made.add_argument("--pyhessian_products", choices=("ours", "own"), default="ours", help="run PyHessian's code on our faster "
                      "products, which leaves its counts and results as they are, or on its own")
    made.add_argument("--minutes", type=float, default=8.0, help="stop PyHessian after so many minutes a group")
    made.add_argument("--reference_tol", type=float, default=1e-5, help="residual of the float64 reference")
    made.add_argument("--reference_products", type=int, default=150, help="float64 products for that, at most")
    made.add_argument("--reference_probes", type=int, default=64, help="probes of the reference trace")
    made.add_argument("--rounds", type=int, default=5, help="rounds of the interleaved products")
    made.add_argument("--threads", type=int, help="threads of torch on the CPU")
    made.add_argument("--seed", type=int, default=0)
    add_place_arguments(made)
    made.add_argument("--json", type=Path, metavar="FILE", help="write everything, versions and device; parts there are kept")
    return made


def run(args: argparse.Namespace) -> int:
    """Run the parts asked for, and print what is known of every group."""
    device = timing.set_up_torch(args.threads, args.device)
    limits, store = _check(args), RunStore.open(args.run)
    subject = Subject.open(store, data_dir=args.data_dir, device=args.device)
    epoch = chosen_epochs(store, [args.epoch])[-1]
    subject.load(epoch)
    document = _document(args, subject, epoch, device)
    for group, limit in zip(args.group, limits):
        case = Case(args, subject, group, limit)
        entry = document["groups"].setdefault(group, {"inputs": case.inputs()})
        if entry["inputs"] != case.inputs():
            raise InputError(f"{args.json} holds {group} with other settings: choose another file")
        for part in comparison.PARTS:
            if part in args.parts:
                entry[part] = getattr(case, part)() | {"machine": timing.machine(device)}
                timing.write_json(args.json, document)
        entry["summary"] = comparison.summarize(entry, args.tol, args.trace_error)
        timing.write_json(args.json, document)
        print(comparison.report(group, document, entry))
    return 0


def _check(args: argparse.Namespace) -> list[int | None]:
    """Return the number of images of each group, None for all."""
    timing.at_least(args, num_matvecs=2, num_probes=1, num_pairs=1, batch_size=1, rounds=1, reference_probes=2,
                    reference_products=0, further_matvecs=0)
    for name in ("tol", "trace_error", "reference_tol", "minutes"):
        if not getattr(args, name) > 0:
            raise InputError(f"{name}={getattr(args, name)} is out of range: expected a number > 0")
    if "pyhessian" in args.parts and timing.installed("pyhessian") is None:
        raise InputError("pyhessian is not installed: pip install pyhessian, or leave it out with --parts ours reference")
    limits = args.max_samples or [0 if group == "tail" else 256 for group in args.group]
    limits = limits * len(args.group) if len(limits) == 1 else limits
    if len(limits) != len(args.group) or min(limits) < 0:
        raise InputError(f"max_samples={args.max_samples} does not fit {len(args.group)} groups: expected one number, or one "
                         "for each, 0 for all images")
    return [limit or None for limit in limits]


def _document(args: argparse.Namespace, subject: Subject, epoch: int, device: torch.device) -> dict[str, Any]:
    """Return the document to add to: that of the file, where it is of this checkpoint, else a new one."""
    size = sum(p.numel() for p in subject.model.parameters())
    about = {"benchmark": "spectrum", "run": args.run.resolve().name, "epoch": epoch, "checkpoint": subject.checkpoint_hash,
             "arch": subject.config.arch, "dataset": subject.config.dataset, "parameters": size, "device": device.type}
    if args.json is None or not args.json.exists():
        return about | {"groups": {}}
    try:
        stored = json.loads(args.json.read_text(encoding="utf-8"))
    except ValueError as error:
        raise InputError(f"{args.json} is not a JSON file: {error}; choose another") from error
    differ = [name for name in about if stored.get(name) != about[name]]
    if differ:
        raise InputError(f"{args.json} holds another benchmark ({', '.join(differ)} differ): choose another file")
    return stored


if __name__ == "__main__":
    sys.exit(main())
