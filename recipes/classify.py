"""Sequence classification: the class of a text, scored by accuracy and F1."""

from __future__ import annotations

from recipes.training import train
from runner.config.settings import RunConfig
from runner.runs.run_folder import RunFolder


def run(config: RunConfig, folder: RunFolder) -> None:
    """Train a head with one output for each class on rows of a text and its label."""
    train(config, folder)
