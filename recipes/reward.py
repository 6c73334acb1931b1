"""A reward model: one score a conversation, higher for the better answer (TRL's RewardTrainer)."""

from __future__ import annotations

from recipes.training import train
from runner.config.settings import RunConfig
from runner.runs.run_folder import RunFolder


def run(config: RunConfig, folder: RunFolder) -> None:
    """Train a head with one output on rows with a chosen and a rejected answer."""
    train(config, folder)
