"""The parts of a benchmarked spectrum set side by side: seconds of each, how many times as long PyHessian takes, errors."""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from scripts import bench_timing as timing
from scripts.bench_pyhessian import LEAST, equal_residuals, larger_eigenvalues

PARTS = ("ours", "alike", "pyhessian", "reference")


def summarize(entry: dict, tol: float, trace_error: float) -> dict[str, Any]:
    """Set the parts side by side: seconds of each, how many times as long PyHessian takes, and errors of both."""
    ours, alike, peer, exact = (entry.get(part) for part in PARTS)
    found: dict[str, Any] = {}
    if alike:
        found["alike"] = _own_times(alike)
    if ours and alike:
        found["alike"]["times_ours"] = alike["seconds"] / ours["seconds"]
    if ours:
        found["ours"] = _own_times(ours) | (_errors(ours["values"], ours["trace"], exact) if exact else {})
    if ours and peer and peer.get("beside") == ours["choice"]["engine"]:    # its product's time is told in units of that one's
        density = ours["stages"]["density"]     # of single vectors where there is one probe, as in the rounds
        each = times_as_long(peer["product_seconds"]) * density["product_seconds"] / density["products"]
        found["pyhessian"] = _own_rules(peer, each, exact)
        found["pyhessian"]["times_ours"] = found["pyhessian"]["seconds"] / ours["seconds"]
        found["pyhessian"]["times_ours_apart"] = found["pyhessian"]["apart_seconds"] / found["ours"]["apart_seconds"]
        found["both ends"] = _both_ends(entry, found["pyhessian"], each)
        found["both ends"]["times_ours"] = found["both ends"]["seconds"] / ours["seconds"]
        found["both ends"]["times_ours_apart"] = found["both ends"]["apart_seconds"] / found["ours"]["apart_seconds"]
        if alike:
            found["pyhessian"]["times_alike"] = found["pyhessian"]["seconds"] / alike["seconds"]
            found["pyhessian"]["times_alike_apart"] = found["pyhessian"]["apart_seconds"] / found["alike"]["apart_seconds"]
        if exact:
            found["equal"] = _equal(entry, each, tol, trace_error)
            found["equal"]["times_ours"] = found["equal"]["seconds"] / ours["seconds"]
    return found


def times_as_long(seconds: dict[str, Sequence[float]]) -> float:
    """Return how many times as long PyHessian's product takes as ours: the median over rounds, each of both in turn.

    In seconds, not in gradients: a gradient of the whole group at once varies more from round to round than either product.
    """
    return float(np.median(np.divide(seconds["pyhessian"], seconds["ours"])))


def _own_times(ours: dict) -> dict[str, Any]:
    stages = list(ours["stages"].values())
    products, seconds = (sum(stage[name] for stage in stages) for name in ("products", "product_seconds"))
    wide = sum(stage.get("float64_seconds", 0.0) for stage in stages)
    setup = ours["stages"]["set-up"]["seconds"] + sum(stage.get("float64_setup_seconds", 0.0) for stage in stages)
    rest = ours["seconds"] - setup - seconds - wide
    density = ours["stages"]["density"]
    return {"seconds": ours["seconds"], "apart_seconds": ours["seconds"] - setup, "products": products,
            "product_seconds": seconds, "float64_seconds": wide, "rest_seconds": rest, "rest_share": rest / ours["seconds"],
            "lanczos_rest_share": 1 - density["product_seconds"] / density["seconds"]}


def _own_rules(peer: dict, each: float, exact: dict | None) -> dict[str, Any]:
    """Return what PyHessian's own rules cost: measured where its own products ran, else its count times its time of one."""
    stages = peer["stages"]
    products, other = (sum(stage[name] for stage in stages.values()) for name in ("products", "other_seconds"))
    own = peer["products_of"] == "own"
    inside = sum(stage["product_seconds"] for stage in stages.values()) if own else products * each
    complete = all(stage["complete"] for stage in stages.values())
    how = "measured" if own else "counted, times its measured product"
    how = how if complete else "at least: stopped after --minutes"
    found = {"seconds": peer["setup_seconds"] + inside + other, "apart_seconds": inside + other, "products": products,
             "seconds_each": each, "how": how,
             "rest_seconds": other}
    if exact and complete:
        values, samples = stages["eigenvalues"]["result"], stages["trace"]["result"]
        largest = sorted(exact["values"], key=abs, reverse=True)[:len(values)]
        nodes = stages["density"]["result"][0][0]
        found |= {"upper_error": _worst(sorted(values), sorted(largest)),
                  "lower_error": _relative(min(nodes), min(exact["values"])),
                  "trace_error": _relative(np.mean(samples), exact["trace"]), "trace_probes": len(samples)}
    return found


def _both_ends(entry: dict, own_rules: dict, each: float) -> dict[str, Any]:
    """Return what its own rules cost at least until the pairs of both ends are found, all that exceed them in magnitude first."""
    ours, eigenvalues, count = entry["ours"], entry["pyhessian"]["stages"]["eigenvalues"], entry["inputs"]["num_pairs"]
    measure = np.array(ours["nodes"][0]), np.array(ours["weights"][0])
    larger = larger_eigenvalues(*measure, min(ours["values"], key=abs), entry["inputs"]["parameters"])
    further = max(math.floor(larger) + 1 - count, 0)
    more = LEAST * further
    return {"seconds": own_rules["seconds"] + more * each, "apart_seconds": own_rules["apart_seconds"] + more * each,
            "products": own_rules["products"] + more, "seconds_each": each, "eigenvalues": count + further,
            "products_at_its_rate": own_rules["products"] + round(further * eigenvalues["products"] / count),
            "how": f"extrapolated, at least: {LEAST} products an eigenvalue"}


def _equal(entry: dict, each: float, tol: float, trace_error: float) -> dict[str, Any]:
    """Extrapolate PyHessian to the same residuals and the same standard error of the trace."""
    ours, peer, exact = (entry[part] for part in ("ours", "pyhessian", "reference"))
    half = len(exact["values"]) // 2
    lower, upper = np.array(exact["values"][:half]), np.array(exact["values"][half:])
    measure = np.array(ours["nodes"][0]), np.array(ours["weights"][0])
    spent = equal_residuals(*measure, lower, upper, entry["inputs"]["parameters"], tol)
    probes = math.ceil(exact["plain_trace_variance"] / (trace_error * exact["trace"])**2)
    density = peer["stages"]["density"]
    products = sum(row["products"] for row in spent) + probes + density["products"]
    return {"seconds": products * each + density["other_seconds"], "products": products, "seconds_each": each,
            "how": "extrapolated", "eigenvalues": spent, "trace_probes": probes}


def _errors(values: Sequence[float], trace: float, exact: dict) -> dict[str, float]:
    half = len(exact["values"]) // 2
    return {"lower_error": _worst(values[:half], exact["values"][:half]),
            "upper_error": _worst(values[half:], exact["values"][half:]), "trace_error": _relative(trace, exact["trace"])}


def _worst(values: Sequence[float], exact: Sequence[float]) -> float:
    return max(_relative(a, b) for a, b in zip(values, exact))


def _relative(value: float, exact: float) -> float:
    return float(abs(value - exact) / abs(exact))


def report(group: str, document: dict[str, Any], entry: dict[str, Any]) -> str:
    found = entry["summary"]
    names = {"ours": "ours", "alike": "ours, what PyHessian gives",
             "pyhessian": "PyHessian, its own rules", "both ends": "PyHessian, its own rules, both ends",
             "equal": "PyHessian, errors as ours"}
    head = ("", "seconds", "without set-up", "times ours", "products", "s each", "other s", "upper error", "lower error",
            "trace error", "how")
    lines = [f"{group}: {entry['inputs']['images']} images, epoch {document['epoch']}, {document['arch']}, "
             f"{document['parameters']} parameters; errors are relative to the float64 reference",
             timing.table(head, [_row(label, found[name]) for name, label in names.items() if name in found])]
    if "ours" in entry:
        lines += _own_lines(entry["ours"], found["ours"])
    if "pyhessian" in entry:
        lines += _peer_lines(entry["pyhessian"])
    if "reference" in entry:
        exact = entry["reference"]
        worst = max(r / abs(v) for r, v in zip(exact["residuals"], exact["values"]))
        lines.append(f"reference: residuals below {worst:.0e} |lambda| in float64; trace {exact['trace']:.4g} +- "
                     f"{exact['trace_standard_error']:.2g} from {exact['trace_probes']} probes")
    return "\n".join([*lines, _last_line(entry, found)])


def _row(label: str, row: dict[str, Any]) -> list[str]:
    def error(name: str) -> str:
        return f"{row[name]:.1e}" if name in row else ""
    each = row.get("seconds_each", row.get("product_seconds", 0.0) / max(row["products"], 1))
    rest = row.get("rest_seconds")
    apart = f"{row['apart_seconds']:.1f}" if "apart_seconds" in row else ""
    times = f"{row['times_ours']:.2f}" if "times_ours" in row else ""
    return [label, f"{row['seconds']:.1f}", apart, times, str(row["products"]), f"{each:.3f}",
            "" if rest is None else f"{rest:.1f}", *(error(name) for name in ("upper_error", "lower_error", "trace_error")),
            row.get("how", "measured")]


def _own_lines(ours: dict[str, Any], times: dict[str, Any]) -> list[str]:
    stages = "; ".join(f"{name} {stage['seconds']:.1f} s, {stage['products']} products"
                       for name, stage in ours["stages"].items())
    return [f"ours: {stages} (compiling {ours['stages']['set-up']['compile_seconds']:.1f} s, float64 check "
            f"{times['float64_seconds']:.1f} s); choice {_short(ours['choice'])}",
            f"  no product: {times['rest_share']:.1%} of the whole, {times['lanczos_rest_share']:.1%} of the Lanczos run; peak "
            f"{ours['peak_bytes'] / timing.MIB:.0f} MiB; {sum(ours['converged'])} of {len(ours['converged'])} pairs converged; "
            f"trace {ours['trace']:.4g} +- {ours['trace_standard_error']:.2g} ({ours['trace_method']}); loss {ours['loss']:.3g}"]


def _short(choice: dict[str, Any]) -> str:
    return ", ".join(f"{name} {value}" for name, value in choice.items() if name != "reasons")


def _peer_lines(peer: dict[str, Any]) -> list[str]:
    stages = ", ".join(f"{name} {stage['products']}{'' if stage['complete'] else ' and stopped'}"
                       for name, stage in peer["stages"].items())
    ratio = {name: value["median"] for name, value in peer["product_ratio"].items()}
    return [f"PyHessian: products of {stages}; run on {'its own products' if peer['products_of'] == 'own' else 'our products'}, "
            "with a stand-in for torch.eig",
            f"  its product takes {ratio['pyhessian']:.2f} gradients, ours {ratio['ours']:.2f}; they differ by "
            f"{peer['product_gap']:.0e}; by its own rules the upper error is of the largest |lambda|, the lower one of its "
            "density's lowest node"]


def _last_line(entry: dict[str, Any], found: dict[str, Any]) -> str:
    if "pyhessian" not in found:
        return "no comparison yet: run the parts ours and pyhessian, both with one --engine"
    engine, complete = entry["ours"]["choice"].get("engine"), not found["pyhessian"]["how"].startswith("at least")
    equal = f", {found['equal']['times_ours']:.1f} times with errors as ours (extrapolated)" if "equal" in found else ""
    both = found["both ends"]
    least, alike = "" if complete else "at least ", found["pyhessian"].get("times_alike")
    same = "" if alike is None else f", {least}{alike:.1f} times as long as the same numbers from ours"
    return (f"best peer PyHessian, ours {engine}: by its own rules PyHessian takes {least}"
            f"{found['pyhessian']['times_ours']:.1f} times as long as our whole spectrum, {least}"
            f"{found['pyhessian']['times_ours_apart']:.1f} times without set-up{same}; with the other end, after all "
            f"{both['eigenvalues']} eigenvalues of that magnitude, at least {both['times_ours_apart']:.1f} times{equal}")
