"""A tiny model as a folder of files, for tests that put something into it."""

from __future__ import annotations

import shutil
from pathlib import Path

import torch

from runner.config.settings import ModelSettings
from runner.models.model import find_base, load_model

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
