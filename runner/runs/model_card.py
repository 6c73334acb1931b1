"""Model cards of adapters, trained models and merged models: what they were made from, how to load them."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from runner.config.adapters import BASE_FILE, Adapter
from runner.config.settings import ModelSettings, RunConfig
from runner.core.metric_names import find_metric
from runner.models.base import method_name
from runner.models.locate import find_model

_SELF = "<this folder>"  # in a snippet: where the card lies, or its name on the hub


@dataclass(frozen=True)
class CardFacts:
    """What decides how a model is called and loaded.

    ``tag`` names the recipe that trained it. ``classes`` are the outputs of its head, in order (one for a
    reward model), None where it writes tokens. ``chat`` says that its tokenizer has a chat template.
    """

    tag: str
    classes: list[str] | None
    chat: bool

    @property
    def pipeline_tag(self) -> str:
        """The hub's name of the task."""
        return "text-generation" if self.classes is None else "text-classification"

    @property
    def auto_class(self) -> str:
        """The class of transformers that loads it, or its base."""
        return "AutoModelForCausalLM" if self.classes is None else "AutoModelForSequenceClassification"


def card_facts(tag: str, folder: Path) -> CardFacts:
    """The facts of an adapter or a model that is complete in ``folder``, made by the recipe with that tag."""
    if (folder / BASE_FILE).is_file():
        classes = json.loads((folder / BASE_FILE).read_text(encoding="utf-8")).get("classes")
    else:
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        labels = config.get("id2label") or {}
        scores = any(name.endswith("ForSequenceClassification") for name in config.get("architectures") or [])
        classes = [labels[key] for key in sorted(labels, key=int)] if scores else None
    return CardFacts(tag, classes, (folder / "chat_template.jinja").is_file())


def model_card(config: RunConfig, record: dict[str, Any], card: CardFacts) -> str:
    """A hub model card (YAML front matter and Markdown), filled from the run's config and record."""
    metrics, train = record["metrics"], record["data"]["train"]
    base = config.model.path or f"random:{config.model.architecture}"
    front = {
        "base_model": base,
        "library_name": "peft" if config.lora else "transformers",
        "pipeline_tag": card.pipeline_tag,
        "tags": [card.tag, *(["lora"] if config.lora else [])],
    }
    method = method_name(config.lora, record["model"].get("quantization"))
    facts = {
        "Base model": base,
        "Method": method,
        "Training examples": f"{train['rows']:,}",
        "Loss tokens": f"{train['trained_tokens']:,} of {train['tokens']:,}",
        "Data": ", ".join(str(source["path"]) for source in train["sources"]),
        "Data fingerprint": train["fingerprint"],
        "Steps": metrics.get("steps"),
        "Learning rate": config.trainer.get("learning_rate"),
        "Seed": record["seed"],
        **{find_metric(name).title: metrics.get(name) for name in _RESULTS},
        **{
            f"{find_metric(name).title}, {name.rpartition('_')[2]} training": value
            for name, value in metrics.items()
            if name.endswith(("_before", "_after"))
        },
        "Classes": ", ".join(card.classes) if card.classes and len(card.classes) > 1 else None,
    }
    usage = _usage(card, config, config.model if config.lora else None, record["model"]["converted"])
    return _card(front, f"{method} of {base}", facts, usage, record)


_RESULTS = ("train_loss", "eval_loss", "eval_rewards_accuracies", "eval_accuracy", "eval_f1")


def merged_card(config: RunConfig, record: dict[str, Any], adapters: list[Adapter], card: CardFacts) -> str:
    """A hub model card of merged weights, filled from the run's config and record and from its adapters."""
    base = config.model.path or f"random:{config.model.architecture}"
    merge, metrics = record["merge"], record["metrics"]
    kinds = sorted({str(adapter.config.get("peft_type")) for adapter in adapters})
    names = ", ".join(adapter.name for adapter in adapters)
    front = {
        "base_model": base,
        "library_name": "transformers",
        "pipeline_tag": card.pipeline_tag,
        "tags": ["merged", card.tag, *(kind.lower() for kind in kinds)],
    }
    facts = {
        "Base model": base,
        "Adapter": names,
        "Method": ", ".join(kinds),
        "Combined by": config.merge.combination_type if len(adapters) > 1 else None,
        "Weights of the adapters": (merge.get("combination") or {}).get("weights"),
        "Merged into": f"the base's {merge['base']} weights",
        "Type": merge["dtype"],
        "Tokens compared with base and adapter": metrics["merge_tokens_compared"],
        "Largest logit difference": metrics["merge_max_logit_difference"],
        "KL divergence, nats a token": metrics["merge_kl"],
        "Top-1 agreement": metrics["merge_greedy_agreement"],
        "GGUF": _gguf_files(record.get("gguf")),
    }
    return _card(front, f"{base} with {names}", facts, _usage(card, config, None), record)


def _gguf_files(exported: Any) -> str | None:
    """The GGUF files beside a merged model, as ``run.json`` has one or a list of them."""
    records = exported if isinstance(exported, list) else [exported] if exported else []
    return ", ".join(str(record["file"]) for record in records) or None


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


def _usage(card: CardFacts, config: RunConfig, base: ModelSettings | None, converted: bool = False) -> str:
    """Code that loads the model, on its ``base`` where it is an adapter, and lets it answer once."""
    lines = [f"from transformers import {card.auto_class}, AutoTokenizer", ""]
    lines.append(f'tokenizer = AutoTokenizer.from_pretrained("{_SELF}")')
    if base is None:
        lines.append(f'model = {card.auto_class}.from_pretrained("{_SELF}")')
    else:
        lines.insert(0, "from peft import PeftModel")
        location, found_by = _location(base, converted)
        options = [location]
        if found_by:
            lines[1:1] = ["from runner.models.locate import find_model"]
            lines.append(found_by)
        elif base.revision:
            options.append(f"revision={_literal(base.revision)}")
        options += ["trust_remote_code=True"] if base.trust_remote_code else []
        options += [f"num_labels={len(card.classes)}"] if card.classes is not None else []
        lines.append(f"model = {card.auto_class}.from_pretrained({', '.join(options)})")
        if card.classes is not None:
            lines.append("# its head is random here; the adapter brings the trained one")
        lines.append(f'model = PeftModel.from_pretrained(model, "{_SELF}")')
    code = "\n".join([*lines, "", *_answering(card, config)])
    return f"```python\n{code}\n```\n"


def _answering(card: CardFacts, config: RunConfig) -> list[str]:
    """Lines that encode an input as in training, and print the output."""
    system = [{"role": "system", "content": config.template.system}] if config.template.system else []
    if card.classes is None:
        question = [*system, {"role": "user", "content": "Hello!"}]
        encode = 'inputs = tokenizer("Once upon a time", return_tensors="pt")'
        if card.chat:
            options = 'add_generation_prompt=True, return_dict=True, return_tensors="pt"'
            encode = f"inputs = tokenizer.apply_chat_template(messages, {options})"
        return [
            *([f"messages = {_literal(question)}"] if card.chat else []),
            encode,
            "output = model.generate(**inputs, max_new_tokens=100, eos_token_id=tokenizer.eos_token_id)",
            'print(tokenizer.decode(output[0, inputs["input_ids"].shape[1]:], skip_special_tokens=True))',
        ]
    scored = "logits = model(**inputs).logits"
    if len(card.classes) == 1:
        conversation = [*system, {"role": "user", "content": "2 + 2?"}, {"role": "assistant", "content": "4"}]
        return [
            f"messages = {_literal(conversation)}",
            "# what a template writes behind the answer's end was not read in training",
            "text = tokenizer.apply_chat_template(messages, tokenize=False).rstrip()",
            'inputs = tokenizer(text, add_special_tokens=False, return_tensors="pt")',
            scored,
            "print(logits[0, 0].item())  # higher is better",
        ]
    return [
        f"classes = {_literal(card.classes)}",
        'inputs = tokenizer("some text" + tokenizer.eos_token, return_tensors="pt")',
        scored,
        "print(classes[logits[0].argmax().item()])",
    ]


def _location(base: ModelSettings, converted: bool) -> tuple[str, str]:
    """What ``from_pretrained`` takes for the base, and a line in front that finds it, if it needs one.

    That is a hub name, or a folder of this machine, as a literal. What plain transformers does not take is
    fetched and converted by the runner, here as on any other machine. Random weights have no such place:
    ``<random:NAME>`` stands for a folder where they were saved.
    """
    path = base.path
    if path is None:
        return f'"<random:{base.architecture}>"', ""
    local = Path(path).expanduser()
    if converted:
        words = [_literal(str(local.resolve()) if local.exists() else path)]
        words += [_literal(base.revision)] if base.revision else []
        return "base", f"base = find_model({', '.join(words)}).folder  # fetched once, kept as safetensors"
    if local.exists():
        path = str(find_model(path, base.revision).folder.resolve())
    return _literal(path), ""


def _literal(value: Any) -> str:
    """Texts, and lists and mappings of texts, as Python reads them (as it does JSON of these)."""
    return json.dumps(value, ensure_ascii=False)


def _shown(value: Any) -> str:
    text = f"{value:.4g}" if isinstance(value, float) else str(value)
    return text.replace("|", "\\|")
