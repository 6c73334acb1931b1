"""What a run was made from: the folders of its adapters and of its model, known again by their digests."""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from runner.config.adapters import Adapter, adapters
from runner.config.settings import RunConfig
from runner.core.atomic import sha256_of_files


def parents(config: RunConfig, run: Path) -> list[dict[str, Any]]:
    """The ``parents`` of ``run.json``: an entry for each adapter, and for a model that a run has made.

    An entry has the ``path`` of the run folder, or else of the folder itself, ``from_run``, that path seen
    from the folder of this ``run``, ``kind`` (adapter or model), and the ``digest`` of an adapter's weights.
    Raises ``ConfigError`` for what is no adapter.
    """
    found = adapter_parents(adapters(config), run)
    model = Path(str(config.model.path)).expanduser()
    if config.model.weights == "pretrained":
        made = [folder for folder in (model, model.parent) if (folder / "run.json").is_file()][:1]
        found += [_entry(folder, run, "model") for folder in made]
    return found


def adapter_parents(given: Iterable[Adapter], run: Path) -> list[dict[str, Any]]:
    """The entries of adapters."""
    return [
        _entry(adapter.run or adapter.folder, run, "adapter") | {"digest": adapter_digest(adapter.folder)}
        for adapter in given
    ]


def adapter_digest(folder: Path) -> str | None:
    """``sha256:HEX`` of the weights in a PEFT folder; None without any."""
    files = sorted(folder.glob("adapter_model.*"))
    return sha256_of_files(files) if files else None


def find_parent(entry: dict[str, Any], run: Path) -> Path | None:
    """The folder of a parent, also when it was moved together with the ``run`` that names it.

    None when neither path leads to an adapter with the recorded digest (to a run folder, for a model).
    """
    for path in (Path(str(entry.get("path"))), run / str(entry.get("from_run"))):
        if entry.get("kind") == "model":
            if path.is_dir():
                return path
        elif (digest := entry.get("digest")) and digest in map(adapter_digest, (path / "adapter", path)):
            return path
    return None


def _entry(folder: Path, run: Path, kind: str) -> dict[str, Any]:
    return {"path": str(folder), "from_run": os.path.relpath(folder.absolute(), run.absolute()), "kind": kind}
