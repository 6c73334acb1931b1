"""Another process that holds a folder."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from helpers.paths import ROOT

_CODE = """
import sys, time
from pathlib import Path
from runner.core.process.folder_lock import hold
hold(Path(sys.argv[1]), "runs here")
print("held", flush=True)
time.sleep(60)
"""


@contextmanager
def holding(folder: Path) -> Iterator[int]:
    """In this block another process, whose number is given, holds ``folder``; at its end it is killed."""
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-c", _CODE, str(folder)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, env=environment) as process:
        try:
            assert process.stdout is not None
            assert process.stdout.readline() == b"held\n"
            yield process.pid
        finally:
            process.kill()
