"""Studies by name: the four optimizers on digits, and the whole family beside the losses that papers compare with.

Each is a TOML document as a dictionary; `landscape study NAME --print_config` writes it out, to start one of your own.
"""

from typing import Any

FIGURES = ("overview", "spectra", "extreme_ratio", "negative_mass", "lambda_min", "surface", "surface_3d", "lines",
           "accuracy_curves", "accuracy_table", "curvature_table", "alignment")
DIGITS = {
    "name": "digits",
    "seeds": [0, 1, 2],
    "workers": 0,
    "train": {"dataset": "digits", "epochs": 40, "eval_every": 2, "lr": 0.02, "batch_size": 64},
    "methods": {
        "sgd": {"opt": "sgd"},
        "sam": {"opt": "sam", "rho": 0.05},
        "imbsam": {"opt": "imbsam", "rho": 0.05},
        "ssesam": {"opt": "ssesam", "head_rho": 0.05, "tail_rho": 0.1, "gamma": 0.7},
    },
    "spectrum": {"groups": ["head", "tail"], "epochs": [10, 20, 30, 40], "num_probes": 4, "num_matvecs": 20, "num_pairs": 1,
                 "tol": 0.01, "max_matvecs": 30, "trace_probes": 8, "batch_size": 400},
    "surfaces": [
        {"seeds": [0], "epoch": 40, "directions": "random", "dims": 2, "points": 15, "span": 0.5},
        {"seeds": [0], "epoch": 40, "directions": "eigen", "group": "tail", "dims": 1, "points": 41, "span": 0.5},
    ],
    "measures": {"names": ["alignment"], "epochs": [10, 40], "batches": 5},
    "figures": {"names": list(FIGURES), "format": ["png", "pdf"], "dpi": 200},
}
# No paper trains on digits, and nothing is tuned to them: options are the defaults of `landscape train`. Those are a paper's,
# with these exceptions: the radius is 0.05 for all (ASAM's 0.5, the tail's of SSE-SAM 0.1), where Focal-SAM's and Rangwani's are
# larger; Focal-SAM's gamma and lambda are those for CIFAR-100-LT; PGD's noise and CC-SAM's scale are ours; ASAM's scaling has no
# eta; and GKP-GSA as released has four groups, where the release has one.
FAMILY: dict[str, Any] = {
    "name": "family",
    "seeds": [0, 1, 2],
    "workers": 0,
    "vary": ["loss", "drw_epoch", "gkp_variant"],
    "train": DIGITS["train"],
    "methods": {
        **DIGITS["methods"],
        "asam": {"opt": "asam", "rho": 0.5},
        **{opt: {"opt": opt} for opt in ("friendlysam", "focalsam", "ccsam", "pgd", "lpfsgd")},
        "focal": {"opt": "sgd", "loss": "Focal"},
        "cb": {"opt": "sgd", "loss": "CB"},
        "ldam-drw": {"opt": "sgd", "loss": "LDAM", "drw_epoch": 32},
        "bs": {"opt": "sgd", "loss": "BS"},
        "vs": {"opt": "sgd", "loss": "VS"},
        "sam-ldam-drw": {"opt": "sam", "loss": "LDAM", "drw_epoch": 32},     # the claim of Rangwani et al. 2022
        "sam-vs": {"opt": "sam", "loss": "VS"},
        "ssesam-ldam-drw": {"opt": "ssesam", "loss": "LDAM", "drw_epoch": 32, "tail_rho": 0.1, "gamma": 0.7},
        "bcl": {"opt": "sgd", "loss": "BCL"},
        "gkp-gsa": {"opt": "gkp_gsa", "loss": "BCL"},
        "gkp-gsa-released": {"opt": "gkp_gsa", "loss": "BCL", "gkp_variant": "released"},
    },
    "spectrum": DIGITS["spectrum"] | {"epochs": [40]},
    "measures": {"names": ["alignment"], "epochs": [40], "batches": 5},
    "figures": {"names": ["methods_table", "accuracy_table", "curvature_table", "verdicts"], "format": ["png", "pdf"],
                "dpi": 200},
}
PRESETS = {"digits": DIGITS, "family": FAMILY}
