from types import SimpleNamespace

import psutil
import pytest
import torch

from analysis.operators import memory

CPU = torch.device("cpu")


@pytest.fixture
def machine(tmp_path, monkeypatch):
    """Return a function that writes this process's control groups: lines of /proc/self/cgroup, and {file: text}."""
    def write(lines, files):
        (tmp_path / "cgroup").write_text("\n".join(lines))
        for name, text in files.items():
            (tmp_path / "fs" / name).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / "fs" / name).write_text(f"{text}\n")
    monkeypatch.setattr(memory, "PROCESS", tmp_path)
    monkeypatch.setattr(memory, "GROUPS", tmp_path / "fs")
    monkeypatch.setattr(psutil, "virtual_memory", lambda: SimpleNamespace(available=1000))
    return write


def group(folder, limit, used):
    return {f"{folder}memory.max": limit, f"{folder}memory.current": used}


def old_group(folder, limit, used):
    return {f"memory/{folder}memory.limit_in_bytes": limit, f"memory/{folder}memory.usage_in_bytes": used}


@pytest.mark.parametrize("lines, files, left", [
    ([], {}, 1000),                                                                 # no control groups: the machine's own
    (["0::/"], group("", 600, 200), 400), (["0::/"], group("", "max", 200), 1000),  # a container
    (["0::/job/step"], group("", "max", 0) | group("job/step/", 500, 300), 200),    # the process's own group
    (["0::/job/step"], group("job/", 500, 450) | group("job/step/", 300, 100), 50),     # one around it is nearly full
    (["0::/unseen"], group("", 600, 200), 400), (["0::/job"], group("job/", 500, 600), 0),
    (["4:memory:/job", "0::/"], old_group("", 2**63 - 4096, 0) | old_group("job/", 500, 100), 400),     # version 1
    (["5:cpu,memory:/job:1"], old_group("job:1/", 300, 100), 200)])
def test_free_memory_is_what_the_machine_and_all_control_groups_leave(machine, lines, files, left):
    machine(lines, files)
    assert memory.free_memory(CPU) == left


def test_microbatches_may_take_half_of_what_is_free_or_what_the_user_says(machine):
    machine(["0::/"], group("", 600, 200))
    assert memory.budget("auto", CPU) == 200 and memory.budget(12345, CPU) == 12345.0 and memory.budget(0, CPU) == 0.0


def test_of_a_gpu_the_driver_tells_what_is_free(monkeypatch):
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (700, 1000))
    assert memory.free_memory(torch.device("cuda", 0)) == 700.0 and memory.budget("auto", torch.device("cuda", 0)) == 350.0


def test_an_allocation_that_fails_is_known_on_a_cpu_too():
    with pytest.raises(RuntimeError) as caught:
        torch.empty(2**50)
    assert memory.ran_out(caught.value) and memory.ran_out(torch.OutOfMemoryError("full")) and memory.ran_out(MemoryError())
    assert not memory.ran_out(RuntimeError("mat1 and mat2 shapes cannot be multiplied"))
