"""What is computed of a checkpoint, and how closely: settings, checked once and stored with every record."""

from dataclasses import dataclass
from math import isfinite

from landscape.errors import InputError

DIRECTIONS = ("random", "eigen")
LOSSES = ("CE", "training")
DTYPES = ("float32", "float64")
SPLITS = ("train", "test")


@dataclass(frozen=True)
class SpectrumSettings:
    """A spectrum of one group: probes, pairs, and the images that enter the Hessian."""

    num_matvecs: int = 100          # Lanczos steps of each probe
    num_probes: int = 10            # independent random starts
    num_pairs: int = 5              # eigenpairs at each end
    tol: float = 1e-3               # a pair has converged when its residual is below tol |lambda|
    max_matvecs: int = 500          # products for the pairs beyond those of the probes
    trace_probes: int = 20          # products for the trace
    max_samples: int | None = None  # images of a group, drawn with `seed`; None: all of them
    batch_size: int = 128           # images evaluated at once
    split: str = "train"            # train: un-augmented training images; test
    loss: str = "CE"                # CE: cross-entropy whatever was trained; training: the training loss, without DRW
    dtype: str = "float32"          # of the products; pairs are verified in float64 all the same
    seed: int = 0                   # of probes and subsets

    def __post_init__(self):
        _positive(self, "num_matvecs", "num_probes", "num_pairs", "trace_probes", "batch_size")
        _positive(self, *(["max_samples"] if self.max_samples is not None else []))
        _not_negative(self, "max_matvecs", "seed")
        _among(self, split=SPLITS, loss=LOSSES, dtype=DTYPES)
        if not (isinstance(self.tol, (int, float)) and isfinite(self.tol) and self.tol > 0):
            raise InputError(f"tol={self.tol} is out of range: expected a relative residual > 0, such as 1e-3")


@dataclass(frozen=True)
class SurfaceSettings:
    """A line or plane through a checkpoint, on which every group's loss is evaluated."""

    directions: str = "random"      # random: filter-normalised; eigen: most negative and largest of `group`
    group: str = "tail"             # whose eigenvectors; has to have a stored spectrum
    dims: int = 2
    points: int = 21                # along each direction, odd so that the checkpoint itself is one of them
    span: float = 1.0               # the grid runs from -span to span, in the direction's units
    max_samples: int | None = None  # images of each group; None: all of them
    batch_size: int = 500
    split: str = "train"
    dtype: str = "float32"
    seed: int = 0                   # of random directions and subsets

    def __post_init__(self):
        _positive(self, "batch_size", *(["max_samples"] if self.max_samples is not None else []))
        _not_negative(self, "seed")
        _among(self, directions=DIRECTIONS, split=SPLITS, dtype=DTYPES, dims=(1, 2))
        if not isinstance(self.points, int) or self.points < 3 or self.points % 2 == 0:
            raise InputError(f"points={self.points} is out of range: expected an odd number >= 3, so that the "
                             "checkpoint is on the grid")
        if not (isinstance(self.span, (int, float)) and isfinite(self.span) and self.span > 0):
            raise InputError(f"span={self.span} is out of range: expected a number > 0, in units of the direction")


def surface_name(epoch: int, settings: SurfaceSettings) -> str:
    """Return the name under which a surface is stored: epoch, kind of directions, line or plane."""
    kind = settings.directions if settings.directions == "random" else f"{settings.group.replace(':', '-')}-eigen"
    return f"epoch-{epoch:04d}-{kind}-{settings.dims}d"


def _positive(settings: object, *names: str) -> None:
    for name in names:
        value = getattr(settings, name)
        if not isinstance(value, int) or value < 1:
            raise InputError(f"{name}={value!r} is out of range: expected an integer >= 1")


def _not_negative(settings: object, *names: str) -> None:
    for name in names:
        value = getattr(settings, name)
        if not isinstance(value, int) or value < 0:
            raise InputError(f"{name}={value!r} is out of range: expected an integer >= 0")


def _among(settings: object, **choices: tuple) -> None:
    for name, allowed in choices.items():
        if getattr(settings, name) not in allowed:
            raise InputError(f"{name}={getattr(settings, name)!r} is unknown: expected one of {', '.join(map(str, allowed))}")
