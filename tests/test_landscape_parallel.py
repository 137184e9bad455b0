"""Two processes take the step of one; a batch in pieces takes the step of the whole."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn
from training_ranks import OPTIMIZERS, WEIGHTINGS, continued, measure, network, trained, vector

from landscape.batchnorm import evaluation_mode, normalizers
from landscape.distributed import Processes
from landscape.errors import InputError
from landscape.optimizers import SSESAM
from landscape.parallel import batchnorm_note, one_gpu_each, sum_everywhere, synchronized

ROOT = Path(__file__).resolve().parents[1]
ALONE = Processes()


@pytest.fixture(scope="module")
def ranks(tmp_path_factory):
    """Run two processes under torchrun and return what each of them found."""
    folder = tmp_path_factory.mktemp("ranks")
    environment = os.environ | {"PYTHONPATH": f"{ROOT}{os.pathsep}{ROOT / 'tests'}", "OMP_NUM_THREADS": "1"}
    done = subprocess.run([sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2",
                           str(ROOT / "tests" / "training_ranks.py"), str(folder)],
                          env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]
    return [dict(np.load(folder / f"rank{rank}.npz")) for rank in range(2)]


@pytest.fixture(scope="module")
def alone():
    return measure(ALONE)


@pytest.mark.slow
def test_two_processes_took_part_and_hold_the_same_bits(ranks):
    assert [int(found["count"]) for found in ranks] == [2, 2]
    assert [name for name in ranks[0] if name != "calls" and not np.array_equal(ranks[0][name], ranks[1][name])] == [
        "refusal: recorder"]


@pytest.mark.slow
def test_any_number_of_processes_takes_the_steps_of_one_and_records_its_losses(ranks, alone):
    for name, expected in alone.items():
        tolerance = 1e-6 if "float32" in name else 1e-3 if "amp16" in name else 1e-12
        assert np.abs(ranks[0][name] - expected).max() < tolerance, name


@pytest.mark.slow
def test_the_first_process_alone_records_and_all_know_its_metrics(ranks):
    assert [list(found["calls"]) for found in ranks] == [["epoch 1", "checkpoint 2", "epoch 2"], []]
    assert "test_accuracy/tail" in ranks[1]["metrics"]


@pytest.mark.slow
def test_a_run_stopped_in_an_epoch_goes_on_in_the_same_bits(ranks):
    whole = ranks[0]["ssesam, amp16"][:-2]
    assert np.array_equal(ranks[0]["continued"], whole)
    assert np.array_equal(continued(ALONE), vector(trained(ALONE, opt="ssesam", precision="amp16").model))


@pytest.mark.slow
@pytest.mark.parametrize("name, words", [
    ("initial weights", ("InputError: the parameters of rank 1 differ from those of rank 0: seed alike",) * 2),
    ("after a step", ("InputError: the parameters of rank 1 differ from those of rank 0: seed alike",) * 2),
    ("recorder", ("ZeroDivisionError: division by zero", "InputError: rank 0 of 2: division by zero"))])
def test_processes_that_part_and_a_first_one_that_fails_stop_them_all(ranks, name, words):
    for found, expected in zip(ranks, words):
        assert str(found[f"refusal: {name}"]).startswith(expected)


@pytest.mark.slow
def test_batchnorm_of_shares_is_said_and_its_running_statistics_are_the_same_everywhere(ranks):
    assert "SyncBatchNorm" in str(ranks[0]["batchnorm_notes"]) and not len(ranks[0]["notes"])
    assert np.array_equal(ranks[0]["batchnorm"], ranks[1]["batchnorm"]) and np.isfinite(ranks[0]["batchnorm"]).all()


@pytest.mark.parametrize("weighting", WEIGHTINGS)
@pytest.mark.parametrize("opt", OPTIMIZERS)
def test_a_batch_in_pieces_takes_the_step_of_the_whole(alone, opt, weighting):
    whole, pieces = alone[f"{opt}, {weighting}, float64"], alone[f"{opt}, {weighting}, pieces"]
    assert np.abs(whole - pieces).max() < 1e-12
    assert not np.array_equal(whole, pieces)        # three forwards round otherwise than one


@pytest.mark.parametrize("count", [1, 2, 3, 8])
@pytest.mark.parametrize("size", [1, 2, 3, 7, 8, 64])
def test_shares_are_the_batch_once_or_all_of_it_everywhere(size, count):
    shares = [list(range(size))[Processes(rank, count).share(size)] for rank in range(count)]
    assert all(shares)
    if size >= count:
        assert sum(shares, []) == list(range(size)) and max(map(len, shares)) - min(map(len, shares)) <= 1
    else:
        assert all(share == list(range(size)) for share in shares)


class Echo(Processes):
    """Two processes that pass the same: sums are doubled. Counts the exchanges."""

    exchanges = 0

    def sum_together(self, values):
        Echo.exchanges += 1
        return [2 * value for value in values]


def test_a_pass_is_one_exchange_of_all_its_groups():
    parameters = [nn.Parameter(torch.ones(2)), nn.Parameter(torch.ones(3))]
    gradients = [{parameters[0]: torch.ones(2)}, {p: torch.ones_like(p) for p in parameters}]
    before = Echo.exchanges
    loss, sums = sum_everywhere(Echo(0, 2), torch.tensor(1.5), gradients, parameters)
    assert Echo.exchanges == before + 1 and loss == 3
    assert [list(gradient) for gradient in sums] == [[parameters[0]], parameters]
    assert all((s == 2).all() for gradient in sums for s in gradient.values())


def test_what_processes_cannot_do_is_one_line(monkeypatch):
    with pytest.raises(InputError, match="device='cuda:0' puts all 2 processes on one GPU: leave it out"):
        one_gpu_each(torch.device("cuda:0"), Processes(0, 2))
    one_gpu_each(torch.device("cuda"), Processes(0, 2)), one_gpu_each(torch.device("cuda:0"), ALONE)
    model = network()
    monkeypatch.setattr("landscape.optimizers.group_sam.refuse_different_parameters", lambda *_: None)
    optimizer = SSESAM(torch.optim.SGD(model.parameters(), lr=0.1), model, processes=Processes(0, 2))
    with pytest.raises(InputError, match="the four calls know one process only"):
        optimizer.compute_and_add_epsilon(0)


def test_a_note_is_due_where_shares_are_normalized_apart():
    cpu, gpu, two = torch.device("cpu"), torch.device("cuda"), Processes(0, 2)
    assert batchnorm_note(network(batchnorm=True), two, cpu)
    assert batchnorm_note(network(batchnorm=True), ALONE, cpu) is None
    assert batchnorm_note(network(batchnorm=True), two, gpu) is None and batchnorm_note(network(), two, cpu) is None


def test_on_gpus_batchnorm_becomes_the_layer_of_all_processes_with_its_own_parameters_and_statistics():
    plain, images = network(batchnorm=True), torch.randn(5, 3, 8, 8)
    plain(images)       # the running statistics are not those of a new layer
    held = dict(plain.state_dict(keep_vars=True))
    with evaluation_mode(plain), torch.no_grad():
        expected = plain(images)
    model = synchronized(plain, Processes(0, 2), torch.device("cuda"))
    assert [type(layer) for layer in normalizers(model)] == [nn.SyncBatchNorm]
    assert all(tensor is held.pop(name) for name, tensor in model.state_dict(keep_vars=True).items()) and not held
    with evaluation_mode(model), torch.no_grad():
        assert torch.equal(model(images), expected)


@pytest.mark.parametrize("processes, device", [(ALONE, "cuda"), (Processes(0, 2), "cpu")])
def test_one_process_and_those_on_cpus_keep_their_batchnorm(processes, device):
    model = synchronized(network(batchnorm=True), processes, torch.device(device))
    assert [type(layer) for layer in normalizers(model)] == [nn.BatchNorm2d]
