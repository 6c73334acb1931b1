"""Row 32: two starts in the same second, a terminal that goes away, and Ctrl-C in the first seconds."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from helpers.command import TINY
from helpers.paths import ROOT
from runner.runs import run_folder


def test_32_two_starts_in_the_same_second_get_two_folders(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    made: list[Path] = []
    threads = [threading.Thread(target=lambda: made.append(run_folder.create(None, "sft"))) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(set(made)) == 8


@pytest.mark.slow
def test_a_terminal_that_goes_away_ends_no_run(tmp_path: Path) -> None:
    words = [*TINY, "trainer.max_steps=2", "output_dir=run"]
    process = subprocess.Popen(
        [sys.executable, "-m", "runner", *words], cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    assert process.stdout is not None
    process.stdout.close()
    _, said = process.communicate(timeout=120)
    assert (process.returncode, b"Error" in said) == (0, False), said
    assert json.loads((tmp_path / "run" / "run.json").read_text())["status"] == "completed"
    assert (tmp_path / "run" / "report.html").is_file()


@pytest.mark.parametrize("module", ["runner", "runner.sweep.worker", "recipes.follow", "recipes.benchmark"])
def test_an_interrupt_while_libraries_are_imported_is_one_word(tmp_path: Path, module: str) -> None:
    (tmp_path / "rich.py").write_text("raise KeyboardInterrupt\n")  # one that all of them import
    path = os.pathsep.join([str(tmp_path), str(ROOT)])
    command, environment = [sys.executable, "-m", module], {**os.environ, "PYTHONPATH": path}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (-signal.SIGINT, "interrupted\n")
