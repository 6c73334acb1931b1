"""A tiny model as a folder of files, for tests that put something into it."""

from __future__ import annotations

import shutil
from pathlib import Path

import torch
from transformers import AutoConfig, AutoModelForCausalLM

from runner.config.settings import ModelSettings
from runner.models.model import byte_tokenizer, find_base, load_model

TINY_MODEL = ModelSettings(weights="random", architecture="tiny")


def tiny_base(seed: int = 0) -> torch.nn.Module:
    """The tiny architecture with weights drawn from ``seed``, in float32: where a run of ``TINY`` starts."""
    return load_model(find_base(TINY_MODEL), None, torch.float32, seed)


def write_model(folder: Path, seed: int = 0) -> Path:
    """That model as a folder: safetensors, and its tokenizer."""
    tiny_base(seed).save_pretrained(folder)
    find_base(TINY_MODEL).tokenizer.save_pretrained(folder)
    return folder


def copy(folder: Path, target: Path) -> Path:
    """A copy of a folder, to be changed."""
    return Path(shutil.copytree(folder, target))


def using(folder: Path) -> tuple[str, ...]:
    """The words that train on a model's folder."""
    return ("model=tiny", "model.weights=pretrained", "model.architecture=null", f"model.path={folder}")


SHAPE = {
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "vocab_size": 320,
    "max_position_embeddings": 512,
    "tie_word_embeddings": False,
}


def random_model(folder: Path, model_type: str, **shape: object) -> Path:
    """A folder with weights large enough that a wrong order of them shows in the logits."""
    torch.manual_seed(0)
    config = AutoConfig.for_model(model_type, **{**SHAPE, "initializer_range": 0.2, **shape})
    model = AutoModelForCausalLM.from_config(config)
    for name, parameter in model.named_parameters():
        if name.endswith(("bias", "norm.weight")):
            torch.nn.init.normal_(parameter, 1.0, 0.3)
    model.save_pretrained(folder)
    byte_tokenizer().save_pretrained(folder)
    return folder
