"""What is computed of a checkpoint, and how closely: settings, checked once and stored with every record."""

import re
from dataclasses import dataclass
from math import isfinite
from typing import Any

from analysis.surfaces.direction_words import Word, read_words
from landscape.errors import InputError

LOSSES = ("CE", "training")
DTYPES = ("float32", "float64")
SURFACE_DTYPES = (*DTYPES, "bfloat16")
NORMALIZATIONS = ("filter", "layer", "none")    # the names of analysis.surfaces.directions.UNITS, known without loading torch
IGNORED = ("biasbn", "none")
BATCHNORM = ("fixed", "recalibrated", "batch")
SPLITS = ("train", "test")
MAX_TRACE_PRODUCTS = 500    # that a trace to a stated error may take
OPERATORS = ("hessian", "gauss_newton")
# The names of analysis.operators.products.ENGINES, here too so that they are known without loading torch.
ENGINES = ("linearized", "linearized-graphed", "linearized-compiled", "jvp", "reverse", "differences")


@dataclass(frozen=True)
class SpectrumSettings:
    """A spectrum of one group: probes, pairs, and the images that enter the Hessian."""

    num_matvecs: int = 100          # Lanczos steps of each probe
    num_probes: int = 10            # independent random starts
    num_pairs: int = 5              # eigenpairs at each end
    tol: float = 1e-3               # a pair has converged when its residual is below tol |lambda|
    max_matvecs: int = 500          # products for the pairs beyond those of the probes
    trace_probes: int = 20          # products for the trace, where no error is asked for
    trace_error: float | None = None    # or: as many as this standard error needs, relative to the trace
    max_samples: int | None = None  # images of a group, drawn with `seed`; None: all of them
    batch_size: int = 128           # images evaluated at once
    split: str = "train"            # train: un-augmented training images; test
    loss: str = "CE"                # CE: cross-entropy whatever was trained; training: the training loss, without DRW
    dtype: str = "float32"          # of the products; pairs are verified in float64 all the same
    seed: int = 0                   # of probes and subsets
    operator: str = "hessian"       # or gauss_newton, its positive semi-definite part
    params: tuple[str, ...] | None = None   # name patterns of the parameters that form theta, such as layer1.*; None: all

    def __post_init__(self):
        _positive(self, "num_matvecs", "num_probes", "num_pairs", "trace_probes", "batch_size")
        _positive(self, *(["max_samples"] if self.max_samples is not None else []))
        _not_negative(self, "max_matvecs", "seed")
        _among(self, split=SPLITS, loss=LOSSES, dtype=DTYPES, operator=OPERATORS)
        if self.params is not None:
            _names(self)
        if not (isinstance(self.tol, (int, float)) and isfinite(self.tol) and self.tol > 0):
            raise InputError(f"tol={self.tol} is out of range: expected a relative residual > 0, such as 1e-3")
        error = self.trace_error
        if error is not None and not (isinstance(error, (int, float)) and 0 < error < 1):
            raise InputError(f"trace_error={error} is out of range: expected 0 < trace_error < 1, such as 0.05")

    @property
    def products(self) -> int:
        """The products that one spectrum may take."""
        return self.num_matvecs * self.num_probes + self.max_matvecs + self.trace_products

    @property
    def trace_products(self) -> int:
        """The products that the trace may take."""
        return self.trace_probes if self.trace_error is None else MAX_TRACE_PRODUCTS


@dataclass(frozen=True)
class Making:
    """How products are made. It decides their last bits, their time and their memory, not what they are."""

    engine: str = "auto"            # auto, or one of ENGINES
    microbatch: int | str = "auto"  # samples evaluated at once
    memory: float | str = "auto"    # bytes that microbatches kept between products may take

    def __post_init__(self):
        if self.engine not in ("auto", *ENGINES):
            raise InputError(f"engine={self.engine!r} is unknown: expected auto, {', '.join(ENGINES)}")
        if self.microbatch != "auto":
            _positive(self, "microbatch")
        if self.memory != "auto" and not (isinstance(self.memory, (int, float)) and self.memory >= 0):
            raise InputError(f"memory={self.memory!r} is out of range: expected auto or a number of bytes >= 0")

    def keywords(self, choice: dict[str, Any]) -> dict[str, Any]:
        """Return the keywords of an operator: `choice`, what was chosen before, stands where nothing else is asked for."""
        given = {name: value for name, value in vars(self).items() if value != "auto"}
        return {**choice, **given}


@dataclass(frozen=True)
class SurfaceSettings:
    """A line or plane through a checkpoint, on which every group's loss is evaluated.

    What is None is settled at once, and stored as what it became: `dims` by the directions; `batchnorm` is recalibrated and
    the grid covers the checkpoints where the directions lead through some, else it is fixed and from -1 to 1.
    """

    directions: str | tuple[str, ...] = "random"    # one or two names of analysis.surfaces.direction_words
    group: str = "tail"             # whose eigenvectors "eigen" are; has to have a stored spectrum
    dims: int | None = None         # 1: a line, 2: a plane
    points: int = 21                # along each direction, odd so that the checkpoint itself is one of them
    span: float | None = None       # the grid runs from -span to span, in the direction's units
    normalization: str = "filter"   # of random directions: by filter, by layer, or none (unit length)
    ignore: str = "biasbn"          # what random directions leave at rest: biases and BatchNorm, or none
    batchnorm: str | None = None    # statistics: the checkpoint's own, estimated anew at each point, or each batch's
    max_samples: int | None = None  # images of each group; None: all of them
    batch_size: int = 500
    split: str = "train"
    dtype: str = "float32"          # of the forward passes; bfloat16 is measured against float32
    seed: int = 0                   # of random directions, of subsets, and of batches where statistics are a batch's

    def __post_init__(self):
        _positive(self, "batch_size", *(["max_samples"] if self.max_samples is not None else []))
        _not_negative(self, "seed")
        _among(self, split=SPLITS, dtype=SURFACE_DTYPES, dims=(None, 1, 2), normalization=NORMALIZATIONS, ignore=IGNORED,
               batchnorm=(None, *BATCHNORM))
        self._settle()
        if "@" in self.group:
            raise InputError(f"group={self.group!r} is out of range: directions are eigenvectors over training images and all "
                             "parameters; expected a class group alone, such as tail")
        if not isinstance(self.points, int) or self.points < 3 or self.points % 2 == 0:
            raise InputError(f"points={self.points} is out of range: expected an odd number >= 3, so that the "
                             "checkpoint is on the grid")
        if self.span is not None and not (isinstance(self.span, (int, float)) and isfinite(self.span) and self.span > 0):
            raise InputError(f"span={self.span} is out of range: expected a number > 0, in units of the direction")

    def _settle(self) -> None:
        words, dims = read_words(self.directions, self.dims)
        texts = tuple(word.text for word in words)
        leads = any(word.leads_somewhere for word in words)
        settled = {"directions": texts if len(texts) > 1 else texts[0], "dims": dims,
                   "batchnorm": self.batchnorm or ("recalibrated" if leads else "fixed"),
                   "span": 1.0 if self.span is None and not leads else self.span}
        for name, value in settled.items():
            object.__setattr__(self, name, value)

    @property
    def words(self) -> tuple[Word, ...]:
        """The names of the directions, read."""
        return read_words(self.directions, self.dims)[0]

    @property
    def epochs(self) -> tuple[int, ...]:
        """The run's own checkpoints, by number, that the directions lead through."""
        return tuple(word.epoch for word in self.words if word.run is None and word.epoch is not None)

    @property
    def spectra(self) -> tuple[str, ...]:
        """The groups whose spectra the directions come from."""
        named = {"eigen": self.group}
        return tuple(dict.fromkeys(named.get(word.kind, word.group) for word in self.words if word.kind.startswith("eigen")))


@dataclass(frozen=True)
class MeasureSettings:
    """What the measures of analysis.measures.catalogue share; each names the settings that decide its record."""

    groups: tuple[str, ...] = ("head", "tail")  # whose gradients, eigenvectors and images
    num_pairs: int | None = None    # most negative eigenvectors of each group; None: all that are stored
    batches: int = 10               # mini-batches, draws of noise, starts or rounds
    max_samples: int | None = None  # images of a group, drawn with `seed`; None: all of them
    batch_size: int = 128           # images evaluated at once
    split: str = "train"            # train: un-augmented training images; test
    rho: float | None = None        # radius of every ascent, in parameter units; None: the run's own
    dtype: str = "float32"          # of gradients
    seed: int = 0                   # of subsets, mini-batches and noise

    def __post_init__(self):
        _positive(self, "batches", "batch_size")
        _positive(self, *(name for name in ("num_pairs", "max_samples") if getattr(self, name) is not None))
        _not_negative(self, "seed")
        _among(self, split=SPLITS, dtype=DTYPES)
        if self.rho is not None and not (isinstance(self.rho, (int, float)) and isfinite(self.rho) and self.rho > 0):
            raise InputError(f"rho={self.rho} is out of range: expected a radius > 0, in parameter units")
        if isinstance(self.groups, str) or not self.groups:
            raise InputError(f"groups={self.groups!r} is out of range: expected names of class groups, such as head, tail")
        object.__setattr__(self, "groups", tuple(dict.fromkeys(self.groups)))


def stored_group(group: str, settings: SpectrumSettings) -> str:
    """Return the group under which a spectrum is stored: "tail", "tail@test" over test images, "tail@gauss_newton",
    "tail@layer1" for parameters layer1.*.

    What is no letter, digit or underscore is left out of the patterns. Two that end up in one name are told apart by the
    settings stored with the record.
    """
    words = [settings.split] if settings.split != "train" else []
    words += [settings.operator] if settings.operator != "hessian" else []
    words += [".".join(re.findall(r"[A-Za-z0-9_]+", pattern)) or "any" for pattern in settings.params or ()]
    return f"{group}@{'+'.join(words)[:60]}" if words else group


def surface_name(epoch: int, settings: SurfaceSettings) -> str:
    """Return the name under which a surface is stored: epoch, directions, line or plane, and the split where it is test."""
    words = [f"{settings.group.replace(':', '-')}-eigen" if word.kind == "eigen" else word.slug for word in settings.words]
    return f"epoch-{epoch:04d}-{'_'.join(words)[:80]}-{settings.dims}d" + ("-test" if settings.split == "test" else "")


def _positive(settings: object, *names: str) -> None:
    for name in names:
        value = getattr(settings, name)
        if not isinstance(value, int) or value < 1:
            raise InputError(f"{name}={value!r} is out of range: expected an integer >= 1")


def _names(settings: SpectrumSettings) -> None:
    if isinstance(settings.params, str) or not settings.params or not all(isinstance(p, str) and p for p in settings.params):
        raise InputError(f"params={settings.params!r} is out of range: expected name patterns, such as 'layer1.*'")
    object.__setattr__(settings, "params", tuple(settings.params))


def _not_negative(settings: object, *names: str) -> None:
    for name in names:
        value = getattr(settings, name)
        if not isinstance(value, int) or value < 0:
            raise InputError(f"{name}={value!r} is out of range: expected an integer >= 0")


def _among(settings: object, **choices: tuple) -> None:
    for name, allowed in choices.items():
        if getattr(settings, name) not in allowed:
            raise InputError(f"{name}={getattr(settings, name)!r} is unknown: expected one of {', '.join(map(str, allowed))}")
