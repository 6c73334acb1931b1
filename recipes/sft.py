"""Supervised fine-tuning: learn to give the answers of the rows."""

from __future__ import annotations

from recipes.training import train
from runner.artifacts import RunFolder
from runner.settings import RunConfig


def run(config: RunConfig, folder: RunFolder) -> None:
    """Train on rows with an answer."""
    train(config, folder)
