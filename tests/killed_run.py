"""Train and analyze a toy in forked children that are killed at a chosen instant, again and again until it is finished.

Run by tests/test_checkpoints_recorder.py. NumPy only, so that a child costs milliseconds. An instant lies before and
after every rename and deletion, and in the middle of every write. Prints one JSON document: what each way of being
killed left in the end.
"""

import csv
import json
import os
import random
import shutil
import signal
import sys
import time
import traceback
from dataclasses import replace
from pathlib import Path

import numpy as np
from sample_records import surface

from checkpoints.schema import content_hash, read_record
from checkpoints.store import RunStore

EPOCHS = 2


def train(store: RunStore) -> None:
    with store.writer():
        recorder = store.recorder()
        state = recorder.resumed() or {"epoch": 0, "w": np.ones(3), "momentum": np.zeros(3)}
        w, momentum = state["w"], state["momentum"]
        if int(state["epoch"]) == 0:
            recorder.checkpoint(0, {"w": w})
        for epoch in range(int(state["epoch"]) + 1, EPOCHS + 1):
            momentum = 0.9 * momentum + np.random.default_rng([7, epoch]).standard_normal(3)
            w = w - 0.1 * momentum
            if epoch == EPOCHS:
                recorder.checkpoint(epoch, {"w": w, "num_batches_tracked": np.array(epoch)})
            tested = {"test_accuracy/tail": float(w[0]), "test_accuracy/few": None} if epoch == 1 else {}
            recorder.epoch({"epoch": epoch, "lr": 0.1, **tested, "train_loss": w @ w, "seconds": time.perf_counter()})
            recorder.resume({"epoch": epoch, "w": w, "momentum": momentum})
        store.mark_finished()


def analyze(store: RunStore) -> None:
    if store.has("surface", name="line"):
        store.journal("tail").clear()
        return
    journal = store.journal("tail")
    vectors = [arrays["v"] for arrays in journal.steps()]
    while len(vectors) < 3:
        vectors.append(np.roll(vectors[-1], 1) * 1.5 if vectors else store.read("checkpoint", epoch=EPOCHS).arrays["w"])
        journal.append({"v": vectors[-1]})
    store.write(replace(surface("line", beta=0), directions_hash=vectors[-1].tobytes().hex()))
    journal.clear()


def work(path: Path) -> None:
    store = RunStore.create(path, {"epochs": EPOCHS}, provenance={"started": time.time()})
    train(store)
    analyze(store)


class Instants:
    """Count the instants at which a kill could hurt, and kill this process at one of them."""

    def __init__(self, fatal: int | None):
        self.fatal, self.passed = fatal, 0

    def __call__(self) -> None:
        if self.passed == self.fatal:
            os.kill(os.getpid(), signal.SIGKILL)
        self.passed += 1

    def around(self, call):
        def called(*args, **options):
            self()
            result = call(*args, **options)
            self()
            return result
        return called

    def inside(self, path: Path, content) -> None:
        with open(path, "wb") as file:
            file.write(content[:len(content) // 2])
            file.flush()
            self()
            file.write(content[len(content) // 2:])


def child(path: Path, fatal: int | None) -> int | None:
    """Work in a forked process; return how many instants it passed, or None where it was killed."""
    reading, writing = os.pipe()
    process = os.fork()
    if process == 0:
        instants = Instants(fatal)
        os.fsync = lambda descriptor: None    # the system outlives the process, so nothing depends on the disk here
        os.replace, Path.unlink = instants.around(os.replace), instants.around(Path.unlink)
        Path.write_bytes = lambda path, content: instants.inside(path, content)
        status = 1
        try:
            work(path)
            os.write(writing, str(instants.passed).encode())
            status = 0
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(status)
    os.close(writing)
    with open(reading) as pipe:
        passed = pipe.read()
    status = os.waitstatus_to_exitcode(os.waitpid(process, 0)[1])
    assert status == (0 if passed else -signal.SIGKILL), f"the toy failed with status {status}"
    return int(passed) if passed else None


def outcome(path: Path) -> dict:
    """Return everything a finished run holds but times: file names, content hashes, the metrics table."""
    files = sorted(str(file.relative_to(path)) for file in path.rglob("*") if file.is_file())
    records = {name: content_hash(read_record(path / name)) for name in files if name.endswith(".h5")}
    rows = [{k: v for k, v in row.items() if k != "seconds"} for row in csv.DictReader((path / "metrics.csv").open())]
    return {"files": files, "records": records, "metrics": rows, "finished": RunStore.open(path).finished}


def until_finished(path: Path, fatal_instants) -> dict:
    shutil.rmtree(path, ignore_errors=True)
    for fatal in fatal_instants:
        if child(path, fatal) is not None:
            return outcome(path)
    raise RuntimeError("never finished")


def main(folder: Path) -> None:
    work(folder / "warm")    # loads what is loaded late, so that no child has to
    undisturbed = until_finished(folder / "reference", [None])
    num_instants = child(folder / "again", None)
    once = [until_finished(folder / "once", [fatal, None]) for fatal in range(num_instants)]
    chance = random.Random(0)
    often = [until_finished(folder / "often", [chance.randrange(25) for _ in range(100)] + [None]) for _ in range(4)]
    print(json.dumps({"undisturbed": undisturbed, "once": once, "often": often}))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
