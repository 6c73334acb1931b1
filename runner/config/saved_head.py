"""The head of a classifier that is trained further: what its outputs are called, and in which order."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from runner.config.adapters import adapters
from runner.config.objective import SavedHead
from runner.config.settings import RunConfig


def saved_head(config: RunConfig, facts: Mapping[str, Any]) -> SavedHead | None:
    """The head that a run starts with; ``facts`` are the base's ``config.json``.

    None for a model that writes tokens, and for a checkpoint with one output: a score is no class.
    """
    if config.adapter:
        adapter = adapters(config)[0]
        classes = adapter.base.get("classes")
        return SavedHead(f"adapter={adapter.folder}", tuple(classes), True) if classes else None
    if not any(str(name).endswith("ForSequenceClassification") for name in facts.get("architectures") or ()):
        return None
    labels = {int(key): str(name) for key, name in (facts.get("id2label") or {}).items()}
    if len(labels) < 2:
        return None
    return SavedHead(f"model.path={config.model.path}", tuple(labels[key] for key in sorted(labels)), False)
