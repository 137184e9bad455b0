import numpy as np
from sample_records import measurement

from checkpoints.frames import frame, frames


def test_a_frame_holds_all_columns_labels_first():
    record = measurement()
    table = frame(record)
    assert list(table.columns) == ["group", "perturbation", "value", "eigenvalue"]
    assert table["group"].tolist() == ["head", "tail", "tail"]
    np.testing.assert_array_equal(table["value"], record.numbers["value"])


def test_frames_stand_one_below_the_other_with_their_epochs():
    table = frames([measurement(epoch=6), measurement(epoch=2)])
    assert table["epoch"].tolist() == [6, 6, 6, 2, 2, 2] and table.index.tolist() == list(range(6))
    assert list(table.columns)[1:] == list(frame(measurement()).columns)


def test_no_measurement_is_an_empty_frame():
    assert frames([]).empty
