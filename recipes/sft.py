"""Supervised fine-tuning: learn to give the answers of the rows."""

from __future__ import annotations

from recipes.training import train
from runner.config.settings import RunConfig
from runner.runs.run_folder import RunFolder


def run(config: RunConfig, folder: RunFolder) -> None:
    """Train on rows with an answer."""
    train(config, folder)
