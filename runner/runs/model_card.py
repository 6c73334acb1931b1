"""Model cards of a trained adapter and of a merged model: what it was made from, how to load it."""

from __future__ import annotations

from typing import Any

import yaml

from runner.config.adapters import Adapter
from runner.config.settings import RunConfig


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
    return _card(front, f"{method} of {base}", facts, _usage(config, base), record)


def merged_card(config: RunConfig, record: dict[str, Any], adapters: list[Adapter]) -> str:
    """A hub model card of merged weights, filled from the run's config and record and from its adapters."""
    base = config.model.path or f"random:{config.model.architecture}"
    merge, metrics = record["merge"], record["metrics"]
    kinds = sorted({str(adapter.config.get("peft_type")) for adapter in adapters})
    head = "AutoModelForSequenceClassification" if adapters[0].base.get("classes") else "AutoModelForCausalLM"
    front = {
        "base_model": base,
        "library_name": "transformers",
        "pipeline_tag": "text-classification" if "Sequence" in head else "text-generation",
        "tags": ["merged", *(kind.lower() for kind in kinds)],
    }
    facts = {
        "Base model": base,
        "Adapter": ", ".join(adapter.name for adapter in adapters),
        "Method": ", ".join(kinds),
        "Combined by": config.merge.combination_type if len(adapters) > 1 else None,
        "Weights of the adapters": config.merge.weights,
        "Merged into": f"the base's {merge['base']} weights",
        "Type": merge["dtype"],
        "Tokens compared with base and adapter": metrics["merge_tokens_compared"],
        "Largest difference of a logit": metrics["merge_max_logit_difference"],
        "KL divergence, nats a token": metrics["merge_kl"],
        "Equal first choices": metrics["merge_greedy_agreement"],
    }
    usage = (
        f"```python\nfrom transformers import {head}, AutoTokenizer\n\n"
        'tokenizer = AutoTokenizer.from_pretrained("<this folder>")  # has the chat template\n'
        f'model = {head}.from_pretrained("<this folder>")\n```\n'
    )
    return _card(
        front, f"{base} with {', '.join(adapter.name for adapter in adapters)}", facts, usage, record
    )


def _card(
    front: dict[str, Any], title: str, facts: dict[str, Any], usage: str, record: dict[str, Any]
) -> str:
    """Front matter, title, a table of all facts that are known, how to load it, and what made it."""
    table = "\n".join(f"| {name} | {_shown(value)} |" for name, value in facts.items() if value is not None)
    versions = ", ".join(f"{name} {version}" for name, version in record["packages"].items())
    return (
        f"---\n{yaml.safe_dump(front, sort_keys=False)}---\n\n# {title}\n\n"
        f"| | |\n|---|---|\n{table}\n\n{usage}\nMade with {versions}.\n"
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
