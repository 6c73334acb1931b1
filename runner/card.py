"""The model card of a trained adapter: what it is, what it was trained on, how to load it."""

from __future__ import annotations

from typing import Any

import yaml

from runner.settings import RunConfig


def model_card(config: RunConfig, record: dict[str, Any]) -> str:
    """A hub model card (YAML front matter and Markdown), filled from the run's config and record."""
    metrics, train = record["metrics"], record["data"]["train"]
    base = config.model.path or f"random:{config.model.architecture}"
    front = {
        "base_model": base,
        "library_name": "peft" if config.lora else "transformers",
        "pipeline_tag": "text-generation",
        "tags": ["sft", *(["lora"] if config.lora else [])],
    }
    method = str(config.lora.get("_target_", "full fine-tuning")).removeprefix("peft.").removesuffix("Config")
    facts = {
        "Base model": base,
        "Method": method,
        "Trained rows": f"{train['rows']:,}",
        "Trained tokens": f"{train['trained_tokens']:,} of {train['tokens']:,}",
        "Data": ", ".join(str(source["path"]) for source in train["sources"]),
        "Data fingerprint": train["fingerprint"],
        "Steps": metrics.get("steps"),
        "Learning rate": config.trainer.get("learning_rate"),
        "Seed": record["seed"],
        "Training loss": metrics.get("train_loss"),
        "Held-out loss": metrics.get("eval_loss"),
        **{name: value for name, value in metrics.items() if name.endswith(("_before", "_after"))},
    }
    table = "\n".join(f"| {name} | {_shown(value)} |" for name, value in facts.items() if value is not None)
    versions = ", ".join(f"{name} {version}" for name, version in record["packages"].items())
    return (
        f"---\n{yaml.safe_dump(front, sort_keys=False)}---\n\n# {method} of {base}\n\n"
        f"| | |\n|---|---|\n{table}\n\n{_usage(config, base)}\nMade with {versions}.\n"
    )


def _usage(config: RunConfig, base: str) -> str:
    if not config.lora:
        return ""
    return (
        "```python\nfrom peft import PeftModel\n"
        "from transformers import AutoModelForCausalLM, AutoTokenizer\n\n"
        'tokenizer = AutoTokenizer.from_pretrained("<this folder>")  # has the chat template\n'
        f'model = AutoModelForCausalLM.from_pretrained("<{base}>")\n'
        'model = PeftModel.from_pretrained(model, "<this folder>")\n```\n'
    )


def _shown(value: Any) -> str:
    text = f"{value:.4g}" if isinstance(value, float) else str(value)
    return text.replace("|", "\\|")
