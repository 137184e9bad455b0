"""Toy saddles: how many steps gradient descent and sharpness-aware ascents take to leave them, beside closed forms.

Two parameters (x, y), losses that are sums of h (theta - c)^2 / 2 over both, optionally q y^4 / 4, and one rule for all methods,
GroupSAM's: theta <- theta - lr sum over groups of grad L_g(theta + rho_g grad L_g(theta) / ||grad L_g(theta)||).

    single      f = (a x^2 - b y^2) / 2: gd, sam (rho normalized, as in use), sam_unnormalized (rho times the gradient, as in
                the theory), sgd and noisy_sam (a mini-batch's noise, the same in both gradients of a step)
    two_group   head h (x - c)^2 / 2, tail -b y^2 / 2, the head's gradient far the larger: gd, sam, imbsam, ssesam, and noisy

Escape: the first step with |y| >= radius. Without noise and quartic term, from u = |y| on the axis that an ascent climbs alone,

    gd                  u <- (1 + lr b) u
    sam_unnormalized    y <- (1 + lr b (1 - rho b)) y: frozen at rho b = 1, attracted beyond, out again at lr b (rho b - 1) > 2
    normalized          u - rho <- (1 + lr b) (u - rho): left only from u > rho, attracted from u < rho

(worked out from Rangwani et al. 2022, Theorem 1; that SAM is drawn to saddles: arXiv 2301.08203, and Kim et al. 2023, Stability
Analysis of Sharpness-Aware Minimization). NumPy in float64.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from math import ceil, inf, log, nan

import numpy as np

from analysis.measures.table import LEVEL, Table, table
from analysis.spectra.intervals import t_half_width

RHOS = (0.0, 0.01, 0.02, 0.03, 0.04, 0.045, 0.05, 0.06, 0.08, 0.1, 0.15, 0.2, 0.3)     # the two ends of attraction are among them


@dataclass(frozen=True)
class Loss:
    """sum_i h_i (theta_i - c_i)^2 / 2 + quartic y^4 / 4 over theta = (x, y)."""

    curvature: tuple[float, float]
    center: tuple[float, float] = (0.0, 0.0)
    quartic: float = 0.0

    def gradient(self, theta: np.ndarray) -> np.ndarray:
        """Return the gradient (..., 2) at some points."""
        return np.array(self.curvature) * (theta - np.array(self.center)) + self.quartic * theta ** 3 * [0.0, 1.0]


@dataclass(frozen=True)
class Method:
    """Which groups of losses climb together, and which of these ascents has a radius."""

    ascents: tuple[tuple[tuple[int, ...], bool], ...]   # (places of losses, whether it moves)
    normalized: bool = True
    noisy: bool = False


@dataclass(frozen=True)
class Setting:
    """Where the toys start, when they have escaped, and how they step."""

    a: float = 10.0             # curvature of the stable direction of the single saddle
    b: float = 10.0             # minus the curvature of the unstable one
    head_curvature: float = 0.1
    head_center: float = 100.0  # so that the head's slope is 10 at x = 0, the tail's b start
    start: float = 0.05         # |y| at the first step, x = 0
    radius: float = 1.0         # |y| that has escaped
    lr: float = 0.01
    noise: float = 0.5          # standard deviation of each group's gradient, in each coordinate
    max_steps: int = 500
    quartic: float = 0.0        # q of + q y^4 / 4 in the saddle's loss

    @property
    def toys(self) -> dict[str, tuple[Loss, ...]]:
        """The losses of each toy: one, or head and tail."""
        return {"single": (Loss((self.a, -self.b), quartic=self.quartic),),
                "two_group": (Loss((self.head_curvature, 0.0), (self.head_center, 0.0)),
                              Loss((0.0, -self.b), quartic=self.quartic))}


_ONE, _BOTH, _HEAD, _TAIL = (0,), (0, 1), (0,), (1,)
METHODS = {
    "single": {"gd": Method(((_ONE, False),)), "sam": Method(((_ONE, True),)),
               "sam_unnormalized": Method(((_ONE, True),), normalized=False), "sgd": Method(((_ONE, False),), noisy=True),
               "noisy_sam": Method(((_ONE, True),), noisy=True)},
    "two_group": {"gd": Method(((_BOTH, False),)), "sam": Method(((_BOTH, True),)),
                  "imbsam": Method(((_HEAD, False), (_TAIL, True))), "ssesam": Method(((_HEAD, True), (_TAIL, True))),
                  "sgd": Method(((_BOTH, False),), noisy=True), "noisy_sam": Method(((_BOTH, True),), noisy=True),
                  "noisy_imbsam": Method(((_HEAD, False), (_TAIL, True)), noisy=True),
                  "noisy_ssesam": Method(((_HEAD, True), (_TAIL, True)), noisy=True)}}


def toy(case) -> Table:
    """Return escape steps of every method of both toys against rho; `batches` draws of noise, infinite where one stays."""
    return escape_table(Setting(), draws=case.settings.batches, seed=case.settings.seed)


def escape_table(setting: Setting, *, rhos: Sequence[float] = RHOS, draws: int = 10, seed: int = 0) -> Table:
    """Return a row for each toy, method and rho: steps simulated, their t interval over draws, the closed form."""
    rows = []
    for name, losses in setting.toys.items():
        for word, method in METHODS[name].items():
            steps = escape_steps(losses, method, rhos, setting, draws=draws if method.noisy else 1, seed=seed)
            rows += [{"toy": name, "method": word, "rho": rho, **_summary(found),
                      "closed_form": closed_form(method, rho, setting)} for rho, found in zip(rhos, steps)]
    about = {name: value for name, value in vars(setting).items() if value} | {
        "draws": draws, "seed": seed, "level": LEVEL, "kind": "draws", "interval": "draws of noise",
        "head_slope": setting.head_curvature * setting.head_center, "tail_slope": setting.b * setting.start,
        "infinite": "not every draw escaped within max_steps"}
    return table(rows, {name: "steps" for name in ("value", "low", "high", "closed_form")} | {"rho": "parameter units"}, about)


def trajectory(losses: Sequence[Loss], method: Method, rhos: Sequence[float], setting: Setting, *, draws: int = 1,
               seed: int = 0) -> Iterator[np.ndarray]:
    """Yield the points (R, draws, 2) after 0, 1, 2, ... steps, R radii at once; un-normalized, rho multiplies the gradient.

    One mini-batch a step: each group's noise is the same at theta and at theta + eps, and for every radius.
    """
    rho, generator = np.reshape(rhos, (-1, 1, 1)), np.random.default_rng(seed)
    theta = np.tile([0.0, setting.start], (len(rho), draws, 1))
    yield theta
    while True:
        noise = setting.noise * method.noisy * generator.standard_normal((len(losses), draws, 2))
        theta = theta - setting.lr * sum(_ascended(losses, noise, theta, places, rho * moves, method.normalized)
                                         for places, moves in method.ascents)
        yield theta


def escape_steps(losses: Sequence[Loss], method: Method, rhos: Sequence[float], setting: Setting, *, draws: int = 1,
                 seed: int = 0) -> np.ndarray:
    """Return the first step (R, draws) at which |y| >= radius; infinity where max_steps do not suffice."""
    found = np.full((len(rhos), draws), inf)
    for step, theta in zip(range(setting.max_steps + 1), trajectory(losses, method, rhos, setting, draws=draws, seed=seed)):
        found[np.isinf(found) & (np.abs(theta[..., 1]) >= setting.radius)] = step
        if np.isfinite(found).all():
            break
    return found


def closed_form(method: Method, rho: float, setting: Setting) -> float:
    """Return the escape steps where they are known exactly, infinity for never; NaN where they are not known."""
    if method.noisy or setting.quartic:
        return nan
    growth, moving = setting.lr * setting.b, [places for places, moves in method.ascents if moves and rho > 0]
    if not moving:
        return geometric_steps(1 + growth, setting.start, setting.radius)
    if not method.normalized:
        return geometric_steps(1 + growth * (1 - rho * setting.b), setting.start, setting.radius)
    if _BOTH in moving:
        return nan      # the head's slope decides how much of the ascent is the tail's
    if setting.start > rho:
        return geometric_steps(1 + growth, setting.start - rho, setting.radius - rho)
    # Below rho an iterate is carried over the saddle by less than growth rho, and stays below.
    return inf if growth < 1 and growth * rho < setting.radius else nan


def geometric_steps(factor: float, start: float, radius: float) -> float:
    """Return the first t with |factor|^t start >= radius, infinity where there is none.

    >>> geometric_steps(2.0, 1.0, 8.0), geometric_steps(-0.5, 1.0, 8.0)
    (3, inf)
    """
    factor = abs(factor)
    if start >= radius:
        return 0
    if factor <= 1:
        return inf
    return ceil(log(radius / start) / log(factor) - 1e-9)   # where a power meets the radius, its logarithms may just miss it


def _ascended(losses: Sequence[Loss], noise: np.ndarray, theta: np.ndarray, places: tuple[int, ...], rho: np.ndarray,
              normalized: bool) -> np.ndarray:
    """Return the gradient (R, draws, 2) of the sum of some losses at the end of their ascent."""
    def slope(where: np.ndarray) -> np.ndarray:
        return sum(losses[place].gradient(where) + noise[place] for place in places)
    climbed = slope(theta)
    length = np.linalg.norm(climbed, axis=-1, keepdims=True) if normalized else np.ones(1)
    return slope(theta + rho * np.divide(climbed, length, out=np.zeros_like(climbed), where=length > 0))


def _summary(steps: np.ndarray) -> dict[str, float]:
    """Return mean and t interval of the steps of draws (n,); infinite, without interval, where one did not escape."""
    escaped = np.isfinite(steps)
    half = float(t_half_width(steps, LEVEL)) if escaped.all() else nan
    mean = float(steps.mean())
    return {"value": mean, "low": mean - half if escaped.all() else nan, "high": mean + half if escaped.all() else nan,
            "escaped": float(escaped.mean())}
