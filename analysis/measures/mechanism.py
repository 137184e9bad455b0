"""The mechanism, measured at a checkpoint: what ascents have to do with the most negative curvature of each group.

    alignment       of SAM's, ImbSAM's and SSE-SAM's perturbations with the most negative eigenvectors of head and tail
    amplification   of the gradient along them, against its prediction
    ablation        of a group's direction of ascent: in full, along the global gradient, with that removed

Formulas: analysis/measures/perturbations.py. Gradients and eigenvectors are of one loss in one mode: the spectrum's loss,
evaluation mode, the spectrum's own images for its group. What optimizers climb is that loss over all head and tail images
(subsets with `max_samples`, each weighted by the images its group has). Mini-batches are a series apart: training loss,
training mode. The ascents are those of `perturbations.ASCENTS` at every checkpoint, whichever optimizer trained it: a run by
Focal-SAM, CC-SAM or GKP-GSA is seen along SAM's, never along its own, and the table of methods has SAM's and ImbSAM's alone.
"""

from typing import Any

import numpy as np
import torch
from torch import Tensor

from analysis.measures import perturbations
from analysis.measures.perturbations import ASCENTS, PROBE, alignments, as_gradient, components, radii
from analysis.measures.similarity import mean_gradient
from analysis.measures.table import LEVEL, Table, table
from analysis.operators.kernels import Rewritten, reproducible_kernels
from analysis.spectra.intervals import t_half_width
from checkpoints.records import LAMBDA, Curvature
from landscape.batchnorm import evaluation_mode
from landscape.errors import InputError
from landscape.optimizers.ascent import displaced
from landscape.parameters import theta

# In image gradients: forwards and backwards of SAM, ImbSAM and SSE-SAM on one image, a forward being a third of a gradient.
STEPS, DOUBLE = 8, 3
NEARBY = 1e-8       # share of rho at which the law is measured too: a network with kinks is smooth between them, and no farther


def alignment(case) -> Table:
    """Return |<v, eps>| / ||eps|| of every ascent with the lowest eigenvectors of every group, for all images and in batches.

    Ascents are SAM's, ImbSAM's and SSE-SAM's, whichever optimizer trained the run.
    """
    slopes, rows, batches = _Slopes(case), [], []
    for group in case.settings.groups:
        for name, ascent in ASCENTS.items():
            rows += _aligned(case, group, name, slopes.climbed(ascent.climbs, case.spectrum_settings(group).loss), 0)
    subject, settings = case.subject, case.settings
    ascents = perturbations.minibatch_ascents(
        subject.config, subject.data.to(subject.device), subject.cast(subject.config.dtype), epoch=case.epoch,
        number=settings.batches, seed=settings.seed, rho=settings.rho)
    absent = dict.fromkeys(ASCENTS, 0)
    for draw, moves in enumerate(ascents, 1):
        for name, move in moves.items():
            absent[name] += not bool(move.any())
            for group in settings.groups:
                batches += _aligned(case, group, name, move, draw)
        case.progress(STEPS * subject.config.batch_size)
    about = _about(case, slopes, null=perturbations.null_alignment(slopes.size), batches=settings.batches,
                   batch_size=subject.config.batch_size, draws_without_an_image={name: n for name, n in absent.items() if n},
                   level=LEVEL, kind="draws", interval="mini-batches")
    return table(_with_intervals(rows + batches), {"eigenvalue": LAMBDA}, about)


def alignment_work(case) -> int:
    """Return the image gradients that `alignment` takes."""
    return _climbed_images(case) + STEPS * case.settings.batches * case.subject.config.batch_size


def amplification(case) -> Table:
    """Return how every ascent changes a group's gradient along its lowest eigenvectors, measured and predicted."""
    slopes, length, rows = _Slopes(case), radii(case.subject.config, case.settings.rho), []
    for group in case.settings.groups:
        values, vectors, facts = _lowest(case, group)
        loss, norm = case.spectrum_settings(group).loss, float(slopes.of(group).norm())
        exact = components(vectors, slopes.of(group, "float64"))
        for name, ascent in ASCENTS.items():
            climbed = slopes.climbed(ascent.climbs, loss)
            if not climbed.any():
                continue
            moved, eps = slopes.moved(group, ascent.climbs, length[name])
            found = perturbations.amplification(vectors, values, slopes.of(group), moved, eps)
            nearby, _ = slopes.moved(group, ascent.climbs, length[name] * NEARBY, "float64")
            found["tangent"] = 1 + (components(vectors, nearby) / exact - 1) / NEARBY
            sure = perturbations.reliable(found["component"], exact, norm, getattr(torch, case.settings.dtype))
            with np.errstate(divide="ignore"):
                bound = facts["residual"] * length[name] / np.abs(found["component"])
            rows += [{"group": group, "perturbation": name, "pair": pair, "eigenvalue": values[pair],
                      "region": _region(ascent.climbs == group, values[pair], length[name] / float(climbed.norm())),
                      **{key: column[pair] for key, column in found.items()},
                      "effective_rho": length[name] / float(climbed.norm()), "reliable": float(sure[pair]),
                      "predicted_error": bound[pair], "verified": facts["verified"][pair]} for pair in range(len(values))]
    units = {"eigenvalue": LAMBDA, "component": "nats / parameter", "effective_rho": "parameter^2 / nats"}
    return table(rows, units, _about(case, slopes, roundings=perturbations.ROUNDINGS, nearby=NEARBY,
                                     reliable="the component is ten times what float32 rounding makes of it",
                                     tangent="amplification at nearby * rho in float64, drawn out to rho",
                                     predicted_error="residual rho / |component|: an eigenvector not quite found"))


def amplification_work(case) -> int:
    """Return the image gradients that `amplification` takes."""
    length = radii(case.subject.config, case.settings.rho)
    moves = len({(ascent.climbs, length[name]) for name, ascent in ASCENTS.items()})
    double = 1 if case.settings.dtype == "float64" else DOUBLE
    twins = (double > 1) + moves        # gradients in float64: of the component, and nearby
    return _climbed_images(case) + (1 + moves + double * twins) * sum(map(case.num_spectrum_images, case.settings.groups))


def ablation(case) -> Table:
    """Return what is left of each group's ascent along, and without, the global gradient (Chen et al. 2026, Table 5)."""
    slopes, rows, cosines, alone, length = _Slopes(case), [], {}, [], {}
    for group in case.settings.groups:
        _, vectors, _ = _lowest(case, group)
        full, whole = slopes.of(group), slopes.whole(group)
        parts, length[group] = perturbations.ablated(full, whole), _own_radius(case, group)
        cosines[group] = float(full @ whole / (full.norm() * whole.norm()))
        alone += [group] if not parts["removed"].any() else []
        rows += [{"group": group, "direction": name, "share": float(part.norm() / full.norm()),
                  "alignment": alignments(vectors[:1], part)[0], "rise": slopes.rise(group, part, length[group])}
                 for name, part in parts.items()]
    only = f"{' and '.join(alone)}: nothing is left once the global gradient is removed" if alone else ""
    about = _about(case, slopes, cosine_with_global=cosines, degenerate=only) | {"rho": length}
    return table(rows, {"rise": "nats / sample"}, about)


def ablation_work(case) -> int:
    """Return the image gradients that `ablation` takes."""
    return _climbed_images(case) + (1 + 4 / 3) * sum(map(case.num_spectrum_images, case.settings.groups))


class _Slopes:
    """Gradients (d,) in float64 of the losses of a case, each computed once; the model stays at the checkpoint."""

    def __init__(self, case):
        self.case, self._kept = case, {}
        self.images: dict[str, int] = {}        # of each gradient so far
        self.size = len(theta(case.subject.model))

    def of(self, group: str, dtype: str | None = None) -> Tensor:
        """Return the gradient of a group's loss over the images of its spectrum."""
        return self._once(("of", group, dtype), lambda: self._gradient(group, dtype or self.case.settings.dtype))

    def climbed(self, group: str, loss: str) -> Tensor:
        """Return the gradient that an ascent climbs: of all, head or tail; zero where the data have no such class."""
        if group == "all":
            parts = [(self.climbed(half, loss), self._available(half)) for half in ("head", "tail")]
            return sum(slope * count for slope, count in parts) / sum(count for _, count in parts)
        if not self._available(group):
            return torch.zeros(self.size, dtype=torch.float64, device=self.case.subject.device)
        return self._once(("climbed", group, loss), lambda: self._climbed(group, loss))

    def whole(self, group: str) -> Tensor:
        """Return the global gradient beside a group's: its own where the group is everything there is."""
        groups = self.case.subject.groups
        if set(groups.select(group)) == set(range(len(groups.counts))):
            return self.of(group)
        return self.climbed("all", self.case.spectrum_settings(group).loss)

    def moved(self, group: str, climbs: str, rho: float, dtype: str | None = None) -> tuple[Tensor, Tensor]:
        """Return the group's gradient after an ascent of length rho, and the move as the parameters hold it."""
        dtype = dtype or self.case.settings.dtype

        def move() -> tuple[Tensor, Tensor]:
            slope = self.climbed(climbs, self.case.spectrum_settings(group).loss)
            model = self.case.subject.cast(dtype)
            start = theta(model)
            with displaced(as_gradient(slope, model), rho):
                return self._mean_of(group, dtype), theta(model).double() - start.double()
        found = self._once(("moved", group, climbs, rho, dtype), move)
        self.case.subject.cast(self.case.settings.dtype)
        return found

    def rise(self, group: str, direction: Tensor, rho: float) -> float:
        """Return L_S(theta + rho d / ||d||) - L_S(theta); a direction of zero is no step."""
        before = self._once(("loss", group), lambda: self._loss(group))
        with displaced(as_gradient(direction, self.case.subject.cast(self.case.settings.dtype)), rho):
            return self._loss(group) - before

    def _once(self, key: tuple, compute) -> Any:
        if key not in self._kept:
            self._kept[key] = compute()
        return self._kept[key]

    def _gradient(self, group: str, dtype: str) -> Tensor:
        """Return the gradient over the spectrum's images at the checkpoint; the model has its type again."""
        slope = self._mean_of(group, dtype)
        self.case.subject.cast(self.case.settings.dtype)
        return slope

    def _mean_of(self, group: str, dtype: str) -> Tensor:
        """Return the gradient over the spectrum's images at the parameters as they are, in a type that the model then has."""
        batches, _ = self.case.spectrum_images(group, dtype)
        self.images[group] = sum(len(labels) for _, labels in batches)
        return self._mean(batches, self.case.spectrum_settings(group).loss, dtype)

    def _climbed(self, group: str, loss: str) -> Tensor:
        batches, _ = self.case.images(group)
        self.images[f"climbed {group}"] = sum(len(labels) for _, labels in batches)
        return self._mean(batches, loss, self.case.settings.dtype)

    def _mean(self, batches: list, loss: str, dtype: str) -> Tensor:
        subject = self.case.subject
        slope = mean_gradient(subject.cast(dtype), subject.loss(loss), batches)
        self.case.progress((DOUBLE if dtype != self.case.settings.dtype else 1) * sum(len(labels) for _, labels in batches))
        return slope

    @torch.no_grad()
    def _loss(self, group: str) -> float:
        batches, _ = self.case.spectrum_images(group, self.case.settings.dtype)
        model = self.case.subject.cast(self.case.settings.dtype)
        loss = self.case.subject.loss(self.case.spectrum_settings(group).loss)
        with evaluation_mode(model), reproducible_kernels(), Rewritten():
            total = sum(float(loss(model(images), labels).double().sum()) for images, labels in batches)
        count = sum(len(labels) for _, labels in batches)
        self.case.progress(count // 3)
        return total / count

    def _available(self, group: str) -> int:
        return self.case.num_images(group)[1] if self.case.subject.groups.classes[group] else 0


def _lowest(case, group: str) -> tuple[np.ndarray, Tensor, dict[str, np.ndarray]]:
    """Return the lowest eigenvalues (k,) of a group's stored spectrum, their vectors (k, d), and what is known of them."""
    pairs = case.spectrum(group).eigenpairs
    held = (len(pairs.values) + 1) // 2     # the other half is the upper end
    number = case.settings.num_pairs or held
    if number > held:
        raise InputError(f"num_pairs={number} is out of range: the spectrum of {group} at epoch {case.epoch} holds {held} at its "
                         f"lower end; make more with: landscape spectrum {case.store.path} --epoch {case.epoch} "
                         f"--group {group} --num_pairs {number} --overwrite")
    facts = {"residual": pairs.residuals[:number], "verified": pairs.verified[:number].astype(float)}
    vectors = torch.from_numpy(np.array(pairs.vectors[:number])).to(case.subject.device)
    return pairs.values[:number], vectors, facts


def _region(own: bool, value: float, effective_rho: float) -> str:
    """Return the region of the law, in words, where an ascent climbs the group's own loss along negative curvature."""
    return perturbations.region(effective_rho * abs(value)) if own and value < 0 else "none"


def _aligned(case, group: str, name: str, direction: Tensor, draw: int) -> list[dict]:
    """Return the rows of one direction; none for a direction of zero, as of a batch without an image of its group."""
    if not direction.any():
        return []
    values, vectors, facts = _lowest(case, group)
    return [{"group": group, "perturbation": name, "source": "batch" if draw else "group", "pair": pair,
             "eigenvalue": values[pair], "draw": draw, "value": value, "verified": facts["verified"][pair]}
            for pair, value in enumerate(alignments(vectors, direction))]


def _with_intervals(rows: list[dict]) -> list[dict]:
    """Add the t interval for the mean over the draws of a case to each of its rows; NaN where there is one."""
    cases: dict[tuple, list[float]] = {}
    for row in rows:
        cases.setdefault(_case_of(row), []).append(row["value"])
    spread = {key: (np.mean(values), float(t_half_width(np.array(values), LEVEL))) for key, values in cases.items()}
    return [row | {"low": mean - half, "high": mean + half} for row in rows for mean, half in [spread[_case_of(row)]]]


def _case_of(row: dict) -> tuple:
    return tuple(row[key] for key in ("group", "perturbation", "source", "pair"))


def _own_radius(case, group: str) -> float:
    """Return the radius of a group's own ascent: that of SSE-SAM for head and tail, of SAM for others."""
    length = radii(case.subject.config, case.settings.rho)
    return length.get(f"ssesam_{group}", length["sam"]) or PROBE


def _climbed_images(case) -> int:
    return sum(case.num_images(half)[0] for half in ("head", "tail") if case.subject.groups.classes[half])


def _about(case, slopes: _Slopes, **more: Any) -> dict[str, Any]:
    """Return what every caption states: dimension, radii, images, and which loss of which split."""
    spectra: dict[str, Curvature] = {group: case.spectrum(group) for group in case.settings.groups}
    settings = {group: case.spectrum_settings(group) for group in spectra}
    return {"d": slopes.size, "rho": radii(case.subject.config, case.settings.rho), "images": slopes.images,
            "available": {group: record.num_available for group, record in spectra.items()},
            "loss": {group: chosen.loss for group, chosen in settings.items()},
            "split": {group: chosen.split for group, chosen in settings.items()} | {"climbed": case.settings.split},
            "mode": "evaluation", "seed": case.settings.seed, **more}
