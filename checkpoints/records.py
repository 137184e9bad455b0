"""Frozen records: what the toolkit measures, as NumPy arrays with named dimensions and units.

A record is data only. `checkpoints.schema` writes any of them to HDF5 and reads it back; every analysis returns them and
every figure is drawn from them. Epochs count from 0; a record at epoch e describes the weights *after* e epochs. Losses
are in nats per sample, eigenvalues in nats per squared parameter unit. A field with a default was added later: records
stored before are read with it.
"""

from dataclasses import dataclass, field
from typing import Any

import numpy as np

from checkpoints.errors import RecordError

LAMBDA = "nats / parameter^2"


def array(*dims: str, units: str = "1", absent: bool = False):
    """Declare an array field: the names of its dimensions and the unit of its values, both stored with the array.

    absent: whether records stored before the field existed lack it; they are read with an array of no entries.
    """
    default = {"default_factory": lambda: np.zeros((0,) * len(dims))} if absent else {}
    return field(metadata={"dims": dims, "units": units}, **default)


@dataclass(frozen=True, eq=False)
class Estimate:
    """A number and the interval that goes with it."""

    value: float
    low: float    # NaN where no interval is known (one probe): never zero width
    high: float
    level: float  # coverage the interval claims, in (0, 1]; 1 for a bound that always holds
    kind: str     # residual | quadrature | probes | quadrature+probes | data | seeds


NO_SAMPLE = Estimate(float("nan"), float("nan"), float("nan"), 0.95, "data")    # all images were used


@dataclass(frozen=True, eq=False)
class Checkpoint:
    """Parameters and buffers of a model after `epoch` epochs, by their state_dict names."""

    epoch: int
    arrays: dict[str, np.ndarray]
    provenance: dict[str, Any]


@dataclass(frozen=True, eq=False)
class Spectrum:
    """Stochastic Lanczos quadrature of a Hessian: one Gauss rule a probe; densities are derived, never stored.

    A probe that broke down before step m has NaN nodes and zero weights beyond its last step.
    """

    size: int                   # d, the dimension of the Hessian
    nodes: np.ndarray = array("probe", "node", units=LAMBDA)            # (R, m) ascending in each row
    weights: np.ndarray = array("probe", "node")                        # (R, m) >= 0, each row sums to 1
    alphas: np.ndarray = array("probe", "step", units=LAMBDA)           # (R, m) diagonal of the tridiagonal T
    betas: np.ndarray = array("probe", "step", units=LAMBDA)            # (R, m) off-diagonal; the last is ||residual||
    orthogonality_loss: float   # max |QQ' - I| over all probes


@dataclass(frozen=True, eq=False)
class EigenPairs:
    """Extreme eigenpairs, ascending, each with its residual, formed from products, and a float64 second opinion."""

    values: np.ndarray = array("pair", units=LAMBDA)            # (p,) Rayleigh quotients in the product's dtype
    residuals: np.ndarray = array("pair", units=LAMBDA)         # (p,) ||Hv - value v||: some eigenvalue is this near
    converged: np.ndarray = array("pair")                       # (p,) bool: residual <= tol |value|
    values64: np.ndarray = array("pair", units=LAMBDA)          # (p,) v' H v with H applied in float64; NaN if not asked for
    rounding: np.ndarray = array("pair", units=LAMBDA)         # (p,) ||(H64 - H) v||; near 0 for float64 products; NaN: not asked
    verified: np.ndarray = array("pair")                        # (p,) bool: the sign of value survives ten times |v'(H64 - H32)v|
    vectors: np.ndarray = array("pair", "parameter")            # (p, d) unit norm; (0, d) where they were not kept
    tol: float
    num_matvecs: int            # products spent, including those of the Krylov spaces it started from
    missed_below: Estimate      # lowest place where an undetected eigenvalue may still lie (Kuczynski and Wozniakowski 1992)
    which: str = "both"         # the ends asked for: both | lower | upper

    @property
    def radii(self) -> np.ndarray:
        """(p,) residual and rounding: this near to each value lies an eigenvalue of the Hessian in float64.

        ||H64 v - value v|| <= ||H v - value v|| + ||(H64 - H) v||; where float64 was not asked for, the residual alone.
        """
        return self.residuals + np.nan_to_num(self.rounding)


@dataclass(frozen=True, eq=False)
class Curvature:
    """Everything measured of one class group's Hessian at one checkpoint."""

    epoch: int
    group: str                  # all | head | tail | many | medium | few | class:3 ...; tail@test, tail@layer1
    num_samples: int            # n_g: images of the group that entered the Hessian
    num_available: int          # images of the group in the split; larger than num_samples where a subset was used
    loss: float                 # mean loss over the samples above
    accuracy: float             # over the same samples, in [0, 1]
    test_accuracy: float        # over the group's test images; NaN if it has none
    gradient_norm: float        # ||grad L_g||
    spectrum: Spectrum
    eigenpairs: EigenPairs
    trace: Estimate
    negative_mass: Estimate     # spectral weight below -threshold
    threshold: float            # absolute, in units of lambda
    extreme_ratio: Estimate     # |lambda_min| / |lambda_max|
    parameter_norms: dict[str, float]   # ||theta|| of each parameter: lambda scales as 1/||w||^2 before BatchNorm
    second_opinion: dict[str, float]    # other libraries' numbers, where asked for; else empty
    provenance: dict[str, Any]
    gradient_error: float = float("nan")    # ||grad L_g - its float64 twin||: rounding; NaN where it was not compared
    group_curvature: Estimate = NO_SAMPLE   # v'H_g v of all the group's images, v the lowest pair of a subset's H; >= lambda_min
    group_trace: Estimate = NO_SAMPLE       # tr H_g of all the group's images, from a subset; kind "data"


@dataclass(frozen=True, eq=False)
class Surface:
    """Loss and accuracy of every group on a line (B = 0) or plane through a checkpoint, from one sweep.

    A point has the parameters theta0 + alpha d1 + beta d2, theta0 those of the checkpoint. Predicted at alpha on a line:
    derivatives[0] + alpha derivatives[1] + alpha^2 / 2 derivatives[2] of a group and direction (analysis.findings.slices).
    Points are other checkpoints, by name ("epoch 10" of this run, "RUN epoch 10" of another): their least-squares
    coordinates, and how far off the line or plane they lie.
    """

    name: str
    epoch: int
    groups: tuple[str, ...]                                          # G names: all, head, tail, ..., then class:0 ...
    num_samples: np.ndarray = array("group")                         # (G,)
    alpha: np.ndarray = array("alpha")                               # (A,) true coordinates along the first direction
    beta: np.ndarray = array("beta")                                 # (B,) along the second; empty for a line
    loss: np.ndarray = array("group", "alpha", "beta", units="nats / sample")   # (G, A) or (G, A, B); NaN and inf as they came
    accuracy: np.ndarray = array("group", "alpha", "beta")           # same shape, in [0, 1]
    directions: np.ndarray = array("direction", "parameter")         # (1 or 2, d)
    direction_names: tuple[str, ...]                                 # e.g. "random filter", "tail lambda_min"
    direction_curvatures: np.ndarray = array("direction", units=LAMBDA)  # (1 or 2,) eigenvalue of an eigenvector; else NaN
    coordinate_units: str                                            # "filter norms" | "parameter units"
    directions_hash: str
    provenance: dict[str, Any]
    batchnorm: str = "fixed"                                         # the statistics at each point: fixed | recalibrated | batch
    precision: str = "float32"                                       # of the forward passes: float32 | float64 | bfloat16
    derivatives: np.ndarray = array("order", "group", "direction", units="nats / sample", absent=True)  # (3, G, 1 or 2)
    point_names: tuple[str, ...] = ()                                # (P,)
    point_coordinates: np.ndarray = array("point", "direction", absent=True)    # (P, 1 or 2) in coordinate_units
    point_distances: np.ndarray = array("point", absent=True)        # (P,) off the line or plane, in parameter units
    about: dict[str, Any] = field(default_factory=dict)              # distance, barrier, variance explained, rounding measured


@dataclass(frozen=True, eq=False)
class Measurement:
    """A tidy table of one mechanism at one checkpoint: a row a case, a column a word or number of it.

    RecordError where columns differ in length, share a name, or lack a unit.
    """

    name: str                            # what was measured: a name of analysis.measures.catalogue.MEASURES
    epoch: int                           # 0 where it is of no checkpoint
    labels: dict[str, tuple[str, ...]]   # column -> (n,) one word a row
    numbers: dict[str, np.ndarray]       # column -> (n,) float64, one number a row; NaN where there is none
    units: dict[str, str]                # of each column of numbers; "1" where it has none
    about: dict[str, Any]                # what a caption states: radii, images, null line, level and kind of intervals, seeds
    provenance: dict[str, Any]

    def __post_init__(self):
        for column, values in self.numbers.items():
            if not isinstance(values, np.ndarray) or values.dtype != np.float64 or values.ndim != 1:
                raise RecordError(f"Measurement.numbers[{column!r}] is out of range: expected float64 of shape (n,)")
        if shared := self.labels.keys() & self.numbers.keys():
            raise RecordError(f"Measurement: columns {', '.join(sorted(shared))} are both labels and numbers")
        sizes = {column: len(values) for column, values in {**self.labels, **self.numbers}.items()}
        if len(set(sizes.values())) > 1:
            raise RecordError(f"Measurement: columns have lengths {sizes}: expected one value a row in each")
        if self.units.keys() != self.numbers.keys():
            raise RecordError(f"Measurement.units names {', '.join(self.units) or 'nothing'}: expected a unit for each of "
                              f"{', '.join(self.numbers) or '(no numbers)'}")


RECORDS = {record.__name__: record
           for record in (Estimate, Checkpoint, Spectrum, EigenPairs, Curvature, Surface, Measurement)}
