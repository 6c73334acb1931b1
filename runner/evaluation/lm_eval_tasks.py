"""Public benchmarks through the optional package lm-eval, on a model that is loaded already."""

from __future__ import annotations

from importlib import import_module
from importlib.util import find_spec
from typing import Any

from runner.core.errors import Issue, nearest


def task_issues(tasks: list | None) -> list[Issue]:
    """What is wrong with ``evaluate.tasks``: the package is missing, or does not know them."""
    if not tasks:
        return []
    if find_spec("lm_eval") is None:
        return [Issue("evaluate.tasks", "needs the package lm-eval", "pip install lm-eval")]
    known = import_module("lm_eval.tasks").TaskManager().all_tasks
    return [
        Issue("evaluate.tasks", f"lm-eval has no task {task!r}", nearest(task, known))
        for task in tasks
        if task not in known
    ]


def run_tasks(model: Any, tokenizer: Any, tasks: list, batch_size: int, seed: int) -> dict[str, float]:
    """Scores by ``TASK/METRIC`` as ``lm_eval.simple_evaluate`` gives them, under ``METRIC,FILTER``."""
    library, models = import_module("lm_eval"), import_module("lm_eval.models.huggingface")
    wrapped = models.HFLM(pretrained=model, tokenizer=tokenizer, batch_size=batch_size)
    found = library.simple_evaluate(
        model=wrapped,
        tasks=[str(task) for task in tasks],
        random_seed=seed,
        numpy_random_seed=seed,
        torch_random_seed=seed,
        fewshot_random_seed=seed,
    )
    results: dict[str, dict[str, Any]] = (found or {}).get("results", {})
    return {
        f"{task}/{name.removesuffix(',none')}": float(value)
        for task, scores in results.items()
        for name, value in scores.items()
        if "," in name and isinstance(value, (int, float)) and "stderr" not in name
    }
