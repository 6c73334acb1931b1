"""What a merge needs before weights are loaded, and every config error that can be found by then."""

from __future__ import annotations

import dataclasses
import math
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from runner.config.adapters import Adapter, adapters
from runner.config.objective import Kind, Objectives
from runner.config.settings import RunConfig
from runner.core import environment
from runner.core.errors import ConfigError, Issue
from runner.data.chat_template_check import apply_template
from runner.export.combine import check_combination, parts
from runner.export.merge import Skeleton
from runner.export.shards import Layout, plan_shards, total_bytes
from runner.export.tensors import CheckpointTensors
from runner.models.base_digest import base_identity
from runner.models.build import quantization_config
from runner.models.check_fp8 import check_machine
from runner.models.check_loading import check_loading
from runner.models.model import Base, Precision, choose_precision, find_base

# The training run's own keys of trainer that decide the numbers its model computes.
_AS_TRAINED = ("precision", "bf16", "fp16", "max_length")


@dataclass
class MergeSetup:
    """The checked parts of a merge.

    ``trained`` is the config with the recipe and number formats of the training run, ``kind`` what
    its examples are. ``precision`` is that
    run's; ``compared`` is the one in which both models are compared. ``own`` is the type of the base,
    ``dtype`` that of the merged ones. ``streamed`` says that the base's files can be read tensor by tensor;
    ``classes`` are the outputs of the adapters' own head.
    """

    adapters: list[Adapter]
    trained: RunConfig
    kind: Kind
    base: Base
    identity: dict[str, Any]
    precision: Precision
    compared: Precision
    quantization: Any
    classes: list[str] | None
    own: torch.dtype
    dtype: torch.dtype
    device: torch.device
    streamed: bool
    notes: list[str]

    @property
    def bases(self) -> list[str]:
        """The weights that an adapter may be merged into: which of them fit it better is measured."""
        return ["dequantised", "original"] if self.quantization else ["original"]


def check_merge(config: RunConfig, objectives: Objectives, folder: Path) -> MergeSetup:
    """Check a merge whose result goes into ``folder``; ``objectives`` are those of the training recipes.

    Raises ``ConfigError``.
    """
    found = adapters(config)
    check_combination(config.merge, found)
    plan_shards({}, config.merge.max_shard_size)
    check_machine(config)
    base = find_base(config.model)
    template_notes = apply_template(base.tokenizer, config.template)
    _check_later_steps(config, base)
    if getattr(base.config, "quantization_config", None) is not None:
        message = (
            f"the weights of {config.model.path} are quantised themselves, and cannot take in an adapter"
        )
        raise ConfigError(Issue("model.path", message, "name the model that they were made from"))
    trained = _as_trained(config, found[0], objectives)
    objective = objectives[trained.recipe]
    precision = choose_precision(trained)
    identity = base_identity(base, config.seed, precision.dtype)
    classes = _classes(found)
    notes = [*template_notes, *check_loading(config, base, identity, classes)]
    quantization = quantization_config(trained, precision, objective.task_type)
    own = _own_dtype(base, precision)
    dtype = own if config.merge.dtype == "auto" else getattr(torch, config.merge.dtype)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    skeleton = Skeleton(base, parts(found), classes, dtype, device)
    streamed = base.folder is None or skeleton.reads_from(CheckpointTensors(base.folder))
    if not streamed:
        notes.append("the base's files name its weights otherwise than its model: it is merged as a whole")
    layout = skeleton.layout()
    exact = quantization is None and _has_room(layout, device)
    setup = MergeSetup(
        adapters=found,
        trained=trained,
        kind=objective.kind,
        base=base,
        identity=identity,
        precision=precision,
        compared=Precision("fp32", torch.float32, None) if exact else precision,
        quantization=quantization,
        classes=classes,
        own=own,
        dtype=dtype,
        device=device,
        streamed=streamed,
        notes=notes,
    )
    _check_disk(folder, total_bytes(layout) * len(setup.bases))
    return setup


def _check_later_steps(config: RunConfig, base: Base) -> None:
    """What is to become of the merged model."""
    if config.export:
        from runner.export.api import check_export

        check_export(config, base)
    if config.push_to:
        from runner.runs.push_to_hub import check_publish

        check_publish(config)


def _check_disk(folder: Path, needed: int) -> None:
    free = shutil.disk_usage(folder).free
    if needed > free:
        message = f"the merged weights need {needed / 1e9:.2f} GB, the disk has {free / 1e9:.2f} GB free"
        raise ConfigError(Issue(f"output_dir={folder}", message, "name a folder on another disk"))


def _classes(found: list[Adapter]) -> list[str] | None:
    heads = [adapter.base.get("classes") for adapter in found]
    if any(head != heads[0] for head in heads):
        raise ConfigError(Issue("adapter", "these adapters were trained under different heads"))
    return heads[0]


def _as_trained(config: RunConfig, adapter: Adapter, objectives: Objectives) -> RunConfig:
    """A ``trainer.precision`` other than auto was given for this run, and stays."""
    made = adapter.sections
    recipe = made.get("recipe") if made.get("recipe") in objectives else "sft"
    taken = {key: value for key, value in (made.get("trainer") or {}).items() if key in _AS_TRAINED}
    if config.trainer.get("precision", "auto") != "auto":
        taken["precision"] = config.trainer["precision"]
    return dataclasses.replace(config, recipe=str(recipe), trainer={**config.trainer, **taken})


def _own_dtype(base: Base, precision: Precision) -> torch.dtype:
    """The type of the base's weights; random ones are drawn in that of the run."""
    if base.folder is None:
        return precision.dtype
    if isinstance(base.config.dtype, torch.dtype):
        return base.config.dtype
    stored = CheckpointTensors(base.folder)
    return stored[next(iter(stored))].dtype if stored else torch.float32


def _has_room(layout: Layout, device: torch.device) -> bool:
    """Whether the model fits twice in float32, in which rounding does not hide what the merge did."""
    numbers = sum(math.prod(shape) for _, shape in layout.values())
    cuda = device.type == "cuda"
    free = torch.cuda.mem_get_info(device)[0] if cuda else environment.available_memory()
    return 2 * 4 * numbers < free
