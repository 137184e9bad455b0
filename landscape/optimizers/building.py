"""From a row of the family to an optimizer: its hyperparameters by signature, their values from a configuration.

A constructor's parameters after (optimizer, model) are, by name,

    a setting of TrainConfig    FLAGS, such as rho, head_rho or gamma: from there, under a flag of their own
    a switch of the rule        weighting, batchnorm, restore, norm_epsilon: from there, too
    of the run                  total_epochs, class_counts, processes: handed over as they are
    anything else               a hyperparameter: from `opt_options`, else its default

and where it takes **options, those of GroupSAM's own come on top.
"""

import inspect
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import nn

from landscape.callables import find_named
from landscape.distributed import Processes
from landscape.errors import InputError
from landscape.family import method
from landscape.optimizers.group_sam import GroupSAM

FLAGS = ("rho", "head_rho", "tail_rho", "gamma", "gamma_rule", "gkp_variant")
SWITCHES = ("weighting", "batchnorm", "restore", "norm_epsilon")
OF_THE_RUN = ("total_epochs", "class_counts", "processes")


def constructor_of(opt: str) -> Callable[..., GroupSAM]:
    """Return what builds an optimizer of the family, or what "module:callable" names."""
    found = method(opt).constructor
    return find_named(found) if isinstance(found, str) else found


def hyperparameters(opt: str) -> dict[str, Any]:
    """Return the hyperparameters of an optimizer with their defaults, those that have a flag of their own first."""
    found = {name: p.default for name, p in _parameters(constructor_of(opt)).items() if name not in (*SWITCHES, *OF_THE_RUN)}
    for name, default in found.items():
        if default is inspect.Parameter.empty:
            raise InputError(f"opt={opt!r} has no default for {name}: give each hyperparameter one, in the constructor")
    return {name: found[name] for name in sorted(found, key=lambda name: name not in FLAGS)}


def opt_options(opt: str) -> dict[str, Any]:
    """Return the hyperparameters that have no flag of their own, with their defaults."""
    return {name: default for name, default in hyperparameters(opt).items() if name not in FLAGS}


def options_of_the_rule() -> dict[str, Any]:
    """Return the options that every radius takes, with their defaults."""
    return {name: p.default for name, p in _parameters(lambda optimizer, model, **options: None).items()
            if name not in (*SWITCHES, *OF_THE_RUN)}


def settings_read(opt: str) -> tuple[str, ...]:
    """Return the settings of TrainConfig that an optimizer reads and not all of them do."""
    of_groups = {"all": (), "head_tail": ("eta", "weighting"), "classes": (),
                 "clusters": ("weighting",)}[method(opt).groups]
    return (*(name for name in hyperparameters(opt) if name in FLAGS), *of_groups)


def checked_options(opt: str, given: dict[str, Any]) -> dict[str, Any]:
    """Return options by name with the types of their defaults; an unknown name or another type is an InputError."""
    known = opt_options(opt)
    for name in given:
        if name not in known:
            raise InputError(f"opt_options: {name!r} is unknown to opt {opt}: expected "
                             f"{', '.join(hyperparameters(opt)) or 'none'}")
    return {name: _typed(name, value, known[name]) for name, value in given.items()}


def build_optimizer(config, model: nn.Module, processes: Processes = Processes(),
                    class_counts: Sequence[int] | None = None) -> GroupSAM:
    """Build the optimizer that `config.opt` names around torch's SGD with its lr, momentum and weight_decay.

    `class_counts` (C,) are the training images a class, which some need.
    """
    constructor = constructor_of(config.opt)
    trainable = [p for p in model.parameters() if p.requires_grad]
    if not trainable:
        raise InputError("the model has no trainable parameter: set requires_grad=True on at least one")
    base = torch.optim.SGD(trainable, lr=config.lr, momentum=config.momentum, weight_decay=config.weight_decay,
                           fused=config.fused or None)  # None is torch's own choice: foreach on a GPU
    offered = {name: getattr(config, name) for name in (*FLAGS, *SWITCHES)} | dict(config.opt_options)
    offered |= {"total_epochs": config.epochs, "class_counts": class_counts, "processes": processes}
    wanted = _parameters(constructor)
    optimizer = constructor(base, model, **{name: value for name, value in offered.items() if name in wanted})
    if not isinstance(optimizer, GroupSAM):
        raise InputError(f"opt={config.opt!r} built a {type(optimizer).__name__}: expected a GroupSAM or a class made from it")
    if config.compile and not optimizer.compiles:
        raise InputError(f"opt={config.opt} with these options watches layers of the network, which a compiled one hides: leave "
                         "compile out")
    return optimizer


def _parameters(constructor: Callable[..., Any]) -> dict[str, inspect.Parameter]:
    """Return what a constructor takes after (optimizer, model), GroupSAM's keywords included where it passes them on."""
    own = list(inspect.signature(constructor).parameters.values())[2:]
    plain = {p.name: p for p in own if p.kind not in (p.VAR_KEYWORD, p.VAR_POSITIONAL)}
    if len(plain) == len(own):
        return plain
    rule = inspect.signature(GroupSAM).parameters.values()
    return {p.name: p for p in rule if p.kind is p.KEYWORD_ONLY} | plain


def _typed(name: str, value: Any, default: Any) -> Any:
    kind = float if isinstance(default, float) else type(default)
    whole = isinstance(value, int) and not isinstance(value, bool)
    if kind is float and (whole or isinstance(value, float)):
        return float(value)
    if kind is bool and value in ("true", "false"):
        return value == "true"
    if default is not None and type(value) is not kind:
        raise InputError(f"opt_options: {name}={value!r} is out of range: expected {NOUNS.get(kind, kind.__name__)}, "
                         f"such as {default}")
    return value


NOUNS = {float: "a number", int: "an integer", str: "a word", bool: "true or false"}
