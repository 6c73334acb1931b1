"""Architectures read from JSON are those that transformers builds, to the last parameter."""

import json
from typing import Any

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from helpers.paths import ROOT
from runner.plan.built import from_model, of_model
from runner.plan.families import FAMILIES, from_facts

FILES = sorted((ROOT / "runner" / "models" / "architectures").glob("*.json"))

# What a config.json of each family may say, and may leave out.
SMALL = {"hidden_size": 96, "intermediate_size": 208, "num_hidden_layers": 3, "num_attention_heads": 6}
WORDS = {"vocab_size": 300, "max_position_embeddings": 64, "pad_token_id": 0}
VARIANTS: list[dict[str, Any]] = [
    {"num_key_value_heads": 2},
    {"num_key_value_heads": 3, "attention_bias": True, "mlp_bias": True, "tie_word_embeddings": True},
    {"num_key_value_heads": 6, "attention_bias": False, "head_dim": 24, "tie_word_embeddings": False},
    {},  # every default of the class
]


def _built(facts: dict[str, Any]) -> tuple[Any, Any]:
    given = {key: value for key, value in facts.items() if not key.startswith("_")}
    config = AutoConfig.for_model(given.pop("model_type"), **given)
    with torch.device("meta"):
        return AutoModelForCausalLM.from_config(config), config


def _compare(facts: dict[str, Any]) -> None:
    model, config = _built(facts)
    found, exact = from_facts(facts), of_model(model, config)
    assert found is not None
    assert found.parameters == exact.parameters == sum(each.numel() for each in model.parameters())
    assert sorted(found.linears, key=str) == sorted(exact.linears, key=str)
    assert found.embeddings == exact.embeddings
    assert found.norms == exact.norms
    for name in ("hidden", "layers", "heads", "kv_heads", "intermediate", "vocabulary", "tied", "head"):
        assert getattr(found, name) == getattr(exact, name), name
    assert (found.causal, found.after_head) == (exact.causal, exact.after_head)


@pytest.mark.sampled(4)
@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_files_of_the_repository(file: Any) -> None:
    facts = json.loads(file.read_text())
    if facts["model_type"] in FAMILIES:
        _compare(facts)
        return
    model, _ = _built(facts)
    assert from_model(facts).parameters == sum(each.numel() for each in model.parameters())


@pytest.mark.sampled(3)
@pytest.mark.parametrize("kind", sorted(FAMILIES))
@pytest.mark.parametrize("variant", range(len(VARIANTS)))
def test_families(kind: str, variant: int) -> None:
    more = VARIANTS[variant]
    heads = {} if more else {"num_attention_heads": 32}  # what the defaults of kv heads divide
    if kind == "olmo2" and more.get("head_dim"):
        more = {key: value for key, value in more.items() if key != "head_dim"}  # it has none of its own
    _compare({"model_type": kind, **SMALL, **WORDS, **more, **heads})


def test_other_kinds_are_built() -> None:
    facts = {"model_type": "gpt2", "n_embd": 64, "n_layer": 2, "n_head": 4, "vocab_size": 300}
    assert from_facts(facts) is None
    model, _ = _built(facts)
    found = from_model(facts)
    assert found.parameters == sum(each.numel() for each in model.parameters())
    assert [each.short for each in found.linears[:2]] == ["c_attn", "c_proj"]


def test_heads_that_differ_from_layer_to_layer() -> None:
    facts = json.loads((FILES[0].parent / "gemma4-31b-it.json").read_text())
    found = from_model(facts)  # 50 layers have 16 heads of 256 for keys, 10 have 4 of 512
    assert (found.heads, found.kv_heads, found.head_dim) == (32, 16, 256)


def test_experts_are_counted() -> None:
    facts = {
        "model_type": "qwen3_moe",
        **SMALL,
        **WORDS,
        "num_key_value_heads": 2,
        "num_experts": 4,
        "moe_intermediate_size": 64,
    }
    model, _ = _built(facts)
    found = from_model(facts)
    assert found.experts
    assert found.parameters == sum(each.numel() for each in model.parameters())
