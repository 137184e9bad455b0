"""What commands that print verdicts share: their tolerances, and the weight decay that a verdict tells of."""

import argparse

from checkpoints.store import RunStore


def add_tolerance_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the tolerances of verdicts."""
    parser.add_argument("--eps_g", type=float, help="gradient norm up to which a point counts as critical, in nats / parameter; "
                        "default: eps_H^2 |theta| / (2 max|lambda|)")
    parser.add_argument("--eps_H", type=float, help="depth from which curvature counts as negative, in nats / parameter^2; "
                        "default: 0.01 max|lambda|")


def stated_weight_decay(store: RunStore) -> float | None:
    """Return the weight decay that a run was trained with; None where nobody has stated it of imported weights."""
    from checkpoints.comparison import Member      # loads pandas
    return Member(store).weight_decay
