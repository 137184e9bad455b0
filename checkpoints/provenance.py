"""Where a number comes from: versions, git revision of the working copy, platform, command line, time."""

import os
import platform
import shlex
import subprocess
import sys
from datetime import datetime, timezone
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

DISTRIBUTIONS = ("saddle-landscape", "torch", "numpy", "scipy", "h5py", "pandas", "scikit-learn", "matplotlib")
_ROOT = Path(__file__).resolve().parents[1]


def provenance(**extra: Any) -> dict[str, Any]:
    """Return how, when and with what this process computes; `extra` entries (device, threads, seeds) are added."""
    return {
        "command": shlex.join([Path(sys.argv[0]).name, *sys.argv[1:]]),
        "platform": platform.platform(),
        "python": platform.python_version(),
        "revision": revision(),
        "time": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "versions": versions(),
    } | extra


def versions() -> dict[str, str]:
    """Return the installed version of each distribution that decides about results; absent ones are left out."""
    return {name: found for name in DISTRIBUTIONS if (found := _version(name)) is not None}


@cache
def revision() -> str | None:
    """Return the git revision of this working copy, with "+changes" where files differ from it; None outside git."""
    if not (_ROOT / ".git").exists():
        return None
    commit = _git("rev-parse", "HEAD")
    return commit and commit + ("+changes" if _git("status", "--porcelain", "--untracked-files=no") else "")


@cache
def _version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def _git(*words: str) -> str | None:
    environment = {name: value for name, value in os.environ.items() if not name.startswith("GIT_")}
    try:
        done = subprocess.run(["git", "-C", str(_ROOT), *words], capture_output=True, text=True, timeout=10,
                              env=environment | {"GIT_OPTIONAL_LOCKS": "0"})
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() if done.returncode == 0 else None
