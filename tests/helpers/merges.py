"""Merges of adapters into their base, and the weights that they leave."""

from __future__ import annotations

from pathlib import Path

import torch
from peft import LoraConfig, get_peft_model

from helpers.command import Run

RECORD = {"config.yaml", "run.json", "report.html"}
MODEL = {
    f"model/{name}"
    for name in (
        "config.json",
        "generation_config.json",
        "tokenizer.json",
        "tokenizer_config.json",
        "chat_template.jinja",
        "README.md",
    )
}
ONE_FILE = {"model/model.safetensors"}


def logits(model: torch.nn.Module) -> torch.Tensor:
    model.eval()
    with torch.inference_mode():
        return model(input_ids=torch.arange(3, 67, device=model.device)[None]).logits.cpu()


def adapted(base: torch.nn.Module, folder: Path) -> torch.Tensor:
    from peft import PeftModel

    return logits(PeftModel.from_pretrained(base, folder))


def loaded(folder: Path) -> torch.nn.Module:
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(folder / "model", dtype=torch.float32)


def from_elsewhere(model: torch.nn.Module, folder: str, config: LoraConfig) -> None:
    """Save an adapter of random weights with plain PEFT."""
    config.task_type = "CAUSAL_LM"
    wrapped = get_peft_model(model, config)
    torch.manual_seed(1)
    for parameter in wrapped.parameters():
        if parameter.requires_grad:
            parameter.data.normal_(std=0.3)
    wrapped.save_pretrained(folder)


def merge(cli, adapter: Path | str, *words: str, folder: str = "merged") -> Run:
    return cli("recipe=merge", f"adapter={adapter}", *words, folder=folder)
