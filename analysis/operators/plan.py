"""How products are made: by which engine, how many samples at once, and which microbatches stay in memory between them."""

from collections.abc import Iterator
from dataclasses import dataclass, field

import torch
from torch import Tensor

from analysis.operators import products
from analysis.operators.batches import Batch
from analysis.operators.graphs import supported
from analysis.operators.memory import budget
from analysis.operators.objective import Objective
from analysis.operators.products import COMPILED, GRAPHED, Prepare, Prepared, Product
from analysis.operators.verification import refuse_other_losses, verify
from landscape.errors import InputError

# Samples at once. On a CPU a microbatch should stay in the cache; a GPU is to be filled.
SAMPLES = {"cpu": 64, "cuda": 1024}
COMPILING = 0.04            # seconds for each operation of a graph, on two cores
GAIN = 0.15                 # of the time of a product, that compiling saves at least
# Another engine has to be so many times faster, and a product to take so many seconds, before timing overrules the order of
# preference: a choice that noise can turn would not be the same twice.
CLEARLY, NOTICEABLE = 1.5, 0.01


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
    while True:
        try:
            return _choose(_Attempt(objective, theta, batches, wishes, traces))
        except torch.OutOfMemoryError as reason:
            batches = halved(batches, reason)


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
    reasons: dict[str, str] = field(default_factory=dict)

    def of(self, name: str) -> Choice | None:
        """Return an engine's products, checked, or None with the reason noted."""
        try:
            return self._checked(name)
        except torch.OutOfMemoryError:
            raise
        except (RuntimeError, NotImplementedError) as reason:
            self.reasons[name] = (str(reason).strip().splitlines() or [type(reason).__name__])[0]
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
        """Replay a graph where a device can, and compile where the products to come save more time than it takes."""
        graphed = self._quicker(eager, eager.engine + GRAPHED, own) if supported(self.theta.device) else eager
        name, seconds = eager.engine + COMPILED, graphed.seconds.get(graphed.engine, own)
        cost = COMPILING * sum(getattr(split, "num_nodes", 0) for split in self.traces.values())
        needed = int(cost / (GAIN * seconds * len(self.batches))) + 1
        if self.wishes.expected_matvecs < needed:
            self.reasons[name] = f"it takes about {cost:.0f} s to compile, which {needed} products save"
            return graphed
        return self._quicker(graphed, name, seconds)

    def _quicker(self, choice: Choice, name: str, own: float) -> Choice:
        """Return what another engine makes of the trace, unless it fails or takes more than `own` seconds."""
        other = self.of(name)
        if other and other.seconds.get(name, 0.0) > own:
            self.reasons[name] = f"{other.seconds[name] / own:.1f} times slower"
            return choice
        return other or choice

    def _checked(self, name: str) -> Choice:
        """Prepare every microbatch, compare its loss, and check the product of one of each shape."""
        prepare = products.ENGINES[name](self.objective, self.theta, self.traces)
        kept = Kept(prepare, self.batches, budget(self.wishes.memory, self.theta.device))
        shapes: set[tuple] = set()
        seconds: dict[str, float] = {}
        for place, batch in enumerate(self.batches):
            prepared = kept.prepared(place)
            refuse_other_losses(prepared, self.objective, self.theta, batch)
            mark = ("verified", *prepare.key(batch)) if isinstance(prepare, products.Linearized) else None
            if batch.shapes not in shapes and mark not in self.traces:
                seconds = verify(name, prepared.product, self.objective, self.theta, batch) | seconds
                self.traces.update({mark: True} if mark else {})
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


def halved(batches: list[Batch], reason: Exception) -> list[Batch]:
    """Return the batches in pieces half as large; InputError where they cannot be cut."""
    size = max(map(len, batches))
    if size < 2 or not all(batch.is_cuttable for batch in batches):
        raise InputError(f"memory is too small for the product of a single microbatch of {size} samples: use a larger device, or "
                         "memory=0 to keep nothing between products") from reason
    pieces = [piece for batch in batches for piece in batch.cut(-(-size // 2))]
    return [piece.padded(max(map(len, pieces))) for piece in pieces]


class Kept:
    """The products of all microbatches, in order; those that fit the budget are prepared once.

    Where memory runs out all the same, half of what is kept is let go, at last the microbatches are halved, and the product
    is begun again; `notes` says so.
    """

    def __init__(self, prepare: Prepare, batches: list[Batch], budget: float):
        self._prepare, self.batches, self._budget = prepare, batches, budget
        self._kept: dict[int, Prepared] = {}
        self.notes: list[str] = []

    @property
    def num_kept(self) -> int:
        """How many microbatches are kept so far."""
        return len(self._kept)

    @property
    def bytes(self) -> int:
        """The memory that they take."""
        return sum(prepared.held for prepared in self._kept.values())

    @property
    def microbatch(self) -> int:
        """The samples of the largest microbatch."""
        return max(map(len, self.batches))

    def matmat(self, V: Tensor) -> Tensor:
        """Return the sum of the products of all microbatches with rows V (k, d)."""
        while True:
            try:
                return sum((product(V) for product in self), torch.zeros_like(V))
            except torch.OutOfMemoryError as reason:
                self._retreat(reason)

    def __iter__(self) -> Iterator[Product]:
        for place in range(len(self.batches)):
            yield self.prepared(place).product

    def prepared(self, place: int) -> Prepared:
        """Prepare one microbatch, or return it where it is kept."""
        if place in self._kept:
            return self._kept[place]
        prepared = self._prepare(self.batches[place])
        if self.bytes + prepared.held <= self._budget:
            self._kept[place] = prepared
        return prepared

    def _retreat(self, reason: Exception) -> None:
        """Keep half as many, or evaluate half as many samples at once."""
        if self.bytes:
            self._kept = dict(list(self._kept.items())[:len(self._kept) // 2])
            self._budget = self.bytes
            self.notes.append(f"memory ran out: {self.num_kept} of {len(self.batches)} microbatches stay in memory")
        else:
            self._kept, self.batches = {}, halved(self.batches, reason)
            self.notes.append(f"memory ran out: {self.microbatch} samples are evaluated at once")
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
