"""`torchrun ... train` at the command line: two processes leave the run folder of one, and SIGTERM loses no step."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from checkpoints.store import RunStore

ROOT = Path(__file__).resolve().parents[1]
TORCHRUN = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
EPOCHS = 100     # enough for a signal to come before the last of them
SETTINGS = f"""--dataset synthetic --batch_size 41 --opt ssesam --eta 30 --gamma 0.5 --seed 3 --arch shared_network:build
 --dtype float64 --epochs {EPOCHS} --checkpoint_epochs every:50 --print_freq 50""".split()
# Without BatchNorm; each process says that it was here, and among how many.
NETWORK = """
from pathlib import Path
from torch import nn
from landscape.distributed import Processes

def build(num_classes):
    here = Processes.present()
    Path(__file__).with_name(f"rank {here.rank} of {here.count}").touch()
    return nn.Sequential(nn.Flatten(), nn.Linear(192, 8), nn.Tanh(), nn.Linear(8, num_classes))
"""

pytestmark = pytest.mark.slow


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "shared_network.py").write_text(NETWORK)
    return tmp_path


def started(folder, run, launcher):
    """Start `landscape train` below a launcher."""
    environment = os.environ | {"PYTHONPATH": f"{ROOT}{os.pathsep}{folder}", "OMP_NUM_THREADS": "1"}
    return subprocess.Popen([*launcher, "-m", "scripts.cli", "train", *SETTINGS, "--out", str(folder / run)], cwd=folder,
                            env=environment, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE)


def finished(process):
    out, err = process.communicate(timeout=300)
    assert process.returncode == 0, err[-3000:]
    return out


def gaps(one, other):
    """Return the largest differences between two runs' checkpoints and metrics."""
    stores = [RunStore.open(path) for path in (one, other)]
    tables = [store.metrics().drop(columns="seconds").to_numpy(dtype=float) for store in stores]
    records = [store.records("checkpoint") for store in stores]
    assert all(store.finished for store in stores) and stores[0].epochs == stores[1].epochs == [0, 50, 100]
    assert tables[0].shape == tables[1].shape and len(tables[0]) == EPOCHS
    assert np.array_equal(*map(np.isnan, tables))
    return [np.nanmax(np.abs(tables[0] - tables[1])),
            *(np.abs(a.arrays[name] - b.arrays[name]).max() for a, b in zip(*records) for name in a.arrays)]


def test_the_run_of_two_processes_is_that_of_one_also_after_sigterm(folder):
    shown = [finished(started(folder, name, launcher)) for name, launcher in (("two", TORCHRUN), ("one", [sys.executable]))]
    assert sorted(path.name for path in folder.glob("rank *")) == ["rank 0 of 1", "rank 0 of 2", "rank 1 of 2"]
    assert shown[0].count("\nepoch") == shown[1].count("\nepoch") == 2      # the first process alone prints
    found = gaps(folder / "one", folder / "two")
    assert 0 < max(found) < 1e-10, found

    process = started(folder, "stopped", TORCHRUN)
    while not (folder / "stopped" / "resume.h5").exists() and process.poll() is None:
        time.sleep(0.02)
    process.send_signal(signal.SIGTERM)
    err = process.communicate(timeout=100)[1]
    assert process.returncode == 1 and "SignalException" in err and "nothing is lost; go on with" in err     # torchrun's own end
    log = (folder / "stopped" / "train.log").read_text()
    assert "stopped by SIGTERM after" in log and not RunStore.open(folder / "stopped").finished
    finished(started(folder, "stopped", TORCHRUN))
    assert max(gaps(folder / "two", folder / "stopped")) == 0
