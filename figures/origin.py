"""Where the numbers of a page come from: data, weights, versions, and the commands that make records and page again."""

import re
import shlex
from collections.abc import Iterable, Sequence
from typing import Any

from checkpoints.comparison import Comparison, Member
from checkpoints.errors import RecordError
from checkpoints.staleness import checkpoint_hash
from figures import style
from figures.cautions import name_of
from figures.markup import Markup, joined, table, tag

SHORT = 12                      # characters of a hash beside others
_OURS = ("landscape", "cli.py", "__main__.py")


def facts(runs: Comparison) -> Markup:
    """Return what all runs share, and what they were made with: a list of terms."""
    config, everyone = runs.config, runs.everyone
    counts = _provenance(everyone[0]).get("class_counts")
    known = {
        "data set": config.get("dataset"), "hash of the data": _all_of(_provenance(m).get("data_hash") for m in everyone),
        "training images a class": ", ".join(map(str, counts)) if counts else None,
        "imbalance; tail": style.describe(runs, seeds=False).partition(", ")[2] or None,
        "network; training loss": "; ".join(str(config[name]) for name in ("arch", "loss") if config.get(name)),
        "seeds": _all_of(m.config.get("seed") for m in everyone),
        "versions": _all_of(_versions(m) for m in everyone), "machine": _all_of(_machine(m) for m in everyone),
    }
    return tag("dl", *(joined([tag("dt", name), tag("dd", value)]) for name, value in known.items() if value), class_="facts")


def run_table(runs: Comparison, epoch: int | None) -> Markup:
    """Return one row a run: seed, when and by which revision it was trained, and the hash of its weights at `epoch`."""
    rows = [[name_of(member), style.look(opt).name, member.config.get("seed"), str(_provenance(member).get("time"))[:10],
             tag("code", _revision(member)), tag("code", _weights(member, epoch))]
            for opt, members in runs.members.items() for member in members]
    head = "weights" if epoch is None else f"weights after epoch {epoch}"
    return table(["run", "optimizer", "seed", "trained on", "revision", head], [[_span(cell) for cell in row] for row in rows])


def commands(runs: Comparison, last: Sequence[str] = ()) -> list[str]:
    """Return the commands that made runs and records, the oldest first, each once, and then `last`."""
    stated = {}
    for source in (part for member in runs.everyone for part in _sources(member)):
        command = source.get("command")
        if command:
            text = _as_typed(str(command))
            stated[text] = min(str(source.get("time")), stated.get(text, "~"))
    return [*sorted(stated, key=stated.get), *([shlex.join(last)] if last else [])]


def _sources(member: Member) -> Iterable[dict[str, Any]]:
    yield _provenance(member)
    for record in (*member.curvatures.values(), *member.surfaces.values(), *member.measurements.values()):
        yield record.provenance


def _as_typed(command: str) -> str:
    """Return a stored command as a reader types it: the program is stored by its file name alone."""
    program, _, rest = command.partition(" ")
    if program in _OURS:
        return f"landscape {rest}".strip()
    return f"python scripts/{command}" if re.fullmatch(r"\w+\.py", program) else command


def _provenance(member: Member) -> dict[str, Any]:
    return getattr(member.run, "provenance", {})


def _versions(member: Member) -> str:
    own = _provenance(member)
    found = {"python": own.get("python"), **own.get("versions", {})}
    return ", ".join(f"{name} {version}" for name, version in found.items() if version)


def _machine(member: Member) -> str:
    own = _provenance(member)
    threads = own.get("threads")
    return ", ".join(str(part) for part in (own.get("platform"), own.get("device"), threads and f"{threads} threads") if part)


def _revision(member: Member) -> str:
    commit, plus, changes = str(_provenance(member).get("revision") or "not known").partition("+")
    return commit[:SHORT] + plus + changes


def _weights(member: Member, epoch: int | None) -> str:
    if epoch is None or not hasattr(member.run, "provenance"):
        return "not known"
    try:
        return (checkpoint_hash(member.run, epoch) or "not stored")[:SHORT]
    except RecordError:
        return "damaged"


def _all_of(values: Iterable[Any]) -> str:
    """Return the different values in words."""
    return "; ".join(str(value) for value in dict.fromkeys(values) if value not in (None, ""))


def _span(cell: Any) -> Markup:
    return tag("span", cell)
