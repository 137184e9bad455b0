from dataclasses import replace

import numpy as np
import pytest
from fabricated_measures import fake_measurements
from fabricated_runs import fake_plane, fake_run

from analysis.surfaces.directions import eigenvector_direction
from checkpoints.errors import RecordError
from checkpoints.records import Checkpoint
from checkpoints.schema import content_hash
from checkpoints.staleness import (NO_CHECKPOINT, OTHER_DATA, OTHER_SPECTRUM, OTHER_WAY, OTHER_WEIGHTS, checkpoint_hash,
                                   spectrum_hash, staleness)
from checkpoints.store import RunStore

RECORD = fake_run("sgd", 0, epochs=(60,), groups=("tail",), probes=1, steps=4).kept[0]
WEIGHTS = Checkpoint(60, {"w": np.arange(3.0)}, {})


@pytest.fixture
def store(tmp_path):
    store = RunStore.create(tmp_path / "run", {"opt": "sgd"}, provenance={"data_hash": "d1"})
    store.write(WEIGHTS)
    return store


def made_from(**inputs):
    return replace(RECORD, provenance={"inputs": inputs})


@pytest.mark.parametrize("inputs, word", [
    ({"checkpoint": content_hash(WEIGHTS), "data": "d1"}, ""), ({"checkpoint": content_hash(WEIGHTS)}, ""),
    ({"checkpoint": "other", "data": "d1"}, OTHER_WEIGHTS), ({"checkpoint": content_hash(WEIGHTS), "data": "d2"}, OTHER_DATA),
    ({}, "")])
def test_a_record_is_stale_where_weights_or_data_are_others(store, inputs, word):
    assert staleness(store, made_from(**inputs)) == word


def test_weights_that_are_gone_cannot_be_compared(store):
    assert staleness(store, replace(made_from(checkpoint="x"), epoch=7)) == NO_CHECKPOINT
    assert checkpoint_hash(store, 7) is None


def test_a_damaged_checkpoint_is_named(store):
    store.paths("checkpoint")[0].write_bytes(b"not HDF5")
    with pytest.raises(RecordError, match="epoch-0060.h5 is damaged"):
        staleness(store, made_from(checkpoint="x"))


@pytest.fixture
def along(store):
    """Return a surface along two eigenvectors of a stored spectrum, as the toolkit names and stores them."""
    store.write(RECORD)
    ways = [eigenvector_direction(RECORD, "lower", 1), eigenvector_direction(RECORD, "upper")]
    return replace(fake_plane("sgd", 60, np.random.default_rng(0)), directions=np.stack([way.vector.numpy() for way in ways]),
                   direction_names=tuple(way.name for way in ways),
                   direction_curvatures=np.array([way.curvature for way in ways]),
                   provenance={"inputs": {"checkpoint": content_hash(WEIGHTS), "directions": "stated"}})


def test_a_direction_is_stale_once_its_spectrum_is_computed_anew(store, along):
    assert staleness(store, along) == ""
    pairs = RECORD.eigenpairs
    store.write(replace(RECORD, eigenpairs=replace(pairs, values=pairs.values * (1 + 1e-9))))
    assert staleness(store, along) == OTHER_SPECTRUM
    store.write(replace(RECORD, eigenpairs=replace(pairs, vectors=-pairs.vectors)))
    assert staleness(store, along) == OTHER_SPECTRUM     # the same eigenvalue, walked the other way
    store.write(replace(RECORD, eigenpairs=replace(pairs, vectors=pairs.vectors[:0])))
    assert staleness(store, along) == ""                 # the values agree, and vectors cannot be compared
    store.paths("curvature")[0].unlink()
    assert staleness(store, along) == ""


def through(store, **sources):
    plane = fake_plane("sgd", 60, np.random.default_rng(0))
    return replace(plane, provenance={"inputs": {"checkpoint": content_hash(WEIGHTS), "sources": sources}})


@pytest.mark.parametrize("text", ["epoch:10", "epoch:last", "{other}@epoch:10", "{other}@epoch:last"])
def test_a_surface_is_stale_where_a_checkpoint_that_it_leads_through_is_another(store, tmp_path, text):
    there = RunStore.create(tmp_path / "other", {"opt": "sam"}) if "other" in text else store
    second = Checkpoint(10 if "10" in text else 90, {"w": np.ones(3)}, {})
    there.write(second)
    text = text.format(other=there.path)
    assert staleness(store, through(store, **{text: content_hash(second)})) == ""
    assert staleness(store, through(store, **{text: "as it was"})) == OTHER_WAY


def test_a_checkpoint_on_the_way_that_is_gone_is_said_but_not_of_a_run_elsewhere(store):
    assert staleness(store, through(store, **{"epoch:10": "x"})) == NO_CHECKPOINT
    assert staleness(store, through(store, **{"runs/elsewhere@epoch:10": "x"})) == ""


def test_a_measurement_is_stale_once_a_spectrum_that_it_read_is_another(store):
    store.write(RECORD)
    measured = fake_measurements("sgd", 0, (60,))[0]
    inputs = {"checkpoint": content_hash(WEIGHTS), "spectra": {"tail": content_hash(RECORD), "head": "gone since"}}
    assert staleness(store, replace(measured, provenance={"inputs": inputs})) == ""
    store.write(replace(RECORD, loss=1.0))
    assert staleness(store, replace(measured, provenance={"inputs": inputs})) == OTHER_SPECTRUM


def test_what_is_of_no_checkpoint_is_never_stale(store):
    toy = fake_measurements("sgd", 0, (60,))[-2]
    assert staleness(store, replace(toy, provenance={"inputs": {"checkpoint": None, "data": None}})) == ""


def test_a_verification_of_a_spectrum_makes_no_measurement_stale(store):
    measured = replace(fake_measurements("sgd", 0, (60,))[0], provenance={
        "inputs": {"checkpoint": content_hash(WEIGHTS), "spectra": {"tail": spectrum_hash(RECORD)}}})
    verified = replace(RECORD, second_opinion={"pyhessian_trace": 1.0})
    store.write(verified)
    assert staleness(store, measured) == "" and spectrum_hash(verified) == content_hash(RECORD) != content_hash(verified)
    store.write(replace(verified, eigenpairs=replace(RECORD.eigenpairs, vectors=-RECORD.eigenpairs.vectors)))
    assert staleness(store, measured) == OTHER_SPECTRUM
