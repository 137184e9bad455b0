import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from analysis import pipeline, second_opinion
from analysis.operators import HessianOperator, replay
from analysis.pipeline import compute_curvature
from analysis.settings import Making, SpectrumSettings, SurfaceSettings, stored_group, surface_name
from analysis.stored import OtherRecord
from analysis.subject import Subject, group_batches
from checkpoints import layout
from checkpoints.errors import RecordError
from checkpoints.journal import Journal
from checkpoints.schema import content_hash
from checkpoints.store import RunStore
from landscape.distributed import Processes
from landscape.errors import InputError
from landscape.training import TrainConfig, train, training_data

SETTINGS = SpectrumSettings(num_matvecs=8, num_probes=2, num_pairs=2, trace_probes=4, max_matvecs=20, dtype="float64",
                            batch_size=40)
TRACES: dict = {}       # one network throughout: traced once


def trained(path, **settings):
    """Train two epochs on the synthetic set and return the store."""
    config = TrainConfig(dataset="synthetic", epochs=2, checkpoint_epochs=(1, 2), lr=0.05, eval_every=1, **settings)
    data = training_data(config)
    store = RunStore.create(path, config.resolved(data).identity())
    with store.writer():
        train(config, data=data, recorder=store.recorder())
        store.mark_finished()
    return store


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    return trained(tmp_path_factory.mktemp("run"))


@pytest.fixture
def subject(store):
    return Subject.open(store, traces=TRACES)


def test_a_spectrum_is_that_of_the_stored_weights_and_the_groups_own_images(subject):
    record, fresh = compute_curvature(subject, 2, "tail", SETTINGS)
    batches, available = group_batches(subject, "tail", SETTINGS)
    x, y = torch.cat([b[0] for b in batches]), torch.cat([b[1] for b in batches])
    model = subject.model.double().eval()
    members = np.isin(subject.data.train.labels, subject.groups.select("tail"))
    assert record.num_samples == available == len(y) == int(members.sum())
    assert record.loss == pytest.approx(torch.nn.functional.cross_entropy(model(x), y).item(), rel=1e-12)
    assert record.accuracy == pytest.approx((model(x).argmax(1) == y).double().mean().item())
    assert record.eigenpairs.values[0] <= np.nanmin(record.spectrum.nodes) + 1e-9
    assert record.test_accuracy == pytest.approx(store_metric(subject.store, 2, "test_accuracy/tail"))


def store_metric(store, epoch, name):
    rows = store.metrics().set_index("epoch")
    return float(rows.loc[epoch, name])


def test_a_record_is_kept_while_its_inputs_are_and_not_replaced_unasked(subject):
    first, _ = compute_curvature(subject, 1, "tail", SETTINGS)
    again, fresh = compute_curvature(subject, 1, "tail", SETTINGS)
    assert not fresh and content_hash(again) == content_hash(first)
    other = SpectrumSettings(**(vars(SETTINGS) | {"seed": 5}))
    with pytest.raises(RecordError, match="seed=0 there, 5 here; replace it with --overwrite"):
        compute_curvature(subject, 1, "tail", other)
    replaced, fresh = compute_curvature(subject, 1, "tail", other, overwrite=True)
    assert fresh and content_hash(replaced) != content_hash(first)


def test_a_record_of_other_weights_is_stale_and_computed_anew(tmp_path):
    store = trained(tmp_path / "run")
    compute_curvature(Subject.open(store, traces=TRACES), 2, "tail", SETTINGS)
    store.write(replace(store.read("checkpoint", epoch=1), epoch=2))
    record, fresh = compute_curvature(Subject.open(store, traces=TRACES), 2, "tail", SETTINGS)
    assert fresh and record.provenance["inputs"]["checkpoint"] == content_hash(store.read("checkpoint", epoch=2))


def test_a_record_says_what_it_was_computed_from(subject):
    record, _ = compute_curvature(subject, 2, "tail", SETTINGS)
    inputs = record.provenance["inputs"]
    assert inputs["data"] == subject.data.hash and inputs["checkpoint"] == content_hash(subject.store.read("checkpoint", epoch=2))
    assert inputs["settings"]["num_probes"] == 2 and record.provenance["engine"] == "linearized"
    assert record.provenance["num_matvecs"] > 0


def test_weighted_group_losses_add_up(subject):
    parts = [compute_curvature(subject, 2, group, SETTINGS)[0] for group in ("head", "tail")]
    whole, _ = compute_curvature(subject, 2, "all", SETTINGS)
    assert sum(p.num_samples * p.loss for p in parts) / whole.num_samples == pytest.approx(whole.loss, rel=1e-12)


def test_an_interrupted_spectrum_goes_on_in_the_middle_and_ends_in_the_same_bits(tmp_path, monkeypatch):
    """Stop in the Lanczos steps, in the restarts and in the trace; compare with a run that was never stopped."""
    made = []
    matmat = HessianOperator.matmat
    monkeypatch.setattr(HessianOperator, "matmat", lambda self, V: made.append(len(V)) or matmat(self, V))
    subject = Subject.open(trained(tmp_path / "run"), traces=TRACES)
    whole, _ = compute_curvature(subject, 2, "tail", SETTINGS)
    products, made[:] = sum(made), []
    for stop in (9, 30, products - 7):
        compute_until(stop, subject)
        assert list(subject.store.path.glob("partial/*/*"))
    record, _ = compute_curvature(subject, 2, "tail", SETTINGS, overwrite=True)
    assert content_hash(record) == content_hash(whole) and not list(subject.store.path.glob("partial/*"))
    assert record.provenance["num_matvecs"] == whole.provenance["num_matvecs"]
    assert sum(made) < products + 3 * (2 * SETTINGS.num_pairs + SETTINGS.trace_probes)   # each stop repeats little


def compute_until(stop, subject):
    """Compute a spectrum anew and interrupt it after so many products."""
    subject.store.path.joinpath("spectra", "epoch-0002-tail.h5").unlink(missing_ok=True)
    counted = []

    def count(products):
        counted.append(products)
        if sum(counted) >= stop:
            raise KeyboardInterrupt
    with pytest.raises(KeyboardInterrupt):
        compute_curvature(subject, 2, "tail", SETTINGS, progress=count)


def test_small_classes_of_different_sizes_share_one_trace_and_its_checks(store):
    subject = Subject.open(store)
    sizes, traces = [], []
    for label in (subject.data.num_classes - 1, subject.data.num_classes - 2):
        sizes.append(compute_curvature(subject, 2, f"class:{label}", SETTINGS)[0].num_samples)
        traces.append(set(subject.shared_traces(SETTINGS)))
    assert sizes[0] < sizes[1] <= 16 and traces[0] == traces[1] != set()


@pytest.mark.slow
@pytest.mark.parametrize("seed", [0, 1])
def test_spectra_along_training_killed_at_any_product_end_in_the_same_bits(tmp_path, seed):
    """Lanczos steps, restarts, float64 verification and trace of two epochs; see tests/killed_spectrum.py."""
    script = Path(__file__).with_name("killed_spectrum.py")
    done = subprocess.run([sys.executable, str(script), str(tmp_path), str(seed)], capture_output=True, text=True,
                          env=os.environ | {"PYTHONPATH": str(script.parents[1])})
    assert done.returncode == 0, done.stderr
    document = json.loads(done.stdout)
    assert document["killed"] == document["whole"] and document["whole"]["left"] == []
    assert len(document["whole"]["hashes"]) == 2 and len(document["lives"]) > 4


def test_what_was_chosen_by_timing_is_stored_and_chosen_again_on_resuming(tmp_path, monkeypatch):
    subject, chosen = Subject.open(trained(tmp_path / "run"), traces=TRACES), []
    compute_until(5, subject)

    def build(*args):
        chosen.append(args[-1])
        return pipeline_build(*args)
    pipeline_build = pipeline.build_operator
    monkeypatch.setattr(pipeline, "build_operator", build)
    record, _ = compute_curvature(subject, 2, "tail", SETTINGS)
    assert chosen == [record.provenance["choice"]] and chosen[0]["engine"] == record.provenance["engine"]


def test_products_asked_for_in_another_way_do_not_touch_those_of_an_interrupted_run(tmp_path):
    subject = Subject.open(trained(tmp_path / "run"), traces=TRACES)
    compute_until(5, subject)
    kept = sorted(subject.store.path.glob("partial/*/*"))
    record, _ = compute_curvature(subject, 2, "tail", SETTINGS, making=Making(engine="reverse"))
    assert record.provenance["engine"] == "reverse" and sorted(subject.store.path.glob("partial/*/*")) == kept


def test_what_an_earlier_process_made_is_counted_apart(tmp_path):
    subject, counts, recalled = Subject.open(trained(tmp_path / "run"), traces=TRACES), [], []
    assert not pipeline.interrupted(subject, 2, "tail", SETTINGS)
    compute_until(9, subject)
    assert pipeline.interrupted(subject, 2, "tail", SETTINGS)
    assert not pipeline.interrupted(subject, 2, "tail", SETTINGS, Making(engine="reverse"))
    compute_curvature(subject, 2, "tail", SETTINGS, progress=counts.append, recalled=recalled.append)
    assert 8 <= sum(recalled) <= 10 < sum(counts)


def test_engines_are_named_without_torch_as_they_are_with_it():
    from analysis import settings
    from analysis.operators import products
    assert settings.ENGINES == tuple(products.ENGINES)
    with pytest.raises(InputError, match="engine=.fast. is unknown: expected auto, linearized, linearized-graphed, "
                                         "linearized-compiled, jvp"):
        Making(engine="fast")


def test_a_block_of_parameters_has_a_record_of_its_own(subject):
    whole, _ = compute_curvature(subject, 1, "head", SETTINGS)
    first = next(name for name, _ in subject.model.named_parameters())
    block = replace(SETTINGS, params=(first,), num_matvecs=4)
    record, fresh = compute_curvature(subject, 1, "head", block)
    assert fresh and record.group.startswith("head@") and record.spectrum.size < whole.spectrum.size
    assert record.test_accuracy == whole.test_accuracy and record.loss == whole.loss
    assert not compute_curvature(subject, 1, "head", SETTINGS)[1] and not compute_curvature(subject, 1, "head", block)[1]
    # The block's eigenvalues lie between the whole matrix's (Cauchy).
    assert record.eigenpairs.values[-1] <= whole.eigenpairs.values[-1] + whole.eigenpairs.residuals[-1]


def test_the_gauss_newton_matrix_is_positive_and_stored_beside_the_hessian(subject):
    record, _ = compute_curvature(subject, 1, "tail", replace(SETTINGS, operator="gauss_newton"))
    assert record.group == "tail@gauss_newton" and record.eigenpairs.values[0] > -1e-9 * record.eigenpairs.values[-1]


def test_a_record_from_before_a_setting_existed_is_kept(subject):
    record, _ = compute_curvature(subject, 1, "many", SETTINGS)
    older = dict(record.provenance["inputs"]["settings"])
    del older["params"], older["operator"]
    inputs = record.provenance["inputs"] | {"settings": older}
    subject.store.write(replace(record, provenance=record.provenance | {"inputs": inputs}))
    assert not compute_curvature(subject, 1, "many", SETTINGS)[1]


def test_a_subset_is_stated_and_seeded(subject):
    settings = SpectrumSettings(**(vars(SETTINGS) | {"max_samples": 10}))
    (x, _), = group_batches(subject, "head", settings)[0]
    (again, _), = group_batches(subject, "head", settings)[0]
    assert len(x) == 10 and torch.equal(x, again)
    record, _ = compute_curvature(subject, 2, "head", settings, overwrite=True)
    assert record.num_samples == 10 < record.num_available


def test_an_empty_group_is_refused_naming_the_counts(tmp_path):
    subject = Subject.open(trained(tmp_path / "run", eta=1.0))
    with pytest.raises(InputError, match="class sizes run from 6 to 60"):
        compute_curvature(subject, 2, "tail", SETTINGS)


def test_pyhessian_is_really_asked(subject, monkeypatch):
    import pyhessian
    asked = SpectrumSettings(**(vars(SETTINGS) | {"seed": 7}))
    compute_curvature(subject, 2, "tail", asked, overwrite=True)
    record, fresh = compute_curvature(subject, 2, "tail", asked, verify="pyhessian")
    assert not fresh        # it is added to the record that is there
    top, trace = record.second_opinion["pyhessian_top_eigenvalue"], record.second_opinion["pyhessian_trace"]
    assert top == pytest.approx(record.eigenpairs.values[-1], rel=5e-2)
    assert record.trace.low - 0.2 * trace < trace < record.trace.high + 0.2 * trace

    class Impostor:
        def __init__(self, model, criterion, data, cuda):
            pass

        def eigenvalues(self, top_n):
            return [123.0], None

        def trace(self):
            return [1.0, 2.0]
    monkeypatch.setattr(pyhessian, "hessian", Impostor)
    numbers = second_opinion.pyhessian_numbers(subject.model, None, (torch.zeros(1), torch.zeros(1)))
    assert numbers["pyhessian_top_eigenvalue"] == 123.0 and numbers["pyhessian_trace"] == 1.5


def test_a_gradient_whose_squares_float32_does_not_hold_has_its_length(store, monkeypatch):
    asked = replace(SETTINGS, dtype="float32", num_matvecs=3, num_probes=1, num_pairs=1, max_matvecs=0)
    plain = compute_curvature(Subject.open(store), 1, "class:0", asked, overwrite=True)[0]
    monkeypatch.setattr(Subject, "loss", lambda self, name: lambda z, t: 1e-25 * torch.nn.functional.cross_entropy(
        z, t, reduction="none"))
    small = compute_curvature(Subject.open(store), 1, "class:0", asked, overwrite=True)[0]
    assert small.gradient_norm == pytest.approx(1e-25 * plain.gradient_norm, rel=1e-4) and small.gradient_norm > 0


def test_another_library_is_not_asked_while_other_processes_wait(store, monkeypatch):
    subject = Subject.open(store)
    monkeypatch.setattr("analysis.pipeline.Processes.present", lambda: SimpleNamespace(count=2))
    with pytest.raises(InputError, match="without torchrun"):
        compute_curvature(subject, 2, "tail", SETTINGS, verify="pyhessian")


@pytest.mark.parametrize("is_known", [True, False])
def test_of_several_processes_the_first_tells_what_is_stored(store, monkeypatch, is_known):
    subject = Subject.open(store)
    stored, _ = compute_curvature(subject, 2, "class:1", SETTINGS)
    other = SimpleNamespace(rank=1, first=lambda own: (is_known, None))     # which looked before, or after, somebody wrote
    monkeypatch.setattr("analysis.stored.Processes.present", lambda: other)
    found = pipeline.stored_curvature(subject, 2, "class:1", SETTINGS)
    assert (found is not None) == is_known and (found is None or found.loss == stored.loss)
    other.first = lambda own: (False, "it holds another")
    with pytest.raises(OtherRecord, match="it holds another; replace it with --overwrite"):
        pipeline.stored_curvature(subject, 2, "class:1", SETTINGS)


def test_test_images_and_the_gauss_newton_matrix_are_stored_under_names_of_their_own():
    assert stored_group("class:3", replace(SETTINGS, split="test")) == "class:3@test"
    assert stored_group("tail", replace(SETTINGS, split="test", operator="gauss_newton")) == "tail@test+gauss_newton"
    assert surface_name(3, SurfaceSettings(split="test")) == surface_name(3, SurfaceSettings()) + "-test"


@pytest.mark.parametrize("patterns, name", [
    (("layer1.*",), "tail@layer1"), (("fc.weight", "*.bn?.*"), "tail@fc.weight+bn"), (("*",), "tail@any"),
    (("a" * 90,), "tail@" + "a" * 60)])
def test_a_block_is_stored_under_the_words_of_its_patterns(patterns, name):
    assert stored_group("tail", replace(SETTINGS, params=patterns)) == name
    assert layout.relative_path(layout.KINDS["curvature"], {"epoch": 1, "group": name}).name == f"epoch-0001-{name}.h5"


@pytest.mark.parametrize("kind, change, word", [
    (SpectrumSettings, dict(trace_error=1.5), "trace_error=1.5"), (SpectrumSettings, dict(params=()), "params="),
    (SpectrumSettings, dict(operator="fisher"), "hessian, gauss_newton"), (Making, dict(microbatch=0), "microbatch=0"),
    (Making, dict(memory=-1), "memory=-1"),
    (SpectrumSettings, dict(num_probes=0), "num_probes=0"), (SpectrumSettings, dict(tol=0), "tol=0"),
    (SpectrumSettings, dict(split="dev"), "train, test"), (SurfaceSettings, dict(points=4), "odd"),
    (SurfaceSettings, dict(group="tail@fc"), "a class group alone"),
    (SurfaceSettings, dict(dims=3), "dims=3"), (SurfaceSettings, dict(span=-1), "span=-1")])
def test_bad_settings_are_named_with_their_range(kind, change, word):
    with pytest.raises(InputError, match=word):
        kind(**change)


def test_a_second_group_says_why_its_engine_was_chosen_as_the_first_does(store):
    subject = Subject.open(store)
    asked = replace(SETTINGS, num_matvecs=2, max_matvecs=0, seed=9)
    for label in (subject.data.num_classes - 1, subject.data.num_classes - 2):
        made = compute_curvature(subject, 2, f"class:{label}", asked, overwrite=True)[0].provenance
        assert set(made["engine_reasons"]) == {"reverse", "linearized-compiled"}


def test_an_operator_expects_the_products_of_its_spectrum_and_a_part_stands_for_the_whole(subject, monkeypatch):
    expected = []
    monkeypatch.setitem(pipeline.OPERATORS, "hessian", lambda *_, expected_matvecs, **__: expected.append(expected_matvecs))
    pipeline.build_operator(subject, [], SETTINGS)
    pipeline.build_operator(subject, [], SETTINGS, share=0.25)
    assert expected == [SETTINGS.products, 4 * SETTINGS.products] == [40, 160]


def test_of_a_subset_the_record_says_what_images_it_has_not_seen_show_of_the_whole_group(subject):
    record, _ = compute_curvature(subject, 1, "all", replace(SETTINGS, max_samples=10, seed=3), overwrite=True)
    vector = torch.as_tensor(record.eigenpairs.vectors[0])
    whole = pipeline.build_operator(subject, group_batches(subject, "all", replace(SETTINGS, max_samples=None))[0], SETTINGS)
    exact = float(vector.to(whole.dtype) @ (whole @ vector))
    assert record.num_samples == 10 < record.num_available
    assert record.group_curvature.kind == "data" and record.group_curvature.low < exact < record.group_curvature.high
    assert record.group_trace.value == record.trace.value and record.group_trace.low < record.group_trace.value
    full, _ = compute_curvature(subject, 1, "tail", SETTINGS, overwrite=True)
    assert full.num_samples == full.num_available and np.isnan(full.group_curvature.value) and np.isnan(full.group_trace.low)


def test_a_process_that_is_not_the_first_makes_the_record_and_writes_nothing(subject, monkeypatch):
    asked = replace(SETTINGS, seed=11)
    first, _ = compute_curvature(subject, 2, "tail", asked, overwrite=True)
    before = {path: path.stat().st_mtime_ns for path in subject.store.path.rglob("*")}

    class Second:
        present = staticmethod(lambda: Processes(rank=1, count=1))      # one that waits for nobody
    monkeypatch.setattr(replay, "Processes", Second)
    monkeypatch.setattr(replay, "EVERY_SECONDS", 0.0)
    monkeypatch.setattr(pipeline, "is_main", lambda: False)
    monkeypatch.setattr(RunStore, "write", lambda *_: pytest.fail("a second process wrote a record"))
    monkeypatch.setattr(Journal, "append", lambda *_: pytest.fail("a second process wrote to the journal"))
    monkeypatch.setattr(Journal, "clear", lambda *_: pytest.fail("a second process cleared the journal"))
    record, fresh = compute_curvature(subject, 2, "tail", asked, overwrite=True)
    assert fresh and content_hash(record) == content_hash(first)
    assert {path: path.stat().st_mtime_ns for path in subject.store.path.rglob("*")} == before
