"""Similarity, quality, escape, robustness and cost of a small run, against oracles that know only its data and network."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from analysis.measures import robustness
from analysis.measures.case import Case
from analysis.measures.catalogue import measured, work
from analysis.measures.perturbations import drawn
from analysis.measures.step_cost import contestants
from analysis.pipeline import compute_curvature
from analysis.settings import Making, MeasureSettings, SpectrumSettings
from analysis.subject import Subject
from checkpoints.frames import frame
from checkpoints.store import RunStore
from landscape.errors import InputError
from landscape.family import FAMILY
from landscape.optimizers.preservation import Preservation
from landscape.parameters import trainable
from landscape.training import TrainConfig, train, training_data


class Small(nn.Module):
    """A convolution, BatchNorm, a relu, a smooth layer and the classifier: 300 parameters, traced in a moment."""

    def __init__(self, num_classes):
        super().__init__()
        self.conv, self.norm = nn.Conv2d(3, 4, 3, stride=2, bias=False), nn.BatchNorm2d(4)
        self.hidden, self.fc = nn.Linear(4 * 9, 4), nn.Linear(4, num_classes)

    def features(self, x):
        return torch.tanh(self.hidden(F.relu(self.norm(self.conv(x))).flatten(1)))

    def forward(self, x):
        return self.fc(self.features(x))


SPECTRUM = SpectrumSettings(num_matvecs=12, num_probes=1, num_pairs=1, trace_probes=2, max_matvecs=60, dtype="float64", tol=1e-4)
SETTINGS = MeasureSettings(dtype="float64", batches=3, batch_size=50)
CONFIG = TrainConfig(dataset="synthetic", arch=f"{__name__}:Small", imb_factor=12, epochs=2, lr=0.05, loss="LA", batch_size=16)


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    data = training_data(CONFIG)
    store = RunStore.create(tmp_path_factory.mktemp("run"), CONFIG.resolved(data).identity())
    with store.writer():
        train(CONFIG, data=data, recorder=store.recorder())
    for group in ("head", "tail"):
        compute_curvature(Subject.open(store), 2, group, SPECTRUM, making=Making(engine="reverse"))
    return store


@pytest.fixture(scope="module")
def subject(store):
    return Subject.open(store)


@pytest.fixture
def case(store, subject):
    return Case(store, lambda: subject, 2, SETTINGS)


def record_of(name, case, **changes):
    told, subject = [], case.subject
    case = replace(case, open_subject=lambda: subject, settings=replace(case.settings, **changes), progress=told.append)
    record = measured(name, case, overwrite=True)[0]
    assert next(case.subject.model.parameters()).dtype == torch.float32 and sum(told) <= 1.1 * work(name, case) + 200
    return record


def of_class(subject, group, dtype=torch.float64):
    data = subject.data
    mine = torch.isin(data.train.labels, torch.tensor(subject.groups.select(group)))
    return data.inputs(data.train.images[mine], dtype), data.train.labels[mine]


def slope(subject, images, labels):
    """The gradient of the mean logit-adjusted loss in evaluation mode, written without the code under test."""
    model = subject.model.double().eval()
    prior = torch.tensor(np.log(subject.data.counts / subject.data.counts.sum()))
    value = F.cross_entropy(model(images) + prior, labels)
    found = torch.cat([g.flatten() for g in torch.autograd.grad(value, list(trainable(model).values()))])
    subject.model.float()
    return found


def test_similarity_is_the_cosine_of_autograds_gradients(case):
    table = frame(record_of("similarity", case)).set_index("group")
    subject = case.subject
    head, tail = (slope(subject, *of_class(subject, group)) for group in ("head", "tail"))
    assert table.loc["head", "with_tail"] == pytest.approx(float(F.cosine_similarity(head, tail, dim=0)), rel=1e-8)
    assert table.loc["tail", "with_tail"] == pytest.approx(1.0)
    smallest = slope(subject, *of_class(subject, "class:3"))
    assert table.loc["class:3", "with_head"] == pytest.approx(float(F.cosine_similarity(head, smallest, dim=0)), rel=1e-8)


def test_similarity_has_rows_for_groups_and_for_the_largest_and_smallest_classes(case):
    record = record_of("similarity", case)
    table = frame(record)
    assert table["group"].tolist() == ["head", "tail", "class:0", "class:1", "class:2", "class:3"]
    assert dict(zip(table["group"], table["half"]))["class:3"] == "tail" and table["half"][0] == "head"
    assert (table["low"] < table["value"]).all() and (table["value"] < table["high"]).all() and (table["value"].abs() <= 1).all()
    assert record.about["interval"] == "3 mini-batches" and record.about["mode"] == "evaluation" and record.about["loss"] == "LA"


def test_one_batch_of_all_images_agrees_with_the_mixture_of_the_groups(case, monkeypatch):
    """A mini-batch that holds every training image has the gradient sum_g (n_g / n) grad L_g."""
    import analysis.measures.similarity as module
    everything = of_class(case.subject, "all")
    monkeypatch.setattr(module, "drawn", lambda *_: iter([everything] * 2))
    table = frame(record_of("similarity", case, batches=2)).set_index("group")
    parts = {group: (slope(case.subject, *of_class(case.subject, group)), len(of_class(case.subject, group)[1]))
             for group in ("head", "tail")}
    mixed = sum(count * gradient for gradient, count in parts.values())
    for group, (gradient, _) in parts.items():
        assert table.loc[group, "value"] == pytest.approx(float(F.cosine_similarity(gradient, mixed, dim=0)), rel=1e-8)


def test_quality_is_of_the_training_images_at_the_classifiers_input(case):
    record = record_of("quality", case)
    table = frame(record).set_index(["group", "measure"])
    subject, (images, labels) = case.subject, of_class(case.subject, "all")
    with torch.no_grad():
        features = subject.model.double().eval().features(images).numpy()
    subject.model.float()
    means = np.stack([features[labels == c].mean(0) for c in range(4)])
    apart = np.linalg.norm(means[:, None] - means, axis=2) + np.diag([np.inf] * 4)
    spread = np.array([((features[labels == c] - means[c]) ** 2).sum(1).mean() for c in range(4)])
    values = apart.min(1) - 0.5 * np.log(spread)
    for c in range(4):
        assert table.loc[(f"class:{c}", "quality"), "value"] == pytest.approx(values[c], rel=1e-6)
    tail = list(subject.groups.classes["tail"])
    assert table.loc[("tail", "quality"), "value"] == pytest.approx(values[tail].mean(), rel=1e-6)
    assert table.loc[("tail", "released"), "value"] == pytest.approx((-1 / apart.min(1) - np.log(spread))[tail].mean(), rel=1e-6)
    assert record.about["features"] == 4 and record.about["interval"] == "images (jackknife)"


def test_quality_of_test_images_is_refused(case):
    with pytest.raises(InputError, match="nothing may be chosen on the test images"):
        record_of("quality", case, split="test")


def test_quality_of_one_image_is_refused(case):
    with pytest.raises(InputError, match="max_samples=1 is out of range for quality: of 2 images no class has two"):
        record_of("quality", case, max_samples=1)


def test_a_limit_of_images_keeps_the_tail(case):
    table = frame(record_of("quality", case, max_samples=10)).set_index(["group", "measure"])
    assert table.loc[("tail", "quality"), "images"] == min(10, case.num_images("tail")[0])


def test_escape_starts_with_the_slope_and_the_curvature_of_the_spectrum(case):
    record = record_of("escape", case)
    table = frame(record)
    assert set(zip(table["group"], table["end"])) == {(g, e) for g in ("head", "tail") for e in ("lower", "upper")}
    for facts in record.about["escapes"]:
        pairs = case.spectrum(facts["group"]).eigenpairs
        place = 0 if facts["end"] == "lower" else -1
        assert facts["curvature"] == pytest.approx(pairs.values64[place], rel=1e-6, abs=1e-9)
        assert facts["drop"] >= 0 and facts["drop"] == pytest.approx(-facts["changes"][facts["group"]])
        rows = table[(table["group"] == facts["group"]) & (table["end"] == facts["end"])]
        origin = rows[rows["alpha"] == 0]
        assert origin["loss"].item() == pytest.approx(facts["loss"]) == pytest.approx(origin["predicted"].item())
        assert rows["loss"].min() == pytest.approx(facts["loss"] - facts["drop"])
        assert (rows["loss"] == rows[f"loss_{facts['group']}"]).all()
    assert record.units["alpha"] == "parameter units" and record.about["images"]["tail"] == case.num_spectrum_images("tail")


def test_the_losses_of_a_walk_are_those_of_the_moved_network(case):
    record = record_of("escape", case)
    rows = frame(record)
    row = rows[(rows["group"] == "tail") & (rows["end"] == "lower") & (rows["alpha"] > 0.1)].iloc[0]
    subject, vector = case.subject, torch.from_numpy(case.spectrum("tail").eigenpairs.vectors[0]).double()
    model = subject.model.double().eval()
    before = [p.detach().clone() for p in trainable(model).values()]
    with torch.no_grad():
        for p, piece in zip(trainable(model).values(), vector.split([p.numel() for p in before])):
            p.add_(row["alpha"] * piece.view_as(p) / vector.norm())
        for group in ("head", "tail"):
            images, labels = of_class(subject, group)
            assert row[f"loss_{group}"] == pytest.approx(float(F.cross_entropy(model(images), labels)), rel=1e-6)
        for p, old in zip(trainable(model).values(), before):
            p.copy_(old)
    model.float()


@pytest.fixture
def short(monkeypatch):
    changed = {"NUM_MATVECS": 10, "BEGUN": 10, "STEPS": (4, 8), "MAX_MATVECS": 60, "DRAWS": 1, "SUBSETS": (0.5,), "TOL": 1e-4}
    for name, value in changed.items():
        monkeypatch.setattr(robustness, name, value)


def test_robustness_varies_one_choice_at_a_time(case, short):
    record = record_of("robustness", case, groups=("tail",))
    table = frame(record).set_index(["axis", "setting"])
    size = case.num_images("tail")[0]
    stored = case.spectrum("tail").eigenpairs
    assert table.loc[("reference", "reference"), "value"] == pytest.approx(stored.values64[0], rel=1e-4)
    assert table.loc[("reference", "reference"), "upper"] == pytest.approx(stored.values64[-1], rel=1e-4)
    assert list(dict.fromkeys(axis for axis, _ in table.index)) == list(robustness.AXES)
    assert len(set(table.index)) == len(table)
    lowest, highest, joined = table.loc["probes", "value"]
    assert joined <= lowest + 1e-9 and lowest <= highest
    assert table.loc[("steps", "8"), "value"] <= table.loc[("steps", "4"), "value"] + 1e-12
    assert table.loc[("split", "test"), "images"] == (case.subject.data.test.labels >= 0).sum() * len(
        case.subject.groups.classes["tail"]) / 4
    assert table.loc["subset", "images"].tolist() == [size // 2]
    assert (table["low"] <= table["value"]).all() and record.about["exact"] and record.about["engine"]["tail"] != "differences"
    assert record.about["inconsistency"]["tail"] > 0.01     # new images at every product
    redrawn = table.loc[("augmentation", "redrawn")]
    assert redrawn["high"] - redrawn["value"] > 1e-2 * abs(redrawn["value"])


def test_what_a_run_does_not_have_is_left_out_and_said(case, short):
    record = record_of("robustness", case, groups=("tail",), split="test", batches=2)
    assert record.about["left_out"] == {"augmentation": "test images are not augmented"}
    assert ("split", "train") in set(zip(*(record.labels[name] for name in ("axis", "setting"))))


def test_augmented_images_are_those_of_the_group_moved(case):
    plain, moved, again = (torch.cat([x for x, _ in case.images("tail", **options)[0]])
                           for options in ({}, {"augmentation_seed": 1}, {"augmentation_seed": 1}))
    assert plain.shape == moved.shape and torch.equal(moved, again) and not torch.equal(plain, moved)


def test_a_step_costs_what_its_row_of_the_family_says(case):
    record = record_of("cost", case)
    table = frame(record).set_index(["opt", "stage"])
    assert record.about["left_out"] == {}
    for opt, row in FAMILY.items():
        for passes in row.passes:
            if passes.each == (0, 0):
                found = table.loc[(opt, passes.stage)]
                assert (found["forwards"], found["backwards"]) == (passes.forwards, passes.backwards), opt
    released = table.loc[("ssesam", "four calls, as released")]
    assert (released["forwards"], released["backwards"]) == (4, 4)
    assert table.loc[("sgd", ""), "ratio"] == 1.0 and (table["value"] > 0).all() and (table["low"] <= table["high"]).all()
    assert record.epoch == 0 and record.about["batch_size"] == 16


def test_gkp_gsas_steps_are_timed_with_their_penalty(case, monkeypatch):
    asked, gradient = [], Preservation.gradient
    monkeypatch.setattr(Preservation, "gradient", lambda self, *weights: asked.append(gradient(self, *weights)) or asked[-1])
    subject = case.subject
    found, _ = contestants(subject.config, subject.data, subject.cast("float64"))
    batch = next(drawn(subject.config, subject.data, torch.float64, 0))
    for contestant in found:
        if contestant.opt == "gkp_gsa":
            contestant.step(*batch)
    subject.cast("float32")
    assert len(asked) == 3 and all(asked)       # the paper's once a step, the release's before its ascent and after
