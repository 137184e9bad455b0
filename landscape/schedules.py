"""Learning rate of each epoch, in closed form: nothing to store, nothing to drift when a run is resumed.

The position t is the epoch's index with scheduler_at="end" (the scheduler is stepped after each epoch, torch's way) and
one more with "start" (before it, as in the SSE-SAM and ImbSAM releases, whose last epoch therefore has the rate 0):

    warm-up    lr (t + 1) / warmup_epochs                                  while t < warmup_epochs
    cosine     lr (1 + cos(pi (t - warmup_epochs) / (epochs - warmup_epochs))) / 2      Loshchilov and Hutter 2017
    step       lr decay^(number of milestones <= t)
    constant   lr
"""

from math import cos, pi

SCHEDULES = ("cosine", "step", "constant")
SCHEDULER_AT = ("end", "start")


def learning_rate(config, epoch: int) -> float:
    """Return the learning rate of the epoch with this index, 0 ... epochs - 1."""
    position = epoch + (config.scheduler_at == "start")
    if position < config.warmup_epochs:
        return config.lr * (position + 1) / config.warmup_epochs
    if config.schedule == "step":
        return config.lr * config.decay ** sum(milestone <= position for milestone in config.milestones)
    if config.schedule == "cosine":
        # An epoch beyond the last position would start to rise again; "start" after a warm-up of all epochs gets there.
        share = (position - config.warmup_epochs) / max(config.epochs - config.warmup_epochs, 1)
        return config.lr * (1 + cos(pi * min(share, 1.0))) / 2
    return config.lr
