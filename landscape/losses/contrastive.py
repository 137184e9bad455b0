"""Balanced contrastive learning: logit adjustment, and a supervised contrastive loss in which every class counts once.

    BCL = a LA + b BalSCL,  LA = CE(z + tau log pi)                         of the first view of an image
    BalSCL_i = -mean over p in P(i) of log( exp(s_ip) / sum over k != i of exp(s_ik) / (N_{y_k} - 1[k in P(i)]) )

of its other views, as anchors: s_ik = <u_i, u_k> / T of unit vectors, which run over the views of the whole batch and one
center a class; P(i) are those of i's class without i, and N_c is how many of class c the batch holds, its center included.
An image's BalSCL is the mean over its views as anchors. Centers are the classifier's weights through a projection head
of their own.

Source: Zhu et al. 2022 (BCL), equations 4 to 9; a = 2.0, b = 0.6, T = 0.1, s = 30 and the heads (F -> 512 with BatchNorm
and relu -> 128) are those of the GKP-GSA release on CIFAR (Chen et al. 2026). Difference: in a batch that is cut into
pieces, or shared among processes, each piece contrasts its own images alone, as BatchNorm normalizes each alone.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from landscape.data.views import NUM_VIEWS, SOURCES
from landscape.errors import InputError
from landscape.losses.adjusted import logit_adjustment
from landscape.models import CosineHead
from landscape.models.features import classifier_layer, features_and_logits

HEADS = ("projection", "center_projection")     # modules that training adds to a network, and no logit depends on


class ContrastiveOutputs(NamedTuple):
    """What a network with projection heads says about a batch of images in several views."""

    logits: Tensor      # (B, C) of the first view
    views: Tensor       # (V - 1, B, D) of the others, unit vectors
    centers: Tensor     # (C, D) unit vectors


def balanced_contrastive(views: Tensor, centers: Tensor, labels: Tensor, temperature: float = 0.1) -> Tensor:
    """Return the balanced supervised contrastive loss of each image (B,), from views (V, B, D), centers (C, D), labels (B,)."""
    anchors = views.flatten(0, 1)                                                   # (V B, D)
    classes = torch.cat([labels.repeat(len(views)), torch.arange(len(centers), device=labels.device)])     # (K,)
    members = classes[:, None] == classes[len(anchors):]                            # (K, C)
    itself = torch.eye(len(anchors), len(classes), dtype=torch.bool, device=labels.device)
    positive = (classes[:len(anchors), None] == classes) & ~itself                  # (V B, K)
    weights = members.sum(0)[classes] - positive.to(torch.int64)                    # (V B, K) N_{y_k} - 1[k in P(i)] >= 1
    scores = anchors @ torch.cat([anchors, centers]).T / temperature                # (V B, K)
    total = (scores - weights.to(scores.dtype).log()).masked_fill(itself, -torch.inf).logsumexp(1, keepdim=True)
    losses = -torch.where(positive, scores - total, 0.0).sum(1) / positive.sum(1)
    return losses.view(len(views), -1).mean(0)


class BalancedContrastiveLoss(nn.Module):
    """BCL of each image: loss(outputs of ContrastiveForward, targets (B,)) -> (B,), in nats.

    Of bare logits (B, C), without views, it is the part that is a function of them, a LA.
    """

    def __init__(self, adjusted: nn.Module, a: float, b: float, temperature: float):
        super().__init__()
        self.adjusted, self.a, self.b, self.temperature = adjusted, a, b, temperature

    def forward(self, outputs: ContrastiveOutputs | Tensor, targets: Tensor) -> Tensor:
        if isinstance(outputs, Tensor):
            return self.a * self.adjusted(outputs, targets)
        contrast = balanced_contrastive(outputs.views, outputs.centers, targets, self.temperature)
        return self.a * self.adjusted(outputs.logits, targets) + self.b * contrast


def balanced_contrastive_learning(class_counts: Sequence[int], *, a: float = 2.0, b: float = 0.6, tau: float = 1.0,
                                  temperature: float = 0.1, s: float = 30.0, hidden: int = 512,
                                  dim: int = 128, views: str = "auto") -> BalancedContrastiveLoss:
    """Return BCL: a LA + b BalSCL.

    `s`, `hidden` and `dim` are of the heads, which `add_contrastive_heads` adds; `views` is for `landscape.data.views`.
    """
    if views not in SOURCES:
        raise InputError(f"views={views!r} is unknown: expected one of {', '.join(SOURCES)}")
    for name, value in (("a", a), ("b", b)):
        if not 0 <= value < float("inf"):
            raise InputError(f"{name}={value} is out of range: expected a finite number >= 0")
    _check_heads(temperature=temperature, s=s, hidden=hidden, dim=dim)
    return BalancedContrastiveLoss(logit_adjustment(class_counts, tau=tau), a, b, temperature)


class ProjectionHead(nn.Sequential):
    """Features (N, F) -> (N, dim): a hidden layer with BatchNorm and relu, then a linear one."""

    def __init__(self, num_features: int, hidden: int, dim: int):
        super().__init__(nn.Linear(num_features, hidden), nn.BatchNorm1d(hidden), nn.ReLU(), nn.Linear(hidden, dim))


def add_contrastive_heads(model: nn.Module, *, s: float = 30.0, hidden: int = 512, dim: int = 128, seed: int = 0) -> nn.Module:
    """Give a classifier what BCL trains besides it, in place: a cosine head of scale s, and two projection heads.

    The heads are part of the state dict, as `projection` and `center_projection`; no logit depends on them. The same seed
    gives the same bits, and the global generators are left alone.
    """
    _check_heads(s=s, hidden=hidden, dim=dim)
    name, layer = classifier_layer(model, apart=HEADS)
    num_classes, num_features = layer.weight.shape
    with torch.random.fork_rng(devices=[]), torch.device("cpu"):
        torch.random.default_generator.manual_seed(seed)
        # Bounded logits s cos need no bias, and the same scale for all that ask for the logits.
        model.set_submodule(name, CosineHead(num_features, num_classes, s))
        for head in HEADS:
            model.add_module(head, ProjectionHead(num_features, hidden, dim))
    return model


def freeze_contrastive_heads(model: nn.Module) -> nn.Module:
    """Take projection heads, on which no logit depends, out of the trainable parameters, in place."""
    for head in HEADS:
        if hasattr(model, head):
            getattr(model, head).requires_grad_(False)
    return model


def has_contrastive_heads(model: nn.Module) -> bool:
    """Tell whether the network has projection heads."""
    return all(hasattr(model, head) for head in HEADS)


class ContrastiveForward(nn.Module):
    """The forward that BCL needs of a network with heads: images (V B, channels, H, W), view by view -> ContrastiveOutputs.

    One pass over all views together, so that BatchNorm sees them as one batch, as in the released codes.
    """

    def __init__(self, model: nn.Module):
        super().__init__()
        if not has_contrastive_heads(model):
            raise InputError(f"{type(model).__name__} has no projection heads, which loss=BCL needs: "
                             "add_contrastive_heads(model) adds them")
        self.model = model

    def forward(self, images: Tensor) -> ContrastiveOutputs:
        size = len(images) // NUM_VIEWS
        _, classifier = classifier_layer(self.model, apart=HEADS)
        features, logits = features_and_logits(self.model, images, classifier)      # (V B, F), (V B, C)
        vectors = F.normalize(self.model.projection(features[size:]), dim=1)
        centers = F.normalize(self.model.center_projection(classifier.weight), dim=1)
        return ContrastiveOutputs(logits[:size], vectors.view(NUM_VIEWS - 1, size, -1), centers)


def _check_heads(**numbers: float) -> None:
    for name, value in numbers.items():
        whole = name in ("hidden", "dim")
        if not 0 < value < float("inf") or (whole and not isinstance(value, int)):
            expected = "an integer >= 1" if whole else "a finite number > 0"
            raise InputError(f"{name}={value!r} is out of range: expected {expected}")
