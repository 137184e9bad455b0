"""The page as text: what it holds, what it escapes, what it loads (nothing). test_report_browser.py looks at it in a browser."""

import json
import re
import subprocess
import sys
from dataclasses import replace
from html.parser import HTMLParser

import numpy as np
import pytest
from fabricated_runs import FakeRun, fake_run, fake_runs

from checkpoints.comparison import compare
from checkpoints.errors import RecordError
from checkpoints.records import Checkpoint, Curvature, Surface
from checkpoints.schema import content_hash
from checkpoints.store import RunStore
from figures import Options, interactive, report, surface
from figures.cautions import cautions
from figures.markup import EMPTY

EVIL = "<script>alert(1)</script>"


class Seen(HTMLParser):
    """What a page holds: elements with their attributes, text outside programs; unbalanced elements are an error."""

    def __init__(self, text):
        super().__init__()
        self.elements, self.texts, self._open = [], [], []
        self.feed(text)
        self.close()
        assert not self._open

    def handle_starttag(self, name, attributes):
        self.elements.append((name, dict(attributes)))
        if name not in EMPTY:
            self._open.append(name)

    def handle_endtag(self, name):
        assert self._open.pop() == name

    def handle_data(self, text):
        if not {"script", "style"} & set(self._open):
            self.texts.append(text)

    def of(self, name):
        return [attributes for found, attributes in self.elements if found == name]

    @property
    def text(self):
        return " ".join(" ".join(self.texts).split())


@pytest.fixture(scope="module")
def quick():
    """Few and coarse pictures: what they show is tested elsewhere."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(report, "PICTURES", ("accuracy_curves",))
        patch.setattr(report, "STILL", ())
        patch.setattr(report, "DPI", {"two": 40, "one": 40})
        yield


def short(opts=("sgd", "ssesam"), seeds=(0, 1), **options):
    return compare(fake_runs(opts, seeds, epochs=(60,), probes=2, steps=6, **options))


@pytest.fixture(scope="module")
def page(quick):
    return report.page_of(short(), title=EVIL, command=["landscape", "report", "a b", "--title", EVIL])


@pytest.fixture(scope="module")
def seen(page):
    return Seen(page.html)


def test_the_page_answers_its_question_and_names_its_parts(seen):
    assert "Did these runs leave such saddle points" in seen.text
    assert re.search(r"Tail: .+ in \d of 4 runs; λ min −.+ \(SGD\) to −.+ \(SSE-SAM\)\.", seen.text)
    names = [attributes["id"] for _, attributes in seen.elements if "id" in attributes]
    assert len(set(names)) == len(names)
    linked = {attributes["href"][1:] for attributes in seen.of("a")}
    assert linked == {"verdicts", "figures", "surface", "guide", "origin"} == {part["id"] for part in seen.of("section")}


def test_every_run_and_optimizer_has_its_verdict(seen):
    for name in ("sgd-0, head", "sgd-1, tail", "ssesam-0, tail", "tail, SSE-SAM"):
        assert name in seen.text
    assert "verified in float64" in seen.text and "strict saddle" in seen.text


def test_nothing_is_loaded_and_a_policy_says_so(seen):
    for name, attributes in seen.elements:
        for key in ("src", "href", "srcset", "action", "data", "poster"):
            assert attributes.get(key, "data:").startswith(("data:", "#")), (name, attributes)
        assert name not in ("link", "iframe", "object", "embed", "base")
    policy = next(meta["content"] for meta in seen.of("meta") if "http-equiv" in meta)
    assert policy.startswith("default-src 'none';") and "connect-src" not in policy and "http" not in policy


def test_every_picture_says_what_it_shows(seen):
    assert seen.of("img") and all(image["alt"] for image in seen.of("img"))
    assert len(seen.of("source")) == len(seen.of("img"))       # one of them drawn for a narrow screen


def test_names_are_text(page, seen):
    assert EVIL in seen.text and EVIL not in page.html
    assert f"--title '{EVIL}'" in seen.text      # in the last command, quoted as a shell needs it


def test_a_stranger_s_names_are_text_wherever_they_stand(quick):
    folder = "<img src=x onerror=alert(1)>"
    runs = fake_runs(("sgd",), (0,), epochs=(60,), probes=2, steps=6, dataset=EVIL, arch=EVIL)
    runs = [replace(run, path=run.path.parent / folder, config=run.config | {"opt": "<b>opt"}) for run in runs]
    for run in runs:
        run.kept = [replace(record, direction_names=(EVIL,) * len(record.direction_names), coordinate_units="</script>")
                    if isinstance(record, Surface) else record for record in run.kept]
    made = report.page_of(compare(runs))
    found = Seen(made.html)
    assert EVIL in found.text and folder in found.text and "<B>OPT" in found.text
    assert EVIL not in made.html and "<img src=x" not in made.html and "<B>OPT" not in made.html
    numbers = re.search(r'<script type="application/json"[^>]*>(.*?)</script>', made.html, re.S)[1]
    assert json.loads(numbers)["units"] == "</script>"


def test_plotly_is_embedded_once_and_a_still_page_needs_neither_it_nor_any_program(page, quick, monkeypatch):
    assert page.html.count("plotly.js v") == 1
    monkeypatch.setitem(sys.modules, "plotly", None)
    monkeypatch.setitem(sys.modules, "plotly.offline", None)
    still = Seen(report.page_of(short(seeds=(0,)), still=True).html)
    assert not still.of("script") and any("script-src 'none'" in meta.get("content", "") for meta in still.of("meta"))
    with pytest.raises(RecordError, match=r"pip install 'saddle-landscape\[report\]', or leave it out with --static"):
        report.page_of(short(seeds=(0,)))


def test_the_same_records_give_the_same_page(quick):
    first, second = (report.page_of(short(seeds=(0,)), still=True).html for _ in range(2))
    assert first == second


def test_groups_share_one_scale_and_the_numbers_are_the_records():
    runs = short(seeds=(0,))
    document = interactive.document_of(runs, "random-plane")
    assert list(document["groups"]) == ["tail", "head"] and [plane["name"] for plane in document["planes"]] == ["SGD", "SSE-SAM"]
    record = runs.surface("sgd", "random-plane")
    for row, group in enumerate(record.groups):
        assert (document["planes"][0]["loss"][group] == record.loss[row].T).all()      # [beta][alpha], as plotly draws z
    (mark,) = document["planes"][0]["marks"]
    assert (mark["name"], mark["own"], mark["alpha"], mark["beta"]) == (f"epoch {record.epoch}", True, 0.0, 0.0)
    middle = [int(np.abs(axis).argmin()) for axis in (record.alpha, record.beta)]
    assert mark["loss"]["tail"] == pytest.approx(record.loss[record.groups.index("tail")][tuple(middle)])
    everything = [plane["loss"][group] for plane in document["planes"] for group in ("head", "tail")]
    assert document["range"][0] == min(loss.min() for loss in everything)
    assert max(loss.min() for loss in everything) < document["range"][1] <= max(loss.max() for loss in everything)
    cut = next(one for one in document["slices"] if one["label"].startswith("cut of the plane along α"))
    assert (cut["lines"][0]["y"] == record.loss[record.groups.index("tail")][:, 7]).all()      # beta is 0 in the middle
    line = next(one for one in document["slices"] if one["label"] == "along tail lambda_min")
    assert line["lines"][0]["predicted"] is not None


def test_single_classes_are_offered_only_where_they_are_few():
    many = ("all", "head", "tail", *(f"class:{number}" for number in range(100)))
    assert interactive._offered(many) == ["tail", "head", "all"]
    assert interactive._offered(("head", "tail", "class:0")) == ["tail", "head", "class:0"]


def test_what_is_missing_is_said_with_what_makes_it(quick):
    run = fake_run("sgd", 0, epochs=(60,), probes=2, steps=6)
    run.kept = [record for record in run.kept if isinstance(record, Curvature)]
    made = report.page_of(compare([run]))
    assert "landscape surface" in made.refused["interactive surface"] and 'id="surface"' not in made.html
    assert "Not shown, for want of records" in made.html and not Seen(made.html).of("script")
    run.kept = []
    made = report.page_of(compare([run]))
    assert "landscape spectrum" in made.refused["verdicts"] and "verdicts" not in {s["id"] for s in Seen(made.html).of("section")}
    with pytest.raises(RecordError, match="nothing can be shown of these runs"):
        report.page_of(compare([FakeRun(run.path, run.config, run.table.iloc[:0], [])]))


def kinds(runs, groups=("head", "tail")):
    return {caution.kind: caution.where for caution in cautions(compare(runs), groups)}


def changed(run, change):
    run.kept = [change(record) for record in run.kept]
    return run


def one_pair(**fields):
    def change(record):
        return replace(record, eigenpairs=replace(record.eigenpairs, **fields)) if isinstance(record, Curvature) else record
    return change


def of_curvatures(**fields):
    return lambda record: replace(record, **fields) if isinstance(record, Curvature) else record


def test_sound_runs_of_several_seeds_leave_nothing_to_warn_of(quick):
    runs = fake_runs(("sgd",), (0, 1), epochs=(60,), probes=2, steps=6)
    assert kinds(runs) == {}
    assert "Nothing to warn of" in report.page_of(compare(runs), still=True).html


@pytest.mark.parametrize("change, kind, where", [
    (one_pair(rounding=[0.5, 0.0, 0.0, 0.0]), "rounding", "sgd-0, head, epoch 60 (lambda_min, off by up to 5.0e-01"),
    (one_pair(converged=[False, True, True, True]), "unconverged", "sgd-0, head, epoch 60 (lambda_min, residual"),
    (one_pair(verified=[False] * 4), "unverified", "sgd-0, tail, epoch 60 ("),
    (of_curvatures(provenance={"engine": "differences"}), "inexact", "sgd-0, head, epoch 60 (finite differences)"),
    (of_curvatures(num_samples=3), "subset", "sgd-0, head, epoch 60 (3 of 500 images)"),
    (of_curvatures(provenance={"inputs": {"settings": {"split": "test"}}}), "test images", "sgd-0, head, epoch 60"),
])
def test_a_record_that_deserves_a_warning_gets_it(change, kind, where):
    found = kinds([changed(fake_run("sgd", seed, epochs=(60,), probes=2, steps=6), change) for seed in (0, 1)])
    assert any(place.startswith(where) for place in found[kind]) and "single seed" not in found


def test_runs_that_deserve_a_warning_get_it(tmp_path):
    run = fake_run("sgd", 0, epochs=(60,), probes=1, steps=6, selection="best")
    weights = Checkpoint(60, {}, {})
    store = RunStore.create(tmp_path / "r", run.config, provenance={"data_hash": "d1", "imported": {}, "revision": "a+changes"})
    run.table.iloc[:30].to_csv(store.path / "metrics.csv", index=False)
    store.write(weights)
    for record in run.kept:
        inputs = {"checkpoint": "other" if getattr(record, "group", "") == "tail" else content_hash(weights), "data": "d1"}
        if isinstance(record, Surface) and record.beta.size:
            record.loss[0, 0, :2] = float("nan")
            inputs["settings"] = {"max_samples": 7}
        store.write(replace(record, provenance={"inputs": inputs}))
    found = kinds([store])
    assert set(found) == {"stale", "unfinished", "single seed", "subset", "not finite", "selection", "one probe", "imported",
                          "code"}
    assert found["stale"] == ("r, tail, epoch 60 (of other weights)",) and found["unfinished"] == ("r (epoch 30 of 60)",)
    assert found["not finite"] == ("r, surface random-plane (2 of 225 points)",) and found["selection"] == ("r (best)",)
    assert list(found)[:2] == ["stale", "unfinished"]       # the gravest first


def test_the_commands_are_those_stored_each_once_the_oldest_first():
    run = fake_run("sgd", 0, epochs=(60,), probes=2, steps=4)
    made = iter([("cli.py spectrum r", "2"), ("landscape surface r", "3"), ("cli.py spectrum r", "1"), ("train.py --gpu 0", "0"),
                 ("x; rm -rf /", "9")])
    run.kept = [replace(record, provenance=dict(zip(("command", "time"), next(made)))) for record in run.kept[:5]]
    from figures.origin import commands
    assert commands(compare([run]), ["landscape", "report", "a b"]) == [
        "python scripts/train.py --gpu 0", "landscape spectrum r", "landscape surface r", "x; rm -rf /", "landscape report 'a b'"]


def test_a_page_is_made_without_torch(tmp_path):
    code = ("import sys\nsys.path[:0] = ['tests']\nfrom fabricated_runs import fake_run\n"
            "from checkpoints.comparison import compare\nfrom figures import report\nreport.PICTURES = report.STILL = ()\n"
            "report.page_of(compare([fake_run('sgd', 0, epochs=(60,), probes=1, steps=4)]))\nassert 'torch' not in sys.modules")
    done = subprocess.run([sys.executable, "-c", code], cwd=report.__file__.rsplit("/", 2)[0], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_options_reach_the_page(quick):
    runs = compare(fake_runs(("sgd",), (0, 1), epochs=(0, 60), probes=2, steps=6))
    made = Seen(report.page_of(runs, Options(epoch=0, groups=("tail",), level=0.5), still=True).html)
    assert "Verdicts after epoch 0" in made.text and "50 % t interval" in made.text and "sgd-0, head" not in made.text


def test_the_plane_that_turns_is_the_one_of_the_still_picture(quick):
    runs = compare([fake_run("sgd", 0, epochs=(60,), probes=1, steps=4, measures=True)])
    assert len(runs.surface_names(2)) == 2
    numbers = re.search(r'<script type="application/json"[^>]*>(.*?)</script>', report.page_of(runs).html, re.S)[1]
    still = next(iter(surface.planes_of(runs, Options()).values()))
    assert json.loads(numbers)["name"] == still.name == "random-plane"
