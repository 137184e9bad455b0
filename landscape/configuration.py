"""TrainConfig: everything that decides how a network is trained, checked once, stored with the result.

Defaults are the SSE-SAM release's (Lyu et al. 2025) where it has the setting, except that `dataset` is the embedded
one, the architecture is resnet32 instead of its resnet34 of 21 million parameters, and the learning rate changes at the
end of an epoch. Epochs count from 0.
"""

import difflib
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields, replace
from typing import Any

from landscape.data import DEFAULT_IMB_FACTORS, LongTailData
from landscape.data.imagefiles import BROKEN_IMAGES
from landscape.data.longtail import PROFILES, SUBSETS, read_imb_factor
from landscape.errors import InputError
from landscape.family import FAMILY, method
from landscape.losses import LOSSES, loss_name, loss_options
from landscape.optimizers import BATCHNORM, GAMMA_RULES, WEIGHTINGS
from landscape.optimizers.ascent import RESTORES
from landscape.optimizers.building import FLAGS, checked_options, hyperparameters
from landscape.optimizers.gkp_gsa import VARIANTS
from landscape.precision import PRECISIONS
from landscape.recipes import RECIPES
from landscape.schedules import SCHEDULER_AT, SCHEDULES
from landscape.settings import LARGEST_SEED, read_setting, setting

SELECTIONS = ("last", "test_best")
DTYPES = ("float32", "float64")
DEFAULT_ARCHS = {"digits": "digitnet", "synthetic": "mlp", "imagenet-lt": "torchvision:resnet50",
                 "inaturalist18": "torchvision:resnet50"}
OTHER_ARCH = "resnet32"
DEFAULT_ETA = 20.0
LARGE = 32      # pixels
LARGEST_DATA_SEED = 2**32 - 1    # that NumPy's legacy generator takes
WHERE = ("device", "threads", "workers")                # a run is computed
LABELS = ("recipe", "selection", "flip_average")        # what its settings are called, which of its epochs is reported
NOT_IDENTITY = (*WHERE, *LABELS)                        # none of these makes it another run


@dataclass(frozen=True)
class TrainConfig:
    """The settings of one training run. Each is checked at construction; None means the default named in its text."""

    dataset: str = setting(
        "digits",
        "digits, cifar10, cifar100, synthetic, imagenet-lt, inaturalist18, list:FOLDER (train.txt and test.txt of lines "
        "'path label'), folder:PATH, npz:FILE or module:callable",
    )
    imb_factor: float | None = setting(
        None,
        "n_max / n_min; in (0, 1) it is read as its inverse; default: the data set's "
        "(digits 20, CIFAR 100; own data are used as they are)",
        kind=float,
        low=0,
    )
    profile: str = setting("exp", "how class sizes fall", choices=PROFILES)
    subset: str = setting("first", "which images of a class are kept: its first ones, or seeded ones", choices=SUBSETS)
    data_seed: int = setting(0, "seed of subset=seeded", kind=int, low=0, high=LARGEST_DATA_SEED)
    normalization: str | None = setting(
        None, "whose mean and std: cifar10, cifar100, imagenet or inaturalist18; default: the data set's own"
    )
    image_size: int | None = setting(
        None, "pixels, for folder:PATH and for images in lists (default: 224)", kind=int, low=1
    )
    broken_images: str = setting(
        "stop", "at an image in a list that cannot be read: stop, or skip and count it", choices=BROKEN_IMAGES
    )
    workers: int = setting(
        4, "processes that decode images in lists, for each of training and evaluation; 0: none", kind=int, low=0
    )
    arch: str | None = setting(
        None,
        "network: mlp, digitnet, resnet20, resnet32, resnet56, resnet34 (the SSE-SAM release's), "
        "timm:NAME, torchvision:NAME or module:callable; default: digitnet for digits, mlp for "
        "synthetic, torchvision:resnet50 for imagenet-lt and inaturalist18, else resnet32",
    )
    loss: str = setting(
        "CE", f"training loss: {', '.join(LOSSES)}, or module:callable; VA, the SSE-SAM README's word, is LA"
    )
    loss_options: dict[str, Any] = setting({}, "options of the loss by name, such as tau=0.75", kind=dict)
    drw_epoch: int | None = setting(
        None, "epoch from which classes are re-weighted (DRW); default: never", kind=int, low=0
    )
    drw_beta: float = setting(0.9999, "beta of DRW", kind=float, low=0, high=1, open_end=True)
    opt: str = setting("sgd", f"optimizer: {', '.join(FAMILY)}, or module:callable")
    opt_options: dict[str, Any] = setting({}, "hyperparameters of the optimizer by name, such as scaling=asam", kind=dict)
    eta: float | None = setting(
        None, "tail classes have fewer training images than this; default: 20", kind=float, low=0
    )
    many: float | None = setting(
        None, "many-shot classes have more training images; default: the data set's", kind=float, low=0
    )
    few: float | None = setting(
        None, "few-shot classes have fewer training images; default: the data set's", kind=float, low=0
    )
    rho: float = setting(0.05, "radius of sam, asam, friendlysam, imbsam and focalsam, in parameter units", kind=float, low=0)
    head_rho: float = setting(0.05, "head radius of ssesam", kind=float, low=0)
    tail_rho: float = setting(0.05, "tail radius of ssesam", kind=float, low=0)
    gamma: float = setting(
        0.0,
        "fraction of epochs after which ssesam drops the head's ascent: 0 from the start, 1 never",
        kind=float,
        low=0,
        high=1,
    )
    gamma_rule: str = setting(
        "ceil", "switch after ceil(gamma * epochs) epochs, or exactly as released", choices=GAMMA_RULES
    )
    gkp_variant: str = setting("paper", "gkp_gsa as its paper has it, or as its code was released", choices=VARIANTS)
    weighting: str = setting(
        "batch",
        "divide a group's losses by the batch, count the tail twice, or take each group's mean (imbsam and ssesam)",
        choices=WEIGHTINGS,
    )
    batchnorm: str = setting("every", "forward passes that move BatchNorm's running statistics", choices=BATCHNORM)
    restore: str = setting(
        "copy", "undo an ascent by saved parameters, exact, or subtract it again as released", choices=RESTORES
    )
    norm_epsilon: float = setting(
        0.0, "added to a gradient's norm: 1e-16 in the SSE-SAM and ImbSAM releases", kind=float, low=0
    )
    epochs: int = setting(200, "passes over the training images", kind=int, low=1)
    batch_size: int = setting(64, "images a step", kind=int, low=1)
    lr: float = setting(0.01, "learning rate", kind=float, low=0)
    momentum: float = setting(0.9, "momentum of SGD", kind=float, low=0, high=1, open_end=True)
    weight_decay: float = setting(1e-3, "weight decay of SGD", kind=float, low=0)
    schedule: str = setting("cosine", "learning rate over epochs", choices=SCHEDULES)
    scheduler_at: str = setting(
        "end",
        "change the learning rate at the end of an epoch, or at its start as the SSE-SAM release does",
        choices=SCHEDULER_AT,
    )
    warmup_epochs: int = setting(0, "epochs of linear warm-up", kind=int, low=0)
    milestones: tuple[int, ...] = setting(
        (160, 180), "epochs at which schedule=step multiplies by decay", kind=tuple, low=0
    )
    decay: float = setting(0.1, "factor at each milestone", kind=float, low=0)
    augment: bool = setting(True, "augment training images as the data set says", kind=bool)
    seed: int = setting(0, "seed of initial weights, order of images and augmentation", kind=int, low=0, high=LARGEST_SEED)
    checkpoint_epochs: str | tuple[int, ...] = setting(
        "last",
        "checkpoints to keep: last, every:K (0, K, 2K, ...) or a list such as 0,10,60; the last epoch is always kept",
        kind=object,
    )
    eval_every: int = setting(
        10, "evaluate on the test images every so many epochs, and after the last", kind=int, low=1
    )
    recipe: str | None = setting(
        None, "published recipe that fills in the settings left out; default: none", choices=tuple(RECIPES)
    )
    selection: str = setting(
        "last",
        "which evaluated epoch is reported as the result: the last, or, as most papers do, the one that is best on the "
        "test images",
        choices=SELECTIONS,
    )
    flip_average: bool = setting(
        False, "report accuracies with logits averaged over an image and its mirror image as the result", kind=bool
    )
    max_steps: int | None = setting(
        None, "stop after so many steps, in the middle of an epoch if need be", kind=int, low=1
    )
    dtype: str = setting("float32", "type of parameters and images", choices=DTYPES)
    precision: str = setting(
        "float32",
        "forward and backward in float32, in tf32 or bf16, or in float16 with a scaled loss (amp16)",
        choices=PRECISIONS,
    )
    accumulate: int = setting(1, "pieces of a batch, one forward after the other: less memory", kind=int, low=1)
    channels_last: bool | None = setting(
        None, "keep images and filters with the channels last in memory; default: for images of 32 pixels and more",
        kind=bool)
    fused: bool = setting(False, "torch's fused SGD", kind=bool)
    compile: bool = setting(False, "compile the network with torch.compile", kind=bool)
    device: str = setting("auto", "auto (a GPU where there is one), cpu, cuda or cuda:N")
    threads: int | None = setting(None, "CPU threads of torch; default: torch's", kind=int, low=1)

    def __post_init__(self):
        if self._is_here("loss", LOSSES):
            object.__setattr__(self, "loss", loss_name(self.loss))
        if self._is_here("opt", FAMILY):
            _sort_options(self)
        for f in fields(self):
            value = getattr(self, f.name)
            if value is not None or f.default is not None:
                object.__setattr__(self, f.name, read_setting(f, value))
        if self.imb_factor is not None:
            object.__setattr__(self, "imb_factor", read_imb_factor(self.imb_factor)[0])
        _check_together(self)

    def _is_here(self, name: str, table: Mapping[str, Any]) -> bool:
        """Whether a loss or an optimizer must be one that is known here."""
        return True

    def as_dict(self) -> dict[str, Any]:
        """Return the settings as plain values, fit for JSON."""
        return {name: list(value) if isinstance(value, tuple) else value for name, value in asdict(self).items()}

    @classmethod
    def from_dict(cls, settings: Mapping[str, Any]) -> "TrainConfig":
        """Read what `as_dict` or `identity` returned; settings left out take their defaults."""
        known = [f.name for f in fields(cls)]
        for name in settings:
            if name not in known:
                near = difflib.get_close_matches(name, known, n=1)
                hint = f"did you mean {near[0]}?" if near else f"expected some of {', '.join(known)}"
                raise InputError(f"setting {name!r} is unknown: {hint}")
        return cls(**settings)

    def identity(self) -> dict[str, Any]:
        """Return the settings that decide whether two runs are the same: all but where it runs and what it is called."""
        return {name: value for name, value in self.as_dict().items() if name not in NOT_IDENTITY}

    def stored(self) -> dict[str, Any]:
        """Return the settings that are kept with a run: its identity and its labels."""
        return {name: value for name, value in self.as_dict().items() if name not in WHERE}

    def resolved(self, data: LongTailData) -> "TrainConfig":
        """Return the configuration with the defaults that depend on the data filled in."""
        filled = {
            "arch": DEFAULT_ARCHS.get(self.dataset, OTHER_ARCH),
            "eta": DEFAULT_ETA,
            "many": data.many,
            "few": data.few,
            "channels_last": min(data.train.images.shape[2:]) >= LARGE,     # on two cores 0.8 of a step's time
        }
        if self.dataset in DEFAULT_IMB_FACTORS:  # data used as they are stay whole: a factor would cut them
            filled["imb_factor"] = data.imb_factor
        return replace(self, **{name: value for name, value in filled.items() if getattr(self, name) is None})

    def kept_epochs(self) -> frozenset[int]:
        """Return the epochs after which a checkpoint is kept; 0 stands for the initial weights."""
        if self.checkpoint_epochs == "last":
            return frozenset({self.epochs})
        if isinstance(self.checkpoint_epochs, str):
            return frozenset({*range(0, self.epochs + 1, int(self.checkpoint_epochs.partition(":")[2])), self.epochs})
        return frozenset({*self.checkpoint_epochs, self.epochs})


class TrainedConfig(TrainConfig):
    """The settings of a run that is only looked at: its optimizer and loss may be someone's own, which is not here.

    Nothing that they name is imported.
    """

    def _is_here(self, name: str, table: Mapping[str, Any]) -> bool:
        return getattr(self, name) in table


def _sort_options(config: TrainConfig) -> None:
    """Check the optimizer's options, and move those that have a flag of their own there: one place for each value."""
    method(config.opt)
    if not isinstance(config.opt_options, Mapping):
        return
    options, known, own = dict(config.opt_options), hyperparameters(config.opt), {f.name: f.default for f in fields(config)}
    for name in FLAGS:
        if name in known and known[name] != own[name]:
            raise InputError(f"opt={config.opt!r} gives {name} the default {known[name]}, and --{name} is {own[name]} by "
                             "default: let them agree, or call it otherwise")
        if name in known and name in options:
            value = options.pop(name)
            if getattr(config, name) not in (own[name], value):
                raise InputError(f"{name} is {getattr(config, name)} by its flag and {value} in opt_options: give it once")
            object.__setattr__(config, name, value)
    object.__setattr__(config, "opt_options", checked_options(config.opt, options))


def _check_together(config: TrainConfig) -> None:
    """Check settings whose range depends on another setting."""
    for name in ("drw_epoch", "warmup_epochs"):
        value = getattr(config, name)
        if value is not None and value > config.epochs:
            raise InputError(f"{name}={value} is out of range: expected 0 <= {name} <= epochs={config.epochs}")
    if isinstance(config.checkpoint_epochs, tuple) and max(config.checkpoint_epochs, default=0) > config.epochs:
        raise InputError(
            f"checkpoint_epochs={','.join(map(str, config.checkpoint_epochs))} is out of range: "
            f"expected epochs from 0 to epochs={config.epochs}"
        )
    if config.many is not None and config.few is not None and config.few > config.many:
        raise InputError(f"many={config.many:g}, few={config.few:g} are out of range: expected few <= many")
    if config.precision != "float32" and config.dtype != "float32":
        raise InputError(f"precision={config.precision!r} lowers float32: expected dtype='float32', not {config.dtype!r}, "
                         "or precision='float32'")
    known = loss_options(config.loss) if config._is_here("loss", LOSSES) else config.loss_options
    for option in config.loss_options:
        if option not in known:
            raise InputError(
                f"loss_options: {option!r} is unknown to loss {config.loss}: expected {', '.join(known) or 'none'}"
            )
