from dataclasses import asdict, fields, replace

import numpy as np
import pytest

from analysis.measures.case import Case
from analysis.measures.catalogue import MEASURES, _loaded, measure_named, measured
from analysis.measures.table import table
from analysis.settings import MeasureSettings
from analysis.stored import OtherRecord
from checkpoints.schema import content_hash
from checkpoints.store import RunStore
from landscape.errors import InputError


def refuse():
    raise AssertionError("this measure needs no data")


@pytest.fixture
def case(tmp_path):
    return Case(RunStore.create(tmp_path / "run", {"opt": "sgd"}), refuse, None, MeasureSettings())


def test_rows_become_columns_of_words_and_of_numbers():
    found = table([{"group": "head", "value": 1}, {"group": "tail", "value": np.nan}], {"value": "nats"}, {"d": 3})
    assert found.labels == {"group": ("head", "tail")} and found.units == {"value": "nats"}
    np.testing.assert_array_equal(found.numbers["value"], [1.0, np.nan])


@pytest.mark.parametrize("name", MEASURES)
def test_every_row_of_the_table_names_a_function_settings_and_a_source(name):
    measure = MEASURES[name]
    assert callable(_loaded(measure.function)) and (measure.work is None or callable(_loaded(measure.work)))
    assert set(measure.settings) <= {field.name for field in fields(MeasureSettings)}
    assert measure.shows and measure.needs and measure.source


def test_an_unknown_measure_is_refused_with_the_nearest():
    with pytest.raises(InputError, match=r"measure 'toi' is unknown \(did you mean toy\?\): expected one of .*toy"):
        measure_named("toi")


def test_a_measurement_is_given_back_while_its_settings_are_the_same(case):
    first, fresh = measured("toy", case)
    again, later = measured("toy", case)
    assert fresh and not later and content_hash(again) == content_hash(first)
    assert again.epoch == 0 and again.provenance["inputs"]["settings"] == {"batches": 10, "seed": 0}


def test_other_settings_are_refused_unless_it_is_overwritten(case):
    measured("toy", case)
    other = replace(case, settings=MeasureSettings(seed=1))
    with pytest.raises(OtherRecord, match="holds another measurement toy at epoch 0: seed=0 there, 1 here; .*--overwrite"):
        measured("toy", other)
    assert measured("toy", other, overwrite=True)[1]


def test_settings_that_do_not_decide_a_measure_do_not_matter(case):
    measured("toy", case)
    assert not measured("toy", replace(case, settings=MeasureSettings(max_samples=7, dtype="float64")))[1]


@pytest.mark.parametrize("changes, message", [
    ({"num_pairs": 0}, "num_pairs=0"), ({"batches": 0}, "batches=0"), ({"max_samples": -1}, "max_samples=-1"),
    ({"rho": 0.0}, "rho=0.0"), ({"rho": float("nan")}, "rho=nan"), ({"dtype": "half"}, "dtype='half'"),
    ({"split": "both"}, "split='both'"), ({"seed": -1}, "seed=-1"), ({"groups": ()}, "groups=()"),
    ({"groups": "tail"}, "groups='tail'")])
def test_settings_out_of_range_are_refused(changes, message):
    with pytest.raises(InputError) as error:
        MeasureSettings(**changes)
    assert message in str(error.value)


def test_a_group_named_twice_counts_once():
    assert asdict(MeasureSettings(groups=("tail", "head", "tail")))["groups"] == ("tail", "head")
