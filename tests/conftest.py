"""Shared fixtures: the command line in this process, in an empty folder."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from runner.__main__ import main

# A run of seconds on any machine: random weights, bytes as tokens, float32 so that figures carry over.
TINY = (
    "model=tiny",
    "trainer.precision=fp32",
    "trainer.max_steps=3",
    "trainer.max_length=512",
    "data.max_rows=24",
    "data.eval_max_rows=4",
    "generation.max_new_tokens=4",
)


@dataclass
class Run:
    """How a command ended: exit code, and what is in its run folder."""

    code: int
    folder: Path

    @property
    def record(self) -> dict[str, Any]:
        return json.loads((self.folder / "run.json").read_text(encoding="utf-8"))

    def lines(self, name: str) -> list[dict[str, Any]]:
        return [json.loads(line) for line in (self.folder / name).read_text(encoding="utf-8").splitlines()]

    def files(self) -> set[str]:
        """All files it left, but for the patch that is there when the project's checkout is not clean."""
        files = {str(path.relative_to(self.folder)) for path in self.folder.rglob("*") if path.is_file()}
        return files - {"uncommitted.diff"}


@pytest.fixture
def cli(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Run]:
    """Run ``python -m runner`` with overrides, in this process, in an empty folder."""
    monkeypatch.chdir(tmp_path)

    def run(*words: str, folder: str = "run") -> Run:
        return Run(main([*words, f"output_dir={folder}"]), tmp_path / folder)

    return run
