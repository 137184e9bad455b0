"""Published recipes: every setting of a paper's runs that its code and text record, one table a source.

Sources: Lyu et al., AAAI 2025 (SSE-SAM); Zhou et al., ICCV 2023 (ImbSAM); Rangwani et al., NeurIPS 2022; Chen et al.,
CVPR 2026 (GKP-GSA); Li et al., ICML 2025 (Focal-SAM); Zhou et al., CVPR 2023 (CC-SAM); each with its released code.
"""

from landscape.recipe import GIVEN, Recipe, Settings


def _accuracies(conditions: Settings, **rows: tuple[float, ...]) -> tuple[tuple[Settings, Settings], ...]:
    """Return a table's rows: optimizer -> many, medium, few, all, in percent."""
    groups = ("many", "medium", "few", "all")
    return tuple(({**conditions, "opt": opt}, dict(zip(groups, values))) for opt, values in rows.items())


def _overall(conditions: Settings, **rows: float) -> tuple[tuple[Settings, Settings], ...]:
    """Return a table's rows: optimizer -> all, in percent; the source's other groups are not ours."""
    return tuple(({**conditions, "opt": opt}, {"all": value}) for opt, value in rows.items())


def _gkp_gsa(conditions: Settings, loss: str, plain: tuple[float, ...] | float | None, whole: tuple[float, ...] | float,
             num_groups: int = 4) -> tuple[tuple[Settings, Settings], ...]:
    """Return two rows, a loss alone and with GKP-GSA whole: many, medium, few and all, or all alone, in percent."""
    names = {float: ("all",), tuple: ("many", "medium", "few", "all")}
    of_method = {"sgd": {}, "gkp_gsa": {"gkp_variant": "paper", "opt_options": {"num_groups": num_groups}}}
    return tuple(({**conditions, "loss": loss, "opt": opt, **of_method[opt]},
                  dict(zip(names[type(found)], found if isinstance(found, tuple) else (found,))))
                 for opt, found in (("sgd", plain), ("gkp_gsa", whole)) if found is not None)


CIFAR = ("cifar10", "cifar100")
CIFAR100_LT = {"dataset": "cifar100", "imb_factor": 100.0, "loss": "CE", "drw_epoch": None}
# No source does otherwise; a row or a recipe may.
ALL = {"drw_epoch": None, "normalization": None, "momentum": 0.9, "augment": True, "max_steps": None, "dtype": "float32",
       "precision": "float32", "accumulate": 1}
RELEASED_SAM = {"restore": "subtract", "norm_epsilon": 1e-16, "batchnorm": "every"}     # of SSE-SAM and ImbSAM
RELEASED_CIFAR = {
    **ALL, "imb_factor": 100.0, "profile": "exp", "subset": "first", "arch": "resnet34", "loss": "CE", "epochs": 200,
    "batch_size": 64, "lr": 0.01, "weight_decay": 1e-3, "schedule": "cosine", "scheduler_at": "start",
    "warmup_epochs": 0, "rho": 0.05, "selection": "test_best", "flip_average": True,
}
TEST_SELECTED = "the published model is the epoch that is best on the test images"

SSE_SAM = Recipe(
    source="Lyu et al., AAAI 2025, arXiv 2412.13715; command of the README and defaults of the code",
    datasets=CIFAR,
    settings={
        **RELEASED_CIFAR, **RELEASED_SAM, "dataset": "cifar100", "normalization": "cifar10", "opt": "ssesam",
        "eta": 100.0, "head_rho": 0.05, "tail_rho": 0.1, "gamma": 0.7, "gamma_rule": "released", "weighting": "batch",
        "eval_every": 10, "seed": 9826,
    },
    rows=(
        ({"opt": "imbsam"}, {"weighting": "group_mean"}),
        ({"loss": "LDAM"}, {"loss_options": {"form": "release", "max_m": 0.5, "s": 30.0}}),
        *(({"loss": name}, {"loss_options": {"tau": 0.75}}) for name in ("LA", "VA")),     # VA is the README's word
        ({"loss": "VS"}, {"loss_options": {"gamma": 0.05, "tau": 0.75}}),
    ),
    traps=(
        TEST_SELECTED + ", every tenth is looked at, chosen without flips and reported with flips averaged",
        "the last epoch has the learning rate 0, for the scheduler steps at the start of an epoch",
        "CIFAR-100 is normalized with the statistics of CIFAR-10",
        "its ImbSAM baseline takes each group's mean, which re-weights the tail strongly",
        "its LDAM takes margins of up to 15 off the logits of a linear head, without DRW",
        "published for CIFAR-100 with CE: radii, eta and gamma for other data and losses are not in the README",
    ),
    inexpressible=("BatchNorm's running statistics move in four forward passes a step, as many as the released step takes; "
                   "here a step takes three before the switch and two after it",),
    published=_accuracies(CIFAR100_LT, sgd=(74.3, 43.1, 11.6, 44.6), sam=(75.3, 45.6, 12.9, 46.2),
                          imbsam=(72.3, 50.4, 16.6, 47.9), ssesam=(71.7, 54.5, 17.1, 49.3)),
)

IMBSAM = Recipe(
    source="Zhou et al., ICCV 2023, arXiv 2308.07815; code since September 2023",
    datasets=("cifar100",),
    settings={
        **RELEASED_CIFAR, **RELEASED_SAM, "dataset": "cifar100", "opt": "imbsam", "eta": 20.0, "weighting": "double_tail",
        "eval_every": 1,
    },
    traps=(
        TEST_SELECTED + ", every epoch is looked at, reported with flips averaged",
        "the tail's loss counts twice since September 2023; the first release has weighting=batch",
        "the paper's ResNet-32 is a ResNet-34 with a 3x3 stem of 21 million parameters",
        "the last epoch has the learning rate 0, for the scheduler steps at the start of an epoch",
    ),
    published=_accuracies(CIFAR100_LT, sgd=(77.8, 46.6, 13.5, 47.6), sam=(79.7, 49.3, 12.4, 48.9),
                          imbsam=(75.9, 53.5, 19.4, 51.1)),
)

RANGWANI = Recipe(
    source="Rangwani et al., NeurIPS 2022, arXiv 2212.13827; released code",
    datasets=(*CIFAR, "imagenet-lt", "inaturalist18"),
    settings={
        **ALL, "dataset": "cifar10", "loss": "CE", "opt": "sam", "drw_beta": 0.9999, "weight_decay": 2e-4,
        "scheduler_at": "end", "batchnorm": "every", "restore": "copy", "norm_epsilon": 1e-12,
        "eval_every": 1, "selection": "test_best", "flip_average": False,
    },
    rows=(
        *(({"dataset": name}, {
            "imb_factor": 100.0, "profile": "exp", "subset": "seeded", "data_seed": 0, "arch": "resnet32", "epochs": 200,
            "batch_size": 128, "lr": 0.1, "schedule": "step", "milestones": (160, 180), "decay": 0.01, "warmup_epochs": 5,
        }) for name in CIFAR),
        *(({"dataset": name}, {
            "arch": "torchvision:resnet50", "epochs": 90, "batch_size": 256, "lr": lr, "schedule": "cosine",
            "warmup_epochs": 0,
        }) for name, lr in (("imagenet-lt", 0.2), ("inaturalist18", 0.1))),
        ({"loss": "LDAM"}, {"loss_options": {"form": "paper", "max_m": 0.5, "s": 30.0}}),
        ({"loss": "VS"}, {"loss_options": {"gamma": 0.3, "tau": 1.0}}),
        *(({"dataset": name, "loss": "LDAM"}, {"drw_epoch": 160}) for name in CIFAR),
        *(({"dataset": name, "loss": "LDAM"}, {"drw_epoch": 60, "loss_options": {"form": "paper", "max_m": 0.3, "s": 30.0}})
          for name in ("imagenet-lt", "inaturalist18")),
        ({"dataset": "inaturalist18", "loss": "LDAM"}, {"weight_decay": 1e-4}),
        # The radius, by data set and loss; with DRW in the second and third row of each.
        ({"dataset": "cifar10", "loss": "CE"}, {"rho": 0.1}),
        ({"dataset": "cifar10", "loss": "CE", "drw_epoch": GIVEN}, {"rho": 0.5}),
        ({"dataset": "cifar10", "loss": "LDAM"}, {"rho": 0.8}),
        ({"dataset": "cifar100", "loss": "CE"}, {"rho": 0.2}),
        ({"dataset": "cifar100", "loss": "CE", "drw_epoch": GIVEN}, {"rho": 0.8}),
        ({"dataset": "cifar100", "loss": "LDAM"}, {"rho": 0.8}),
    ),
    required=(
        ({"dataset": "imagenet-lt", "opt": "sam"}, "rho", "published as a schedule, 0.05/0.1/0.5/0.5 up to epochs "
         "5/60/75/90"),
        ({"dataset": "inaturalist18", "opt": "sam", "loss": "LDAM"}, "rho", "published as a schedule, 0.05/0.1/0.5/0.5"),
        ({"dataset": "inaturalist18", "opt": "sam"}, "rho", "published as a schedule, 0.05/0.1/0.1/0.2 with CE"),
        ({"opt": "sam"}, "rho", "the source records none for this loss"),
    ),
    traps=(
        TEST_SELECTED + ", without flip averaging",
        "radii are 2 to 16 times those of SSE-SAM and ImbSAM",
        "class-wise Hessians are of unweighted CE, on augmented images, from one probe",
        "DRW is used where drw_epoch is given (160 on CIFAR, 60 on large data); LDAM comes with it",
        "in the run script, the SGD lines of DRW on CIFAR-100 pass cifar10",
        "on iNaturalist, the weight decay of CE is not recorded: ImageNet-LT's is used",
        "of its runs with PGD and LPF-SGD the constants are not recorded: landscape/optimizers/noise.py says which are used",
    ),
    inexpressible=("radii that change during training: an option on CIFAR, the rule on large data",),
    published=(
        *_overall({"dataset": "cifar10", "imb_factor": 100.0, "loss": "CE", "drw_epoch": GIVEN}, sgd=75.5, pgd=77.2, lpfsgd=78.5,
                  sam=80.6),
        *_overall({"dataset": "cifar100", "imb_factor": 100.0, "loss": "CE", "drw_epoch": GIVEN}, sgd=41.0, pgd=42.2, lpfsgd=42.9,
                  sam=44.6),
        *_overall({"dataset": "cifar10", "imb_factor": 100.0, "loss": "CE", "drw_epoch": None}, sgd=71.7, sam=73.1),
        *_overall({"dataset": "cifar100", "imb_factor": 100.0, "loss": "CE", "drw_epoch": None}, sgd=38.5, sam=39.6),
        *_overall({"dataset": "cifar10", "imb_factor": 100.0, "loss": "LDAM", "drw_epoch": GIVEN}, sgd=77.5, sam=81.9),
        *_overall({"dataset": "cifar100", "imb_factor": 100.0, "loss": "LDAM", "drw_epoch": GIVEN}, sgd=42.7, sam=45.4),
        *_overall({"dataset": "cifar10", "imb_factor": 100.0, "loss": "VS", "drw_epoch": None}, sgd=78.6, sam=82.4),
        *_overall({"dataset": "cifar100", "imb_factor": 100.0, "loss": "VS", "drw_epoch": None}, sgd=41.7, sam=46.6),
        *_overall({"dataset": "imagenet-lt", "loss": "CE", "drw_epoch": GIVEN}, sgd=44.9, sam=47.1),
        *_overall({"dataset": "imagenet-lt", "loss": "CE", "drw_epoch": None}, sgd=42.7),
        *_overall({"dataset": "imagenet-lt", "loss": "LDAM", "drw_epoch": GIVEN}, sgd=49.9, sam=53.1),
        *_overall({"dataset": "inaturalist18", "loss": "CE", "drw_epoch": GIVEN}, sgd=63.0, sam=65.3),
        *_overall({"dataset": "inaturalist18", "loss": "CE", "drw_epoch": None}, sgd=60.3),
        *_overall({"dataset": "inaturalist18", "loss": "LDAM", "drw_epoch": GIVEN}, sgd=67.5, sam=70.1),
    ),
)

GKP_GSA = Recipe(
    source="Chen et al., CVPR 2026, arXiv 2603.21217; the paper's method, BCL and data choice as in the released code",
    datasets=(*CIFAR, "imagenet-lt", "inaturalist18"),
    settings={
        **ALL, "dataset": "cifar100", "loss": "BCL", "opt": "gkp_gsa", "gkp_variant": "paper", "batch_size": 256,
        "scheduler_at": "end", "eval_every": 1, "selection": "test_best", "flip_average": False, "seed": 2131224,
    },
    rows=(
        *(({"dataset": name}, {
            "imb_factor": 100.0, "profile": "exp", "subset": "seeded", "data_seed": 0, "arch": "resnet32", "epochs": 200,
            "lr": 0.15, "weight_decay": 5e-4, "schedule": "step", "milestones": (160, 180), "decay": 0.1, "warmup_epochs": 5,
        }) for name in CIFAR),
        *(({"dataset": name}, {
            "arch": "torchvision:resnet50", "epochs": epochs, "lr": lr, "weight_decay": weight_decay, "schedule": "cosine",
            "warmup_epochs": 0,
        }) for name, epochs, lr, weight_decay in (("imagenet-lt", 90, 0.1, 5e-4), ("inaturalist18", 100, 0.2, 1e-4))),
        ({"loss": "BCL"}, {"loss_options": {"a": 2.0, "b": 0.6, "tau": 1.0, "temperature": 0.1, "s": 30.0, "hidden": 512,
                                            "dim": 128}}),
        ({"opt": "gkp_gsa"}, {"opt_options": {"num_groups": 4}}),
        ({"opt": "gkp_gsa", "dataset": "imagenet-lt"}, {"opt_options": {"num_groups": 6}}),
        ({"opt": "gkp_gsa", "gkp_variant": "released"}, {"batchnorm": "clean", "opt_options": {"num_groups": 1}}),
    ),
    traps=(
        TEST_SELECTED + ", without flip averaging",
        "the released code's default of one group makes it Friendly-SAM on BCL",
        "the paper says step decay and cosine both, in one section",
        "when classes are grouped anew, how similar two are, and what a group's size counts, the paper does not say: "
        "landscape/optimizers/gkp_gsa.py lists what is chosen",
        "on large data the batch size is not recorded: that of CIFAR is used",
    ),
    inexpressible=("the last batch of an epoch is dropped where it is not full",
                   "AutoAugment with Pillow's magnitudes: kornia's are used, and no random signs"),
    published=(
        *(({**CIFAR100_LT, "loss": loss, "opt": "gkp_gsa", "opt_options": {"num_groups": 4, name: 0.0}},
           dict(zip(("many", "medium", "few", "all"), values)))
          for loss, name, values in (("BCL", "scale", (67.4, 53.8, 33.2, 52.4)), ("BCL", "penalty", (67.3, 54.0, 34.1, 52.7)),
                                     ("CE", "scale", (71.1, 41.2, 9.3, 42.1)))),
        *_gkp_gsa(CIFAR100_LT, "BCL", (67.2, 53.1, 32.9, 51.9), (67.3, 54.9, 34.9, 53.2)),
        *_gkp_gsa(CIFAR100_LT, "CE", (65.2, 37.1, 9.1, 38.4), (71.8, 42.1, 9.7, 42.8)),
        *(row for name, factor, values in (("cifar100", 50.0, (56.6, 57.6)), ("cifar100", 10.0, (64.9, 68.7)),
                                           ("cifar10", 100.0, (84.3, 86.3)), ("cifar10", 50.0, (87.2, 88.2)),
                                           ("cifar10", 10.0, (91.1, 92.5)))
          for row in _gkp_gsa({"dataset": name, "imb_factor": factor, "drw_epoch": None}, "BCL", *values)),
        *_gkp_gsa({"dataset": "imagenet-lt", "arch": "torchvision:resnet50"}, "BCL", 56.0, 57.9, num_groups=6),
        *_gkp_gsa({"dataset": "imagenet-lt", "arch": "timm:resnext50_32x4d"}, "BCL", None, (69.7, 56.0, 38.6, 58.9),
                  num_groups=6),
        *_gkp_gsa({"dataset": "inaturalist18", "arch": "torchvision:resnet50"}, "BCL", 71.8, 74.4),
    ),
)

FOCAL_SAM = Recipe(
    source="Li et al., ICML 2025, arXiv 2505.01660; run script and defaults of the code, for ResNet-32",
    datasets=CIFAR,
    settings={
        **ALL, "dataset": "cifar100", "imb_factor": 100.0, "profile": "exp", "subset": "seeded", "data_seed": 0,
        "normalization": "cifar10", "arch": "resnet32", "loss": "LA", "opt": "focalsam", "epochs": 200, "batch_size": 64,
        "lr": 0.1, "schedule": "cosine", "scheduler_at": "end", "warmup_epochs": 0, "batchnorm": "every",
        "restore": "copy", "norm_epsilon": 1e-12, "eval_every": 1, "selection": "test_best", "flip_average": False, "seed": 0,
    },
    rows=(
        ({"loss": "LA"}, {"loss_options": {"tau": 1.0}}),
        ({"dataset": "cifar10"}, {"rho": 0.2, "weight_decay": 2e-4}),
        ({"dataset": "cifar100"}, {"rho": 0.3, "weight_decay": 1e-3}),
        ({"dataset": "cifar10", "opt": "focalsam"}, {"opt_options": {"focal_gamma": 3.0, "focal_weight": 0.5}}),
        ({"dataset": "cifar100", "opt": "focalsam"}, {"opt_options": {"focal_gamma": 3.2, "focal_weight": 0.8}}),
    ),
    traps=(
        TEST_SELECTED + ", without flip averaging",
        "the run script's lines for ResNet-32 pass SAM in place of Focal-SAM, with the constants of Focal-SAM",
        "CIFAR-100 is normalized with the statistics of CIFAR-10",
        "the script passes tau=0.75, which its LA does not read: its own default is used, 1 as far as recorded",
        "the published accuracies are as others quote them",
    ),
    published=tuple(({"dataset": dataset, "imb_factor": factor, "opt": "focalsam", "loss": "LA"}, {"all": value})
                    for dataset, factor, value in (("cifar10", 50.0, 82.0), ("cifar10", 100.0, 77.2), ("cifar10", 200.0, 71.7),
                                                   ("cifar100", 50.0, 48.1), ("cifar100", 100.0, 44.0))),
)

CC_SAM = Recipe(
    source="Zhou et al., CVPR 2023; configuration files of the code",
    datasets=CIFAR,
    settings={
        **ALL, "dataset": "cifar100", "imb_factor": 200.0, "profile": "exp", "arch": "resnet32", "loss": "CE", "opt": "ccsam",
        "epochs": 230, "batch_size": 64, "lr": 0.1, "weight_decay": 2e-4, "schedule": "step", "milestones": (160, 180),
        "decay": 0.1, "warmup_epochs": 5, "scheduler_at": "end", "batchnorm": "every", "eval_every": 1,
        "selection": "test_best", "flip_average": False, "seed": 42,
    },
    rows=(
        *(({"opt": "ccsam", "dataset": name}, {"opt_options": {
            "radius_scale": 1e-6, "flat_ratio": ratio, "second_stage": 30 / 230, "adversarial": 1.0, "adversarial_cap": cap,
        }}) for name, ratio, cap in (("cifar10", 0.3, 1.0), ("cifar100", 0.5, 0.3))),
    ),
    traps=(
        TEST_SELECTED + ", without flip averaging",
        "its radius, with the factor 1e-6, moves the classifier by about 1e-5: give --opt_options radius_scale=0.01 to move it",
        "imbalance 200, where most papers compare at 100",
        "its many and few are inclusive: at least 100 and at most 20 images",
    ),
    inexpressible=(
        "in its second stage, batches drawn with equal classes, and a learning rate of its own, 0.1 times the first: here "
        "classes are weighed, and the rate is that after the last milestone, 0.01 times the first",
        "mixup of the loss in place, and its warm-up, which begins at a third of the rate",
    ),
)

RECIPES: dict[str, Recipe] = {"sse-sam": SSE_SAM, "imbsam": IMBSAM, "rangwani": RANGWANI, "gkp-gsa": GKP_GSA,
                              "focal-sam": FOCAL_SAM, "cc-sam": CC_SAM}
