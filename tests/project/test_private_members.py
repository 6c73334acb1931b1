"""Private members of the libraries that our code overrides or reads are where it expects them.

A library may rename them in any release. After an upgrade this says which member is gone, and which file of
ours needs it; the trainers would only train something else.
"""

from __future__ import annotations

import ast
import importlib
import inspect
import textwrap
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from transformers import Trainer

from runner.core.paths import PACKAGE

TRAINER = "transformers:Trainer"
# LIBRARY:OBJECT, and the members of it that we override, call or read.
MEMBERS = {
    TRAINER: (
        "_clip_grad_norm",
        "_get_eval_sampler",
        "_get_grad_norm",
        "_get_num_items_in_batch",
        "_get_train_sampler",
        "_globalstep_last_logged",
        "_load_best_model",
        "_load_from_checkpoint",
        "_load_optimizer_and_scheduler",
        "_load_rng_state",
        "_maybe_log_save_evaluate",
        "_run_epoch",
        "_save_checkpoint",
        "_set_signature_columns_if_needed",
        "_signature_columns",
        "_total_loss_scalar",
        "_tr_loss",
    ),
    "transformers:TrainingArguments": ("_n_gpu",),
    "transformers:PreTrainedModel": ("_keep_in_fp32_modules",),
    "transformers.quantizers.base:HfQuantizer": (
        "_process_model_after_weight_loading",
        "_process_model_before_weight_loading",
    ),
    "trl:SFTTrainer": ("_metrics", "_total_train_tokens", "_prepare_dataset"),
    "trl:DPOTrainer": ("_compute_loss", "_metrics", "_total_train_tokens", "_prepare_dataset"),
    "trl:KTOTrainer": ("_compute_kl_logps", "_metrics", "_total_train_tokens", "_prepare_dataset"),
    "trl.experimental.orpo:ORPOTrainer": ("_stored_metrics",),
    "trl:RewardTrainer": ("_metrics", "_total_train_tokens", "_prepare_dataset"),
    "peft.tuners.lora:LoraModel": ("_check_merge_allowed",),
    "bitsandbytes.nn:Linear4bit": ("support_avx512bf16_for_cpu",),
    "datasets:Dataset": ("_fingerprint",),
    "sacrebleu.metrics:CHRF": ("_compute_score_from_stats", "_extract_corpus_statistics"),
    "sacrebleu.metrics:BLEU": ("_compute_score_from_stats", "_extract_corpus_statistics"),
    "torch.nn:Module": ("_buffers", "_parameters"),
    "torch._C:_VariableFunctions": ("_scaled_mm",),
    "torch.utils:_pytree": ("tree_leaves", "tree_map_only"),
    "torch:cpu": ("_is_amx_tile_supported", "_is_avx512_bf16_supported"),
    "omegaconf:DictConfig": ("_get_node",),
    "omegaconf.base:Container": ("resolve_parse_tree",),
    "hydra._internal:hydra": ("Hydra",),
    "hydra._internal.config_loader_impl:ConfigLoaderImpl": (
        "_apply_overrides_to_config",
        "_load_configuration_impl",
        "_parse_overrides_and_create_caching_repo",
    ),
    "hydra._internal:config_loader_impl": ("ConfigLoaderImpl", "get_overrides_dirname"),
    "hydra._internal:config_repository": ("CachingConfigRepository",),
    "hydra._internal.core_plugins:file_config_source": ("FileConfigSource",),
    "hydra._internal:sources_registry": ("SourcesRegistry",),
    "hydra.plugins.config_source:ConfigSource": ("_get_header_dict", "_normalize_file_name"),
    "hydra._internal:utils": ("create_config_search_path", "get_args_parser"),
}
PAIRS = [(place, name) for place, names in MEMBERS.items() for name in names]


@pytest.mark.parametrize(("place", "name"), PAIRS, ids=[f"{place}.{name}" for place, name in PAIRS])
def test_the_library_still_has_the_member(place: str, name: str) -> None:
    module, _, thing = place.partition(":")
    owner = getattr(importlib.import_module(module), thing, None) or importlib.import_module(
        f"{module}.{thing}"
    )
    files = [str(file.relative_to(PACKAGE.parent)) for file, text in sources().items() if name in text]
    assert files, f"{name} is used nowhere any more: take it out of this table"
    there = hasattr(owner, name) or (inspect.isclass(owner) and name in assigned(owner))
    version = importlib.import_module(module.partition(".")[0]).__version__
    assert there, f"{module} {version} has no {thing}.{name}, on which {', '.join(files)} relies"


def test_the_table_names_every_private_member_that_a_trainer_overrides() -> None:
    known = {name for names in MEMBERS.values() for name in names}
    missing = [
        f"{kind.__module__}.{kind.__name__}.{name} overrides {base.__module__}.{base.__name__}"
        for kind in trainers()
        for name in vars(kind)
        if name.startswith("_") and not name.startswith("__") and name not in known
        for base in kind.__mro__
        if not base.__module__.startswith(("runner.", "recipes.")) and name in vars(base)
    ]
    assert missing == []


def test_the_table_names_every_private_thing_that_is_imported_or_called_on_a_base() -> None:
    known = {name for names in MEMBERS.values() for name in names}
    missing = [
        f"{file.relative_to(PACKAGE.parent)}: {name}"
        for file, text in sources().items()
        for name in private(ast.parse(text))
        if name not in known
    ]
    assert missing == []


@cache
def sources() -> dict[Path, str]:
    files = [*PACKAGE.rglob("*.py"), *(PACKAGE.parent / "recipes").rglob("*.py")]
    return {file: file.read_text(encoding="utf-8") for file in sorted(files)}


def trainers() -> list[type]:
    """The subclasses of the library's trainer in our files."""
    for file, text in sources().items():
        if "Trainer)" in text:
            importlib.import_module(".".join(file.relative_to(PACKAGE.parent).with_suffix("").parts))
    found, left = [], [Trainer]
    while left:
        kinds = left.pop().__subclasses__()
        left += kinds
        found += [kind for kind in kinds if kind.__module__.startswith(("runner.", "recipes."))]
    assert len(found) > 5
    return found


def private(tree: ast.AST) -> Iterator[str]:
    """Names from private modules of libraries, and private members called on ``super()``."""
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and "._" in (node.module or ""):
            yield from (alias.name for alias in node.names)
        on_base = isinstance(node, ast.Attribute) and ast.unparse(node.value) == "super()"
        if on_base and node.attr.startswith("_") and not node.attr.startswith("__"):
            yield node.attr


@cache
def assigned(kind: Any) -> set[str]:
    """The attributes that a class, or a base of it, sets on ``self`` or declares."""
    names = set()
    for base in kind.__mro__[:-1]:
        for node in ast.walk(ast.parse(textwrap.dedent(inspect.getsource(base)))):
            if isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store):
                names.add(node.attr)
            if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
                names.add(node.target.id)
    return names
