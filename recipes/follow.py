"""A process of a run that another one leads and has started: ``python -m recipes.follow JOB``."""

from __future__ import annotations

from runner.core.library_env import set_library_env
from runner.core.process.uncaught import set_excepthook

set_library_env()
if __name__ == "__main__":
    set_excepthook()

import json
import sys
from pathlib import Path

from recipes.run import run_recipe
from runner.config.settings import RunConfig
from runner.core.process import libraries, orphan


def main(file: Path) -> int:
    """Run the config that the first process has written down, as its follower; returns the exit code."""
    job = json.loads(file.read_text(encoding="utf-8"))
    return run_recipe(RunConfig.of(job["config"]), job["command"], job["overrides"])


if __name__ == "__main__":
    libraries.leave_at_exit()
    orphan.die_with_parent()
    sys.exit(main(Path(sys.argv[1])))
