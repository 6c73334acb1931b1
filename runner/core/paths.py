"""Where the project's own files stand, in a checkout and in an installed package alike, and its cache."""

import os
from pathlib import Path

PACKAGE = Path(__file__).parents[1]

CONFIG_DIR = PACKAGE / "conf" if (PACKAGE / "conf").is_dir() else PACKAGE.parent / "conf"
ARCHITECTURES = PACKAGE / "models" / "architectures"
EXAMPLES = PACKAGE / "data" / "examples"
PLUGINS = PACKAGE / "plugins"
# Files of rows, by what they are read as.
ROW_FILES = {
    ".json": "json",
    ".jsonl": "json",
    ".ndjson": "json",
    ".csv": "csv",
    ".tsv": "csv",
    ".parquet": "parquet",
    ".arrow": "arrow",
}
SWEEP_FILE = "sweep.json"  # in a sweep folder: its record


def cache_dir() -> Path:
    """``$RUNNER_CACHE``, or ``recipe-runner`` in the user's cache folder."""
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(os.environ.get("RUNNER_CACHE") or Path(base) / "recipe-runner").expanduser()
