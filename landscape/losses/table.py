"""Per-sample losses for long-tailed classification by name: one table, and what builds a loss from a row of it.

LDAM-DRW is LDAM with `--drw_epoch`.
"""

import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from landscape.callables import find_named
from landscape.errors import InputError
from landscape.losses.adjusted import balanced_softmax, cross_entropy, ldam, logit_adjustment, vector_scaling
from landscape.losses.weighted import class_balanced, focal


@dataclass(frozen=True)
class LossRow:
    """One loss of the table."""

    builder: str | Callable[..., nn.Module]     # (class_counts, *, options with defaults) -> loss, or "module:callable" of one
    views: bool = False                         # contrasts views of an image: its options have views, s, hidden and dim, as BCL's
    cosine: Mapping[str, object] | None = None  # options with which it expects the cosines of a cosine head; None: with none


LOSSES: dict[str, LossRow] = {      # a new loss is one row
    "CE": LossRow(cross_entropy),
    "LDAM": LossRow(ldam, cosine={"form": "paper"}),
    "LA": LossRow(logit_adjustment),
    "VS": LossRow(vector_scaling),
    "BS": LossRow(balanced_softmax),
    "CB": LossRow(class_balanced),
    "Focal": LossRow(focal),
    "BCL": LossRow("landscape.losses.contrastive:balanced_contrastive_learning", views=True),
}
ALIASES = {"VA": "LA"}  # the SSE-SAM README's spelling


def register_loss(name: str, builder: Callable[..., nn.Module], **row: Any) -> None:
    """Add builder(class_counts, *, option=default, ...) -> loss(logits (B, C), targets (B,)) -> (B,) to LOSSES.

    `row` may fill in the other fields of LossRow.
    """
    if name in LOSSES or name in ALIASES:
        raise InputError(f"loss={name!r} is taken: choose another name")
    LOSSES[name] = LossRow(builder, **row)


def loss_name(name: str) -> str:
    """Return the name under which LOSSES knows a loss; an unknown one is an error naming the choices."""
    name = ALIASES.get(name, name)
    if name not in LOSSES and ":" not in str(name):
        raise InputError(f"loss={name!r} is unknown: expected one of {', '.join(LOSSES)}, or module:callable")
    return name


def builder_of(name: str) -> Callable[..., nn.Module]:
    """Return what builds a loss: its row of LOSSES, or what "module:callable" names."""
    name = loss_name(name)
    found = LOSSES[name].builder if name in LOSSES else name
    return find_named(found) if isinstance(found, str) else found


def loss_options(name: str) -> dict[str, object]:
    """Return the options of a loss with their defaults."""
    parameters = inspect.signature(builder_of(name)).parameters.values()
    return {p.name: p.default for p in parameters if p.kind is p.KEYWORD_ONLY}


def needs_cosine_head(name: str, **options) -> bool:
    """Tell whether a loss expects, with these options, the cosines of a cosine head: of ours, LDAM in the paper's form."""
    row = LOSSES.get(ALIASES.get(name, name))
    if row is None or row.cosine is None:
        return False
    whole = loss_options(name) | options
    return all(whole[option] == value for option, value in row.cosine.items())


def needs_views(name: str) -> bool:
    """Tell whether a loss contrasts views of an image, and so needs views, and a network with projection heads: of ours, BCL."""
    return name in LOSSES and LOSSES[name].views


def build_loss(name: str, class_counts: Sequence[int], **options) -> nn.Module:
    """Build a per-sample loss, loss(logits (B, C), targets (B,)) -> (B,), by its name in LOSSES.

    `class_counts` (C,) are training images a class; all that go by them refuse a class without one.
    """
    name = loss_name(name)
    known = loss_options(name)
    for option in options:
        if option not in known:
            raise InputError(f"option {option!r} is unknown to loss {name}: expected {', '.join(known) or 'none'}")
    loss = builder_of(name)(class_counts, **options)
    return loss if isinstance(loss, nn.Module) else FunctionLoss(loss)


class FunctionLoss(nn.Module):
    """A function of logits (B, C) and targets (B,) as a loss, with nothing that a device must hold."""

    def __init__(self, function: Callable[[Tensor, Tensor], Tensor]):
        super().__init__()
        self.function = function

    def forward(self, logits: Tensor, targets: Tensor) -> Tensor:
        return self.function(logits, targets)
