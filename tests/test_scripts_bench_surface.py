"""The surface benchmark times what it says: every contestant gives the numbers of the same point; no time is asserted."""

import json

import pytest
import torch

from scripts import bench_surface as bench

TINY = ["--arch", "digitnet", "--images", "100", "--batch_size", "40", "--rounds", "1", "--threads", "1"]


@pytest.fixture(scope="module")
def problem():
    return bench._problem(bench.parser().parse_args(TINY), torch.device("cpu"))


@pytest.mark.parametrize("way", [bench._by_hand, bench._peer], ids=["by hand", "loss-landscapes"])
def test_the_peer_gives_our_numbers_at_the_point(problem, way):
    if way is bench._peer:
        pytest.importorskip("loss_landscapes", reason="the extra bench is not installed")
    with torch.no_grad():
        ours, facts = bench._ours(problem, "auto")
        found, theirs = ours(), way(problem)()
    assert facts["form"] == "folded"
    for measure in bench.MEASURES:
        assert found[measure] == pytest.approx(theirs[measure], rel=1e-4)
    assert found["loss"][1] != found["loss"][2]     # head and tail


def test_every_form_and_the_peer_have_a_row(tmp_path, capsys):
    assert bench.main([*TINY, "--json", str(tmp_path / "surface.json")]) == 0
    document = json.loads((tmp_path / "surface.json").read_text())
    rows = {row["name"]: row for row in document["rows"]}
    assert {"ours", "ours, folded", "ours, channels_last", "ours, plain", "ours, bfloat16", document["peer"]} <= set(rows)
    assert rows["ours"]["error_against_float64"]["loss"] < 1e-3 and len(rows["ours"]["seconds"]) == 1
    assert set(document["groups_of_ours"]) > set(document["groups_of_the_peer"]) and document["peer_over_ours"]["median"] > 0
    assert "at most 0.75 asked" in capsys.readouterr().out


@pytest.mark.parametrize("words, told", [(["--images", "9"], "images=9"), (["--arch", "net"], "'net'"),
                                         (["--rounds", "0"], "rounds=0")])
def test_mistakes_are_one_line(words, told, capsys):
    assert bench.main([*TINY, *words]) == 2
    lines = capsys.readouterr().err.strip().splitlines()
    assert len(lines) == 1 and told in lines[0]
