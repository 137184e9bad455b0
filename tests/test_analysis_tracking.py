"""Overlaps on directions turned by known angles."""

from dataclasses import replace

import numpy as np
import pytest
from fabricated_runs import fake_run

from analysis.findings import tracking
from checkpoints.comparison import compare
from checkpoints.errors import RecordError

EPOCHS = {"epochs": (0, 20, 60), "probes": 1, "steps": 4}


def test_overlap_of_a_rotation_is_the_cosine_of_its_angle():
    table = tracking.tracked(compare([fake_run("sgd", **EPOCHS)]), "tail")
    first = table[(table["epoch"] == 0) & (table["i"] == table["j"])]
    assert list(first["next_epoch"].unique()) == [20] and len(first) == 2          # two of the four pairs are negative
    np.testing.assert_allclose(first["overlap"], np.cos(1.2 * 20 / 60))
    later = table[(table["epoch"] == 20) & (table["i"] == 0) & (table["j"] == 0)]
    np.testing.assert_allclose(later["overlap"], np.cos(1.2 * 40 / 60))
    np.testing.assert_allclose(later["subspace"], np.cos(1.2 * 40 / 60) ** 2)
    np.testing.assert_allclose(table[table["i"] != table["j"]]["overlap"], 0, atol=1e-15)
    assert table["null"].unique() == pytest.approx([2 / 400])


def test_a_subspace_is_the_same_whatever_its_basis_and_whatever_the_signs():
    rng = np.random.default_rng(0)
    V = np.linalg.qr(rng.standard_normal((50, 3)))[0].T
    turn = np.linalg.qr(rng.standard_normal((3, 3)))[0]
    assert tracking.subspace_overlap(V, turn @ V) == pytest.approx(1)
    assert tracking.subspace_overlap(V, -V[:2]) == pytest.approx(1)
    assert np.isnan(tracking.subspace_overlap(V, V[:0]))


def test_random_subspaces_overlap_by_their_share_of_the_space():
    rng = np.random.default_rng(0)
    draws = [tracking.subspace_overlap(*(np.linalg.qr(rng.standard_normal((40, 4)))[0].T for _ in range(2))) for _ in range(300)]
    assert np.mean(draws) == pytest.approx(4 / 40, abs=4 * np.std(draws) / np.sqrt(300))


def test_no_more_than_k_and_none_that_bend_up():
    record = fake_run("sgd", **EPOCHS).kept[0]
    values, vectors = tracking.most_negative(record, 1)
    assert values == [record.eigenpairs.values[0]] and vectors.shape == (1, 400)
    assert len(tracking.most_negative(record, 9)[0]) == 2


def test_records_without_vectors_or_of_inexact_products_are_refused():
    record = fake_run("sgd", **EPOCHS).kept[0]
    empty = replace(record, eigenpairs=replace(record.eigenpairs, vectors=np.zeros((0, 400))))
    with pytest.raises(RecordError, match="epoch 0 holds no eigenvectors"):
        tracking.most_negative(empty, 1)
    with pytest.raises(RecordError, match="is inexact: finite differences"):
        tracking.most_negative(replace(record, provenance={"engine": "differences"}), 1)


def test_one_epoch_is_nothing_to_follow():
    runs = compare([fake_run("sgd", epochs=(60,), probes=1, steps=4)])
    with pytest.raises(RecordError, match="landscape spectrum runs/sgd-0 --epoch all --group tail"):
        tracking.tracked(runs, "tail")
