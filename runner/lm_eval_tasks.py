"""Public benchmarks through the optional package lm-eval, on a model that is loaded already."""

from __future__ import annotations

from importlib import import_module
from importlib.util import find_spec
from typing import Any

from runner.errors import Problem, Refused


def check_tasks(tasks: list | None) -> None:
    """Refuse ``evaluate.tasks`` where the package is missing. Raises ``Refused``."""
    if tasks and find_spec("lm_eval") is None:
        raise Refused(Problem("evaluate.tasks", "needs the package lm-eval", "pip install lm-eval"))


def run_tasks(model: Any, tokenizer: Any, tasks: list, batch_size: int, seed: int) -> dict[str, float]:
    """Scores by ``TASK/METRIC``, as ``lm_eval.simple_evaluate`` gives them."""
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
        f"{task}/{name.partition(',')[0]}": float(value)
        for task, scores in results.items()
        for name, value in scores.items()
        if isinstance(value, (int, float)) and "stderr" not in name
    }
