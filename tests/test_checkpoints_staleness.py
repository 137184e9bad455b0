from dataclasses import replace

import numpy as np
import pytest
from fabricated_runs import fake_run

from checkpoints.errors import RecordError
from checkpoints.records import Checkpoint
from checkpoints.schema import content_hash
from checkpoints.staleness import NO_CHECKPOINT, OTHER_DATA, OTHER_WEIGHTS, checkpoint_hash, staleness
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
