"""A command of the runner in a test: the words of a run of seconds, and how it ended."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from recipes import OBJECTIVES
from runner.cli import run_config
from runner.config.settings import RunConfig
from runner.core.errors import ConfigError

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
# Enough learning in three steps that an adapter which got lost would be noticed.
LEARNS = (*TINY, "trainer.learning_rate=2e-2", "trainer.save_strategy=no", "data.metric=null")
# Nothing is answered, and nothing kept beside the adapter, where a test does not look at it.
QUIET = ("generation.samples=0", "data.metric=null", "trainer.save_strategy=no")

# What a training run leaves.
RECORD = {"config.yaml", "run.json", "metrics.jsonl", "samples.jsonl", "report.html"}
ADAPTER = {
    f"adapter/{name}"
    for name in (
        "README.md",
        "adapter_config.json",
        "adapter_model.safetensors",
        "base.json",
        "chat_template.jinja",
        "tokenizer.json",
        "tokenizer_config.json",
    )
}


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


def check(*words: str) -> list[RunConfig]:
    return run_config.check(run_config.parse(list(words), OBJECTIVES)).configs


def one(*words: str) -> RunConfig:
    (run,) = check(*words)
    return run


def issues(*words: str) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        check(*words)
    return [str(issue) for issue in caught.value.issues]


def said(capsys: pytest.CaptureFixture[str]) -> str:
    """All that was printed since the last look, as one line."""
    return " ".join("".join(capsys.readouterr()).split())
