"""The sharpness-aware family: one rule, its named forms, and the methods with rules of their own.

What a method is called and costs is in `landscape.family`.
"""

from landscape.optimizers.group_sam import BATCHNORM, WEIGHTINGS, GroupSAM
from landscape.optimizers.named import ASAM, GAMMA_RULES, SAM, SGD, SSESAM, FriendlySAM, ImbSAM, switch_epoch

__all__ = ["ASAM", "BATCHNORM", "GAMMA_RULES", "SAM", "SGD", "SSESAM", "WEIGHTINGS", "FriendlySAM", "GroupSAM", "ImbSAM",
           "switch_epoch"]
