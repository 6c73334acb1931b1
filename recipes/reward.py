"""A reward model: one score a conversation, higher for the better answer (TRL's RewardTrainer)."""

from __future__ import annotations

from recipes.training import train
from runner.artifacts import RunFolder
from runner.settings import RunConfig


def run(config: RunConfig, folder: RunFolder) -> None:
    """Train a head with one output on rows with a chosen and a rejected answer."""
    train(config, folder)
