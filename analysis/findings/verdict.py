"""What kind of point a class group's loss is at, in words, with the numbers that say so and no more than they allow.

    strict saddle                 |g| <= eps_g and lambda_min <= -eps_H, the latter by a float64 product
    slope that bends down         lambda_min <= -eps_H by a float64 product, and |g| > eps_g
    no negative curvature found   the search reaches down to a resolution R <= eps_H: nothing lies below -R but with probability p
    undecided                     whatever else, with the reasons

The norm of the gradient is compared beyond its rounding, the distance of the gradient from the one in float64.

v'Hv <= -eps_H for a unit vector v proves lambda_min <= -eps_H, whether or not v has converged. That nothing negative is there is
never proved: R and p are the bound of Kuczynski and Wozniakowski (1992) on what Lanczos misses, `EigenPairs.missed_below`. Such
a point is not called a minimum: R is not zero, p is not zero, and a flat direction decides nothing.

Both tolerances belong together. A point with |g| <= eps and lambda_min >= -sqrt(rho_H eps) is a second-order stationary point
(Nesterov and Polyak 2006; Jin et al. 2017), rho_H the Lipschitz constant of the Hessian. So eps_g = eps_H^2 / rho_H. A network
whose loss is the same at c theta for every c > 0, as before BatchNorm, has H(c theta) = H(theta) / c^2, hence
|dH[theta]| = 2 |H| and rho_H >= 2 max|lambda| / |theta|. By default, with max|lambda| over the pairs that were found,

    eps_H = 0.01 max|lambda|        eps_g = eps_H^2 |theta| / (2 max|lambda|)

so that scaling the loss, or all parameters, changes no verdict; one tolerance that is given sets the other by the same rho_H.
Where the loss is of another kind, rho_H is a convention: both tolerances are stated with every verdict, and both may be given.
NumPy alone: verdicts are read off stored records.
"""

from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any

import numpy as np

from checkpoints.exactness import inexact, supported
from checkpoints.records import Curvature, EigenPairs, Estimate
from landscape.errors import InputError

RELATIVE = 0.01     # eps_H / max|lambda|
SETTLED = 0.1       # a pair whose residual is below this times eps_H need not have converged relative to itself
SADDLE, SLOPE, NONE_FOUND, UNDECIDED = "strict saddle", "slope that bends down", "no negative curvature found", "undecided"
KINDS = (SADDLE, SLOPE, NONE_FOUND, UNDECIDED)


@dataclass(frozen=True, eq=False)
class Verdict:
    """What one curvature record says of the point it was measured at, and the numbers behind it."""

    epoch: int
    group: str
    kind: str                       # one of KINDS
    because: str                    # the comparison or the reason that decided it, in words
    scope: str                      # of which loss it speaks, in words: never of more images or parameters than were used
    notes: tuple[str, ...]          # what else a reader must know: weight decay, a subset, the test split
    eps_g: float                    # nats / parameter
    eps_H: float                    # nats / parameter^2
    gradient_norm: float
    lambda_min: float               # v'Hv, by the float64 product where its sign is verified; NaN: none
    lambda_max: float
    verified_min: bool              # the sign of lambda_min is that of the float64 product, beyond rounding
    verified_max: bool
    resolution: float               # R: no eigenvalue below -R but with miss_probability; inf where nothing bounds it
    miss_probability: float
    extreme_ratio: Estimate
    negative_mass: Estimate
    threshold: float                # of the negative mass
    layer_norms: dict[str, float]   # ||theta|| of each layer

    @property
    def bends_down(self) -> bool:
        """Whether curvature beyond -eps_H is proved, gradient or not."""
        return self.kind in (SADDLE, SLOPE)

    @property
    def sentence(self) -> str:
        """The verdict as one sentence."""
        notes = "".join(f"; {note}" for note in self.notes)
        return f"{self.kind}{self._place}: {self.because}{f'; {self.scope}' if self.scope else ''}{notes}"

    @property
    def _place(self) -> str:
        if self.kind == SADDLE:
            return f" at (eps_g {self.eps_g:.3g}, eps_H {self.eps_H:.3g})"
        if self.kind == NONE_FOUND:
            return f" above resolution {self.resolution:.3g}, with probability {self.miss_probability:.2g} of having missed it"
        return ""

    @property
    def document(self) -> dict[str, Any]:
        """The same as plain values, as JSON can hold them."""
        return {"verdict": self.kind, "because": self.because, "scope": self.scope, "notes": list(self.notes),
                "sentence": self.sentence, "eps_g": self.eps_g, "eps_H": self.eps_H, "gradient_norm": self.gradient_norm,
                "lambda_min": self.lambda_min, "lambda_min_verified": self.verified_min, "lambda_max": self.lambda_max,
                "lambda_max_verified": self.verified_max, "resolution": self.resolution,
                "miss_probability": self.miss_probability, "layer_norms": self.layer_norms}


def judge(record: Curvature, *, eps_g: float | None = None, eps_H: float | None = None,
          weight_decay: float | None = None) -> Verdict:
    """Return the verdict on a stored curvature.

    eps_g, eps_H    tolerances, in nats / parameter and nats / parameter^2, >= 0; default: those of the module's text
    weight_decay    of the training: no part of the record's loss, but of what was minimised; None: not known
    """
    record = supported(record)
    eps_g, eps_H = tolerances(record, eps_g, eps_H)
    pairs, lowest = record.eigenpairs, _lowest(record.eigenpairs, eps_H)
    resolution = _resolution(pairs)
    kind, because = _decided(record, lowest, resolution, eps_g, eps_H)
    value, sure = _value(pairs, lowest)
    top, top_sure = _value(pairs, len(pairs.values) - 1)
    return Verdict(record.epoch, record.group, kind, because, scope_of(record), _notes(record, kind, value, eps_H, weight_decay),
                   eps_g, eps_H, record.gradient_norm, value, top, sure, top_sure, resolution,
                   1 - pairs.missed_below.level, record.extreme_ratio, record.negative_mass, record.threshold,
                   layer_norms(record.parameter_norms))


def tolerances(record: Curvature, eps_g: float | None = None, eps_H: float | None = None) -> tuple[float, float]:
    """Return (eps_g, eps_H) as given, completed as the module's text says; NaN where no eigenvalue was found to go by."""
    for name, value in (("eps_g", eps_g), ("eps_H", eps_H)):
        if value is not None and not (np.isfinite(value) and value >= 0):
            raise InputError(f"{name}={value} is out of range: expected a finite number >= 0")
    values, norm = record.eigenpairs.values, theta_norm(record)
    scale = float(np.abs(values).max()) if values.size else np.nan
    if eps_H is None:
        eps_H = RELATIVE * scale if eps_g is None or norm == 0 else float(np.sqrt(2 * scale * eps_g / norm))
    if eps_g is None:
        eps_g = eps_H * (eps_H / scale) * norm / 2 if scale != 0 else 0.0
    return float(eps_g), float(eps_H)


def theta_norm(record: Curvature) -> float:
    """Return ||theta|| of the parameters that the record's Hessian is over."""
    patterns = _settings(record).get("params") or ("*",)
    chosen = [norm for name, norm in record.parameter_norms.items() if any(fnmatchcase(name, p) for p in patterns)]
    return float(np.linalg.norm(chosen or list(record.parameter_norms.values()) or [0.0]))


def layer_norms(norms: dict[str, float]) -> dict[str, float]:
    """Return ||theta|| of each layer: weight and bias of "layer1.0.conv1" taken together.

    >>> layer_norms({"fc.weight": 3.0, "fc.bias": 4.0, "scale": 2.0})
    {'fc': 5.0, 'scale': 2.0}
    """
    squares: dict[str, float] = {}
    for name, norm in norms.items():
        layer = name.rpartition(".")[0] or name
        squares[layer] = squares.get(layer, 0.0) + norm ** 2
    return {layer: float(np.sqrt(total)) for layer, total in squares.items()}


def scope_of(record: Curvature) -> str:
    """Return, in words, what the record leaves out of its group; nothing where it is of all its training images and parameters.

    The loss is the record's, cross-entropy unless asked otherwise, in evaluation mode over un-augmented images: what was
    minimised may be another.
    """
    settings, parts = _settings(record), []
    if settings.get("loss", "CE") != "CE":
        parts.append("of the training loss, not of the cross-entropy")
    if record.num_samples < record.num_available:
        parts.append(f"a subset, {record.num_samples} of {record.num_available} images: of the whole group's loss it decides "
                     f"nothing{_but(record.group_curvature)}")
    if settings.get("split") == "test":
        parts.append("of the test images' loss")
    if settings.get("params"):
        parts.append(f"in the parameters {' '.join(settings['params'])} alone")
    return "; ".join(parts)


def _but(whole: Estimate) -> str:
    """Return what images outside the subset show of the whole group, where that is negative curvature."""
    return f" but lambda_min <= {whole.high:.3g} ({100 * whole.level:g} %, by images not used)" if whole.high < 0 else ""


def _decided(record: Curvature, lowest: int | None, resolution: float, eps_g: float, eps_H: float) -> tuple[str, str]:
    if reason := _unfit(record, lowest):
        return UNDECIDED, reason
    value, verified = _value(record.eigenpairs, lowest)
    slope = record.gradient_norm > eps_g
    gradient = f"|gradient| {record.gradient_norm:.3g} {'>' if slope else '<='} eps_g {eps_g:.3g}"
    if verified and value < 0 and value <= -eps_H:
        depth = f"lambda_min <= {value:.4g} <= -eps_H {-eps_H:.3g}, verified in float64"
        if abs(record.gradient_norm - eps_g) <= record.gradient_error:     # False where it was not compared
            return UNDECIDED, (f"{depth}; {SADDLE} or {SLOPE}: |gradient| {record.gradient_norm:.6g} is within its rounding, "
                               f"{record.gradient_error:.2g}, of eps_g {eps_g:.6g}")
        return (SLOPE if slope else SADDLE), f"{gradient}, {depth}"
    if reason := _unsure(record.eigenpairs, lowest, resolution, eps_H):
        return UNDECIDED, reason
    found = f"the lowest found is {value:.4g}"
    return NONE_FOUND, f"{found}, and {gradient}" + (": not a critical point" if slope else "")


def _unfit(record: Curvature, lowest: int | None) -> str:
    """Return why the record can decide nothing at all, whatever its numbers."""
    if inexact(record):
        return f"products were {inexact(record)}"
    if _settings(record).get("operator", "hessian") != "hessian":
        return f"the {_settings(record)['operator'].replace('_', '-')} matrix has no negative curvature to find"
    if lowest is None:
        return "no eigenpairs were computed"
    if not np.isfinite(record.gradient_norm):
        return f"the gradient norm is {record.gradient_norm}"
    if not np.isfinite(record.eigenpairs.values).all():
        return "an eigenvalue is not finite"
    if _settings(record).get("dtype") == "float32" and not record.eigenpairs.values.any():
        return "every product is 0 in float32, as where the loss is less than it holds: --dtype float64 tells more"
    return ""


def _unsure(pairs: EigenPairs, lowest: int, resolution: float, eps_H: float) -> str:
    """Return why the absence of curvature beyond -eps_H is not even probable by this record; nothing where it is."""
    value, residual = float(pairs.values[lowest]), float(pairs.residuals[lowest])
    if value < 0 and value <= -eps_H:
        return f"lambda_min {value:.4g} is beyond -eps_H {-eps_H:.3g}, but its sign is not verified in float64"
    if not (pairs.converged[lowest] or residual <= SETTLED * eps_H):
        return f"the lowest pair, {value:.4g}, has not converged (residual {residual:.2g})"
    if not np.isfinite(resolution):
        return "so few Lanczos steps bound nothing that was missed"
    if resolution > eps_H:
        return (f"none found beyond -eps_H {-eps_H:.3g}, but down to {-resolution:.3g} one may have been missed with probability "
                f"{1 - pairs.missed_below.level:.2g}: take more Lanczos steps or probes, or a larger eps_H")
    return ""


def _notes(record: Curvature, kind: str, value: float, eps_H: float, weight_decay: float | None) -> tuple[str, ...]:
    notes = []
    if kind == NONE_FOUND and value < 0:
        notes.append("what was found below zero is shallower than eps_H")
    if weight_decay:
        text = f"weight decay {weight_decay:g}, no part of this loss, lifts every eigenvalue by as much"
        if kind in (SADDLE, SLOPE) and value + weight_decay > -eps_H:
            text += f": lambda_min to {value + weight_decay:.3g}, shallower than eps_H"
        notes.append(text)
    return tuple(notes)


def _lowest(pairs: EigenPairs, eps_H: float) -> int | None:
    """Return the place of the deepest pair that proves curvature beyond -eps_H, else of the lowest; None without pairs."""
    if not pairs.values.size:
        return None
    proof = np.where(pairs.verified & (pairs.values64 < 0) & (pairs.values64 <= -eps_H), pairs.values64, np.inf)
    return int(np.argmin(proof if np.isfinite(proof).any() else pairs.values))


def _value(pairs: EigenPairs, place: int | None) -> tuple[float, bool]:
    """Return v'Hv of one pair, the float64 one where it is verified, and whether it is."""
    if place is None or place < 0:
        return np.nan, False
    sure = bool(pairs.verified[place]) and bool(np.isfinite(pairs.values64[place]))
    return float((pairs.values64 if sure else pairs.values)[place]), sure


def _resolution(pairs: EigenPairs) -> float:
    low = pairs.missed_below.low
    return float(max(0.0, -low)) if np.isfinite(low) else np.inf


def _settings(record: Curvature) -> dict[str, Any]:
    return record.provenance.get("inputs", {}).get("settings", {})
