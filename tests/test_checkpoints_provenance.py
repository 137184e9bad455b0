import json
import subprocess
import sys
from datetime import datetime
from pathlib import Path

from checkpoints import provenance as module
from checkpoints.provenance import provenance

ROOT = Path(__file__).resolve().parents[1]


def test_provenance_names_versions_platform_command_and_time():
    import numpy
    found = provenance(device="cpu", threads=2)
    assert found["versions"]["numpy"] == numpy.__version__ and found["device"] == "cpu" and found["threads"] == 2
    assert datetime.fromisoformat(found["time"]).tzinfo is not None
    assert Path(sys.argv[0]).name in found["command"]
    assert json.loads(json.dumps(found)) == found


def test_distributions_that_are_absent_are_left_out(monkeypatch):
    monkeypatch.setattr(module, "DISTRIBUTIONS", ("numpy", "no-such-distribution"))
    assert list(module.versions()) == ["numpy"]


def test_revision_is_that_of_the_working_copy():
    module.revision.cache_clear()
    if not (ROOT / ".git").exists():
        assert module.revision() is None
        return
    head = subprocess.run(["git", "-C", str(ROOT), "rev-parse", "HEAD"], capture_output=True, text=True).stdout.strip()
    assert (module.revision() or "").removesuffix("+changes") == head


def test_outside_a_working_copy_there_is_no_revision(monkeypatch, tmp_path):
    module.revision.cache_clear()
    monkeypatch.setattr(module, "_ROOT", tmp_path)
    assert module.revision() is None
    module.revision.cache_clear()
