from dataclasses import asdict, replace

import numpy as np
import pytest
import torch

from analysis.measures.case import Case
from analysis.measures.catalogue import measured, work
from analysis.measures.perturbations import null_alignment, region
from analysis.pipeline import compute_curvature
from analysis.settings import Making, MeasureSettings, SpectrumSettings
from analysis.stored import OtherRecord
from analysis.subject import Subject
from checkpoints.errors import RecordError
from checkpoints.frames import frame
from checkpoints.store import RunStore
from landscape.errors import InputError
from landscape.parameters import theta, trainable
from landscape.training import TrainConfig, train, training_data

SPECTRUM = SpectrumSettings(num_matvecs=12, num_probes=1, num_pairs=2, trace_probes=2, max_matvecs=40, dtype="float64", tol=1e-4)
QUICK = Making(engine="reverse")     # nothing is traced
SETTINGS = MeasureSettings(dtype="float64", batches=3, num_pairs=2)
CONFIG = TrainConfig(dataset="synthetic", epochs=2, checkpoint_epochs=(1, 2), lr=0.05, head_rho=0.03, tail_rho=0.07)


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    data = training_data(CONFIG)
    store = RunStore.create(tmp_path_factory.mktemp("run"), CONFIG.resolved(data).identity())
    with store.writer():
        train(CONFIG, data=data, recorder=store.recorder())
    for group in ("head", "tail", "all"):
        compute_curvature(Subject.open(store), 2, group, SPECTRUM, making=QUICK)
    return store


@pytest.fixture
def case(store):
    return cased(store)


def cased(store, epoch=2, **changes):
    return Case(store, lambda: Subject.open(store), epoch, replace(SETTINGS, **changes))


def stored(name, case):
    return measured(name, case, overwrite=True)[0]


def slope_of(case, group):
    """Return the gradient of a group's mean cross-entropy, and the loss as a function of theta, over all its training images."""
    subject, data = case.subject, case.subject.data
    mine = np.isin(data.train.labels, subject.groups.select(group))
    inputs, labels = data.inputs(data.train.images[mine], torch.float64), data.train.labels[mine]
    model = subject.model.double().eval()

    def loss(vector):
        state = dict(zip(trainable(model), vector.split([p.numel() for p in trainable(model).values()])))
        state = {name: piece.reshape(trainable(model)[name].shape) for name, piece in state.items()}
        return torch.nn.functional.cross_entropy(torch.func.functional_call(model, state, (inputs,)), labels)
    return torch.func.grad(loss)(theta(model)), loss


def vectors_of(case, group):
    return torch.from_numpy(case.spectrum(group).eigenpairs.vectors[:2]).double()


def test_alignment_of_whole_groups_is_that_of_their_gradients_with_the_stored_eigenvectors(case):
    table = frame(stored("alignment", case))
    climbed = {"sam": "all", "imbsam": "tail", "ssesam_head": "head", "ssesam_tail": "tail"}
    for row in table[table["source"] == "group"].itertuples():
        slope, v = slope_of(case, climbed[row.perturbation])[0], vectors_of(case, row.group)[int(row.pair)]
        assert row.value == pytest.approx(float(abs(v @ slope) / (v.norm() * slope.norm())), rel=1e-8)
        assert row.eigenvalue == case.spectrum(row.group).eigenpairs.values[int(row.pair)] and row.draw == 0
    assert len(table[table["source"] == "group"]) == 2 * 4 * 2


def test_mini_batches_are_a_series_of_draws_with_their_interval(case):
    record = stored("alignment", case)
    table = frame(record)
    batch = table[table["source"] == "batch"]
    assert set(batch["draw"]) == {1, 2, 3} and batch["value"].between(0, 1).all()
    one = batch[(batch["group"] == "tail") & (batch["perturbation"] == "sam") & (batch["pair"] == 0)]
    half = 4.302652729911275 * one["value"].std() / 3 ** 0.5     # Student's t with two degrees of freedom at 95 %
    assert one["low"].tolist() == pytest.approx([one["value"].mean() - half] * 3)
    assert table.loc[table["source"] == "group", ["low", "high"]].isna().all().all()
    assert record.about["null"] == null_alignment(record.about["d"]) and record.about["d"] == len(theta(case.subject.model))
    assert record.about["rho"] == {"sam": 0.05, "imbsam": 0.05, "ssesam_head": 0.03, "ssesam_tail": 0.07}


def test_amplification_is_that_of_the_groups_gradient_at_the_perturbed_weights(case):
    table = frame(stored("amplification", case))
    climbed = {"sam": ("all", 0.05), "imbsam": ("tail", 0.05), "ssesam_head": ("head", 0.03), "ssesam_tail": ("tail", 0.07)}
    start = theta(case.subject.cast("float64"))
    for row in table.itertuples():
        gradient, loss = slope_of(case, row.group)
        direction, rho = slope_of(case, climbed[row.perturbation][0])[0], climbed[row.perturbation][1]
        v = vectors_of(case, row.group)[int(row.pair)]
        v, eps = v / v.norm(), rho * direction / direction.norm()
        assert row.component == pytest.approx(float(v @ gradient), rel=1e-6)
        assert row.measured == pytest.approx(float(v @ torch.func.grad(loss)(start + eps) / (v @ gradient)), rel=1e-6)
        assert row.predicted == pytest.approx(1 + row.eigenvalue * float(v @ eps / (v @ gradient)), rel=1e-6)
        assert row.effective_rho == pytest.approx(rho / float(direction.norm())) and row.reliable == 1
    assert len(table) == 2 * 4 * 2


def test_amplification_of_a_groups_own_ascent_is_one_plus_effective_rho_lambda(case):
    table = frame(stored("amplification", case))
    own = table[(table["group"] == "tail") & (table["perturbation"] == "imbsam")]
    np.testing.assert_allclose(own["predicted"], 1 + own["effective_rho"] * own["eigenvalue"], rtol=1e-6)
    regions = [region(row.effective_rho * -row.eigenvalue) if row.eigenvalue < 0 else "none" for row in own.itertuples()]
    assert own["region"].tolist() == regions and set(table.loc[table["perturbation"] == "sam", "region"]) == {"none"}


def test_the_law_holds_where_the_gradient_is_linear_and_its_tangent_says_so(case):
    """Of an infinitesimal ascent the amplification is that predicted, up to what the eigenvector's residual allows."""
    table = frame(stored("amplification", case))
    slack = 2 * table["predicted_error"] + 0.02 * (table["predicted"] - 1).abs() + 1e-6
    assert ((table["tangent"] - table["predicted"]).abs() <= slack).all()
    assert (table["predicted_error"] < 0.5 * (table["predicted"] - 1).abs()).any()


def test_ablation_splits_the_groups_gradient_and_walks_each_part(case):
    record = stored("ablation", case)
    table = frame(record).set_index(["group", "direction"])
    (tail, loss), whole, v = slope_of(case, "tail"), slope_of(case, "all")[0], vectors_of(case, "tail")[0]
    start = theta(case.subject.cast("float64"))
    projected = whole * (tail @ whole) / (whole @ whole)
    for name, part in {"full": tail, "projected": projected, "removed": tail - projected}.items():
        row = table.loc["tail", name]
        assert row["share"] == pytest.approx(float(part.norm() / tail.norm()))
        assert row["alignment"] == pytest.approx(float(abs(v @ part) / (v.norm() * part.norm())), rel=1e-6)
        assert row["rise"] == pytest.approx(float(loss(start + 0.07 * part / part.norm()) - loss(start)), rel=1e-6)
    assert record.about["rho"] == {"head": 0.03, "tail": 0.07} and record.about["degenerate"] == ""
    assert (table.loc["tail", "share"] ** 2)[["projected", "removed"]].sum() == pytest.approx(1)


def test_without_other_groups_nothing_is_left_of_the_ablated_direction(store):
    record = stored("ablation", cased(store, groups=("all",)))
    table = frame(record).set_index("direction")
    assert table.loc["removed", ["share", "rise"]].tolist() == [0, 0] and np.isnan(table.loc["removed", "alignment"])
    assert table.loc["projected", "share"] == pytest.approx(1)
    assert record.about["degenerate"] == "all: nothing is left once the global gradient is removed"


def test_float32_gives_what_float64_does_and_marks_what_it_cannot_tell(store):
    exact, plain = (frame(stored("amplification", cased(store, dtype=dtype))) for dtype in ("float64", "float32"))
    sure = plain["reliable"] == 1
    np.testing.assert_allclose(plain.loc[sure, "measured"], exact.loc[sure, "measured"], rtol=0.2, atol=1e-3)
    assert sure.any()


def test_radius_and_groups_are_those_asked_for(store):
    record = stored("amplification", cased(store, rho=0.2, groups=("tail",), num_pairs=1))
    assert set(record.about["rho"].values()) == {0.2} and record.labels["group"] == ("tail",) * 4


def test_a_subset_weighs_head_and_tail_by_the_images_they_have(store):
    record = stored("alignment", cased(store, max_samples=10, groups=("tail",), batches=1))
    assert record.about["images"] == {"climbed head": 10, "climbed tail": 10}
    whole = frame(stored("alignment", cased(store, groups=("tail",), batches=1)))
    part, whole = (table[(table["perturbation"] == "sam") & (table["source"] == "group")]["value"].to_numpy()
                   for table in (frame(record), whole))
    assert not np.allclose(part, whole)


def test_weights_and_type_are_left_as_they_were(store):
    case = cased(store, dtype="float32")
    before = {name: value.clone() for name, value in case.subject.model.state_dict().items()}
    for name in ("alignment", "amplification", "ablation"):
        stored(name, case)
    after = case.subject.model.state_dict()
    assert all(torch.equal(after[name], value) and after[name].dtype == value.dtype for name, value in before.items())


def test_a_record_is_stale_once_a_spectrum_it_read_is_computed_anew(store):
    measured("ablation", cased(store), overwrite=True)
    assert not measured("ablation", cased(store))[1]
    with pytest.raises(OtherRecord, match="rho=None there, 0.2 here"):
        measured("ablation", cased(store, rho=0.2))
    compute_curvature(Subject.open(store), 2, "tail", replace(SPECTRUM, seed=1), making=QUICK, overwrite=True)
    assert measured("ablation", cased(store))[1]


def test_a_spectrum_that_is_absent_or_without_vectors_is_refused_with_the_command(store):
    with pytest.raises(RecordError, match="no spectrum of group tail at epoch 1; make it with: landscape spectrum .* --epoch 1 "):
        measured("alignment", cased(store, epoch=1, groups=("tail",)))
    bare = store.read("curvature", epoch=2, group="tail")
    store.write(replace(bare, group="class:0", eigenpairs=replace(bare.eigenpairs, vectors=bare.eigenpairs.vectors[:0])))
    with pytest.raises(RecordError, match="holds no eigenvectors; make it anew with: landscape spectrum .* --overwrite"):
        measured("alignment", cased(store, groups=("class:0",)))
    with pytest.raises(InputError, match="num_pairs=3 is out of range: the spectrum of tail at epoch 2 holds 2 .*--num_pairs 3"):
        measured("alignment", cased(store, groups=("tail",), num_pairs=3))


@pytest.mark.parametrize("name", ["alignment", "amplification", "ablation"])
def test_the_forecast_counts_what_is_then_done(store, name):
    done = []
    case = cased(store, dtype="float32")
    case.progress = done.append
    stored(name, case)
    assert sum(done) == pytest.approx(work(name, case), rel=0.2)


def test_settings_that_are_kept_are_those_that_decide(store):
    record = stored("ablation", cased(store))
    decide = {"groups", "max_samples", "split", "rho", "dtype", "seed"}
    assert set(record.provenance["inputs"]["settings"]) == decide < set(asdict(SETTINGS))
    assert set(record.provenance["inputs"]["spectra"]) == {"head", "tail"}


def test_cases_that_share_a_subject_each_see_their_own_weights(store):
    shared = Subject.open(store)
    first, second = (Case(store, lambda: shared, epoch, SETTINGS) for epoch in (1, 2))
    weights = [theta(case.subject.model) for case in (first, second, first)]
    assert torch.equal(weights[0], weights[2]) and not torch.equal(weights[0], weights[1])
