"""Feature quality: how far class means lie apart, and how widely each class spreads, in what the classifier layer is given.

With features a_i (F,) of class c, their mean mu_c and n_c images,

    Dis_c = min over c' != c of ||mu_c - mu_c'||,   Var_c = mean over i of ||a_i - mu_c||^2
    quality    Q_c = Dis_c - 0.5 log Var_c      (GKP-GSA, Chen et al. 2026, equations 17 to 19, beta = 0.5)
    released   Q_c = -1 / Dis_c - log Var_c     (their code, which measures it on the test images)

A group's Q is the mean over its classes. Here images are those of training, or held out from it, never the test images, on
which nothing may be chosen. Q is no invariant: features that are all scaled by s move it, so compare runs of one
architecture. Undefined, and NaN: Var_c of a class of one image (every spread about one point is zero), Dis_c where no other
class has an image. As the formula has it, Q_c is infinite where all images of a class have the same features.

Intervals are of the images drawn: the delete-one jackknife of each class (Efron and Stein 1981), with Student's t at
Satterthwaite's degrees of freedom. A bootstrap would not do for a tail class of six images: its log Var is biased by
log(1 - 1/n), and its interval may not hold the value.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from scipy.stats import t as student_t
from torch import Tensor, nn

from analysis.measures.table import LEVEL, Table, table
from analysis.operators.kernels import reproducible_kernels
from landscape.batchnorm import evaluation_mode
from landscape.errors import InputError
from landscape.models.features import features_and_logits

BETA = 0.5      # of log Var in equation 17
MEASURES: dict[str, Callable[[np.ndarray, np.ndarray], np.ndarray]] = {     # of Dis and Var
    "quality": lambda distance, variance: distance - BETA * np.log(variance),
    "released": lambda distance, variance: -1 / distance - np.log(variance),
}


@dataclass(frozen=True)
class Quality:
    """One measure of one group's features."""

    group: str
    measure: str        # a name of MEASURES
    value: float        # the mean over the group's classes for which it is defined; NaN where there is none
    low: float          # of the jackknife's interval; NaN where a class of the group has fewer than three images
    high: float
    distance: float     # mean Dis over those classes, in units of the features
    variance: float     # mean Var over those classes, in squared units of the features
    images: int         # of all classes of the group
    classes: int        # for which the measure is defined
    undefined: tuple[int, ...]  # the other classes of the group


def quality(case) -> Table:
    """Return both measures of every group and class of a `Case`, on its training images; one row a group and measure."""
    subject, settings = case.subject, case.settings
    if settings.split != "train":
        raise InputError(f"split={settings.split!r} is out of range for quality: nothing may be chosen on the test images; "
                         "expected train")
    features, labels = classifier_features(subject.cast(settings.dtype), _all_images(case))
    case.progress(len(labels) // 3)
    subject.cast("float32")
    groups = {name: subject.groups.select(name) for name in settings.groups}
    found = feature_quality(features, labels, groups | {f"class:{c}": (c,) for c in range(len(subject.groups.counts))})
    if not any(q.classes for q in found):
        raise InputError(f"max_samples={settings.max_samples} is out of range for quality: of {len(labels)} images no class has "
                         "two, which a variance needs; use more")
    undefined = {q.group: list(q.undefined) for q in found if q.undefined}
    rows = [{name: value for name, value in vars(q).items() if name != "undefined"} for q in found]
    units = {"distance": "feature units", "variance": "feature units^2"}
    about = {"features": features.shape[1], "images": len(labels), "beta": BETA, "level": LEVEL, "mode": "evaluation",
             "interval": "images (jackknife)", "undefined": undefined, "split": settings.split}
    return table(rows, units, about)


def work(case) -> int:
    """Return about how many image gradients `quality` takes: a forward is a third of one."""
    return sum(case.num_images(half)[0] for half in _halves(case)) // 3


def _all_images(case) -> list[tuple[Tensor, Tensor]]:
    """Return the images of head and tail: with `max_samples`, so many of each, so that the tail is not lost in a subset."""
    return [batch for half in _halves(case) for batch in case.images(half)[0]]


def _halves(case) -> list[str]:
    return [half for half in ("head", "tail") if case.subject.groups.classes[half]]


def classifier_features(model: nn.Module, batches: Sequence[tuple[Tensor, Tensor]]) -> tuple[np.ndarray, np.ndarray]:
    """Return what the classifier layer is given, (N, F) float64, and the labels (N,), in evaluation mode.

    Raises InputError where there are no features: `feature_quality` takes them from anywhere.
    """
    with evaluation_mode(model), torch.no_grad(), reproducible_kernels():
        try:
            features = [features_and_logits(model, images)[0].double() for images, _ in batches]
        except InputError as reason:
            raise InputError(f"{reason}, or pass features of your own to analysis.measures.features.feature_quality") from reason
    labels = torch.cat([labels for _, labels in batches])
    return torch.cat(features).cpu().numpy(), labels.cpu().numpy()


def feature_quality(features: np.ndarray, labels: np.ndarray, groups: Mapping[str, Sequence[int]], *,
                    level: float = LEVEL) -> list[Quality]:
    """Return both measures of every group, a set of classes, from features (N, F) and labels (N,)."""
    statistics = _Statistics.of(np.asarray(features, float), np.asarray(labels))
    return [_of_group(statistics, name, np.array(sorted(members), int), measure, level)
            for name, members in groups.items() for measure in MEASURES]


@dataclass(frozen=True, eq=False)
class _Statistics:
    """Of every class (C,), and with each image left out in turn."""

    counts: np.ndarray                      # (C,)
    distances: np.ndarray                   # (C,) Dis
    variances: np.ndarray                   # (C,) Var; NaN for fewer than two images
    without: dict[int, tuple[np.ndarray, np.ndarray]]   # class -> Dis and Var (n_c, C) of all classes without image i of it

    @classmethod
    def of(cls, features: np.ndarray, labels: np.ndarray) -> "_Statistics":
        if features.ndim != 2 or labels.shape != features.shape[:1] or not len(labels):
            raise InputError(f"features of shape {features.shape} and labels of shape {labels.shape} do not fit: expected "
                             "(N, F) and (N,), N >= 1")
        members = [features[labels == c] for c in range(int(labels.max()) + 1)]
        counts = np.array([len(rows) for rows in members])
        means = np.stack([rows.mean(0) if len(rows) else np.full(features.shape[1], np.nan) for rows in members])
        squares = [((rows - mean) ** 2).sum(1) for rows, mean in zip(members, means)]
        variances = np.array([_variance(s.sum(), len(s)) for s in squares])
        between = _between(means)
        without = {c: _leaving_out(c, members[c], means, squares[c], between, variances)
                   for c in range(len(members)) if counts[c] > 1}
        return cls(counts, _nearest(between), variances, without)


def _leaving_out(c: int, rows: np.ndarray, means: np.ndarray, squares: np.ndarray, between: np.ndarray,
                 variances: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return Dis and Var (n, C) of all classes with each image of class c left out in turn, in closed form.

    mu' = mu - (a_i - mu) / (n - 1);  n' Var' = n Var - n / (n - 1) ||a_i - mu||^2.
    """
    n = len(rows)
    moved = means[c] - (rows - means[c]) / (n - 1)                                  # (n, F)
    reach = np.stack([np.linalg.norm(moved - mean, axis=1) for mean in means], 1)   # (n, C) from the mean without image i
    reach[:, c] = np.nan
    others = between.copy()
    others[:, c] = np.nan
    distances = np.fmin(_nearest(others), reach)
    distances[:, c] = _nearest(reach)
    changed = np.tile(variances, (n, 1))
    changed[:, c] = [_variance(max(squares.sum() - n / (n - 1) * own, 0.0), n - 1) for own in squares]
    return distances, changed


def _between(means: np.ndarray) -> np.ndarray:
    """Return distances of means (C, F) from each other (C, C), NaN on the diagonal and for absent classes."""
    distances = np.stack([np.linalg.norm(means - mean, axis=1) for mean in means])
    np.fill_diagonal(distances, np.nan)
    return distances


def _nearest(distances: np.ndarray) -> np.ndarray:
    """Return the smallest entry of each row that is a number; NaN where there is none."""
    return np.fmin.reduce(distances, axis=1)


def _variance(total: float, count: int) -> float:
    return total / count if count > 1 else np.nan


def _of_group(statistics: _Statistics, name: str, members: np.ndarray, measure: str, level: float) -> Quality:
    members = members[members < len(statistics.counts)]
    values = _values(measure, statistics.distances, statistics.variances)
    chosen = members[~np.isnan(values[members])]
    mean = _mean(values[chosen])
    half = _half_width(statistics, chosen, measure, level) if len(chosen) and np.isfinite(mean) else np.nan
    return Quality(name, measure, mean, mean - half, mean + half, _mean(statistics.distances[chosen]),
                   _mean(statistics.variances[chosen]), int(statistics.counts[members].sum()), len(chosen),
                   tuple(int(c) for c in np.setdiff1d(members, chosen)))


def _half_width(statistics: _Statistics, chosen: np.ndarray, measure: str, level: float) -> float:
    """Return the jackknife's half width for the mean over some classes: images of every class move their nearest neighbours.

    A class of one image stands still: how far its mean would move, nothing tells.
    """
    parts, freedoms = [], []
    for distances, variances in statistics.without.values():
        means = _values(measure, distances[:, chosen], variances[:, chosen]).mean(1)    # (n,) without each image
        n = len(means)
        parts.append((n - 1) / n * ((means - means.mean()) ** 2).sum())
        freedoms.append(n - 1)
    parts, freedoms = np.array(parts), np.array(freedoms)
    total = parts.sum()
    if not np.isfinite(total) or total == 0:
        return float(total)
    return float(student_t.ppf(0.5 + level / 2, total ** 2 / (parts ** 2 / freedoms).sum()) * np.sqrt(total))


def _values(measure: str, distances: np.ndarray, variances: np.ndarray) -> np.ndarray:
    with np.errstate(divide="ignore", invalid="ignore"):    # log 0 and 1 / 0 are what the formula says
        return MEASURES[measure](distances, variances)


def _mean(values: np.ndarray) -> float:
    return float(values.mean()) if len(values) else float("nan")
