"""Checkpoints that were published with code of their own, converted to classes that transformers has."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from runner.core.atomic import sha256_of, sha256_of_files
from runner.core.errors import ConfigError, Issue
from runner.core.remembered import digest_of_files
from runner.models.check_files import check_files, read_object
from runner.models.conversion.chatglm import CHATGLM
from runner.models.conversion.family import Family
from runner.models.conversion.qwen import QWEN
from runner.models.conversion.tensors import check_frequencies, plan_cuts, stored_tensors, write_tensors
from runner.models.hub import weight_files

# By the model_type of the published config.json.
FAMILIES = {"qwen": QWEN, "chatglm": CHATGLM}
# Of what this module writes; a change of that makes converted models that are kept anew.
_VERSION = 1
# What decides a converted model beside its weights.
_OTHERS = ("config.json", "generation_config.json", "qwen.tiktoken", "tokenizer.model")


def native_facts(values: Mapping[str, Any], file: Path) -> Mapping[str, Any]:
    """The values of a ``config.json`` as transformers reads them: of a published checkpoint, those of the
    class that it is converted to. Raises ``ConfigError`` for a variant that cannot be converted."""
    family = _family(values)
    return values if family is None else family.native(values, str(file))


def is_published(folder: Path) -> bool:
    """Whether a model's folder holds a checkpoint that has to be converted."""
    try:
        return _family(read_object(folder / "config.json")) is not None
    except ConfigError:  # which is said, with what else is wrong, where the folder is read
        return False


def native_modules(published: str) -> list[str]:
    """What the modules whose published names end so are called in transformers' class; mostly none are."""
    found = {
        name.rpartition(".")[0].rpartition(".")[2]: None
        for family in FAMILIES.values()
        for source, names in family.tensors.items()
        if f".{source.rpartition('.')[0]}".endswith(f".{published}")
        for name in names
    }
    return list(found)


def published_digest(folder: Path) -> str:
    """Hexadecimal digits that are others for another checkpoint, or another way to convert it."""
    others = sha256_of_files(file for name in _OTHERS if (file := folder / name).is_file())
    weights = digest_of_files(weight_files(folder))
    return sha256_of(f"{_VERSION}\0{others}\0{weights}").removeprefix("sha256:")


def convert_published(source: Path, folder: Path) -> None:
    """Write the model of the checkpoint in ``source`` into a new ``folder``, in the checkpoint's own types.

    Everything is checked before a weight is read. Raises ``ConfigError`` for variants that cannot be
    converted, damaged or missing files, and tensors that are not those of the config.
    """
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM, GenerationConfig

    check_files(source, trust=True)  # of its config nothing but numbers is used
    values = read_object(source / "config.json")
    family = _family(values)
    assert family is not None
    facts = family.native(values, str(source / "config.json"))
    stored = stored_tensors(weight_files(source))
    config = AutoConfig.for_model(**facts)
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config)
    wanted = {name: tuple(value.shape) for name, value in model.state_dict().items()}
    plan = plan_cuts(family.tensors, config.num_hidden_layers, stored, wanted, source)
    check_frequencies(stored, family.rotary_base(values), source)
    tokenizer = family.tokenizer(source)
    if len(tokenizer) > config.vocab_size:
        message = f"its tokenizer has {len(tokenizer):,} tokens, and the embedding {config.vocab_size:,} rows"
        raise ConfigError(Issue(str(source), message, "the files of one checkpoint"))
    _check_room(source, folder)
    folder.mkdir()
    write_tensors(plan, stored, folder)
    config.bos_token_id = tokenizer.bos_token_id
    config.eos_token_id = tokenizer.convert_tokens_to_ids(list(family.stops))
    config.architectures = [type(model).__name__]
    config.dtype = stored[next(iter(plan))].dtype.removeprefix("torch.")
    config.save_pretrained(folder)
    GenerationConfig(
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=config.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    ).save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def _family(values: Mapping[str, Any]) -> Family | None:
    return FAMILIES.get(str(values.get("model_type")))


def _check_room(source: Path, folder: Path) -> None:
    """A converted model is as large as its checkpoint."""
    needed = sum(file.stat().st_size for file in weight_files(source))
    free = shutil.disk_usage(folder.parent).free
    if free < needed:
        message = f"{source.name} is converted once, for which {needed / 2**30:.1f} GiB are needed"
        where = f"{folder.parents[1]} has {free / 2**30:.1f} GiB left; RUNNER_CACHE=FOLDER moves the cache"
        raise ConfigError(Issue("model.path", message, where))
