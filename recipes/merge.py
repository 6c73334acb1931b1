"""Merge adapters into their base, and prove it: check, combine, merge, compare with the adapter model."""

from __future__ import annotations

import dataclasses
import math
import shutil
from pathlib import Path
from typing import Any

import torch

from recipes import OBJECTIVES
from runner.config.adapters import Adapter
from runner.config.path_rules import missing
from runner.config.settings import RunConfig
from runner.core import console, environment
from runner.core.errors import RunnerError
from runner.data.template import Renderer
from runner.evaluation.logit_kl import Fidelity, compare, read_texts
from runner.export.combination import Combination, combine_adapters, read_beside_parts
from runner.export.combine import combines
from runner.export.compare_rows import rows_to_compare
from runner.export.merge import Skeleton
from runner.export.merge_check import MergeSetup, check_merge
from runner.export.tensors import CheckpointTensors, ModelTensors
from runner.export.write_merged import write_model
from runner.models.adapter import attach
from runner.models.model import load_model
from runner.runs.model_card import card_facts, merged_card
from runner.runs.parents import adapter_parents
from runner.runs.run_folder import RunFolder
from runner.training.out_of_memory import free_memory


def run(config: RunConfig, folder: RunFolder) -> None:
    """Leave a merged, verified model in ``model/``. Raises ``ConfigError`` before loading weights.

    Raises ``RunnerError`` when the merged model answers otherwise than base and adapter, by more than
    ``merge.max_kl``; there is no ``model/`` then.
    """
    with folder.timed("check"):
        setup = check_merge(config, OBJECTIVES, folder.path)
    with folder.timed("data"):
        renderer = Renderer(setup.base.tokenizer, config.template, config.data.train_on)
        rows, place = rows_to_compare(setup.trained, renderer, setup.kind)
    folder.notes += [*setup.base.notes, *setup.notes]
    if missing(config.data.path) or not config.data.path:
        folder.notes.append(f"the rows of the adapter's run are not at hand: compared on rows of {place}")
    folder.record |= {
        "model": setup.base.record() | {"identity": setup.identity},
        "data": {rows.name: rows.record()},
        "parents": adapter_parents(setup.adapters, folder.path),
    }
    folder.write()
    for note in folder.notes:
        console.warn(note)
    made = None
    if combines(config.merge, setup.adapters):
        with folder.timed("combine"):
            made = combine_adapters(config, setup, folder)
    adapter = made.adapter if made else setup.adapters[0]
    texts = [row.input_ids for row in rows.rows]
    with folder.timed("read_adapter_model"):
        expected = _adapter_logits(setup, made, texts, folder)
    folders = {name: folder.path / f".model-{name}" for name in setup.bases}
    target = folder.path / "model"
    try:
        results: dict[str, Fidelity] = {}
        for name, temporary in folders.items():
            with folder.timed("merge"):
                _merge(config, setup, adapter, name, temporary)
            with folder.timed("verify"):
                results[name] = compare(expected, _merged_logits(setup, temporary, texts))
        chosen = _record(config, folder, setup, results)
        folder.record["merge"] |= {"combination": made.facts} if made else {}
        _write_card(config, folder, setup, folders[chosen])
        folders[chosen].rename(target)
    finally:
        for temporary in folders.values():
            shutil.rmtree(temporary, ignore_errors=True)
    _hand_over(config, folder, setup, target)


def _adapter_logits(
    setup: MergeSetup, made: Combination | None, texts: list[list[int]], folder: RunFolder
) -> list[torch.Tensor]:
    """What the model says as it was trained: the base, quantised if it was then, under the adapter."""
    exact = setup.compared != setup.precision
    dtype = setup.own if exact else setup.precision.dtype
    model: Any = load_model(setup.base, setup.quantization, dtype, setup.trained.seed, setup.classes)
    if exact:
        model = model.to(setup.compared.dtype)
    if made is not None:
        logits = read_beside_parts(model, setup, made, texts, folder)
    else:
        logits = read_texts(attach(model, setup.adapters), texts, setup.compared)
    del model
    free_memory()
    return logits


def _merge(config: RunConfig, setup: MergeSetup, adapter: Adapter, name: str, target: Path) -> None:
    """Merge into one of the bases and write the model to ``target``."""
    base = setup.base
    skeleton = Skeleton(base, [adapter], setup.classes, setup.dtype, setup.device)
    if name == "original" and setup.streamed and base.folder is not None:
        tensors: Any = CheckpointTensors(base.folder)
    else:
        quantized = name == "dequantised"
        dtype = setup.precision.dtype if quantized else setup.own
        quantization = setup.quantization if quantized else None
        tensors = ModelTensors(load_model(base, quantization, dtype, setup.trained.seed, setup.classes))
    write_model(target, base, skeleton, tensors, config.merge.max_shard_size, setup.streamed)
    del skeleton, tensors
    free_memory()


def _merged_logits(setup: MergeSetup, folder: Path, texts: list[list[int]]) -> list[torch.Tensor]:
    """What the merged model says, loaded from its folder."""
    merged = dataclasses.replace(setup.base, folder=folder)
    model = load_model(merged, None, setup.compared.dtype, setup.trained.seed, setup.classes)
    logits = read_texts(model, texts, setup.compared)
    del model
    free_memory()
    return logits


def _record(config: RunConfig, folder: RunFolder, setup: MergeSetup, results: dict[str, Fidelity]) -> str:
    """Store how faithful each merged model is, and return the base of the best. Raises ``RunnerError``."""
    chosen = min(results, key=lambda name: (not math.isfinite(results[name].kl), results[name].kl))
    best = results[chosen]
    folder.metrics |= {
        "merge_kl": best.kl,
        "merge_max_logit_difference": best.max_difference,
        "merge_greedy_agreement": best.greedy_agreement,
        "merge_tokens_compared": best.tokens,
        "peak_memory_bytes": environment.peak_memory(),
    }
    folder.record["merge"] = {
        "base": chosen,
        "bases": {name: dataclasses.asdict(result) for name, result in results.items()},
        "compared_in": setup.compared.name,
        "dtype": str(setup.dtype).removeprefix("torch."),
        "adapters": [str(adapter.folder) for adapter in setup.adapters],
    }
    if len(results) > 1:
        facts = ", ".join(f"KL {result.kl:.3g} into the {name} ones" for name, result in results.items())
        folder.notes.append(f"merged into the {chosen} weights of the base: {facts}")
        console.warn(folder.notes[-1])
    if not best.kl <= config.merge.max_kl:
        rounded = ", as the quantised base also rounds what it computes" if setup.quantization else ""
        raise RunnerError(
            f"the merged model is not the adapter model: KL {best.kl:.3g} nats a token, more than "
            f"merge.max_kl={config.merge.max_kl:g}{rounded}; it was not kept"
        )
    return chosen


def _write_card(config: RunConfig, folder: RunFolder, setup: MergeSetup, model: Path) -> None:
    facts = card_facts(OBJECTIVES[setup.trained.recipe].tag, model)
    card = merged_card(config, folder.record, setup.adapters, facts)
    (model / "README.md").write_text(card, encoding="utf-8")


def _hand_over(config: RunConfig, folder: RunFolder, setup: MergeSetup, model: Path) -> None:
    """Export and publish the merged model, where that is asked for."""
    exported: list[Path] = []
    if config.export:
        from runner.export.api import export_model

        exported = export_model(config, folder, model)
        _write_card(config, folder, setup, model)  # which now names the files
    if config.push_to:
        from runner.runs.push_to_hub import publish

        publish(config, folder, model, exported)
