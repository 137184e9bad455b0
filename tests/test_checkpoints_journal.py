import numpy as np
import pytest

from checkpoints.journal import Journal
from checkpoints.schema import RecordError


def step(number: int) -> dict[str, np.ndarray]:
    return {"vector": np.full(4, number, np.float32), "alpha": np.array(number / 3)}


def filled(folder, length: int = 4) -> Journal:
    journal = Journal(folder)
    for number in range(length):
        journal.append(step(number))
    return journal


def values(journal: Journal) -> list[float]:
    return [arrays["vector"][0] for arrays in journal.steps()]


def test_steps_come_back_in_order_and_bit_for_bit(tmp_path):
    filled(tmp_path / "j", 12)
    steps = Journal(tmp_path / "j").steps()
    assert [arrays["alpha"].tobytes() for arrays in steps] == [np.array(n / 3).tobytes() for n in range(12)]
    assert all(arrays["vector"].dtype == np.float32 for arrays in steps)


def test_a_journal_never_written_has_no_steps(tmp_path):
    assert Journal(tmp_path / "absent").steps() == []


def test_another_process_continues_behind_the_last_step(tmp_path):
    filled(tmp_path / "j", 2)
    Journal(tmp_path / "j").append(step(2))
    assert values(Journal(tmp_path / "j")) == [0, 1, 2]


@pytest.mark.parametrize("damage", [lambda path: path.unlink(), lambda path: path.write_bytes(path.read_bytes()[:-9]),
                                    lambda path: path.write_bytes(b"")], ids=["absent", "truncated", "empty"])
def test_steps_stop_before_the_first_that_is_absent_or_damaged(tmp_path, damage):
    filled(tmp_path / "j")
    damage(tmp_path / "j" / "step-000002.h5")
    assert values(Journal(tmp_path / "j")) == [0, 1]


@pytest.mark.parametrize("reads_first", [True, False])
def test_steps_of_an_earlier_life_behind_a_gap_do_not_come_back(tmp_path, reads_first):
    filled(tmp_path / "j", 6)
    (tmp_path / "j" / "step-000001.h5").unlink()
    journal = Journal(tmp_path / "j")
    if reads_first:
        journal.steps()
    journal.append(step(7))
    assert values(Journal(tmp_path / "j")) == [0, 7]


def test_a_step_under_another_number_does_not_count(tmp_path):
    filled(tmp_path / "j", 2)
    (tmp_path / "j" / "step-000000.h5").rename(tmp_path / "j" / "step-000001.h5")
    (tmp_path / "j" / "step-000000.h5").write_bytes((tmp_path / "j" / "step-000001.h5").read_bytes())
    assert values(Journal(tmp_path / "j")) == [0]


def test_clear_removes_the_steps_and_the_empty_folders(tmp_path):
    journal = filled(tmp_path / "partial" / "j")
    journal.clear()
    assert journal.steps() == [] and not (tmp_path / "partial").exists()
    journal.append(step(0))
    assert values(journal) == [0]


def test_clear_leaves_other_files_and_journals_alone(tmp_path):
    journal = filled(tmp_path / "partial" / "j")
    filled(tmp_path / "partial" / "k")
    (tmp_path / "partial" / "j" / "notes.txt").write_text("mine")
    journal.clear()
    assert [path.name for path in (tmp_path / "partial" / "j").iterdir()] == ["notes.txt"]
    assert len(Journal(tmp_path / "partial" / "k").steps()) == 4


def test_a_step_that_is_no_array_is_refused(tmp_path):
    with pytest.raises(RecordError, match="expected a NumPy array"):
        Journal(tmp_path / "j").append({"vector": [1, 2]})
