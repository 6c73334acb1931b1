"""Rows with a fault, as files, and the words that train on them."""

from __future__ import annotations

import json
from typing import Any

from helpers.command import TINY

TRAIN = (*TINY, "data=file", "trainer.per_device_train_batch_size=2")
GOOD = [{"prompt": f"question {n}", "completion": f"answer {n}"} for n in range(4)]

ASKED = {"role": "user", "content": "why"}


def jsonl(*rows: Any) -> bytes:
    return "".join(f"{row if isinstance(row, str) else json.dumps(row)}\n" for row in rows).encode()


def answer(**more: Any) -> dict[str, Any]:
    return {"role": "assistant", "content": "so", **more}


def refusal(run: Any, capsys: Any) -> str:
    """What a run said that was refused before it loaded or left anything."""
    err = capsys.readouterr().err
    assert run.code == 2, err
    assert not run.folder.exists()
    assert "Traceback" not in err
    return err


def inspected(cli: Any, *words: str, folder: str = "seen") -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Record and rows of what would be trained on."""
    run = cli(*TRAIN, "recipe=inspect", *words, folder=folder)
    assert run.code == 0
    return run.record, run.lines("inspect.jsonl")
