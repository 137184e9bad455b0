"""The benchmarks run, compare what they time, and count as they claim; no time is asserted."""

import json
import math

import numpy as np
import pytest
import torch
from torch import nn

from analysis.operators import HessianOperator, tracing
from scripts import bench_comparison, bench_contestants, bench_products, bench_spectrum, bench_timing, cli
from scripts.bench_case import largest_end
from scripts.bench_floor import convolutions_alone
from scripts.bench_pyhessian import LEAST, PyHessian, equal_residuals, larger_eigenvalues, power_steps

TINY = ["--arch", "digitnet", "--images", "6", "--repeats", "2", "--memory_minutes", "0"]


def products(capsys, tmp_path, *words):
    assert bench_products.main([*TINY, *words, "--json", str(tmp_path / "products.json")]) == 0
    return json.loads((tmp_path / "products.json").read_text()), capsys.readouterr().out


def test_products_are_timed_side_by_side_and_compared(capsys, tmp_path):
    document, printed = products(capsys, tmp_path, "--engines", "reverse", "differences", "--peers", "pyhessian",
                                 "--images", "40", "--arch", "mlp")      # more than one piece of the reference
    rows = {row["name"]: row for row in document["rows"]}
    for name in ("reverse", "PyHessian, graph kept", "PyHessian, data loader"):
        assert rows[name]["error"] < 1e-4 and len(rows[name]["seconds"]) == len(rows[name]["gradient_seconds"]) == 2
    assert rows["reverse"]["exact"] and not rows["differences"]["exact"]
    assert "inexact" in printed or "WRONG" in printed
    assert printed.splitlines()[-1].startswith("best peer PyHessian") and "ours reverse" in printed.splitlines()[-1]
    assert {comparison["ours"] for comparison in document["comparisons"]} == {"reverse"}
    assert document["machine"]["versions"]["pyhessian"] and document["machine"]["cpu"] and document["floor"] is None


def test_the_floor_makes_as_many_convolutions_as_a_product(capsys, tmp_path, monkeypatch):
    document, printed = products(capsys, tmp_path, "--engines", "reverse", "--peers")
    counted, cut = [], tracing.cut

    def counting(traced, num_samples):
        stages = cut(traced, num_samples)
        for node in stages.tangent.graph.nodes:
            counted.append(sum(node.args[-1][:2]) if node.target is torch.ops.aten.convolution_backward.default else
                           node.target is torch.ops.aten.convolution.default)
        return stages
    monkeypatch.setattr(tracing, "cut", counting)
    problem = bench_contestants.Problem(bench_contestants.Options("digitnet", 6, None, "cpu", 0))
    HessianOperator(problem.own_model(), nn.CrossEntropyLoss(), [(problem.x, problem.y)], engine="linearized")
    assert document["floor"]["passes"] == convolutions_alone(problem.model, problem.x)[1] == sum(counted) > 0
    assert len(document["floor"]["seconds"]) == 2 and f"the {sum(counted)} convolutions of a product alone" in printed


@pytest.mark.peer
@pytest.mark.parametrize("peer", ["curvlinops", "eigenthings"])
def test_other_libraries_give_the_same_products(peer, capsys, tmp_path):
    with bench_contestants.quiet():
        pytest.importorskip(bench_contestants.PEERS[peer])
    document, _ = products(capsys, tmp_path, "--engines", "--peers", peer, "--block", "2")
    errors = {row["name"]: row["error"] for row in document["rows"] if "differences" not in row["name"]}
    assert errors and max(errors.values()) < 1e-4


def test_a_library_that_is_not_installed_is_left_out(capsys, tmp_path, monkeypatch):
    monkeypatch.setitem(bench_contestants.PEERS, "curvlinops", "no_such_module")
    document, _ = products(capsys, tmp_path, "--engines", "reverse", "--peers", "curvlinops")
    assert {row["side"] for row in document["rows"]} == {"ours"}


def test_an_engine_that_refuses_is_a_row_with_its_reason(capsys, tmp_path, monkeypatch):
    def refuse(problem, entry):
        raise bench_contestants.InputError("it cannot")
    monkeypatch.setattr(bench_contestants, "ours", refuse)
    document, printed = products(capsys, tmp_path, "--engines", "jvp", "--peers", "pyhessian")
    assert [row["refused"] for row in document["rows"] if row["side"] == "ours"] == ["it cannot"] * 2
    assert "no comparison" in printed.splitlines()[-1]


def test_memory_is_measured_of_one_contestant_by_its_name():
    options = bench_contestants.Options("digitnet", 6, None, "cpu", block=2)
    for name, side in (("reverse, nothing kept", "ours"), ("PyHessian, graph kept", "pyhessian")):
        assert bench_products.memory_of(options, name, side, None)["setup_peak"] >= 0


def test_every_contestant_runs_once_a_round_between_two_references():
    calls = []
    contestants = {name: lambda turn, name=name: calls.append(name) for name in "abc"}
    rounds = bench_timing.interleave(lambda: calls.append("-"), contestants, rounds=2, minutes=1, device=torch.device("cpu"))
    assert "".join(calls) == "-a-b-c-" + "-b-c-a-"
    assert {name: len(times) for name, times in rounds.seconds.items()} == {"a": 2, "b": 2, "c": 2}
    stopped = bench_timing.interleave(lambda: None, contestants, rounds=9, minutes=0, device=torch.device("cpu"))
    assert len(stopped.seconds["a"]) == bench_timing.LEAST_ROUNDS


def test_ratios_are_taken_with_the_reference_beside():
    rounds = bench_timing.Rounds({"a": [2.0, 8.0], "b": [1.0, 1.0]}, {"a": [1.0, 2.0], "b": [1.0, 0.5]})
    assert rounds.ratios("a").tolist() == [2.0, 4.0] and rounds.ratios("a", per=2).tolist() == [1.0, 2.0]
    assert rounds.compare("a", "b").tolist() == [2.0, 2.0]


def iterate(diagonal, start, residual):
    """Count the products of power iteration on a diagonal matrix, as it is done."""
    v, products = start / np.linalg.norm(start), 0
    while True:
        Hv, products = diagonal * v, products + 1
        rho = v @ Hv
        if np.linalg.norm(Hv - rho * v) <= residual:
            return products
        v = Hv / np.linalg.norm(Hv)


@pytest.mark.parametrize("diagonal", [[5.0, 4.0, 1.0, -2.0], [5.0, -4.9, 1.0], [-3.0, 2.0, 0.0]])
def test_power_iteration_takes_the_products_that_its_spectral_measure_tells(diagonal):
    start = np.random.default_rng(0).standard_normal(len(diagonal))
    told = power_steps(np.array(diagonal), start**2 / (start @ start), 1e-4)
    assert abs(told - iterate(np.array(diagonal), start, 1e-4)) <= 1


def test_equal_residuals_take_the_nearer_way_to_each_eigenvalue():
    lower, upper, bulk = np.array([-3.0, -2.0]), np.array([4.0, 10.0]), np.linspace(-1, 1, 20)
    spent = equal_residuals(np.r_[lower, bulk, upper], np.full(24, 1 / 24), lower, upper, 24, 1e-3)
    assert [row["value"] for row in spent] == [10.0, 4.0, -3.0, -2.0]
    for row, left in zip(spent, ([10, 4, -3, -2], [4, -3, -2], [-3, -2], [-2])):
        plain = power_steps(np.array([*left, *bulk]), np.full(len(left) + 20, 1 / 24), 1e-3 * abs(row["value"]))
        assert 2 <= row["products"] <= plain


def test_peers_are_compared_in_seconds_of_the_same_round():
    assert bench_comparison.times_as_long({"ours": [1.0, 2.0, 4.0], "pyhessian": [3.0, 4.0, 10.0]}) == 2.5


def test_power_iteration_meets_all_that_are_larger_in_magnitude_first():
    values = np.array([-3.0, -2.0, 0.5, 1.0, 2.5, 4.0])
    assert larger_eigenvalues(values, np.full(6, 1 / 6), -2.0, 6) == pytest.approx(3)
    assert larger_eigenvalues(values, np.full(6, 1 / 6), 4.0, 6) == 0


def test_pyhessian_counts_the_same_on_our_products_and_its_own():
    torch.manual_seed(0)
    model, x, y = nn.Linear(6, 3), torch.randn(40, 6), torch.randint(3, (40,))
    counts, removed = [], getattr(torch, "eig", None)
    for own in (True, False):
        peer = PyHessian(model.requires_grad_(), nn.CrossEntropyLoss(reduction="none"), (x, y))
        H = torch.stack([peer.own(v) for v in torch.eye(21)])
        stages = peer.run(peer.own if own else lambda v: H @ v, top_n=2, steps=5, minutes=1, seed=0)
        exact = torch.linalg.eigvalsh(H.double())[-1]
        assert math.isclose(stages["eigenvalues"]["result"][0], exact, rel_tol=2e-2)
        assert len(stages["trace"]["result"]) == stages["trace"]["products"] and all(s["complete"] for s in stages.values())
        counts.append({name: stage["products"] for name, stage in stages.items()})
        peer.close()
    assert counts[0] == counts[1] and counts[0]["density"] == 5
    assert getattr(torch, "eig", None) is removed


@pytest.fixture(scope="module")
def stored_run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("bench") / "run"
    assert cli.main(["train", "--dataset", "synthetic", "--arch", "mlp", "--epochs", "1", "--out", str(folder), "--quiet"]) == 0
    return folder


SHORT = ["--max_samples", "12", "--num_matvecs", "10", "--num_pairs", "1", "--trace_error", "0.5", "--rounds", "1",
         "--reference_probes", "4", "--engine", "reverse", "--minutes", "0.2"]


def test_a_spectrum_is_timed_in_parts_that_one_file_collects(stored_run, tmp_path, capsys):
    file = tmp_path / "spectrum.json"
    words = [str(stored_run), "--group", "tail", *SHORT, "--json", str(file)]
    assert bench_spectrum.main([*words, "--parts", "ours"]) == 0
    assert "no comparison yet" in capsys.readouterr().out
    assert bench_spectrum.main([*words, "--parts", "alike", "pyhessian", "reference"]) == 0
    assert capsys.readouterr().out.splitlines()[-1].startswith("best peer PyHessian, ours reverse")
    entry = json.loads(file.read_text())["groups"]["tail"]
    found = entry["summary"]
    assert found["ours"]["upper_error"] < 1e-3 and found["ours"]["lower_error"] < 1e-3
    assert found["pyhessian"]["products"] == sum(stage["products"] for stage in entry["pyhessian"]["stages"].values())
    assert found["equal"]["products"] > 10 and entry["pyhessian"]["product_gap"] < 1e-4
    assert found["pyhessian"]["times_alike"] == found["pyhessian"]["seconds"] / entry["alike"]["seconds"]
    both = found["both ends"]
    assert both["products"] == found["pyhessian"]["products"] + LEAST * (both["eigenvalues"] - 1) > found["pyhessian"]["products"]
    assert bench_spectrum.main([*words, "--parts"]) == 0 and json.loads(file.read_text())["groups"]["tail"] == entry
    assert entry["alike"]["end"] == "upper" and entry["alike"]["values"] == pytest.approx(entry["ours"]["values"][-1:], rel=1e-3)
    stages = entry["ours"]["stages"].values()
    assert sum(stage["seconds"] for stage in stages) <= entry["ours"]["seconds"]


@pytest.mark.parametrize("nodes, end", [([[-5.0, -4.0, 1.0]], "lower"), ([[0.1, 6.0, 4.0], [-7.0, 4.0, 1.0]], "upper"),
                                        ([[-5.0, 4.0, 1.0]], "both")])
def test_the_end_that_power_iteration_finds_is_that_of_the_largest_magnitudes(nodes, end):
    assert largest_end(np.array(nodes), 2) == end


def one_line(capsys, words, status):
    told = capsys.readouterr().err.strip().splitlines()
    assert status == 2 and len(told) == 1 and all(word in told[0] for word in words), told


@pytest.mark.parametrize("words, told", [(["--images", "1"], ["images=1", ">= 2"]),
                                         (["--engines", "fast"], ["'fast'", "linearized"]),
                                         (["--engines", "--peers"], ["at least one"]), (["--peers", "x"], ["curvlinops"]),
                                         (["--threads", "0"], ["threads=0"]), (["--arch", "net"], ["'net'", "resnet32"])])
def test_mistakes_in_timing_products_are_one_line(words, told, capsys, monkeypatch):
    monkeypatch.setattr(bench_products, "find_spec", lambda name: None)     # as where no peer is installed
    one_line(capsys, told, bench_products.main(words))


@pytest.mark.parametrize("words, told", [(["--max_samples", "1", "2", "3"], ["max_samples", "2 groups"]),
                                         (["--epoch", "77"], ["no checkpoint of epoch 77"]), (["--tol", "0"], ["tol=0"]),
                                         (["--group", "middle"], ["middle"])])
def test_mistakes_in_timing_spectra_are_one_line(words, told, stored_run, capsys):
    one_line(capsys, told, bench_spectrum.main([str(stored_run), *words]))


def test_a_file_of_another_benchmark_is_not_touched(stored_run, tmp_path, capsys):
    file = tmp_path / "other.json"
    file.write_text('{"benchmark": "products"}')
    one_line(capsys, ["other.json", "another"], bench_spectrum.main([str(stored_run), "--json", str(file)]))
    assert file.read_text() == '{"benchmark": "products"}'
