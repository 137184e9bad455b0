"""Compute a spectrum in forked children that are killed after a random number of products, until one of them finishes.

Run by tests/test_analysis_pipeline.py. The run is trained by a child too: a process that has used autograd must not fork.
Prints one JSON document: what an undisturbed process and the killed ones left, and how many products each life made.
"""

import json
import os
import random
import shutil
import signal
import sys
from pathlib import Path

import analysis.pipeline  # noqa: F401 (loaded here, so that no child has to)
import scripts.compute_spectrum  # noqa: F401
import scripts.train  # noqa: F401
from analysis.operators import replay
from analysis.operators.hessian import HessianOperator
from checkpoints.schema import content_hash
from checkpoints.store import RunStore
from scripts.cli import main as landscape

TRAIN = ["train", "--dataset", "synthetic", "--epochs", "2", "--checkpoint_epochs", "1,2", "--lr", "0.05", "--quiet"]
SPECTRUM = ["--epoch", "all", "--group", "tail", "--num_matvecs", "10", "--num_probes", "2", "--num_pairs", "2", "--tol", "1e-5",
            "--max_matvecs", "40", "--trace_probes", "40", "--engine", "jvp", "--quiet"]      # jvp: nothing to trace
LONGEST_LIFE = 50       # products; the pairs' verification in float64 has to fit into one life


def child(words: list[str], fatal: int | None = None) -> bool:
    """Run a command in a forked process that kills itself at its product number `fatal`; tell whether it came to its end."""
    process = os.fork()
    if process == 0:
        made, matmat = [], HessianOperator.matmat

        def counted(self, V):
            made.append(len(V))
            if fatal is not None and sum(made) >= fatal:
                os.kill(os.getpid(), signal.SIGKILL)
            return matmat(self, V)
        HessianOperator.matmat = counted
        os._exit(landscape(words))
    status = os.waitstatus_to_exitcode(os.waitpid(process, 0)[1])
    assert status in (0, -signal.SIGKILL), f"{words[0]} ended with status {status}"
    return status == 0


def outcome(run: Path) -> dict:
    """Return what a run holds of its spectra: content hashes, numbers of products, what is left of partial results."""
    records = list(RunStore.open(run).records("curvature"))
    return {"hashes": [content_hash(record) for record in records],
            "products": [record.provenance["num_matvecs"] for record in records],
            "choices": [record.provenance["choice"] for record in records],
            "left": [str(path) for path in run.glob("partial/**/*")]}


def main(folder: Path, seed: int) -> None:
    replay.EVERY_SECONDS = 0.0      # a life of few products must leave something behind
    chance = random.Random(seed)
    assert child([*TRAIN, "--out", str(folder / "whole")])
    shutil.copytree(folder / "whole", folder / "killed")
    assert child(["spectrum", str(folder / "whole"), *SPECTRUM])
    lives = [chance.randint(1, LONGEST_LIFE)]
    while not child(["spectrum", str(folder / "killed"), *SPECTRUM], lives[-1]):
        lives.append(chance.randint(1, LONGEST_LIFE))
    print(json.dumps({"whole": outcome(folder / "whole"), "killed": outcome(folder / "killed"), "lives": lives}))


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]))
