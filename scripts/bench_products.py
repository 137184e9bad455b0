"""Time of one Hessian-vector product in units of one plain gradient: our engines beside other libraries, in one process.

    python scripts/bench_products.py --data_dir datasets --json docs/results/bench-products.json

The unit is model(x), mean cross-entropy, backward, eagerly, in evaluation mode, on the same batch in float32. Every
product is compared with a float64 product by plain double backward, in every round and for another vector each time.
Set-up (tracing, checks, choosing), compiling (a part of it; a later row finds the kernels of an earlier one) and the first
product stand apart. Memory is the growth of a fresh process. The convolutions of a product alone are a bound that torch's
kernels set to every engine.
Other libraries come with `pip install -e .[bench]`; those that are not installed are left out. Where that would bring a
torchvision for another torch: `pip install --no-deps curvlinops-for-pytorch==3.0.1 hessian-eigenthings==1.0.0a5
backpack-for-pytorch linear_operator einconv einops opt-einsum` is enough.
"""

import argparse
import sys
import time
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from importlib.util import find_spec
from multiprocessing import get_context
from pathlib import Path
from typing import Any

if __name__ == "__main__":  # run as a file: Python has put this folder on the path, and not the one above it
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch

from analysis.operators.products import ENGINES
from landscape.errors import InputError, first_line
from landscape.models import ARCHITECTURES, build_model
from scripts import bench_contestants as contestants
from scripts import bench_timing as timing
from scripts.bench_contestants import WRONG, Built, Entry, Options, Problem
from scripts.bench_floor import convolutions_alone
from scripts.cli import reported
from scripts.options import Parser

PROG = "bench_products.py"


def main(argv: Sequence[str] | None = None) -> int:
    """Run the benchmark; exit status 2 and one line for a mistake of the user."""
    return reported(PROG, lambda: run(parser().parse_args(argv)))


def parser() -> Parser:
    made = Parser(prog=PROG, description=(__doc__ or "").partition("\n")[0])
    made.add_argument("--arch", default="resnet32", help=f"one of {', '.join(ARCHITECTURES)}, or module:callable")
    made.add_argument("--images", type=int, default=128, help="images in the batch")
    made.add_argument("--repeats", type=int, default=9, help="rounds, each of them every contestant once")
    made.add_argument("--minutes", type=float, default=5.0, help="begin no further round after so many minutes of rounds")
    made.add_argument("--engines", nargs="*", metavar="ENGINE", help="engines of ours; default: auto and all")
    made.add_argument("--expected_matvecs", type=int, default=400, help="products of a spectrum, for which auto may compile")
    made.add_argument("--peers", nargs="*", default=list(contestants.PEERS), choices=list(contestants.PEERS))
    made.add_argument("--block", type=int, default=4, help="vectors at once in the rows for blocks; 0: no such row")
    made.add_argument("--memory_minutes", type=float, default=3.0, help="measure the memory of no further contestant after so "
                      "many minutes, a process each; 0: of none")
    timing.add_place_arguments(made)
    return made


def run(args: argparse.Namespace) -> int:
    """Time, measure and print everything."""
    device = timing.set_up_torch(args.threads, args.device)
    options, entries = _plan(args, device)
    timing.fresh_compiler_cache()       # the memory processes share it
    machine = timing.machine(device)
    problem = Problem(options)
    print(f"{args.arch}, {problem.size} parameters, {args.images} {problem.data_name}, float32, evaluation mode; "
          f"{machine['device']}, {machine['threads']} threads, torch {machine['versions']['torch']}")
    rows, built = _set_up(problem, entries)
    rounds = _measure(problem, built, rows, args)
    document = _document(args, machine, problem, rows, rounds) | {"floor": _floor(problem, args)}
    lines = _conclusion(document, rounds)
    timing.write_json(args.json, document)      # at once: what follows may be cut short
    built.clear()
    timing.release_memory()
    _measure_memory(options, [rows[name] for name in rounds.seconds], args)
    timing.write_json(args.json, document)
    print("\n".join([_table(document), *lines]))
    return 0


def _plan(args: argparse.Namespace, device: torch.device) -> tuple[Options, list[Entry]]:
    timing.at_least(args, images=2, repeats=1, block=0, expected_matvecs=0)
    engines = ["auto", *ENGINES] if args.engines is None else args.engines
    contestants.check_engines(engines)
    build_model(args.arch, 100, 3, 32)      # a mistake before the notes
    peers = [name for name in args.peers if find_spec(contestants.PEERS[name])]
    entries = contestants.entries(engines, peers, args.block)
    if not entries:
        raise InputError("engines and peers are both empty: expected at least one contestant")
    for name in sorted(set(args.peers) - set(peers)):
        timing.note(f"{name} is not installed and left out: pip install -e .[bench]")
    return Options(args.arch, args.images, args.data_dir, str(device), args.block, args.expected_matvecs), entries


def _set_up(problem: Problem, entries: list[Entry]) -> tuple[dict[str, dict], dict[str, tuple[Entry, Built]]]:
    """Build every contestant; one that refuses this network becomes a row with its reason."""
    rows: dict[str, dict[str, Any]] = {}
    built: dict[str, tuple[Entry, Built]] = {}
    for entry in entries:
        row = rows[entry.name] = {"name": entry.name, "side": entry.side, "keeps": entry.keeps, "block": entry.block}
        timing.note(f"setting up {entry.name}")
        try:
            row |= _build(problem, entry, built)
        except (InputError, ImportError, RuntimeError, NotImplementedError, TypeError) as reason:
            row["refused"] = first_line(reason)
    for name in [name for name, (entry, _) in built.items() if _keeps_nothing_anyway(entry, rows, built)]:
        del rows[name], built[name]
    return rows, built


def _build(problem: Problem, entry: Entry, built: dict[str, tuple[Entry, Built]]) -> dict[str, Any]:
    compiling = timing.compile_seconds()
    setup, one = timing.timed(lambda: _shared(entry, built) or entry.make(problem, entry), problem.device)
    V = problem.vectors(0, entry.block)
    first, found = timing.timed(lambda: one.product(V), problem.device)
    problem.error(0, entry.block, found)    # the float64 products are made here once, outside of all timing
    one.product(V)
    built[entry.name] = entry, one
    return {"setup_seconds": setup, "compile_seconds": timing.compile_seconds() - compiling, "first_seconds": first,
            "choice": one.choice, "kept_bytes": getattr(one.operator, "held_bytes", None)}


def _shared(entry: Entry, built: dict[str, tuple[Entry, Built]]) -> Built | None:
    """Return the contestant of single vectors whose set-up serves a block too."""
    alike = (one for other, one in built.values()
             if (other.make, other.engine, other.keeps) == (entry.make, entry.engine, entry.keeps))
    return next(alike, None) if entry.block > 1 else None


def _keeps_nothing_anyway(entry: Entry, rows: dict, built: dict) -> bool:
    """Tell whether a row "nothing kept" repeats another, whose engine keeps nothing whatever it may."""
    twin = entry.name.removesuffix(", nothing kept")
    return twin != entry.name and twin in built and rows[twin]["kept_bytes"] == 0 and entry.engine != "auto"


def _measure(problem: Problem, built: dict[str, tuple[Entry, Built]], rows: dict[str, dict], args: argparse.Namespace):
    def call(entry: Entry, one: Built):
        return lambda turn: one.product(problem.vectors(turn, entry.block))

    def compare(name: str, turn: int, found: torch.Tensor) -> None:
        rows[name].setdefault("errors", []).append(problem.error(turn, built[name][0].block, found))

    for _ in range(2):
        problem.gradient()
    return timing.interleave(problem.gradient, {name: call(*pair) for name, pair in built.items()}, rounds=args.repeats,
                             minutes=args.minutes, device=problem.device, after=compare,
                             progress=lambda done, total: timing.note(f"round {done} of {total}"))


def _floor(problem: Problem, args: argparse.Namespace) -> dict[str, Any] | None:
    """Time the convolutions of one product alone; None where the network has none."""
    convolve, passes = convolutions_alone(problem.own_model(), problem.x)
    if not passes:
        return None
    rounds = timing.interleave(problem.gradient, {"floor": lambda turn: convolve()}, rounds=args.repeats, minutes=args.minutes,
                               device=problem.device)
    return {"passes": passes, "ratio": timing.spread(rounds.ratios("floor")), "seconds": rounds.seconds["floor"],
            "gradient_seconds": rounds.reference["floor"]}


def _measure_memory(options: Options, rows: list[dict], args: argparse.Namespace) -> None:
    """Build each contestant once more in a process of its own and note by how much it grows; single vectors first."""
    started = time.perf_counter()
    for row in sorted(rows, key=lambda row: row["block"]):
        if time.perf_counter() - started >= 60 * args.memory_minutes:
            return
        timing.note(f"memory of {row['name']}")
        with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
            try:
                row["memory"] = pool.submit(memory_of, options, row["name"], row["side"], args.threads).result()
            except RuntimeError as reason:      # BrokenProcessPool among them: the system killed it for its memory
                row["memory"] = {"failed": str(reason)}


def memory_of(options: Options, name: str, side: str, threads: int | None) -> dict[str, int]:
    """Return bytes: the peak of set-up, of two products after it, what stays, and the peak of one plain gradient."""
    if threads:
        torch.set_num_threads(threads)
    engine = name.partition(",")[0]
    found = contestants.entries([engine] if side == "ours" else [], [] if side == "ours" else [side], options.block)
    entry = next(entry for entry in found if entry.name == name)
    problem = Problem(options)
    problem.gradient()      # libraries load what they need at their first use
    problem.model.zero_grad(set_to_none=True)
    memory = timing.Memory(problem.device)
    problem.gradient()
    gradient = memory.peak()
    problem.model.zero_grad(set_to_none=True)
    memory.restart_peak()
    built = entry.make(problem, entry)
    built.product(problem.vectors(0, entry.block))
    setup = memory.peak()
    held = memory.held()
    memory.restart_peak()
    for turn in range(2):
        built.product(problem.vectors(turn, entry.block))
    return {"gradient_peak": gradient, "setup_peak": setup, "held": held, "product_peak": memory.peak()}


def _document(args: argparse.Namespace, machine: dict, problem: Problem, rows: dict[str, dict], rounds: timing.Rounds) -> dict:
    for name, row in rows.items():
        if name in rounds.seconds:
            row |= {"seconds": rounds.seconds[name], "gradient_seconds": rounds.reference[name],
                    "ratio": timing.spread(rounds.ratios(name, row["block"])), "error": max(row["errors"])}
            row["exact"] = problem.is_exact(row["error"])
    chosen = next((row["choice"].get("engine") for row in rows.values() if row["side"] == "ours" and "ratio" in row
                   and row["name"] == "auto"), None)
    return {"benchmark": "products", "unit": "one plain gradient", "arch": args.arch, "images": args.images,
            "data": problem.data_name, "parameters": problem.size, "dtype": "float32", "mode": "evaluation",
            "float32_rounding": problem.rounding, "chosen": chosen,
            "machine": machine | {"load_average_after": timing.load_average()},
            "gradient_seconds": timing.spread([s for part in rounds.reference.values() for s in part]),
            "rows": list(rows.values())}


def _table(document: dict[str, Any]) -> str:
    head = ("contestant", "product / gradient", "quartiles", "min-max", "rel. error", "set-up s", "compile s", "first s",
            "kept MiB", "peak MiB", "set-up peak")
    return timing.table(head, [_line(row) for row in document["rows"]])


def _line(row: dict[str, Any]) -> list[str]:
    if "ratio" not in row:
        return [row["name"], "refused: " + row["refused"][:150], *[""] * 9]
    ratio, memory = row["ratio"], row.get("memory", {})
    kept = memory.get("held")
    return [row["name"], f"{ratio['median']:.2f}", f"{ratio['q1']:.2f}-{ratio['q3']:.2f}",
            f"{ratio['min']:.2f}-{ratio['max']:.2f}", f"{row['error']:.0e}{_verdict(row)}", f"{row['setup_seconds']:.1f}",
            f"{row['compile_seconds']:.1f}", f"{row['first_seconds']:.2f}", _mib(kept), _mib(memory.get("product_peak")),
            _mib(memory.get("setup_peak"))]


def _verdict(row: dict[str, Any]) -> str:
    return "" if row["exact"] else " WRONG" if row["error"] > WRONG else " inexact"


def _mib(size: int | None) -> str:
    return "" if size is None else f"{size / timing.MIB:.0f}"


def _conclusion(document: dict[str, Any], rounds: timing.Rounds) -> list[str]:
    """Say who is best: like for like where nothing is kept, then the chosen engine against the best of all peers."""
    exact = [row for row in document["rows"] if row.get("exact") and row["block"] == 1]
    own = [row for row in exact if row["side"] == "ours"]
    bare = [row for row in own if not row["keeps"] or row["kept_bytes"] == 0]
    gradient = document["gradient_seconds"]
    lines = [f"one gradient: {gradient['median']:.3f} s ({gradient['min']:.3f}-{gradient['max']:.3f}); plain double backward in "
             f"float32 has a relative error of {document['float32_rounding']:.0e}"]
    lines += [f"auto chose {document['chosen']}"] if document["chosen"] else []
    if floor := document["floor"]:
        ratio = floor["ratio"]
        lines.append(f"the {floor['passes']} convolutions of a product alone, everything else left out: {ratio['median']:.2f} "
                     f"(quartiles {ratio['q1']:.2f}-{ratio['q3']:.2f})")
    peers = [row for row in exact if row["side"] != "ours"]
    lines += _against("nothing kept: ", [p for p in peers if not p["keeps"]], bare, rounds, document)
    chosen = [row for row in own if row["name"] == "auto"] or own
    return lines + (_against("", peers, chosen, rounds, document)
                    or ["no comparison: " + ("no exact engine of ours" if peers else "no exact peer") + " was timed"])


def _against(prefix: str, peers: list[dict], own: list[dict], rounds: timing.Rounds, document: dict) -> list[str]:
    if not (peers and own):
        return []
    peer, ours = (min(rows, key=lambda row: row["ratio"]["median"]) for rows in (peers, own))
    factor = timing.spread(rounds.compare(peer["name"], ours["name"]))
    document.setdefault("comparisons", []).append({"peer": peer["name"], "ours": ours["name"], "peer_over_ours": factor})
    name = f"{ours['name']} ({document['chosen']})" if ours["name"].startswith("auto") and prefix == "" else ours["name"]
    return [f"{prefix}best peer {peer['name']} {peer['ratio']['median']:.2f}, ours {name} {ours['ratio']['median']:.2f}: "
            f"{factor['median']:.2f} times as fast (quartiles {factor['q1']:.2f}-{factor['q3']:.2f})"]


if __name__ == "__main__":
    sys.exit(main())
