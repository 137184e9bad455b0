"""`landscape inspect RUN`: what a run folder holds, in numbers, without loading torch."""

import argparse
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from analysis.findings.verdict import judge, theta_norm
from checkpoints.chosen_epoch import choose
from checkpoints.errors import RecordError
from checkpoints.exactness import inexact, supported
from checkpoints.layout import KINDS
from checkpoints.records import Curvature, Estimate, Surface
from checkpoints.schema import read_record
from checkpoints.store import RunStore
from landscape.recipes import departures, recipe_named
from scripts.options import add_common_arguments, emit_json, say
from scripts.verdict_options import add_tolerance_arguments, stated_weight_decay

NAME = "inspect"
HELP = "show configuration, metrics and records of a run folder"
UNKNOWN = "unknown"
# Settings that hold for imported weights, stated or not, since they say on what and as what these are analysed.
USED = frozenset("""dataset imb_factor profile subset data_seed normalization image_size broken_images arch eta many few dtype
    channels_last recipe selection flip_average""".split())


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("run", metavar="RUN", type=Path, help="run folder, as `landscape train` or a study made it")
    add_tolerance_arguments(parser)
    add_common_arguments(parser)


def run(args: argparse.Namespace) -> int:
    """Print the run; damaged records are named after everything that could be read, with exit status 2."""
    document = describe(RunStore.open(args.run), args.eps_g, args.eps_H)
    for line in _lines(document):
        say(args, line)
    emit_json(args, document)
    if document["damaged"]:
        raise RecordError(f"{len(document['damaged'])} records cannot be read: {'; '.join(document['damaged'])}")
    return 0


def describe(store: RunStore, eps_g: float | None = None, eps_H: float | None = None) -> dict[str, Any]:
    """Return what a run holds as plain values: the document that `--json` prints. Tolerances are those of the verdicts."""
    damaged: list[str] = []
    decay = stated_weight_decay(store)
    curvatures = [_curvature(record) | {"verdict": judge(record, eps_g=eps_g, eps_H=eps_H, weight_decay=decay).document}
                  for record in _readable(store, "curvature", damaged)]
    surfaces = [_surface(record) for record in _readable(store, "surface", damaged)]
    measurements = [{"name": record.name, "epoch": record.epoch, "columns": [*record.labels, *record.numbers]}
                    for record in _readable(store, "measurement", damaged)]
    return {
        "run": str(store.path), "finished": store.finished, "config": known_config(store), "provenance": store.provenance,
        "epochs": store.epochs, "metrics": last_metrics(store), "result": _result(store), "recipe": _recipe(store.config),
        "curvatures": curvatures, "surfaces": surfaces, "measurements": measurements, "damaged": damaged,
    }


def known_config(store: RunStore) -> dict[str, Any]:
    """Return a run's settings; of an imported one, those of a training that nobody has stated are "unknown"."""
    stated = store.provenance.get("stated")
    if "imported" not in store.provenance or stated is None:
        return store.config
    return {name: value if name in stated or name in USED else UNKNOWN for name, value in store.config.items()}


def last_metrics(store: RunStore) -> dict[str, Any]:
    """Return the last value of each column of metrics.csv, and the epoch it belongs to: {column: {epoch, value}}."""
    table = store.metrics()
    columns = [name for name in table.columns if name != "epoch"]
    last = {name: table[["epoch", name]].dropna().tail(1) for name in columns}
    return {name: {"epoch": int(row["epoch"].item()), "value": row[name].item()}
            for name, row in last.items() if len(row)}


def _result(store: RunStore) -> dict[str, Any] | None:
    result = choose(store.metrics(), store.config.get("selection", "last"), store.config.get("flip_average", False))
    return result and result.document | {"words": result.words}


def _recipe(config: dict[str, Any]) -> dict[str, Any] | None:
    """Return a run's recipe and where the run departs from it; None for a run without one."""
    if config.get("recipe") is None:
        return None
    recipe = recipe_named(config["recipe"])
    differing = {name: {"recipe": said, "run": here} for name, (said, here) in departures(config).items()}
    return {"name": config["recipe"], "source": recipe.source, "differs": differing, "traps": list(recipe.traps),
            "inexpressible": list(recipe.inexpressible)}


def _readable(store: RunStore, kind: str, damaged: list[str]) -> Iterator[Any]:
    for path in store.paths(kind):
        try:
            yield read_record(path, KINDS[kind].cls)
        except RecordError as error:
            damaged.append(str(error))


def _curvature(record: Curvature) -> dict[str, Any]:
    word, record = inexact(record), supported(record)
    pairs = record.eigenpairs
    ends = {"lambda_min": 0, "lambda_max": -1} if pairs.values.size else {}
    return {
        "epoch": record.epoch, "group": record.group, "inexact": word, "num_samples": record.num_samples,
        "num_available": record.num_available, "loss": record.loss, "accuracy": record.accuracy,
        "test_accuracy": record.test_accuracy, "gradient_norm": record.gradient_norm, "theta_norm": theta_norm(record),
        **{name: {"value": pairs.values[end], "residual": pairs.residuals[end], "radius": pairs.radii[end],
                  "converged": pairs.converged[end], "verified": pairs.verified[end]} for name, end in ends.items()},
        "trace": _estimate(record.trace), "negative_mass": _estimate(record.negative_mass),
        "threshold": record.threshold, "extreme_ratio": _estimate(record.extreme_ratio),
    }


def _estimate(estimate: Estimate) -> dict[str, Any]:
    return {"value": estimate.value, "low": estimate.low, "high": estimate.high, "level": estimate.level,
            "kind": estimate.kind}


def _surface(record: Surface) -> dict[str, Any]:
    return {"name": record.name, "epoch": record.epoch, "groups": list(record.groups), "shape": list(record.loss.shape),
            "directions": list(record.direction_names), "coordinate_units": record.coordinate_units}


def _lines(document: dict[str, Any]) -> Iterator[str]:
    yield f"{document['run']}: {_state(document)}"
    yield "\nconfiguration"
    yield from _pairs(document["config"])
    yield from _recipe_lines(document["recipe"])
    yield "\nprovenance"
    yield from _pairs({name: value for name, value in document["provenance"].items() if name != "imported"})
    yield from _import_lines(document["provenance"].get("imported", {}))
    yield f"\ncheckpoints at epochs: {', '.join(map(str, document['epochs'])) or 'none'}"
    yield from _metrics_lines(document["metrics"])
    yield from _result_lines(document["result"])
    yield from _curvature_lines(document["curvatures"])
    yield from _surface_lines(document["surfaces"])
    yield from _measurement_lines(document["measurements"])


def _state(document: dict[str, Any]) -> str:
    done = "finished" if document["finished"] else "not finished"
    return f"imported, {done}" if "imported" in document["provenance"] else f"training {done}"


def _recipe_lines(recipe: dict[str, Any] | None) -> Iterator[str]:
    if recipe is None:
        return
    yield f"\nrecipe {recipe['name']} ({recipe['source']})"
    if recipe["differs"]:
        yield "  differs from the recipe:"
        yield from _pairs({f"  {name}": f"{pair['recipe']} in the recipe, {pair['run']} here"
                           for name, pair in recipe["differs"].items()})
    else:
        yield "  differs from the recipe in no setting"
    for title, lines in (("what no setting here expresses:", recipe["inexpressible"]),
                         ("to know when comparing with what was published:", recipe["traps"])):
        yield from (f"  {title}", *(f"    {line}" for line in lines)) if lines else ()


def _result_lines(result: dict[str, Any] | None) -> Iterator[str]:
    if result:
        plain = {group: value for group, value in result["accuracy"].items() if not group.startswith("class:")}
        yield f"\nresult: test accuracy at {result['words']}"
        yield "  " + ", ".join(f"{group} {value:.2%}" for group, value in plain.items())


def _import_lines(imported: dict[str, Any]) -> Iterator[str]:
    if imported:
        yield "\nimported weights (settings of their training are known as far as they were stated to import)"
    for epoch, source in sorted(imported.items(), key=lambda item: int(item[0])):
        yield f"  epoch {epoch}: {source['file']}, SHA-256 {source['sha256']}"


def _pairs(values: dict[str, Any]) -> Iterator[str]:
    width = max(map(len, values), default=0)
    for name, value in values.items():
        if isinstance(value, dict):
            value = ", ".join(f"{key} {item}" for key, item in value.items())
        yield f"  {name:{width}}  {value}"


def _metrics_lines(metrics: dict[str, Any]) -> Iterator[str]:
    if not metrics:
        yield "\nmetrics: none yet"
        return
    plain = {name: entry for name, entry in metrics.items() if "/" not in name}
    yield f"\nlast metrics (epoch {max(entry['epoch'] for entry in metrics.values())})"
    yield from _pairs({name: f"{entry['value']:.6g}" for name, entry in plain.items()})
    names = list(dict.fromkeys(name.partition("/")[0] for name in metrics if "/" in name))
    groups = list(dict.fromkeys(name.partition("/")[2] for name in metrics if "/" in name))
    if not names:
        return
    yield "\n  " + f"{'group':12}" + "".join(f"{name:>22}" for name in names)
    for group in groups:
        cells = (metrics.get(f"{name}/{group}") for name in names)
        yield "  " + f"{group:12}" + "".join(f"{_metric(cell, name):>22}" for cell, name in zip(cells, names))


def _metric(entry: dict[str, Any] | None, name: str) -> str:
    if entry is None:
        return "absent"
    return f"{entry['value']:.2%}" if "accuracy" in name else f"{entry['value']:.5g}"


def _curvature_lines(curvatures: list[dict[str, Any]]) -> Iterator[str]:
    if not curvatures:
        yield "\nspectra: none"
        return
    yield "\nspectra (eigenvalues in nats / parameter^2; +- is residual and rounding; [low, high] as the record's interval)"
    for entry in curvatures:
        yield (f"  epoch {entry['epoch']}, group {entry['group']}: {entry['num_samples']} of {entry['num_available']} "
               f"samples, loss {entry['loss']:.5g}, accuracy {entry['accuracy']:.2%}, "
               f"test accuracy {_share(entry['test_accuracy'])}")
        if entry["inexact"]:
            yield f"    INEXACT ({entry['inexact'].partition(' ')[2]}): residuals are no bounds, and no sign is verified"
        ends = (f"{name} {_end(entry[name])}" for name in ("lambda_min", "lambda_max") if name in entry)
        yield f"    {', '.join(ends) or 'no eigenpairs'}"
        yield f"    trace {_interval(entry['trace'])}"
        yield f"    negative_mass {_interval(entry['negative_mass'])} below {-entry['threshold']:.3g}"
        yield f"    extreme_ratio {_interval(entry['extreme_ratio'])}"
        yield f"    |gradient| {entry['gradient_norm']:.4g}, {_norms(entry)}"
        yield f"    verdict: {entry['verdict']['sentence']}"


def _norms(entry: dict[str, Any]) -> str:
    layers = entry["verdict"]["layer_norms"]
    least, most = (pick(layers, key=layers.get, default=None) for pick in (min, max))
    span = f", {layers[least]:.3g} ({least}) to {layers[most]:.3g} ({most})" if len(layers) > 1 else ""
    return f"|theta| {entry['theta_norm']:.4g} in {len(layers)} layers{span}"


def _end(end: dict[str, Any]) -> str:
    marks = [] if end["converged"] else ["not converged"]
    if end["value"] < 0:
        marks.append("verified negative" if end["verified"] else "sign not verified")
    return f"{end['value']:.6g} +- {end['radius']:.1g}" + (f" ({', '.join(marks)})" if marks else "")


def _interval(estimate: dict[str, Any]) -> str:
    if math.isnan(estimate["low"]) or math.isnan(estimate["high"]):
        return f"{estimate['value']:.5g} (no interval)"
    return (f"{estimate['value']:.5g} [{estimate['low']:.5g}, {estimate['high']:.5g}] "
            f"({estimate['level']:.0%}, {estimate['kind']})")


def _share(value: float) -> str:
    return "absent" if math.isnan(value) else f"{value:.2%}"


def _surface_lines(surfaces: list[dict[str, Any]]) -> Iterator[str]:
    if not surfaces:
        yield "\nsurfaces: none"
        return
    yield "\nsurfaces"
    for entry in surfaces:
        points = " x ".join(str(size) for size in entry["shape"][1:])
        yield (f"  {entry['name']}: epoch {entry['epoch']}, {points} points, groups {', '.join(entry['groups'])}, "
               f"along {' and '.join(entry['directions'])} in {entry['coordinate_units']}")


def _measurement_lines(measurements: list[dict[str, Any]]) -> Iterator[str]:
    epochs: dict[str, list[str]] = {}
    for entry in measurements:
        epochs.setdefault(entry["name"], []).append(str(entry["epoch"]))
    yield "\nmeasurements" + ("" if epochs else ": none")
    for name, found in epochs.items():
        yield f"  {name}: epoch {', '.join(found)}"
