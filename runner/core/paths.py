"""Where the project's own files stand, in a checkout and in an installed package alike."""

from pathlib import Path

PACKAGE = Path(__file__).parents[1]

CONFIG_DIR = PACKAGE / "conf" if (PACKAGE / "conf").is_dir() else PACKAGE.parent / "conf"
ARCHITECTURES = PACKAGE / "models" / "architectures"
EXAMPLES = PACKAGE / "data" / "examples"
PLUGINS = PACKAGE / "plugins"
SWEEP_FILE = "sweep.json"  # in a sweep folder: its record
