"""Where the project's own files stand, in a checkout and in an installed package alike."""

from pathlib import Path

_PACKAGE = Path(__file__).parent

CONFIG_DIR = _PACKAGE / "conf" if (_PACKAGE / "conf").is_dir() else _PACKAGE.parent / "conf"
ARCHITECTURES = _PACKAGE / "architectures"
EXAMPLES = _PACKAGE / "examples"
