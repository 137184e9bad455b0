import os
import subprocess
import sys
from pathlib import Path
from stat import S_ISDIR

import pytest

from checkpoints import atomic
from checkpoints.atomic import is_temporary, make_folder, remove_leftovers, replacing, write_text


def dead_process() -> int:
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    return process.pid


def leftover(folder: Path, process: int, life: str = "0" * 8, host: str | None = None) -> Path:
    path = folder / f".metrics.csv.{host or atomic._HOST}-{process}-{life}-0.tmp"
    path.write_text("half")
    return path


def test_the_old_content_stays_until_the_new_one_is_whole(tmp_path):
    path = tmp_path / "file.txt"
    write_text(path, "old")
    with replacing(path) as temporary:
        temporary.write_text("new")
        assert path.read_text() == "old" and temporary.parent == path.parent and is_temporary(temporary.name)
    assert path.read_text() == "new" and list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("exception", [OSError(28, "No space left on device"), KeyboardInterrupt()])
def test_a_failure_leaves_the_old_file_and_nothing_else(tmp_path, exception):
    path = tmp_path / "file.txt"
    write_text(path, "old")
    with pytest.raises(type(exception)):
        with replacing(path) as temporary:
            temporary.write_text("ne")
            raise exception
    assert path.read_text() == "old" and list(tmp_path.iterdir()) == [path]


def test_content_and_folder_are_flushed_around_the_rename(tmp_path, monkeypatch):
    calls = []
    fsync, replace = os.fsync, os.replace
    kind = {True: "folder", False: "file"}
    monkeypatch.setattr(os, "fsync", lambda fd: (calls.append(kind[S_ISDIR(os.fstat(fd).st_mode)]), fsync(fd)))
    monkeypatch.setattr(os, "replace", lambda a, b: (calls.append("rename"), replace(a, b)))
    write_text(tmp_path / "file.txt", "text")
    assert calls == ["file", "rename", "folder"]


def test_folders_are_made_with_their_parents_and_may_exist(tmp_path):
    make_folder(tmp_path / "a" / "b")
    make_folder(tmp_path / "a" / "b")
    assert (tmp_path / "a" / "b").is_dir()


def test_leftovers_of_dead_processes_are_removed_and_those_of_living_ones_stay(tmp_path):
    dead = leftover(tmp_path, dead_process())
    earlier_life = leftover(tmp_path, os.getpid(), "0" * 8)
    living = leftover(tmp_path, os.getppid())
    own = leftover(tmp_path, os.getpid(), atomic._LIFE)
    foreign = tmp_path / ".notes.tmp"
    foreign.write_text("somebody's")
    remove_leftovers(tmp_path)
    assert not dead.exists() and not earlier_life.exists()
    assert living.exists() and own.exists() and foreign.exists()


def test_leftovers_of_another_machine_are_removed_after_a_day(tmp_path):
    fresh, old = (leftover(tmp_path, process, host="f" * 8) for process in (1, 2))
    os.utime(old, (1e9, 1e9))
    remove_leftovers(tmp_path)
    assert fresh.exists() and not old.exists()


@pytest.mark.parametrize("name", ["run.json", ".run.json", ".run.json.tmp", ".x.123-1-12345678-0.tmp",
                                  "a.00000000-1-00000000-0.tmp"])
def test_other_names_are_not_taken_for_leftovers(name):
    assert not is_temporary(name)
