"""How products are made: by which engine, and how many samples at once.

Operators that share `traces` share what was found out with them: under ("verified", *key) the seconds that a trace's check took,
under ("left", *key) why what was made of a trace was not taken. So the second of two operators chooses by the same times as the
first, and nothing is compiled or captured twice.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field

from torch import Tensor

from analysis.operators import products
from analysis.operators.batches import Batch
from analysis.operators.checks import displaced
from analysis.operators.graphs import supported
from analysis.operators.kept import Kept, halved
from analysis.operators.memory import budget, ran_out
from analysis.operators.objective import Objective
from analysis.operators.products import COMPILED, GRAPHED
from analysis.operators.tracing import compiled_stages
from analysis.operators.verification import refuse_other_losses, verify
from landscape.errors import InputError, first_line

# Samples at once. On a CPU a microbatch should stay in the cache; a GPU is to be filled.
SAMPLES = {"cpu": 64, "cuda": 1024}
COMPILING = 0.04            # seconds for each operation of a graph, on two cores
GAIN = 0.15                 # of the time of a product, that compiling saves at least
# Another engine has to be so many times faster, and a product to take so many seconds, before timing overrules the order of
# preference: a choice that noise can turn would not be the same twice.
CLEARLY, NOTICEABLE = 1.5, 0.01
IN_MEMORY = "all in memory"     # what the reasons call it, where memory ran out


@dataclass(frozen=True)
class Wishes:
    """What a user asks of the products; the defaults leave it to `choose`."""

    engine: str = "auto"                    # auto, or one of products.ENGINES
    microbatch: str | int = "auto"          # samples evaluated at once
    memory: str | float = "auto"            # bytes that kept microbatches may take
    expected_matvecs: int = 0               # how many products are to come: many pay for compiling
    fill: bool = False                      # fill every microbatch up to a power of two: operators that share traces share shapes

    def __post_init__(self):
        if self.engine not in ("auto", *products.ENGINES):
            raise InputError(f"engine={self.engine!r} is unknown: expected auto, {', '.join(products.ENGINES)}")
        if self.microbatch != "auto" and (not isinstance(self.microbatch, int) or self.microbatch < 1):
            raise InputError(f"microbatch={self.microbatch!r} is out of range: expected 'auto' or an integer >= 1")
        if self.memory != "auto" and not (isinstance(self.memory, (int, float)) and self.memory >= 0):
            raise InputError(f"memory={self.memory!r} is out of range: expected 'auto' or a number of bytes >= 0")


@dataclass(frozen=True, eq=False)
class Choice:
    """The products of an objective with all its microbatches, by which engine, and why not by another."""

    engine: str
    reasons: dict[str, str]         # engine -> why it was not taken
    products: "Kept"
    seconds: dict[str, float]       # of one vector and one microbatch, by engine, where it was measured


def choose(objective: Objective, theta: Tensor, batches: list[Batch], wishes: Wishes, traces: dict) -> Choice:
    """Return the fastest engine that passes its checks, with the microbatches halved as long as memory runs out."""
    room, notes = budget(wishes.memory, theta.device), {}
    while True:
        attempt = _Attempt(objective, theta, batches, wishes, traces, room, dict(notes), frozenset(traces))
        try:
            return _choose(attempt)
        except RuntimeError as reason:
            if not ran_out(reason):
                raise
            attempt.forget_finished()
            batches = halved(batches, reason)
            notes = {IN_MEMORY: f"memory ran out: {max(map(len, batches))} samples are evaluated at once"}


def _choose(attempt: "_Attempt") -> Choice:
    for name in (products.EXACT if attempt.wishes.engine == "auto" else (attempt.wishes.engine,)):
        if choice := attempt.of(name):
            return choice if attempt.wishes.engine != "auto" else attempt.faster(choice)
    causes = "; ".join(f"{name}: {reason}" for name, reason in attempt.reasons.items())
    raise InputError(f"no exact Hessian-vector product for this network ({causes})")


@dataclass(frozen=True, eq=False)
class _Attempt:
    """Engines tried in turn for one objective."""

    objective: Objective
    theta: Tensor
    batches: list[Batch]
    wishes: Wishes
    traces: dict
    room: float                     # bytes for kept microbatches
    reasons: dict[str, str] = field(default_factory=dict)
    before: frozenset = frozenset()     # keys of the traces that were there: other operators may go on with those

    def of(self, name: str) -> Choice | None:
        """Return an engine's products, checked, or None with the reason noted."""
        try:
            return self._checked(name)
        except (RuntimeError, NotImplementedError) as reason:
            if ran_out(reason):
                raise
            self.reasons[name] = first_line(reason)
            return None

    def faster(self, choice: Choice) -> Choice:
        """Return another engine where it was measured to be faster, or is sure to be for so many products."""
        own, seconds = choice.seconds.get(choice.engine, 0.0), choice.seconds
        other = min(seconds, key=seconds.get, default=choice.engine)
        if own > max(CLEARLY * seconds.get(other, own), NOTICEABLE) and (better := self.of(other)):
            self.reasons[choice.engine] = f"{own / seconds[other]:.1f} times slower than {other}"
            return better
        self.reasons.update({name: _compared(time, own) for name, time in seconds.items() if name != choice.engine})
        return self._finished(choice, own) if choice.engine == "linearized" and own else choice

    def _finished(self, eager: Choice, own: float) -> Choice:
        """Replay a graph where a device can, and compile where the products to come save more time than it takes.

        What an operator before this one compiled costs nothing more. A graph takes vectors one by one, and is timed against two
        at once, as they come from the two ends of a spectrum; the larger blocks of many probes suit a small network better.
        """
        graphed = self._quicker(eager, GRAPHED, own) if supported(self.theta.device) else eager
        seconds = graphed.seconds.get(graphed.engine, own)
        cost = COMPILING * self._uncompiled_nodes()
        needed = int(cost / (GAIN * seconds * len(self.batches))) + 1
        if cost and self.wishes.expected_matvecs < needed and not self._left(COMPILED):
            self.reasons["linearized" + COMPILED] = f"it takes about {cost:.0f} s to compile, which {needed} products save"
            return graphed
        return self._quicker(graphed, COMPILED, seconds)

    def _quicker(self, choice: Choice, finish: str, own: float) -> Choice:
        """Return what a finish makes of the trace, unless it fails or takes more than `own` seconds."""
        name = "linearized" + finish
        if why := self._left(finish):
            self.reasons[name] = why
            return choice
        choice.products.release()       # there is room for one; the first prepares its microbatches again where it stays
        try:
            other = self.of(name)
        except RuntimeError as reason:
            if not ran_out(reason):
                raise
            # What is only to be faster must not make the microbatches smaller.
            self.reasons[name] = "memory ran out"
            self.forget_finished()
            return choice
        if other and other.seconds.get(name, 0.0) <= own:
            return other
        if other:
            self.reasons[name] = f"{other.seconds[name] / own:.1f} times slower"
        self._leave(finish)
        return choice

    def forget_finished(self, *finishes: str) -> list[tuple]:
        """Let go of the graphs and compiled functions made in this attempt: they hold memory. Return their keys."""
        made = [key for finish in finishes or products.FINISHES for key in self._keys(finish) if key not in self.before]
        for key in made:
            self.traces.pop(key, None)
            self.traces.pop(("verified", *key), None)
        return made

    def _leave(self, finish: str) -> None:
        for key in self.forget_finished(finish):
            self.traces["left", *key] = self.reasons["linearized" + finish]

    def _left(self, finish: str) -> str | None:
        """Return why an operator before this one did not take what a finish makes of the same traces."""
        return next((self.traces["left", *key] for key in self._keys(finish) if ("left", *key) in self.traces), None)

    def _uncompiled_nodes(self) -> int:
        """Count the operations of the traces that are still to be compiled."""
        pairs = zip(self._keys(""), self._keys(COMPILED))
        return sum(self.traces[plain].num_nodes(*compiled_stages(self.theta.device)) for plain, key in pairs
                   if plain in self.traces and key not in self.traces)

    def _keys(self, finish: str) -> list[tuple]:
        """Return the keys of the traces that serve the microbatches, once each."""
        prepare = products.Linearized(self.objective, self.theta, self.traces, finish=finish)
        return list(dict.fromkeys(prepare.key(batch) for batch in self.batches))

    def _checked(self, name: str) -> Choice:
        """Prepare every microbatch, compare its loss, and check the product of one of each shape."""
        prepare = products.ENGINES[name](self.objective, self.theta, self.traces)
        kept, off = Kept(prepare, self.batches, self.room), displaced(self.theta)
        shapes: set[tuple] = set()
        seconds: dict[str, float] = {}
        for place, batch in enumerate(self.batches):
            prepared = kept.prepared(place)
            if isinstance(prepare, products.Linearized):
                for at, losses in ((self.theta, prepared.losses), (off, prepare.losses(off, batch))):
                    refuse_other_losses(losses, self.objective, at, batch)
            if batch.shapes not in shapes:
                mark = ("verified", *prepare.key(batch)) if isinstance(prepare, products.Linearized) else None
                found = self.traces.get(mark) or verify(name, prepared, self.objective, self.theta, batch)
                self.traces.update({mark: found} if mark else {})
                seconds = found | seconds
            shapes.add(batch.shapes)
        return Choice(name, self.reasons, kept, seconds)


def _compared(seconds: float, chosen: float) -> str:
    return f"{seconds / chosen:.1f} times slower" if seconds >= chosen else f"not clearly faster ({chosen / seconds:.1f} times)"


def microbatches(batches: list[Batch], wanted: str | int, theta: Tensor, fill: bool = False) -> list[Batch]:
    """Cut batches into pieces of at most so many samples, filled up to one size where the loss is per sample.

    On "auto" the batches of a small network stay whole, since there more samples at once are always faster. The pieces are
    nearly equal; with `fill` they are whole, and what is left is filled up to a power of two, so that few shapes serve any data.
    """
    if wanted == "auto" and theta.numel() < products.SMALL:
        largest = max(map(len, batches), default=1)
        wanted = _filled(largest) if fill else largest
    limit = SAMPLES.get(theta.device.type, SAMPLES["cuda"]) if wanted == "auto" else wanted
    if fill:
        return [piece.padded(min(limit, _filled(len(piece)))) for batch in batches for piece in _whole(batch, limit)]
    pieces = [piece for batch in batches for piece in batch.cut(limit)]
    return [piece.padded(max(map(len, pieces))) for piece in pieces]


def pieces_of(batch: Batch, pieces: Iterator[Batch]) -> list[Batch]:
    """Take the pieces of one batch from those of all batches."""
    found = [next(pieces)]
    while sum(piece.num_samples for piece in found) < batch.num_samples:
        found.append(next(pieces))
    return found


def _whole(batch: Batch, limit: int) -> list[Batch]:
    starts = range(0, len(batch), limit) if batch.is_cuttable else range(0)
    return [batch.piece(slice(start, start + limit)) for start in starts] or [batch]


def _filled(count: int) -> int:
    """Return the power of two, from 16, that so many samples are filled up to."""
    return max(16, 1 << (count - 1).bit_length())
