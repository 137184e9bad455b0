"""Verdicts on matrices whose spectrum is known, measured as the pipeline measures them, and on records with a fault each."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from sample_records import curvature

from analysis.findings import verdict
from analysis.findings.verdict import judge
from analysis.operators import MatrixOperator
from analysis.spectra.extremes import extreme_eigenpairs
from analysis.spectra.lanczos import krylov
from checkpoints.records import Estimate
from landscape.errors import InputError

SIZE = 60


def measured(values, gradient_norm=0.0, steps=40, probes=3, norm=10.0, dtype=torch.float64, **changes):
    """Return the curvature record of a matrix with these eigenvalues."""
    generator = torch.Generator().manual_seed(0)
    Q = torch.linalg.qr(torch.randn(len(values), len(values), generator=generator, dtype=torch.float64))[0]
    A = Q @ torch.diag(torch.as_tensor(values, dtype=torch.float64)) @ Q.T
    operator = MatrixOperator(((A + A.T) / 2).to(dtype))
    space = krylov(operator, num_matvecs=steps, num_probes=probes, generator=generator)
    pairs = extreme_eigenpairs(space, 1, tol=changes.pop("tol", 1e-3), max_matvecs=changes.pop("max_matvecs", 100),
                               generator=generator)
    fields = {"num_samples": 30, "parameter_norms": {"w": norm}, "gradient_norm": gradient_norm, "provenance": {}} | changes
    return curvature(eigenpairs=pairs, **fields)


CONVEX = np.linspace(0.0, 5.0, SIZE)
SADDLE = np.concatenate([[-2.0], np.linspace(0.0, 5.0, SIZE - 1)])


def with_settings(record, **settings):
    return replace(record, provenance={"inputs": {"settings": settings}})


# In float32 a matrix is rounded, and a zero eigenvalue may turn negative: eps_H = 0 then finds a truth about another matrix.
@pytest.mark.parametrize("dtype, eps_H", [(torch.float32, None), (torch.float64, None), (torch.float64, 0.0)])
@pytest.mark.parametrize("values", [CONVEX, CONVEX + 1.0, np.zeros(SIZE), np.full(SIZE, 3.0), np.geomspace(1e-9, 1, SIZE)])
@pytest.mark.parametrize("gradient_norm", [0.0, 1.0])
def test_a_convex_quadratic_is_never_a_saddle_and_never_bends_down(values, gradient_norm, dtype, eps_H):
    found = judge(measured(values, gradient_norm, steps=20, dtype=dtype), eps_H=eps_H)
    assert not found.bends_down and "minimum" not in found.sentence


def test_a_saddle_of_a_quadratic_is_told_with_its_tolerances_and_proof():
    found = judge(measured(SADDLE))
    assert found.kind == verdict.SADDLE and found.verified_min
    assert found.lambda_min == pytest.approx(-2.0, rel=1e-6) and found.lambda_max == pytest.approx(5.0, rel=1e-6)
    assert found.eps_H == pytest.approx(0.05)
    assert found.sentence.startswith("strict saddle at (eps_g 0.0025, eps_H 0.05): |gradient| 0 <= eps_g 0.0025, "
                                     "lambda_min <= -2 <= -eps_H -0.05, verified in float64")


@pytest.mark.parametrize("norm, error, kind", [
    (0.00251, 2e-5, verdict.UNDECIDED), (0.00249, 2e-5, verdict.UNDECIDED), (0.00251, 2e-6, verdict.SLOPE),
    (0.00249, 2e-6, verdict.SADDLE), (0.00249, float("nan"), verdict.SADDLE)])
def test_a_gradient_within_its_rounding_of_the_tolerance_decides_nothing(norm, error, kind):
    found = judge(measured(SADDLE, gradient_norm=norm, gradient_error=error))      # eps_g is 0.0025
    assert found.kind == kind and ("within its rounding" in found.because) == (kind == verdict.UNDECIDED)


def test_where_the_gradient_is_larger_it_is_a_slope():
    found = judge(measured(SADDLE, gradient_norm=1.0))
    assert found.kind == verdict.SLOPE and "|gradient| 1 > eps_g 0.0025" in found.because


def test_tolerances_make_a_second_order_stationary_point_with_the_hessians_lipschitz_constant():
    record = measured(SADDLE, norm=10.0)
    eps_g, eps_H = verdict.tolerances(record)
    rho = 2 * 5.0 / 10.0
    assert eps_H == pytest.approx(0.01 * 5.0) and eps_H == pytest.approx(np.sqrt(rho * eps_g))
    assert verdict.tolerances(record, eps_H=0.3) == pytest.approx((0.09 / rho, 0.3))
    assert verdict.tolerances(record, eps_g=0.04) == pytest.approx((0.04, np.sqrt(rho * 0.04)))
    assert verdict.tolerances(record, 0.5, 0.6) == (0.5, 0.6)


@pytest.mark.parametrize("loss, theta", [(1e6, 1.0), (1.0, 1e-3), (1e-8, 50.0)])
def test_scaling_the_loss_or_the_parameters_changes_no_verdict(loss, theta):
    """L -> s L(theta / c): eigenvalues go by s / c^2, gradients by s / c, norms by c."""
    for gradient_norm, kind in ((0.002, verdict.SADDLE), (0.003, verdict.SLOPE)):
        scaled = measured(SADDLE * loss / theta ** 2, gradient_norm * loss / theta, norm=10.0 * theta)
        assert judge(scaled).kind == kind
        ours, base = judge(scaled), judge(measured(SADDLE, gradient_norm))
        assert (ours.eps_g, ours.eps_H) == pytest.approx((base.eps_g * loss / theta, base.eps_H * loss / theta ** 2))


def test_absence_is_stated_with_its_resolution_and_the_probability_of_a_miss():
    record = measured(CONVEX + 1.0, steps=60)
    found = judge(record)
    assert found.kind == verdict.NONE_FOUND and found.resolution <= found.eps_H
    assert found.miss_probability == pytest.approx(0.05)
    assert "with probability 0.05 of having missed it" in found.sentence and "the lowest found is 1" in found.sentence
    assert "not a critical point" in judge(replace(record, gradient_norm=9.0)).sentence


def test_a_search_too_short_for_the_tolerance_decides_nothing():
    record = measured(np.linspace(0.0, 5.0, 400), steps=8, max_matvecs=100)
    found = judge(record)
    assert found.kind == verdict.UNDECIDED and found.resolution > found.eps_H
    assert "may have been missed with probability 0.05: take more Lanczos steps" in found.because
    assert judge(record, eps_H=found.resolution).kind == verdict.NONE_FOUND


def test_a_shallow_negative_eigenvalue_is_named_and_is_no_saddle():
    found = judge(measured(np.concatenate([[-0.01], CONVEX[1:]]), steps=60))
    assert found.kind == verdict.NONE_FOUND and "shallower than eps_H" in found.sentence
    assert found.resolution >= 0.01


def unconverged(record):
    pairs = record.eigenpairs
    return replace(record, eigenpairs=replace(pairs, converged=pairs.converged & False, residuals=pairs.residuals + 0.5))


def test_an_unconverged_search_is_never_a_minimum_but_may_prove_a_saddle():
    found = judge(unconverged(measured(CONVEX + 1.0, steps=60)))
    assert found.kind == verdict.UNDECIDED and "has not converged (residual 0.5)" in found.because
    assert judge(unconverged(measured(SADDLE))).kind == verdict.SADDLE      # v'Hv bounds lambda_min all the same


def test_an_unverified_sign_decides_nothing():
    record = measured(SADDLE)
    record = replace(record, eigenpairs=replace(record.eigenpairs, verified=np.zeros(2, bool)))
    found = judge(record)
    assert found.kind == verdict.UNDECIDED and "its sign is not verified in float64" in found.because
    assert not found.verified_min


def test_one_verified_pair_does_not_hide_a_deeper_one_that_is_not():
    record = measured(SADDLE)
    pairs = record.eigenpairs
    three = replace(pairs, **{name: np.concatenate([[value], getattr(pairs, name)]) for name, value in
                              (("values", -9.0), ("values64", -9.0), ("residuals", 0.0), ("converged", True),
                               ("rounding", 0.0), ("verified", False))})
    assert judge(replace(record, eigenpairs=three)).lambda_min == pytest.approx(-2.0)      # what is proved
    shallow = replace(record, eigenpairs=replace(three, values64=np.array([-9.0, -1e-3, 5.0])))
    assert judge(shallow).kind == verdict.UNDECIDED and judge(shallow).lambda_min == -9.0


@pytest.mark.parametrize("change, words", [
    ({"provenance": {"engine": "differences"}}, "products were inexact: finite differences"),
    ({"provenance": {"inputs": {"settings": {"operator": "gauss_newton"}}}}, "gauss-newton matrix has no negative curvature"),
    ({"gradient_norm": np.nan}, "the gradient norm is nan"),
    ({"gradient_norm": np.inf}, "the gradient norm is inf")])
def test_a_record_that_can_decide_nothing_says_why(change, words):
    for values in (SADDLE, CONVEX):
        found = judge(replace(measured(values), **change))
        assert found.kind == verdict.UNDECIDED and words in found.because


def test_a_record_without_eigenpairs_is_undecided():
    record = curvature()
    nothing = np.zeros(0)
    pairs = replace(record.eigenpairs, values=nothing, residuals=nothing, converged=nothing > 0, values64=nothing,
                    rounding=nothing, verified=nothing > 0)
    found = judge(replace(record, eigenpairs=pairs))
    assert found.kind == verdict.UNDECIDED and found.because == "no eigenpairs were computed" and np.isnan(found.lambda_min)


def test_steps_that_bound_nothing_are_undecided():
    record = measured(CONVEX)
    missed = replace(record.eigenpairs.missed_below, low=-np.inf)
    found = judge(replace(record, eigenpairs=replace(record.eigenpairs, missed_below=missed)))
    assert found.kind == verdict.UNDECIDED and found.resolution == np.inf


def test_a_subset_says_that_it_is_one_and_of_the_group_decides_nothing():
    found = judge(measured(SADDLE, num_samples=7, num_available=30))
    assert "a subset, 7 of 30 images: of the whole group's loss it decides nothing" in found.sentence
    assert "subset" not in judge(measured(SADDLE, num_samples=30, num_available=30)).sentence


@pytest.mark.parametrize("high, told", [(-0.2, "nothing but lambda_min <= -0.2 (95 %, by images not used)"), (0.1, "nothing")])
def test_images_outside_a_subset_show_negative_curvature_of_the_whole_group_or_nothing(high, told):
    record = replace(measured(SADDLE, num_samples=7, num_available=30), group_curvature=Estimate(-0.5, -0.8, high, 0.95, "data"))
    (clause,) = [part for part in judge(record).sentence.split(";") if "a subset" in part]
    assert told in clause and ("by images" in clause) == (high < 0)


def test_test_images_and_blocks_of_parameters_are_named():
    record = with_settings(measured(SADDLE), split="test", params=["layer1.*"])
    assert "of the test images' loss; in the parameters layer1.* alone" in judge(record).sentence


def test_products_that_all_vanish_in_float32_decide_nothing_and_in_float64_they_do():
    nothing = measured(np.zeros(SIZE), dtype=torch.float32)
    found = judge(with_settings(nothing, dtype="float32"))
    assert found.kind == verdict.UNDECIDED and "--dtype float64" in found.sentence
    assert judge(with_settings(nothing, dtype="float64")).kind == verdict.NONE_FOUND


def test_a_loss_that_is_not_the_cross_entropy_is_named():
    assert "of the training loss, not of the cross-entropy" in judge(with_settings(measured(SADDLE), loss="training")).sentence
    assert "cross-entropy" not in judge(with_settings(measured(SADDLE), loss="CE")).sentence


def test_a_block_is_measured_by_the_norm_of_its_own_parameters():
    norms = {"layer1.w": 3.0, "layer1.b": 4.0, "fc.w": 100.0}
    record = with_settings(measured(SADDLE, parameter_norms=norms), params=["layer1.*"])
    assert verdict.theta_norm(record) == 5.0
    assert verdict.theta_norm(with_settings(record)) == pytest.approx(np.sqrt(10025))


def test_the_shift_by_weight_decay_is_told_and_where_it_matters():
    assert "weight decay 0.001, no part of this loss, lifts every eigenvalue by as much" in judge(
        measured(SADDLE), weight_decay=1e-3).sentence
    assert "lambda_min to 0.5, shallower than eps_H" in judge(measured(SADDLE), weight_decay=2.5).sentence
    assert "weight decay" not in judge(measured(SADDLE), weight_decay=0.0).sentence + judge(measured(SADDLE)).sentence


@pytest.mark.parametrize("name", ["eps_g", "eps_H"])
@pytest.mark.parametrize("value", [-1.0, np.nan, np.inf])
def test_a_tolerance_out_of_range_is_refused(name, value):
    with pytest.raises(InputError, match=f"{name}={value} is out of range: expected a finite number >= 0"):
        judge(measured(SADDLE), **{name: value})


def test_no_verdict_speaks_of_a_minimum():
    records = [measured(values, gradient) for values in (SADDLE, CONVEX, CONVEX + 1) for gradient in (0.0, 9.0)]
    assert not any("minimum" in judge(record, weight_decay=1e-3).sentence for record in records)


def test_the_document_holds_the_evidence_as_plain_values():
    import json
    document = judge(measured(SADDLE)).document
    assert json.loads(json.dumps(document))["verdict"] == "strict saddle" and document["lambda_min_verified"]
    assert document["layer_norms"] == {"w": 10.0}
