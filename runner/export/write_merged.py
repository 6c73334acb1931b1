"""The folder of a merged model: weights in shards, and all that a program needs to load and serve it."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

from runner.core.atomic import json_text
from runner.core.progress import Progress
from runner.export.merge import Skeleton, Tensors
from runner.export.shards import plan_shards, write_shards
from runner.models.empty_model import empty_model
from runner.models.model import Base


def write_model(
    folder: Path, base: Base, skeleton: Skeleton, tensors: Tensors, max_shard_size: str, streamed: bool
) -> None:
    """Merge the skeleton's adapter into the base's ``tensors`` and write the model, which then is complete.

    Unless ``streamed``, the merged model is built in memory and written by transformers, which knows the
    names under which checkpoints of this architecture store weights, where they are not the model's own.
    """
    folder.mkdir()
    layout = skeleton.layout(tensors)
    config = skeleton.config
    config.dtype = skeleton.dtype
    config.architectures = [skeleton.architecture]
    if not skeleton.tied(layout):
        config.tie_word_embeddings = False
    with Progress("merging", len(layout)) as progress:

        def produce(names: Any) -> Any:
            for tensor in skeleton.merged(tensors, names):
                yield tensor
                progress.advance()

        if streamed:
            write_shards(folder, layout, plan_shards(layout, max_shard_size), produce)
            config.save_pretrained(folder)
        else:
            state = dict(zip(layout, produce(list(layout)), strict=True))
            writer = empty_model(base, skeleton.classes, config)
            writer.save_pretrained(folder, state_dict=state, max_shard_size=max_shard_size)
    if skeleton.classes is None:
        _write_generation_config(folder, base, config)
    base.tokenizer.save_pretrained(folder)
    if base.folder is not None and base.settings.trust_remote_code:
        for code in base.folder.glob("*.py"):
            shutil.copy(code, folder)


def _write_generation_config(folder: Path, base: Base, config: Any) -> None:
    """The base's own, with the end token of the run's template among those that stop an answer."""
    from transformers import GenerationConfig

    own = base.folder / "generation_config.json" if base.folder else None
    if own is not None and own.is_file():
        values = json.loads(own.read_text(encoding="utf-8"))
    else:
        values = GenerationConfig.from_model_config(config).to_diff_dict()
    stops = values.get("eos_token_id")
    stops = stops if isinstance(stops, list) else [] if stops is None else [stops]
    stops = sorted({*stops, base.tokenizer.eos_token_id})
    values["eos_token_id"] = stops[0] if len(stops) == 1 else stops
    if values.get("pad_token_id") is None:
        values["pad_token_id"] = base.tokenizer.pad_token_id
    (folder / "generation_config.json").write_text(json_text(values, sort_keys=True), encoding="utf-8")
