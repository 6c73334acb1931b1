"""A tiny model as a folder of files, for tests that put something into it."""

from __future__ import annotations

import shutil
from pathlib import Path

import torch

from runner.config.settings import ModelSettings
from runner.models.model import find_base, load_model


def write_model(folder: Path, seed: int = 0) -> Path:
    """The tiny architecture with weights drawn from ``seed``, as safetensors with its tokenizer."""
    base = find_base(ModelSettings(weights="random", architecture="tiny"))
    load_model(base, None, torch.float32, seed).save_pretrained(folder)
    base.tokenizer.save_pretrained(folder)
    return folder


def copy(folder: Path, target: Path) -> Path:
    """A copy of a folder, to be changed."""
    return Path(shutil.copytree(folder, target))


def using(folder: Path) -> tuple[str, ...]:
    """The words that train on a model's folder."""
    return ("model=tiny", "model.weights=pretrained", "model.architecture=null", f"model.path={folder}")
