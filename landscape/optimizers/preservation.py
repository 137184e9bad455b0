"""Grouped knowledge preservation (GKP): a pull towards what each group of classes was best at.

    theta*_g = mean over the group's classes of theta^c                                         equation 3
    L_gkp^g  = (lambda / 2) sum over i and j != g of F_{j,i} (theta_i - theta*_{j,i})^2 / |G^j|    equation 6

over the encoder's parameters: theta^c are those that class c remembers (`memory`), groups are cut from them
(`clustering`), F_j is the diagonal Fisher information of group j's training images (`fisher`). All three are renewed
together, at the end of every `regroup_every`-th epoch; until the first time there is no penalty, and groups are
runs of classes in the order of their size.

Source: Chen et al. 2026 (GKP-GSA). What the paper leaves open is chosen by PreservationRule, and each choice is said there.
|G^j| is the number of classes in equation 3 and of samples in supplement 9.2 and in the released code. With samples,
lambda = 100 pulls; with classes it is larger by the images a class has, and SGD with momentum m on the penalty alone
diverges where (1 - alpha) lambda (G - 1) F_{j,i} lr / |G^j| > 2 (1 + m): lower lambda then.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from landscape.data import LongTailData
from landscape.distributed import Processes
from landscape.errors import InputError
from landscape.losses.contrastive import HEADS
from landscape.models.features import classifier_layer
from landscape.optimizers.ascent import Gradient
from landscape.optimizers.clustering import (SIMILARITIES, by_mean_size, check_num_groups, groups_by_size, similarity,
                                             spectral_groups)
from landscape.optimizers.fisher import Loss, diagonal_fisher, negative_log_likelihood, squared_batch_gradients
from landscape.optimizers.memory import QUALITIES, ClassMemory, class_statistics, feature_quality
from landscape.parameters import flatten, split_like

SIZES = ("classes", "samples")
PLACES = ("anchor", "current")
FISHERS = ("samples", "batches")
BATCH = 250     # images whose gradient the release squares


@dataclass(frozen=True)
class PreservationRule:
    """What decides memory, groups and penalty. The paper is silent on those marked *; the released code has the second."""

    num_groups: int = 4             # G >= 1
    strength: float = 100.0         # lambda >= 0 of equation 6
    beta: float = 0.5               # >= 0, of log Var in the quality
    quality: str = "paper"          # or "released": see `memory`
    regroup_every: int = 20         # epochs >= 1 *; 0: once, at the initial weights
    similarity: str = "rbf"         # or "cosine" *: see `clustering`
    penalty_size: str = "samples"   # or "classes" *: what |G^j| counts in equation 6, see above
    fisher: str = "samples"         # squares of per-sample gradients, or of "batches"' mean gradients
    fisher_at: str = "anchor"       # or "current" *: the parameters at which F is taken; the classifier is always the current
    fisher_samples: int = 1024      # images of a group at most, drawn anew each time *
    heads: bool = False             # whether projection heads are kept with the encoder
    loss: Loss = negative_log_likelihood    # whose gradient the Fisher information squares

    def __post_init__(self):
        for name, choices in (("quality", QUALITIES), ("similarity", SIMILARITIES), ("penalty_size", SIZES),
                              ("fisher", FISHERS), ("fisher_at", PLACES)):
            if getattr(self, name) not in choices:
                raise InputError(f"{name}={getattr(self, name)!r} is unknown: expected one of {', '.join(choices)}")
        for name, symbol in (("strength", "the lambda of the penalty"), ("beta", "the weight of log Var in the quality")):
            value = getattr(self, name)
            if not 0 <= value < float("inf"):
                raise InputError(f"{name}={value} is out of range: {symbol} is a finite number >= 0")
        for name, low in (("regroup_every", 0), ("fisher_samples", 1)):
            value = getattr(self, name)
            if not isinstance(value, int) or value < low:
                raise InputError(f"{name}={value!r} is out of range: expected an integer >= {low}")


class Preservation:
    """Memory, groups, anchors and Fisher information of one training, and the penalty they make.

    The penalty is of the parameters of `model` as they are when it is asked for.
    """

    def __init__(self, model: nn.Module, class_counts: Sequence[int], rule: PreservationRule = PreservationRule(),
                 processes: Processes = Processes()):
        self.model, self.rule, self.processes = model, rule, processes
        self.counts = np.asarray(class_counts)
        check_num_groups(rule.num_groups, len(self.counts))
        if (single := np.flatnonzero(self.counts < 2)).size:
            raise InputError(f"class {single[0]} has {self.counts[single[0]]} training image: the variance of its features is "
                             "undefined, and with it their quality; expected >= 2 a class, by a lower imb_factor or without it")
        self.names, self.buffers = _encoder(model, rule.heads)
        self.groups = groups_by_size(self.counts, rule.num_groups)  # (C,) group of each class, the largest classes in 0
        self.memory = ClassMemory.empty(len(self.counts))
        self.anchors: Tensor | None = None      # (G, d) of the parameters, on their device; None before the first time
        self.fisher: Tensor | None = None       # (G, d)
        self._copies: tuple[np.ndarray, torch.device, dict[str, Tensor]] | None = None

    @property
    def parameters(self) -> list[Tensor]:
        """The encoder's trained parameters, in the order of anchors and Fisher information."""
        return [self.model.get_parameter(name) for name in self.names]

    @property
    def sizes(self) -> dict[str, np.ndarray]:
        """How many classes and how many training images each group has (G,)."""
        number = self.rule.num_groups
        return {"classes": np.bincount(self.groups, minlength=number),
                "samples": np.bincount(self.groups, self.counts, minlength=number).astype(np.int64)}

    def groups_on(self, device: torch.device) -> Tensor:
        """Return the group of each class (C,) on a device."""
        return self._copied(device)["groups"]

    def _copied(self, device: torch.device) -> dict[str, Tensor]:
        """Return groups and sizes on a device, copied there once for each cut: a GPU is waited for at each copy."""
        if self._copies is None or self._copies[0] is not self.groups or self._copies[1] != device:
            values = {"groups": self.groups} | self.sizes
            self._copies = self.groups, device, {name: torch.as_tensor(value, device=device) for name, value in values.items()}
        return self._copies[2]

    @torch.no_grad()
    def gradient(self, weights: Tensor | None = None) -> Gradient:
        """Return the gradient of sum over g of w_g L_gkp^g, all w_g = 1 by default; empty where there is no penalty.

        `weights` (G,) are on the parameters' device.
        """
        if not self.active:
            return {}
        parameters = self.parameters
        theta, slope = flatten(parameters), torch.zeros_like(self.anchors[0])
        for factor, fisher, anchor in zip(self._factors(weights), self.fisher, self.anchors):
            slope += (self.rule.strength * factor) * fisher * (theta - anchor)
        return dict(zip(parameters, split_like(slope, parameters)))

    @torch.no_grad()
    def value(self, weights: Tensor | None = None) -> float:
        """Return sum over g of w_g L_gkp^g at the present parameters."""
        if not self.active:
            return 0.0
        theta = flatten(self.parameters)
        terms = [(fisher * (theta - anchor).square()).sum(dtype=torch.float64)
                 for fisher, anchor in zip(self.fisher, self.anchors)]
        return float(self.rule.strength / 2 * (self._factors(weights).double() * torch.stack(terms)).sum())

    @property
    def active(self) -> bool:
        """Whether there is a penalty: not before the first anchors, nor with one group, which has no other to keep."""
        return self.fisher is not None and self.rule.num_groups > 1 and self.rule.strength > 0

    def _factors(self, weights: Tensor | None) -> Tensor:
        """Return, of each group j, sum over g != j of w_g, over |G^j|: (G,)."""
        weights = torch.ones_like(self.fisher[:, 0]) if weights is None else weights.to(self.fisher)
        size = self._copied(weights.device)[self.rule.penalty_size].to(weights)
        return (weights.sum() - weights) / size

    def observe(self, data: LongTailData, epochs_done: int) -> None:
        """Renew what is kept after an epoch, from the training images; before the first, where it is done once."""
        every = self.rule.regroup_every
        if (epochs_done == 0) != (every == 0):
            return
        self.memory.update(epochs_done, self.processes.on_first(lambda: self._quality(data)), self._vector())
        if every == 0 or epochs_done % every == 0:
            self.regroup(data, epochs_done)

    def regroup(self, data: LongTailData, seed: int) -> None:
        """Cut the groups from the memory, and renew anchors and Fisher information.

        Where fewer classes than groups have parameters of their own, the groups stay as they are.
        """
        found = self.processes.on_first(lambda: spectral_groups(self._graph(), self.rule.num_groups, seed))
        self.groups = self.groups if found is None else by_mean_size(found, self.counts)
        whole = torch.stack([self.memory.anchor(np.flatnonzero(self.groups == g)) for g in range(self.rule.num_groups)])
        like = self.parameters[0]
        fisher = self.processes.on_first(lambda: torch.stack([
            self._fisher(data, g, anchor.to(like), seed).cpu() for g, anchor in enumerate(whole)]))
        self.anchors, self.fisher = whole[:, :self._size].to(like), fisher.to(like)

    def arrays(self) -> dict[str, Any]:
        """Return the state as arrays, for `load_arrays`."""
        kept = {f"memory/{name}": value for name, value in self.memory.arrays().items()} | {"groups": self.groups}
        if self.fisher is not None:
            kept |= {"anchors": self.anchors.cpu().numpy(), "fisher": self.fisher.cpu().numpy()}
        return kept

    def load_arrays(self, arrays: Mapping[str, Any]) -> None:
        """Go on from what `arrays` returned."""
        memory = {name.removeprefix("memory/"): value for name, value in arrays.items() if name.startswith("memory/")}
        self.memory, self.groups = ClassMemory.of_arrays(memory), np.array(arrays["groups"], np.int64)
        if "fisher" in arrays:
            like = self.parameters[0]
            self.anchors, self.fisher = (torch.tensor(arrays[name]).to(like) for name in ("anchors", "fisher"))

    @property
    def _size(self) -> int:
        return sum(p.numel() for p in self.parameters)

    def _tensors(self) -> list[Tensor]:
        return [*(p.detach() for p in self.parameters), *(self.model.get_buffer(name) for name in self.buffers)]

    def _vector(self) -> Tensor:
        return flatten(self._tensors())

    def _quality(self, data: LongTailData) -> np.ndarray:
        return feature_quality(*class_statistics(self.model, data), self.rule.beta, self.rule.quality)

    def _graph(self) -> np.ndarray:
        rows, which = self.memory.rows
        # With running statistics the released graph's nodes; they are no parameters, and the paper's have none.
        rows = rows if self.rule.heads else [row[:self._size] for row in rows]
        return similarity(rows, self.rule.similarity)[np.ix_(which, which)]

    def _fisher(self, data: LongTailData, group: int, anchor: Tensor, seed: int) -> Tensor:
        members = np.flatnonzero(np.isin(data.train.labels.cpu().numpy(), np.flatnonzero(self.groups == group)))
        if len(members) > self.rule.fisher_samples:
            chosen = np.random.default_rng((seed, group)).choice(members, self.rule.fisher_samples, replace=False)
            members = np.sort(chosen)
        batches = _batches(data, members, anchor)
        estimate = diagonal_fisher if self.rule.fisher == "samples" else squared_batch_gradients
        if self.rule.fisher_at == "current":
            return estimate(self.model, batches, self.names, self.rule.loss)
        with self._placed(anchor):
            return estimate(self.model, batches, self.names, self.rule.loss)

    @contextmanager
    @torch.no_grad()
    def _placed(self, vector: Tensor) -> Iterator[None]:
        """Give the encoder parameters and running statistics for the length of a with block; the old return bit by bit."""
        places = self._tensors()
        saved = [place.clone() for place in places]
        try:
            for place, piece in zip(places, split_like(vector, places)):
                place.copy_(piece)
            yield
        finally:
            for place, old in zip(places, saved):
                place.copy_(old)


def _encoder(model: nn.Module, heads: bool) -> tuple[list[str], list[str]]:
    """Return the names of the trained parameters and of the running statistics below the classifier."""
    apart = (classifier_layer(model, apart=HEADS)[0], *(() if heads else HEADS))

    def inside(name: str) -> bool:
        return not any(f"{name}.".startswith(f"{part}.") for part in apart)

    names = [name for name, p in model.named_parameters() if p.requires_grad and inside(name)]
    if not names:
        raise InputError(f"{type(model).__name__} has no trained parameter below its classifier, which is what is preserved")
    return names, [name for name, b in model.named_buffers() if b.is_floating_point() and inside(name)]


def _batches(data: LongTailData, members: np.ndarray, like: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
    pieces = torch.from_numpy(members).to(data.train.labels.device).split(BATCH)
    for images, labels in data.train.batches(pieces):
        if len(labels):
            yield data.inputs(images.to(like.device), like.dtype), labels.to(like.device)
