"""What an optimizer's closure returns: the losses of a batch's samples, and which belong to each class group."""

from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor

from landscape.distributed import Processes
from landscape.errors import InputError

Masks = Mapping[str, Tensor]                  # group name -> bool (B,); "labels" -> classes (B,), for who splits by class
Closure = Callable[[], tuple[Tensor, Masks]]  # -> per-sample losses (B,) and the groups' masks


def read_answer(answer: Tensor | tuple[Tensor, Masks]) -> tuple[Tensor, Masks]:
    """Return losses and masks; losses alone will do where the only group is "all"."""
    losses, masks = (answer, {}) if isinstance(answer, Tensor) else answer
    if losses.ndim != 1 or not len(losses):
        raise InputError(f"the closure returned losses of shape {tuple(losses.shape)}: expected one a sample, (B,), "
                         "B >= 1; build the loss with reduction='none'")
    if not losses.requires_grad:
        raise InputError("the closure's losses carry no gradient: compute them from the model, outside torch.no_grad()")
    return losses, masks


def mask_of(masks: Masks, group: str, losses: Tensor) -> Tensor:
    """Return which samples belong to a group, bool (B,)."""
    if group not in masks:
        raise InputError(f"the closure returned no mask for group {group!r}: it has {', '.join(masks) or 'none'}")
    mask = masks[group]
    if mask.shape != losses.shape or mask.dtype != torch.bool:
        raise InputError(f"the mask of group {group!r} is {mask.dtype} {tuple(mask.shape)}: expected "
                         f"torch.bool {tuple(losses.shape)}, one entry a sample")
    return mask


def labels_of(masks: Masks, losses: Tensor) -> Tensor:
    """Return the samples' classes (B,), which the closure gives under "labels"."""
    labels = masks.get("labels")
    if labels is None or labels.shape != losses.shape or labels.dtype != torch.int64:
        found = "none" if labels is None else f"{labels.dtype} {tuple(labels.shape)}"
        raise InputError(f"the closure returned labels: {found}; this optimizer goes by classes and expects "
                         f"{{'labels': torch.int64 {tuple(losses.shape)}}} beside the losses")
    return labels


def num_samples(losses: Tensor, masks: Masks, groups: Sequence[str], processes: Processes) -> dict[str, int | Tensor]:
    """Return how many samples "all" and each of `groups` have, over all processes; nothing waits for the device."""
    counts = {"all": len(losses)} | {group: mask_of(masks, group, losses).sum() for group in groups if group != "all"}
    if processes.count == 1:
        return counts
    return dict(zip(counts, processes.sum_together([_number(n, losses.device) for n in counts.values()])))


def _number(value: int | Tensor, device: torch.device) -> Tensor:
    # Filled on the device: a number copied there would be waited for.
    return value if isinstance(value, Tensor) else torch.full((), value, device=device)
