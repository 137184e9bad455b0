"""Surfaces of a trained run: directions from what is stored, what makes a surface stale, kills, several processes."""

import json
import os
import shutil
import signal
import subprocess
import sys
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pytest
import torch

from analysis.chosen_directions import choose_directions
from analysis.findings.slices import barrier, trust_radius
from analysis.pipeline import compute_curvature
from analysis.settings import SpectrumSettings, SurfaceSettings
from analysis.stored import OtherRecord
from analysis.stored_surface import compute_surface
from analysis.subject import Subject, surface_batches
from analysis.surfaces import sweep
from checkpoints.errors import RecordError
from checkpoints.schema import content_hash
from checkpoints.store import RunStore
from landscape.errors import InputError
from landscape.parameters import theta
from landscape.training import TrainConfig, train, training_data
from scripts.cli import main

ROOT = Path(__file__).resolve().parents[1]
SPECTRUM = SpectrumSettings(num_matvecs=8, num_probes=2, num_pairs=2, trace_probes=2, max_matvecs=20, dtype="float64")
EPOCHS = (0, 1, 2, 3)


def trained(path, **settings):
    config = TrainConfig(**{"dataset": "synthetic", "epochs": 3, "checkpoint_epochs": EPOCHS, "lr": 0.05} | settings)
    data = training_data(config)
    store = RunStore.create(path, config.resolved(data).identity())
    with store.writer():
        train(config, data=data, recorder=store.recorder())
        store.mark_finished()
    return store


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Three runs: one with a spectrum, one of another seed, one of another architecture."""
    folder = tmp_path_factory.mktemp("runs")
    store = trained(folder / "run")
    compute_curvature(Subject.open(store), 3, "tail", SPECTRUM)
    trained(folder / "other", seed=1)
    trained(folder / "wide", arch="digitnet", epochs=1, checkpoint_epochs=(1,))
    return folder


@pytest.fixture
def subject(folder):
    return Subject.open(RunStore.open(folder / "run"))


def surface(subject, directions, **settings):
    name = settings.pop("name", None)
    settings = {"points": 5, "dtype": "float64"} | settings
    return compute_surface(subject, 3, SurfaceSettings(directions=directions, **settings), name=name)[0]


def weights(store, model, epoch):
    record = store.read("checkpoint", epoch=epoch)
    return torch.cat([torch.from_numpy(record.arrays[name]).flatten() for name, _ in model.named_parameters()]).double()


def test_every_group_and_class_is_there_and_they_agree_at_the_origin(subject):
    record = surface(subject, "random")
    names = [f"class:{c}" for c in range(subject.data.num_classes)]
    assert record.groups == ("all", "head", "tail", "many", "medium", "few", *names)
    assert record.loss.shape == (len(record.groups), 5, 5)
    np.testing.assert_allclose(record.derivatives[0, :, 0], record.loss[:, 2, 2], rtol=1e-12)
    counts = record.num_samples[-len(names):]
    np.testing.assert_allclose(counts @ record.loss[-len(names):].reshape(len(names), -1) / counts.sum(), record.loss[0].ravel())


def test_groups_and_classes_without_an_image_in_the_subset_are_left_out(subject):
    record = surface(subject, "random", max_samples=1, points=3, name="few-images")
    classes = [name for name in record.groups if name.startswith("class:")]
    assert len(classes) == 2 and record.num_samples.min() == 1 and record.num_samples[record.groups.index("all")] == 2
    assert {"all", "head", "tail"} < set(record.groups) and not {"many", "medium", "few"} <= set(record.groups)


def test_surfaces_along_eigenvectors_curve_by_the_eigenvalue_before_the_first_kink(subject):
    curvature = subject.store.read("curvature", epoch=3, group="tail")
    record = surface(subject, "eigen", points=3, span=1e-6, name="close")
    tail = record.groups.index("tail")
    loss = record.loss[tail]
    assert loss[1, 1] == pytest.approx(curvature.loss, rel=1e-9)
    for axis, (line, value) in enumerate(zip((loss[:, 1], loss[1]), curvature.eigenpairs.values[[0, -1]])):
        assert (line[0] - 2 * line[1] + line[2]) / 1e-12 == pytest.approx(value, rel=0.01)
        assert record.derivatives[2, tail, axis] == pytest.approx(value, rel=1e-6)      # the Rayleigh quotient


def test_two_named_eigenvectors_make_the_plane_of_eigen_and_ranks_go_inward(subject):
    named = surface(subject, ("tail:min", "tail:max"), points=3, span=0.1)
    both = surface(subject, "eigen", points=3, span=0.1, name="eigen")
    assert np.array_equal(named.loss, both.loss) and named.direction_names == ("tail lambda_min", "tail lambda_max")
    second = surface(subject, "tail:max:1", points=3, span=0.1)
    pairs = subject.store.read("curvature", epoch=3, group="tail").eigenpairs
    assert second.direction_curvatures[0] == pairs.values[-2] and second.beta.size == 0


def test_a_line_to_a_checkpoint_holds_both_and_their_barrier(subject):
    record = surface(subject, "epoch:1", points=11)
    a, b = (weights(subject.store, subject.model, epoch) for epoch in (3, 1))
    assert record.point_names == ("epoch 3", "epoch 1") and record.batchnorm == "recalibrated"
    assert record.about["distance"] == pytest.approx(float((a - b).norm()), rel=1e-6)
    assert record.about["barrier"]["tail"] == barrier(record, "tail") and record.about["barrier"]["tail"]["height"] >= 0
    far = surface(Subject.open(subject.store), "random", points=3, span=1e-9, name="at-1", batchnorm="recalibrated")
    assert record.loss[:, record.alpha == 0][:, 0] == pytest.approx(far.loss[:, 1, 1], rel=1e-6)
    there, _ = compute_surface(Subject.open(subject.store), 1, SurfaceSettings(
        points=3, span=1e-9, dtype="float64", batchnorm="recalibrated", dims=1), name="at-2")
    end = np.flatnonzero(record.alpha == record.about["distance"])
    assert record.loss[:, end][:, 0] == pytest.approx(there.loss[:, 1], rel=1e-4)


def test_three_checkpoints_lie_in_their_plane_at_their_distances(subject, folder):
    record = surface(subject, ("epoch:0", f"{folder / 'other'}@epoch:last"), points=5)
    names = dict(zip(record.point_names, record.point_coordinates))
    theirs = weights(RunStore.open(folder / "other"), subject.model, 3)
    own = {epoch: weights(subject.store, subject.model, epoch) for epoch in (3, 0)}
    places = {"epoch 3": own[3], "epoch 0": own[0], f"{folder / 'other'} epoch 3": theirs}
    for name, place in places.items():
        assert record.point_distances[record.point_names.index(name)] < 1e-5
        for other, there in places.items():
            assert np.linalg.norm(names[name] - names[other]) == pytest.approx(float((place - there).norm()), rel=1e-5, abs=1e-5)
    assert {"epoch 1", "epoch 2"} < set(names) and (record.alpha == 0).any() and (record.beta == 0).any()
    for axis, coordinates in ((0, record.alpha), (1, record.beta)):
        assert record.point_coordinates[:, axis].max() <= coordinates[-1] + np.diff(coordinates)[0]


def test_principal_components_follow_the_path(subject):
    record = surface(subject, "pca")
    shares = record.about["explained_variance"]
    assert record.direction_names == ("PC 1", "PC 2") and 1 > shares[0] >= shares[1] > 0 and sum(shares) <= 1 + 1e-12
    assert record.point_names == ("epoch 3", "epoch 0", "epoch 1", "epoch 2") and record.point_distances[0] == 0
    path = [weights(subject.store, subject.model, epoch) for epoch in EPOCHS]
    gone = float((path[0] - path[3]).norm())
    first = record.point_coordinates[1]
    assert first[0] > 0 and first[1] > 0
    assert np.hypot(np.linalg.norm(first), record.point_distances[1]) == pytest.approx(gone, rel=1e-5)


@pytest.mark.parametrize("directions, error, message", [
    ("tail:min:9", InputError, "rank=9 is out of range"), ("few:min", RecordError, "landscape spectrum .* --group few --epoch 3"),
    ("epoch:3", InputError, "directions='epoch:3' leads nowhere"), ("epoch:9", RecordError, "holds no checkpoint of epoch=9"),
    (("tail:min", "tail:min"), InputError, "lies in the span"), ("{folder}/wide@epoch:1", RecordError, "another architecture"),
    (("random", "tail:min"), InputError, "different units.*--normalization none"), ("{folder}/none@epoch:1", RecordError, "none"),
    (("epoch:1", "epoch:1"), InputError, "lies in the span")])
def test_directions_that_cannot_be_had_are_one_line(subject, folder, directions, error, message):
    words = [word.format(folder=folder) for word in ([directions] if isinstance(directions, str) else directions)]
    with pytest.raises(error, match=message):
        surface(subject, words)


def test_eigenvectors_of_other_weights_are_refused(subject, tmp_path):
    shutil.copytree(subject.store.path, tmp_path / "run")
    store = RunStore.open(tmp_path / "run")
    store.write(replace(store.read("checkpoint", epoch=2), epoch=3))
    with pytest.raises(RecordError, match="the spectrum of tail at epoch 3 belongs to other weights: compute it again"):
        surface(Subject.open(store), "tail:min")


def test_a_surface_is_given_back_until_a_checkpoint_that_it_leads_through_changes(subject, tmp_path):
    shutil.copytree(subject.store.path, tmp_path / "run")
    store = RunStore.open(tmp_path / "run")
    first = surface(Subject.open(store), "epoch:1", points=3, name="way")
    again, fresh = compute_surface(Subject.open(store), 3, SurfaceSettings(directions="epoch:1", points=3, dtype="float64"),
                                   name="way")
    assert not fresh and content_hash(again) == content_hash(first)
    store.write(replace(store.read("checkpoint", epoch=2), epoch=1))
    with pytest.raises(OtherRecord, match="another surface way: epoch:1 has changed since; replace it with --overwrite"):
        surface(Subject.open(store), "epoch:1", points=3, name="way")


def test_a_surface_along_an_eigenvector_is_not_that_of_another_spectrum(subject, tmp_path):
    shutil.copytree(subject.store.path, tmp_path / "run")
    store = RunStore.open(tmp_path / "run")
    surface(Subject.open(store), "tail:min", points=3, name="way")
    record = store.read("curvature", epoch=3, group="tail")
    store.write(replace(record, eigenpairs=replace(record.eigenpairs, vectors=-record.eigenpairs.vectors)))
    with pytest.raises(OtherRecord, match="surface way: its directions are others now: the spectrum .* has changed since"):
        surface(Subject.open(store), "tail:min", points=3, name="way")


def test_a_subject_in_float64_chooses_the_same_directions(subject):
    settings = SurfaceSettings(points=3, dtype="float64", dims=1)
    first, _ = compute_surface(subject, 3, settings, name="twice")
    assert theta(subject.model).dtype == torch.float64
    assert not compute_surface(subject, 3, settings, name="twice")[1]


def test_a_surface_from_before_a_setting_existed_is_kept(subject):
    settings = SurfaceSettings(points=3, dims=1)
    record, _ = compute_surface(subject, 3, settings, name="old")
    older = {key: value for key, value in asdict(settings).items() if key not in ("normalization", "ignore", "batchnorm")}
    inputs = record.provenance["inputs"] | {"settings": older}
    subject.store.write(replace(record, provenance=record.provenance | {"inputs": inputs}))
    assert not compute_surface(subject, 3, settings, name="old")[1]


def test_batches_whose_statistics_are_used_are_mixed_and_of_one_size(subject):
    subject.load(3)
    fixed, mixed = (surface_batches(subject, SurfaceSettings(batchnorm=policy, batch_size=50)) for policy in ("fixed", "batch"))
    sizes = [len(labels) for _, labels in mixed]
    assert max(sizes) - min(sizes) <= 1 and max(sizes) <= 50 and sum(sizes) == sum(len(labels) for _, labels in fixed)
    for kind in (fixed, mixed):
        kind[:] = [torch.cat([labels for _, labels in kind]), kind[0][1]]
    assert torch.equal(fixed[0].sort().values, mixed[0].sort().values) and len(mixed[1].unique()) > 1


def test_a_slice_says_how_far_its_prediction_holds(subject):
    record = surface(subject, "tail:min", points=21, span=0.2)
    found = trust_radius(record, "tail")
    assert 0 < found["plus"].high and record.derivatives.shape[1] == len(record.groups)


def test_random_directions_follow_normalization_and_what_is_ignored(subject):
    subject.load(3)
    subject.cast("float32")
    own = choose_directions(subject, 3, SurfaceSettings()).directions
    layer = choose_directions(subject, 3, SurfaceSettings(normalization="layer", ignore="none")).directions
    assert [d.units for d in own] == ["filter norms"] * 2 and [d.units for d in layer] == ["layer norms"] * 2
    assert int((layer[0].vector == 0).sum()) < int((own[0].vector == 0).sum()) and not torch.equal(own[0].vector, own[1].vector)


def killed_after(points, words):
    """Run a command in a process that is killed at a point; return what it left on standard error."""
    done = subprocess.run([sys.executable, str(ROOT / "tests" / "killed_surface.py"), str(points), *words], cwd=ROOT,
                          env=os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}, capture_output=True, text=True)
    assert done.returncode == -signal.SIGKILL, done.stderr[-2000:]


def test_a_killed_surface_goes_on_at_its_row_and_ends_in_the_same_bits(subject, tmp_path, monkeypatch, capsys):
    shutil.copytree(subject.store.path, tmp_path / "run")
    words = ["surface", str(tmp_path / "run"), "--points", "5", "--seed", "3", "--dtype", "float64"]
    killed_after(13, [*words, "--name", "killed", "--quiet"])
    store, made, at = RunStore.open(tmp_path / "run"), [], sweep.Sweep.at
    assert len(list(store.path.glob("partial/*/*.h5"))) == 2 and not store.has("surface", name="killed")
    monkeypatch.setattr(sweep.Sweep, "at", lambda self, point: made.append(1) or at(self, point))
    assert main([*words, "--name", "killed", "--json"]) == 0
    assert len(made) == 15 and not list(store.path.glob("partial/*")) and json.loads(capsys.readouterr().out)["surfaces"]
    assert main([*words, "--name", "whole", "--quiet"]) == 0 and len(made) == 15 + 25
    one, other = (store.read("surface", name=name) for name in ("killed", "whole"))
    assert content_hash(replace(one, name="whole")) == content_hash(other)


@pytest.mark.slow
@pytest.mark.parametrize("words", [["--points", "5"], ["--directions", "epoch:1", "--points", "11"]], ids=["plane", "line"])
def test_two_processes_share_a_surface_and_one_writes_it(subject, tmp_path, words):
    shutil.copytree(subject.store.path, tmp_path / "run")
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2", "-m", "scripts.cli"]
    done = subprocess.run([*torchrun, "surface", str(tmp_path / "run"), *words, "--name", "shared", "--json"], cwd=ROOT,
                          env=os.environ | {"OMP_NUM_THREADS": "1"}, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]
    assert len(json.loads(done.stdout)["surfaces"]) == 1        # one process alone prints
    assert main(["surface", str(tmp_path / "run"), *words, "--name", "alone", "--quiet"]) == 0
    shared, alone = (RunStore.open(tmp_path / "run").read("surface", name=name) for name in ("shared", "alone"))
    assert (shared.provenance["processes"], alone.provenance["processes"]) == (2, 1)
    np.testing.assert_allclose(shared.loss, alone.loss, rtol=1e-5)
    np.testing.assert_allclose(shared.accuracy, alone.accuracy, atol=1e-2)
    assert not list((tmp_path / "run").glob("partial/*"))
