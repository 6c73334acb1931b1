"""Where the project's own files stand, in a checkout and in an installed package alike."""

from pathlib import Path

PACKAGE = Path(__file__).parent

CONFIG_DIR = PACKAGE / "conf" if (PACKAGE / "conf").is_dir() else PACKAGE.parent / "conf"
ARCHITECTURES = PACKAGE / "architectures"
EXAMPLES = PACKAGE / "examples"
PLUGINS = PACKAGE / "plugins"
