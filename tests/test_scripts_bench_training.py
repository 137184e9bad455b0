"""The training benchmark times what it says: the released step is the rule, and every row is there; no time is asserted."""

import json

import pytest
import torch

from scripts import bench_training as bench

TINY = ["--arch", "mlp", "--batch_size", "8", "--steps", "1", "--rounds", "2"]


def problem():
    return bench._problem(bench.parser().parse_args(TINY), torch.device("cpu"))


def parameters_after(make, monkeypatch):
    """Return the parameters of a contestant's network after three steps in float64."""
    kept = []
    torch.manual_seed(0)
    made = problem()
    batches = [(x.double(), y, masks) for x, y, masks in made.batches[:3]]
    made.model.double()
    network = bench.Problem.network
    monkeypatch.setattr(bench.Problem, "network", lambda self: kept.append(network(self)) or kept[-1])
    step = make(made)
    for batch in batches:
        step(batch)
    return torch.cat([p.detach().flatten() for p in kept[0][0].parameters()])


def test_the_released_step_takes_stage_I_of_the_rule(monkeypatch):
    ours = parameters_after(bench.CONTESTANTS[bench.STAGES[0]], monkeypatch)
    released = parameters_after(bench.released, monkeypatch)
    other = parameters_after(bench.CONTESTANTS[bench.STAGES[1]], monkeypatch)
    assert torch.allclose(released, ours, rtol=0, atol=1e-13) and not torch.allclose(other, ours, rtol=0, atol=1e-6)


def test_sgd_of_ours_is_the_unit(monkeypatch):
    assert torch.allclose(parameters_after(bench.CONTESTANTS["sgd"], monkeypatch), parameters_after(bench.plain_sgd, monkeypatch),
                          rtol=0, atol=1e-13)


def test_every_optimizer_has_a_row_and_the_stages_an_average(tmp_path, capsys):
    assert bench.main([*TINY, "--gamma", "0.25", "--json", str(tmp_path / "training.json")]) == 0
    document = json.loads((tmp_path / "training.json").read_text())
    ratio = {row["name"]: [own / sgd for own, sgd in zip(row["seconds"], row["sgd_seconds"])] for row in document["rows"]}
    assert list(ratio) == list(bench.CONTESTANTS) and all(len(r) == 2 for r in ratio.values())
    staged = [0.25 * one + 0.75 * two for one, two in zip(*(ratio[name] for name in bench.STAGES))]
    assert document["staged_ratio"]["min"] == pytest.approx(min(staged))
    assert "gamma = 0.25" in capsys.readouterr().out


@pytest.mark.parametrize("words, told", [(["--batch_size", "1"], "batch_size=1"), (["--gamma", "2"], "gamma=2.0"),
                                         (["--arch", "net"], "'net'"), (["--threads", "0"], "threads=0"),
                                         (["--data_dir", "nowhere"], "nowhere")])
def test_mistakes_are_one_line(words, told, capsys):
    assert bench.main([*TINY, *words]) == 2
    lines = capsys.readouterr().err.strip().splitlines()
    assert len(lines) == 1 and told in lines[0]
