import numpy as np
import pytest
from scipy.stats import ttest_ind, ttest_rel

from analysis.findings.differences import difference

A, B = {0: 1.0, 1: 2.0, 2: 4.0}, {0: 0.5, 1: 1.0, 2: 1.5, 7: 99.0}


def test_shared_seeds_are_paired():
    found, expected = difference(A, B, 0.9), ttest_rel([1, 2, 4], [0.5, 1, 1.5]).confidence_interval(0.9)
    assert found.kind == "paired" and found.value == pytest.approx(4 / 3)
    assert (found.low, found.high) == pytest.approx((expected.low, expected.high))


def test_other_seeds_give_welchs_interval():
    other = {5: 0.5, 6: 1.0, 8: 1.5}
    found, expected = difference(A, other), ttest_ind([1, 2, 4], [0.5, 1, 1.5], equal_var=False).confidence_interval(0.95)
    assert found.kind == "unpaired" and (found.low, found.high) == pytest.approx((expected.low, expected.high))


@pytest.mark.parametrize("ours, base, value", [({0: 2.0}, {0: 0.5}, 1.5), ({0: 2.0}, {1: 0.5}, 1.5), (A, {1: 1.0}, 1.0),
                                               ({0: 2.0}, {4: 1.0, 5: 3.0}, 0.0), ({}, A, np.nan)])
def test_one_run_against_another_has_no_interval(ours, base, value):
    found = difference(ours, base)
    assert found.value == pytest.approx(value, nan_ok=True) and np.isnan(found.low) and found.kind == "single"


def test_values_without_spread_have_no_width():
    found = difference({0: 1.0, 1: 1.0}, {2: 3.0, 3: 3.0})
    assert (found.low, found.value, found.high) == (-2, -2, -2)
