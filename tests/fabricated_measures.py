"""Measurements fabricated for tests of figures: numbers that obey the identities of what they stand for.

Alignments lie around the null line of a random direction, or above it where a perturbation climbs the group's gradient;
amplification is 1 + lambda x with a small second-order term; escape times of the toy saddle are those of the closed form.
"""

from zlib import crc32

import numpy as np

from checkpoints.records import Measurement

SIZE = 4000
PERTURBATIONS = {"sam": "all", "imbsam": "tail", "ssesam_head": "head", "ssesam_tail": "tail"}
REACH = {"sgd": 1.0, "sam": 0.8, "imbsam": 0.7, "ssesam": 0.5}


def fake_measurements(opt="sgd", seed=0, epochs=(0, 60), groups=("head", "tail")) -> list[Measurement]:
    """Return one measurement of every name at every epoch, and those of no checkpoint at epoch 0."""
    rng = np.random.default_rng([seed, crc32(opt.encode()), 7])
    at_epochs = (alignment, amplification, ablation, similarity, quality)
    found = [make(opt, epoch, groups, rng) for make in at_epochs for epoch in epochs]
    return found + [robustness(opt, max(epochs), groups, rng), escape(opt, max(epochs), groups, rng), toy(rng), cost(rng)]


def tidy(name, epoch, rows, units=(), **about) -> Measurement:
    """Return rows with the same keys as a Measurement: words are labels, numbers are numbers."""
    columns = {key: [row[key] for row in rows] for key in rows[0]}
    labels = {key: tuple(values) for key, values in columns.items() if isinstance(values[0], str)}
    numbers = {key: np.array(values, float) for key, values in columns.items() if key not in labels}
    settings = {"inputs": {"data": "d1", "settings": {"groups": ["head", "tail"]}}}
    return Measurement(name, epoch, labels, numbers, {key: dict(units).get(key, "1") for key in numbers}, about, settings)


def alignment(opt, epoch, groups, rng, pairs=3, draws=3) -> Measurement:
    null = np.sqrt(2 / (np.pi * SIZE))
    rows = []
    for group in groups:
        for name, follows in PERTURBATIONS.items():
            center = 0.3 * REACH[opt] if follows == group else 0.12 if follows == "all" and group == "head" else 0.02
            for pair in range(pairs):
                for draw in range(draws + 1):
                    value = max(center * 0.5 ** pair * (0.4 if draw else 1.0), null) * rng.uniform(0.8, 1.25)
                    rows.append({"group": group, "perturbation": name, "source": "batch" if draw else "group", "pair": pair,
                                 "eigenvalue": -5.0 * 0.7 ** pair, "draw": draw, "value": value})
    # ImbSAM and the tail of SSE-SAM climb the same gradient.
    same = {tuple(r[k] for k in ("group", "source", "pair", "draw")): r["value"] for r in rows if r["perturbation"] == "imbsam"}
    for row in rows:
        if row["perturbation"] == "ssesam_tail":
            row["value"] = same[tuple(row[k] for k in ("group", "source", "pair", "draw"))]
    return tidy("alignment", epoch, rows, d=SIZE, null=float(null), level=0.95)


def amplification(opt, epoch, groups, rng, pairs=4) -> Measurement:
    rows = []
    for group in groups:
        for name, follows in PERTURBATIONS.items():
            for pair in range(pairs):
                eigenvalue, effective = -6.0 * 0.6 ** pair, float(rng.choice([0.05, 0.25, 0.8]))
                factor = 1.0 if follows == group else float(rng.normal(0, 1.5))
                predicted = 1 + eigenvalue * effective * factor
                rows.append({"group": group, "perturbation": name, "pair": pair, "eigenvalue": eigenvalue,
                             "region": region(effective * -eigenvalue) if follows == group else "none",
                             "component": float(rng.normal(0, 1e-3)), "predicted": predicted,
                             "measured": predicted + 0.05 * (predicted - 1) ** 2 * rng.normal(), "effective_rho": effective,
                             "reliable": float(pair < pairs - 1)})
    return tidy("amplification", epoch, rows, {"eigenvalue": "nats / parameter^2"})


def region(strength) -> str:
    """As `analysis.measures.perturbations.region`, which needs torch; test_figures_mechanism.py compares the two."""
    return "shrinks" if strength < 1 else "shrinks, sign flipped" if strength < 2 else "amplifies, sign flipped"


def ablation(opt, epoch, groups, rng) -> Measurement:
    rows = []
    for group in groups:
        along = (0.95 if group == "head" else 0.4) * rng.uniform(0.9, 1.05)
        for direction, share in (("full", 1.0), ("projected", along), ("removed", np.sqrt(max(0, 1 - along ** 2)))):
            rows.append({"group": group, "direction": direction, "share": share, "alignment": 0.2 * share * rng.uniform(0.5, 1.5),
                         "rise": 0.05 * share ** 2 * rng.uniform(0.9, 1.1)})
    return tidy("ablation", epoch, rows, {"rise": "nats / sample"}, rho=0.05)


def similarity(opt, epoch, groups, rng) -> Measurement:
    rows = []
    for group in groups:
        value = (0.35 if group == "head" else 0.22) * rng.uniform(0.9, 1.1)
        rows.append({"group": group, "value": value, "low": value - 0.03, "high": value + 0.03})
    return tidy("similarity", epoch, rows, level=0.95, interval="10 mini-batches")


def quality(opt, epoch, groups, rng) -> Measurement:
    rows = []
    for group in groups:
        for measure, value in (("quality", -2.3 + epoch / 150), ("released", -7.5 + epoch / 40)):
            value += rng.normal(0, 0.05) + (0.3 if group == "head" else 0.0)
            rows.append({"group": group, "measure": measure, "value": value, "low": value - 0.1, "high": value + 0.1})
    return tidy("quality", epoch, rows, level=0.95, interval="images (jackknife)")


def robustness(opt, epoch, groups, rng) -> Measurement:
    settings = {"reference": ("reference",), "probes": ("1", "5", "10"), "steps": ("20", "100", "200"),
                "augmentation": ("redrawn", "fixed"), "loss": ("training loss",), "split": ("test",), "subset": ("25 %", "50 %"),
                "batchnorm": ("batch statistics",)}
    rows = []
    for group in groups:
        depth = (0.6 if group == "head" else 5.0) * REACH[opt]
        for axis, names in settings.items():
            for name in names:
                value = -depth * (1.0 if axis == "reference" else rng.uniform(0.6, 1.3))
                rows.append({"group": group, "axis": axis, "setting": name, "value": value, "low": value - 0.02,
                             "high": value + 0.02})
    return tidy("robustness", epoch, rows, {"value": "nats / parameter^2"})


def escape(opt, epoch, groups, rng) -> Measurement:
    """Quartics a^4 - depth a^2 / 2 and 5 a^2 + a^4: lowest at a^2 = depth / 4 and at 0."""
    side, rows, found = np.geomspace(1e-3, 1.0, 19), [], []
    alpha = np.unique(np.r_[-side, 0.0, side])
    for group in groups:
        depth = (0.4 if group == "head" else 3.0) * REACH[opt] * rng.uniform(0.9, 1.1)
        for end, curvature in (("lower", -depth), ("upper", 10.0)):
            loss = 0.5 + curvature * alpha ** 2 / 2 + alpha ** 4
            place = int(loss.argmin())
            columns = {"alpha": alpha, "loss": loss, "predicted": 0.5 + curvature * alpha ** 2 / 2,
                       **{f"loss_{name}": loss if name == group else 0.5 + 0.2 * alpha ** 2 for name in groups}}
            rows += [{"group": group, "end": end} | dict(zip(columns, values)) for values in zip(*columns.values())]
            drop = float(0.5 - loss[place])
            found.append({"group": group, "end": end, "eigenvalue": curvature, "loss": 0.5, "slope": 0.0, "curvature": curvature,
                          "alpha": float(alpha[place]), "drop": drop, "predicted_drop": float(-curvature * alpha[place] ** 2 / 2),
                          "changes": {name: -drop if name == group else 0.2 * alpha[place] ** 2 for name in groups},
                          "bounded": True, "rounding": 1e-8, "trust_radius": {"minus": [0.1, 0.15], "plus": [0.1, None]}})
    return tidy("escape", epoch, rows, {"alpha": "parameter units"}, escapes=found)


def toy(rng) -> Measurement:
    rows = []
    for rho in (0.0, 0.02, 0.05, 0.08, 0.12, 0.15, 0.3):
        for name, methods in (("single", ("gd", "sam", "noisy_sam")), ("two_group", ("sam", "imbsam", "ssesam"))):
            for method in methods:
                steps = 40.0 if method == "gd" else 40.0 / max(1e-9, abs(1 - 8 * rho)) if rho < 0.2 else np.inf
                noisy = method == "noisy_sam"
                rows.append({"toy": name, "method": method, "rho": rho, "value": steps * (0.6 if noisy else 1.0),
                             "low": 0.5 * steps if noisy else np.nan, "high": 0.7 * steps if noisy else np.nan,
                             "closed_form": np.nan if noisy else steps})
    return tidy("toy", 0, rows, {"rho": "parameter units", "value": "steps"}, a=1.0, b=10.0, lr=0.01)


def cost(rng) -> Measurement:
    rows = []
    for opt, stage, forwards, backwards in (("sgd", "", 1, 1), ("sam", "", 2, 2), ("imbsam", "", 2, 3),
                                            ("ssesam", "stage I", 3, 4), ("ssesam", "stage II", 2, 3)):
        seconds = 0.01 * (forwards + 2 * backwards) / 3
        rows.append({"opt": opt, "stage": stage, "forwards": forwards, "backwards": backwards, "value": seconds,
                     "low": 0.97 * seconds, "high": 1.04 * seconds, "ratio": seconds / 0.01})
    return tidy("cost", 0, rows, {"value": "s"}, batch_size=128, device="cpu")
