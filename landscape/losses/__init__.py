"""Per-sample losses for long-tailed classification."""

from landscape.losses.class_sizes import drw_weights
from landscape.losses.table import LOSSES, build_loss, loss_name, loss_options, needs_cosine_head, needs_views, register_loss

__all__ = ["LOSSES", "build_loss", "drw_weights", "loss_name", "loss_options", "needs_cosine_head", "needs_views",
           "register_loss"]
