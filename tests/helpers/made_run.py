"""A run folder made of plain files, for tests that read its report."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from helpers.pages import HOSTILE


def run_record(**changes: Any) -> dict[str, Any]:
    """Return the run.json of a completed run, with some keys replaced."""
    record: dict[str, Any] = {
        "recipe": "sft",
        "status": "completed",
        "command": "python -m runner train recipes/sft.yaml",
        "overrides": ["lora.r=8"],
        "started": "2026-11-21T03:20:00Z",
        "ended": "2026-11-21T03:23:32Z",
        "seconds": 212.3,
        "error": None,
        "seed": 0,
        "notes": ["paged_adamw_8bit needs CUDA; adamw_torch used"],
        "metrics": {
            "train_loss": 0.21,
            "eval_loss": 0.1,
            "exact_match_before": 0.0,
            "exact_match_after": 0.9333,
            "tokens_per_second": 412.0,
            "peak_memory_bytes": 3 * 2**30,
            "perplexity": 1.107,
            "trainable_parameters": 4884480,
            "total_parameters": 139399488,
        },
        "times": {"load": 4.1, "score_before": 40.2, "train": 130.0, "score_after": 33.0},
        "git": {"commit": "8c1f0a9", "dirty": True},
        "packages": {"torch": "2.13.0"},
        "device": {"kind": "cpu", "name": "test machine", "count": 1, "memory_bytes": 16 * 2**30},
        "data": {
            "train": {
                "rows": 440,
                "tokens": 50000,
                "trained_tokens": 16000,
                "path": "data/train.jsonl",
                "format": "prompt_completion",
                "fingerprint": "sha256:" + "4f9a81c2" * 8,
            },
            "eval": {"rows": 60, "tokens": 7000, "trained_tokens": 2190, "path": "data/eval.jsonl"},
            "removed": {"duplicate": 3, "empty": 1},
        },
        "digests": {"adapter": "sha256:" + "a1b2c3d4" * 8},
        "model": {"path": "/models/tiny-chat", "revision": "1"},
        "hostname": "bench-2",
    }
    return record | changes


def metric_lines(steps: int = 60, nan_at: int | None = None) -> str:
    """Return metrics.jsonl with an eval line every twenty steps."""
    lines = []
    for step in range(1, steps + 1):
        loss = float("nan") if step == nan_at else 2.4 / step + 0.1
        lines.append(
            {
                "step": step,
                "epoch": step / 30,
                "loss": loss,
                "learning_rate": 2e-4 * (1 - step / steps),
                "grad_norm": 1 / step,
                "mean_token_accuracy": 1 - 0.5 / step,
                "num_tokens": step * 460,
            }
        )
        if step % 20 == 0:
            lines.append({"step": step, "eval_loss": 2.3 / step + 0.1, "eval_runtime": 1.5})
    return "".join(json.dumps(line) + "\n" for line in lines)


def sample_lines() -> str:
    """Return samples.jsonl: several lines and languages, missing answers, and markup as text."""
    samples: list[dict[str, Any]] = [
        {
            "index": 0,
            "prompt": "Two lattes for Ana.\nAs JSON.",
            "expected": '{"name": "Ana"}',
            "before": "Sure!\n",
            "after": '{"name": "Ana"}',
            "before_match": False,
            "after_match": True,
        },
        {
            "index": 1,
            "prompt": HOSTILE,
            "expected": HOSTILE,
            "before": HOSTILE,
            "after": HOSTILE,
            "before_match": True,
            "after_match": True,
        },
        {
            "index": 2,
            "prompt": "田中です。" * 40,
            "expected": None,
            "before": None,
            "after": "",
            "before_match": None,
            "after_match": None,
        },
        {"index": 3, "prompt": [{"role": "user", "content": "hi"}], "after": "long" * 4000},
    ]
    return "".join(json.dumps(sample, ensure_ascii=False) + "\n" for sample in samples)


def make_run(
    folder: Path,
    *,
    metrics: str | None = None,
    samples: str | None = None,
    config: str | None = None,
    evaluation: str | None = None,
    **changes: Any,
) -> Path:
    """Write a run folder; files passed as None are left out."""
    folder.mkdir(exist_ok=True)
    (folder / "run.json").write_text(json.dumps(run_record(**changes)), encoding="utf-8")
    texts = {"metrics.jsonl": metrics, "samples.jsonl": samples}
    texts |= {"config.yaml": config, "evaluation.json": evaluation}
    for name, text in texts.items():
        if text is not None:
            (folder / name).write_text(text, encoding="utf-8")
    return folder


def score(value: float, low: float, high: float, **more: Any) -> dict[str, Any]:
    """Return a score of evaluation.json, or with ``significant`` a difference."""
    kind = {} if "significant" in more else {"rows": 60, "higher": True}
    return {"value": value, "low": low, "high": high} | kind | more


def evaluation(*others: str) -> str:
    """Return evaluation.json: the base, and adapters that are better, worse and much the same."""
    base = {
        "loss": score(1.205, 1.127, 1.29, higher=False),
        "exact_match": score(0.25, 0.1, 0.4),
        "chrf": score(21.483, 17.49, 26.64, rows=20),
    }
    theirs = {
        "loss": score(0.5, 0.4, 0.625, higher=False),
        "exact_match": score(0.2, 0.1, 0.35),
        "chrf": score(11.5, 10.25, 12.75, rows=20),
    }
    gaps = {
        "loss": score(-0.705, -0.9, -0.6, significant=True),
        "exact_match": score(-0.05, -0.15, 0.025, significant=False),
        "chrf": score(-9.983, -11, -8, significant=True),
    }
    found = {
        "confidence": 0.95,
        "resamples": 1000,
        "models": {"base": base, **dict.fromkeys(others, theirs)},
        "differences": dict.fromkeys(others, gaps),
        "tasks": {"base": {"arc/acc": 0.5}, **{name: {"arc/acc": 0.75} for name in others}},
    }
    return json.dumps(found)


def full_run(folder: Path, **changes: Any) -> Path:
    """Write a run folder that has every file."""
    config = f"recipe: sft\nlora: {{r: 8}}\nname: '{HOSTILE}'\n"
    return make_run(folder, metrics=metric_lines(), samples=sample_lines(), config=config, **changes)
