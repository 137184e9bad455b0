"""A spectrum in words: its main numbers as JSON can hold them, as a few lines, and as a row of a table."""

from math import isfinite, isnan

from analysis.findings.verdict import KINDS, judge
from checkpoints.exactness import inexact, supported
from checkpoints.records import Curvature, Estimate

TABLE_FROM = 7      # spectra; fewer are printed at length
STOPPING = 1e-3     # relative change of an eigenvalue at which PyHessian's power iteration stops
EARLY = 0.01        # how far below, relatively, that leaves it: the change of an iterate bounds no error
WITHIN = {"top_eigenvalue": "by our residual and its stopping rule of 1e-3",
          "trace": "by our interval and two of its standard errors"}


def told(rows: list[dict]) -> str:
    """Write some spectra for people, at length or as a table, and what they say of the points they were measured at."""
    if len(rows) >= TABLE_FROM:
        return "\n".join([*_table(rows), _verdict_counts(rows)])
    return "\n".join([line for row in rows for line in _lines(row)] + [_verdict(row) for row in rows])


def summary(record: Curvature, weight_decay: float | None = None) -> dict:
    """Return a record's main numbers, as JSON can hold them, and its verdict; of an inexact one only what it supports."""
    word, verdict, record = inexact(record), judge(record, weight_decay=weight_decay), supported(record)
    pairs = record.eigenpairs
    return {
        "epoch": record.epoch, "group": record.group, "num_samples": record.num_samples, "num_available": record.num_available,
        "loss": record.loss, "accuracy": record.accuracy, "test_accuracy": record.test_accuracy,
        "gradient_norm": record.gradient_norm, "engine": record.provenance.get("engine"), "inexact": word,
        "time": record.provenance.get("time"),
        "choice": record.provenance.get("choice", {}), "engine_reasons": record.provenance.get("engine_reasons", {}),
        "lambda_min": _pair(pairs, 0), "lambda_max": _pair(pairs, -1), "missed_below": _estimate(pairs.missed_below),
        "trace": _estimate(record.trace) | record.provenance.get("trace", {}),
        "negative_mass": _estimate(record.negative_mass) | {"threshold": record.threshold},
        "extreme_ratio": _estimate(record.extreme_ratio), "group_curvature": _estimate(record.group_curvature),
        "group_trace": _estimate(record.group_trace), "second_opinion": record.second_opinion,
        "agreement": agreement(record), "stopped_early": stopped_early(record), "verdict": verdict.document,
        "num_matvecs": record.provenance.get("num_matvecs"), "seconds": record.provenance.get("seconds")}


def agreement(record: Curvature) -> dict[str, bool]:
    """Tell whether the second opinion agrees: the eigenvalue within our residual and its own stopping rule, 1e-3, or below by
    what an early stop leaves; the trace within our interval and twice its own standard error. Neither is told where it is
    not a number.
    """
    theirs, found = record.second_opinion, {}
    if "pyhessian_top_eigenvalue" in theirs and record.eigenpairs.values.size:
        below, tolerance, _ = _shortfall(record)
        found["top_eigenvalue"] = abs(below) <= tolerance or stopped_early(record)
    if "pyhessian_trace" in theirs:
        trace, ours = theirs["pyhessian_trace"], record.trace
        slack = 2 * theirs.get("pyhessian_trace_error", 0.0)
        if isfinite(ours.low + ours.high + slack):
            found["trace"] = ours.low - slack <= trace <= ours.high + slack
    return found


def stopped_early(record: Curvature) -> bool:
    """Tell whether PyHessian's top eigenvalue is below ours by more than its stopping rule, and by no more than an early stop
    explains: a power iteration comes from below, and slowly where eigenvalues lie close.
    """
    if "pyhessian_top_eigenvalue" not in record.second_opinion or not record.eigenpairs.values.size:
        return False
    below, tolerance, ours = _shortfall(record)
    return tolerance < below <= tolerance + EARLY * ours


def _shortfall(record: Curvature) -> tuple[float, float, float]:
    """Return by how much |PyHessian's top eigenvalue| is below ours, what is within tolerance, and ours, as magnitudes.

    A residual of inexact products bounds nothing, and is not counted.
    """
    top, pairs = record.second_opinion["pyhessian_top_eigenvalue"], record.eigenpairs
    place = int(abs(pairs.values).argmax())
    ours, sign = abs(float(pairs.values[place])), 1 if pairs.values[place] >= 0 else -1
    residual = 0.0 if inexact(record) else float(pairs.radii[place])
    return ours - sign * top, residual + STOPPING * abs(top), ours


def _pair(pairs, index: int) -> dict:
    return {"value": float(pairs.values[index]), "residual": float(pairs.residuals[index]),
            "radius": float(pairs.radii[index]),
            "converged": bool(pairs.converged[index]), "rounding": float(pairs.rounding[index]),
            "rounding_above_tol": bool(pairs.rounding[index] > pairs.tol * abs(pairs.values[index])),
            "sign_verified_in_float64": bool(pairs.verified[index])}


def _estimate(estimate: Estimate) -> dict:
    return {"value": estimate.value, "low": estimate.low, "high": estimate.high, "level": estimate.level, "kind": estimate.kind}


def _lines(row: dict) -> list[str]:
    """Write one spectrum as a few readable lines."""
    used = row["num_samples"] if row["num_samples"] == row["num_available"] else f"{row['num_samples']} of {row['num_available']}"
    lines = [f"epoch {row['epoch']}, {row['group']} ({used} images): loss {row['loss']:.4g}, "
             f"test accuracy {row['test_accuracy']:.1%}, |gradient| {row['gradient_norm']:.3g}",
             f"  {'engine':14} {_engine(row)}"]
    if row["stored_before"]:
        lines.append(f"  {'stored':14} on {row['time']}, not computed again")
    if row["inexact"]:
        lines.append(f"  {'INEXACT':14} {row['inexact'].partition(' ')[2]}: residuals are no bounds, and no sign is verified")
    for name in ("lambda_min", "lambda_max"):
        pair = row[name]
        words = ["converged" if pair["converged"] else "not converged"]
        words += ["sign verified in float64"] if pair["sign_verified_in_float64"] else []
        if pair["rounding_above_tol"]:
            words.append(f"of products in less than float64, {pair['rounding']:.1e} off")
        lines.append(f"  {name:14} {pair['value']:+.6g} +- {pair['radius']:.1e} (residual and rounding; {', '.join(words)})")
    missed = row["missed_below"]
    lines.append(f"  nothing below  {missed['low']:+.6g} (missed with probability {1 - missed['level']:.0%})"
                 if not isnan(missed["low"]) else "  nothing below  not bounded")
    for name in ("trace", "negative_mass", "extreme_ratio"):
        value = row[name]
        limits = "no interval" if isnan(value["low"] + value["high"]) else f"[{value['low']:.4g}, {value['high']:.4g}]"
        short = "" if value.get("reached", True) else f"; {value['num_matvecs']} products did not reach the error asked for"
        lines.append(f"  {name:14} {value['value']:.5g} {limits} ({value['kind']}, {value['level']:.0%}{short})")
    curvature, trace = row["group_curvature"], row["group_trace"]
    if not isnan(curvature["low"]):
        lines.append(f"  all {row['num_available']} images: lambda_min <= v'Hv {curvature['value']:+.4g} "
                     f"[{curvature['low']:.4g}, {curvature['high']:.4g}], by images not used; trace [{trace['low']:.4g}, "
                     f"{trace['high']:.4g}] ({curvature['kind']}, {curvature['level']:.0%})")
    lines += [f"  {name:14} {value:.6g}" for name, value in row["second_opinion"].items()]
    return lines + [f"  pyhessian {_opinion(row, name)}" for name in row["agreement"]]


def _opinion(row: dict, name: str) -> str:
    if name == "top_eigenvalue" and row["stopped_early"]:
        return "stopped early on the top eigenvalue, below ours: consistent"
    return f"{'agrees' if row['agreement'][name] else 'DISAGREES'} on the {name.replace('_', ' ')}, {WITHIN[name]}"


def _verdict(row: dict) -> str:
    return f"verdict, {row['group']} at epoch {row['epoch']}: {row['verdict']['sentence']}"


def _verdict_counts(rows: list[dict]) -> str:
    kinds = [row["verdict"]["verdict"] for row in rows]
    counts = ", ".join(f"{kinds.count(kind)} {kind}" for kind in KINDS if kind in kinds)
    return f"verdicts: {counts}; in full: landscape inspect {rows[0]['run']}"


def _engine(row: dict) -> str:
    """Write the engine that made the products, how, and why others were not taken."""
    how = ", ".join(f"{name} {value}" for name, value in row["choice"].items() if name != "engine")
    why = "; ".join(f"{name}: {reason}" if name == "parameters" else f"not {name}: {reason}"
                    for name, reason in row["engine_reasons"].items())
    return f"{row['engine']}{f' ({how})' if how else ''}{f'; {why}' if why else ''}"


def _table(rows: list[dict]) -> list[str]:
    """Write many spectra as a table, a line each; the intervals are in the records and in `--json`."""
    lines = [f"{'epoch':>5} {'group':16} {'images':>11} {'loss':>9} {'lambda_min':>22} {'lambda_max':>22} {'trace':>11} "
             f"{'negative mass':>13}"]
    for row in rows:
        low, high = (f"{row[name]['value']:+.4g} +- {row[name]['radius']:.0e}" for name in ("lambda_min", "lambda_max"))
        used = f"{row['num_samples']} / {row['num_available']}"
        lines.append(f"{row['epoch']:5} {row['group']:16} {used:>11} {row['loss']:9.4g} {low:>22} {high:>22} "
                     f"{row['trace']['value']:11.4g} {row['negative_mass']['value']:13.3g}")
    return [*lines, f"+- is residual and rounding; engine {', '.join(sorted({str(row['engine']) for row in rows}))}, why: --json",
            *_remarks(rows)]


def _remarks(rows: list[dict]) -> list[str]:
    """Write what holds for some rows of a table: stored before, inexact, a second opinion that differs."""
    before, judged = [row for row in rows if row["stored_before"]], [row for row in rows if row["agreement"]]
    lines = [f"INEXACT ({word.partition(' ')[2]}): residuals are no bounds, and no sign is verified"
             for word in sorted({row["inexact"] for row in rows} - {""})]
    if before:
        first, last = (pick(str(row["time"]) for row in before) for pick in (min, max))
        lines.append(f"{len(before)} of {len(rows)} stored on {first if first == last else f'{first} to {last}'}, "
                     "not computed again")
    if judged:
        other = [f"{row['group']}, epoch {row['epoch']}" for row in judged if not all(row["agreement"].values())]
        lines.append(f"pyhessian agrees on {len(judged) - len(other)} of {len(judged)}" + "".join(f"; not on {w}" for w in other))
    return lines
