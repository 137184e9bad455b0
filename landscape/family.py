"""The optimizers of the family, one row each: what builds it, what a step costs, where it is from, how it is drawn.

A row is all there is to adding one. Its constructor is called as constructor(optimizer, model, name=value, ...); the
parameters that its signature declares after these two, with their defaults, are its hyperparameters: `--opt_options` takes
them by name, TrainConfig checks and stores them. `landscape.optimizers.building` reads them. The command line, the recipes,
the tests over the family, the tables and the figures all go by these rows. No torch here: constructors are named by where
they are, and imported when one is built.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from landscape.errors import InputError

GROUPINGS = ("all", "head_tail", "classes", "clusters")
NEEDS = ("class_counts", "features", "views")


@dataclass(frozen=True)
class Passes:
    """Forwards and backwards of the whole network over one batch, in one step; the cost of a row in one of its stages."""

    forwards: int
    backwards: int
    stage: str = ""                                             # "" where there is one alone
    options: Mapping[str, Any] = field(default_factory=dict)    # hyperparameters that bring about this stage or way
    each: tuple[int, int] = (0, 0)                              # more of both for each class in the batch
    waits: bool = False                                         # whether a step reads something from the device

    def of(self, num_classes: int) -> tuple[int, int]:
        """Return the forwards and backwards of a batch with samples of so many classes."""
        return self.forwards + self.each[0] * num_classes, self.backwards + self.each[1] * num_classes

    @property
    def words(self) -> str:
        """Both counts as a table prints them: "2 / 3", "1 + C / 2C" with C the classes in the batch."""
        return " / ".join(_count(fixed, each) for fixed, each in zip((self.forwards, self.backwards), self.each))


@dataclass(frozen=True)
class Method:
    """One optimizer of the family."""

    opt: str                                # its name on the command line
    name: str                               # as papers print it
    constructor: str | Callable[..., Any]   # (optimizer, model, ...) -> GroupSAM, or "module:callable" of one
    passes: tuple[Passes, ...]
    source: str                             # author, year and equation; where a choice is ours, that it is
    groups: str = "all"                     # how it splits a batch: not, into head and tail, by class, by clusters of these
    needs: tuple[str, ...] = ()             # what it takes from the run beyond losses: class_counts, features, views
    color: str | None = None                # of its curves; None: one of the spare colors
    marker: str = "v"

    def __post_init__(self):
        if self.groups not in GROUPINGS:
            raise InputError(f"groups={self.groups!r} is unknown: expected one of {', '.join(GROUPINGS)}")
        if unknown := [need for need in self.needs if need not in NEEDS]:
            raise InputError(f"needs={unknown[0]!r} is unknown: expected some of {', '.join(NEEDS)}")


# Colors: the palette of Okabe and Ito (2008), and of Tol (2021) where that has no more; markers tell them apart besides.
FAMILY: dict[str, Method] = {row.opt: row for row in (
    Method("sgd", "SGD", "landscape.optimizers:SGD", (Passes(1, 1),), "Robbins and Monro 1951", color="#000000", marker="o"),
    Method("sam", "SAM", "landscape.optimizers:SAM", (Passes(2, 2),), "Foret et al. 2021, equation 2", color="#0072B2",
           marker="s"),
    Method("asam", "ASAM", "landscape.optimizers:ASAM", (Passes(2, 2),), "Kwon et al. 2021; every parameter scaled, no eta",
           color="#332288", marker="p"),
    Method("friendlysam", "Friendly-SAM", "landscape.optimizers:FriendlySAM", (Passes(2, 2),), "Li et al. 2024; sigma 1, "
           "lambda 0.9 and the order of the released code", color="#999933", marker="h"),
    Method("imbsam", "ImbSAM", "landscape.optimizers:ImbSAM", (Passes(2, 3),), "Zhou et al. 2023", "head_tail",
           color="#E69F00", marker="^"),
    Method("ssesam", "SSE-SAM", "landscape.optimizers:SSESAM",
           (Passes(3, 4, "stage I", {"gamma": 1.0}), Passes(2, 3, "stage II", {"gamma": 0.0})), "Lyu et al. 2025",
           "head_tail", color="#009E73", marker="D"),
    Method("gkp_gsa", "GKP-GSA", "landscape.optimizers.gkp_gsa:GKPGSA",
           (Passes(5, 8, "paper", {"gkp_variant": "paper"}), Passes(2, 2, "released", {"gkp_variant": "released"})),
           "Chen et al. 2026, equation 16; four groups", "clusters", ("class_counts", "features"), color="#D55E00",
           marker="*"),
    Method("focalsam", "Focal-SAM", "landscape.optimizers.focal_sam:FocalSAM", (Passes(2, 3),), "Li et al. 2025", "classes",
           ("class_counts",), color="#CC79A7", marker="P"),
    Method("ccsam", "CC-SAM", "landscape.optimizers.cc_sam:CCSAM",
           (Passes(2, 2, "classifier", {"perturb": "classifier"}), Passes(1, 0, "network", {"perturb": "network"}, (1, 2), True),
            Passes(2, 2, "second stage", {"second_stage": 1.0})),
           "Zhou et al. 2023; scale of the radius ours", "classes", ("class_counts",), color="#56B4E9",
           marker="X"),
    Method("pgd", "PGD", "landscape.optimizers.noise:PGD", (Passes(1, 1),), "Jin et al. 2021, algorithm 1; radius ours",
           color="#999999", marker="<"),
    Method("lpfsgd", "LPF-SGD", "landscape.optimizers.noise:LPFSGD",
           (Passes(1, 1, "one draw"), Passes(8, 8, "eight draws", {"lpf_draws": 8})), "Bisla et al. 2022, released defaults",
           color="#AA4499", marker=">"),
)}


def register_optimizer(opt: str, constructor: str | Callable[..., Any], **row: Any) -> Method:
    """Add an optimizer to the family under the name `opt`; return its row. `row` may fill in the fields of Method.

    Without `passes`, a step is said to cost what one of SAM's does, or of ImbSAM's where `groups` is head_tail. A name that
    is taken is an error.
    """
    if opt in FAMILY:
        raise InputError(f"opt={opt!r} is taken by {FAMILY[opt].name}: choose another name")
    FAMILY[opt] = _method(opt, constructor, **row)
    return FAMILY[opt]


def method(opt: str) -> Method:
    """Return the row of an optimizer; "module:callable" is a row of its own. An unknown name is an error with the choices."""
    if opt not in FAMILY and ":" not in str(opt):
        raise InputError(f"opt={opt!r} is unknown: expected one of {', '.join(FAMILY)}, or module:callable")
    return FAMILY[opt] if opt in FAMILY else _method(opt, opt)


def _method(opt: str, constructor: str | Callable[..., Any], **row: Any) -> Method:
    alike = FAMILY["imbsam" if row.get("groups") == "head_tail" else "sam"]
    plain = {"name": opt.rpartition(":")[2], "passes": alike.passes, "source": "yours"}
    return Method(opt, constructor=constructor, **plain | row)


def _count(fixed: int, each: int) -> str:
    grown = f"{each if each > 1 else ''}C"
    return str(fixed) if not each else grown if not fixed else f"{fixed} + {grown}"
