"""Where data sets lie: the folder that the caller names, else that of LANDSCAPE_DATA_DIR, else ./datasets."""

import os
from pathlib import Path

DEFAULT_FOLDER = "datasets"


def data_root(data_dir: str | Path | None = None) -> Path:
    """Return the folder in which data sets are sought; it may be missing."""
    return Path(data_dir or os.environ.get("LANDSCAPE_DATA_DIR") or DEFAULT_FOLDER).expanduser()
