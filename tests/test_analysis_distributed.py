import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from networks import InPlaceResidual, losses, make
from shared_work import SPLITS, batches, block, measure

from analysis.operators import HessianOperator, products
from analysis.operators.batches import read
from landscape.distributed import Processes, fingerprint, init_from_environment, is_main, main_first

ROOT = Path(__file__).resolve().parents[1]
EPS = {"float32": 1.2e-7, "float64": 2.2e-16}


@pytest.fixture(scope="module")
def ranks(tmp_path_factory):
    """Run two processes under torchrun and return what each of them found."""
    folder = tmp_path_factory.mktemp("ranks")
    environment = os.environ | {"PYTHONPATH": f"{ROOT}{os.pathsep}{ROOT / 'tests'}", "OMP_NUM_THREADS": "1"}
    done = subprocess.run([sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2",
                           str(ROOT / "tests" / "shared_work.py"), str(folder)],
                          env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]
    found = [dict(np.load(folder / f"rank{rank}.npz")) for rank in range(2)]
    return found + [(folder / "order.txt").read_text()]


@pytest.fixture(scope="module")
def alone():
    return measure()


def test_two_processes_took_part(ranks):
    assert [int(found["count"]) for found in ranks[:2]] == [2, 2]


def test_every_process_holds_the_same_bits(ranks):
    first, second, _ = ranks
    assert set(first) == set(second)
    assert [name for name in first if not np.array_equal(first[name], second[name])] == []


def test_products_gradient_and_loss_are_those_of_one_process_to_rounding(ranks, alone):
    for name, expected in alone.items():
        if any(word in name for word in ("eigenvalues", "residuals", "verified")):
            continue
        eps = EPS["float64" if "twin" in name else name[:7]]
        assert np.linalg.norm(ranks[0][name] - expected) < 30 * eps * np.linalg.norm(expected), name


@pytest.mark.parametrize("dtype", EPS)
def test_converged_eigenvalues_are_those_of_one_process_to_their_residuals(ranks, alone, dtype):
    shared = ranks[0]
    gaps = np.abs(shared[f"{dtype}: eigenvalues"] - alone[f"{dtype}: eigenvalues"])
    scale = np.abs(alone[f"{dtype}: eigenvalues"]).max()
    assert (gaps <= shared[f"{dtype}: residuals"] + alone[f"{dtype}: residuals"] + 30 * EPS[dtype] * scale).all()
    assert shared[f"{dtype}: verified"].all()


def test_all_processes_use_one_engine_and_an_unshared_operator_is_whole(ranks, alone):
    assert str(ranks[0]["engine"]) == str(ranks[1]["engine"]) in products.EXACT
    assert np.allclose(ranks[1]["alone"], alone["float64, one batch: product"][0], rtol=1e-13, atol=1e-14)


def test_where_memory_differs_the_first_process_decides_for_all(ranks):
    assert np.array_equal(ranks[0]["unequal_memory"], ranks[1]["unequal_memory"]) and len(ranks[0]["unequal_memory"]) == 4


@pytest.mark.parametrize("name, word", [
    ("not finite", "InputError: rank 1 of 2: the loss is not finite"), ("other weights", "of rank 1 differ from those of rank 0"),
    ("other data", "of rank 1 differ"), ("other vectors", "seed the generators alike"),
    ("moved", "InputError: rank 1 of 2: parameter 'head.bias' has changed"),
    ("an error that is no mistake", "RuntimeError: rank 1 of 2: list index out of range")])
def test_what_one_process_meets_is_raised_on_all(ranks, name, word):
    for found in ranks[:2]:
        assert word in str(found[f"refusal: {name}"])


def test_the_first_process_goes_first_and_alone_writes(ranks):
    assert ranks[2] == "01 10 "


@pytest.mark.parametrize("count", [1, 2, 3, 9])
@pytest.mark.parametrize("sizes", [*SPLITS.values(), (1,)], ids=str)
def test_the_shares_are_all_the_samples_once(count, sizes):
    data = batches(sizes)
    shares = [read(data, torch.device("cpu"), torch.float64, Processes(rank, count)) for rank in range(count)]
    targets = torch.cat([batch.tensors[1] for share in shares for batch in share.own])
    assert torch.equal(targets, torch.cat([y for _, y in data]))
    sizes = [sum(map(len, share.own)) for share in shares]
    assert max(sizes) - min(sizes) <= 1 and sizes[0] > 0
    assert {share.num_samples for share in shares} == {len(targets)} and len({share.digest for share in shares}) == 1


def test_fingerprints_tell_vectors_apart():
    V = block()
    assert fingerprint(V) == fingerprint(V.clone())
    assert len({fingerprint(V), fingerprint(V[:2]), fingerprint(V + 1), fingerprint(-V), fingerprint(V.float())}) == 5


def test_a_process_without_torchrun_is_alone(monkeypatch):
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    with init_from_environment() as here, main_first() as main:
        assert here == Processes(0, 1) and main and is_main()


def test_a_lone_process_raises_what_it_meets():
    with pytest.raises(ZeroDivisionError):
        Processes().together(lambda: 1 / 0)


def test_nobody_is_asked_where_there_is_one_process(monkeypatch):
    for name in ("all_reduce", "broadcast_object_list", "all_gather_object", "barrier"):
        monkeypatch.setattr(torch.distributed, name, lambda *_, **__: pytest.fail("a lone process spoke"))
    operator = HessianOperator(make(InPlaceResidual), losses, batches((7,)), engine="jvp")
    operator.matmat(block()), operator.gradient(), operator.loss(), operator.double()
