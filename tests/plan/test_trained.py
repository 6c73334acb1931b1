"""What an adapter adds and trains, counted from names alone, is what PEFT makes."""

import json
from typing import Any

import pytest

from helpers.paths import ROOT
from runner.plan.architecture import Architecture
from runner.plan.built import adapter_shapes
from runner.plan.families import from_facts
from runner.plan.trained import trained, with_score

LORA = {"_target_": "peft.LoraConfig", "r": 8, "target_modules": "all-linear"}
OPTIONS: dict[str, dict[str, Any]] = {
    "all-linear": {},
    "names": {"target_modules": ["q_proj", "v_proj", "mlp.down_proj"]},
    "a pattern": {"target_modules": r"model\.layers\.[12]\..*(q|up)_proj"},
    "attention": {"target_modules": "attention"},
    "excluded": {"exclude_modules": ["o_proj"]},
    "a pattern excluded": {"exclude_modules": r".*layers\.0\..*"},
    "ranks": {"rank_pattern": {"down_proj": 32, r"layers\.1\.self_attn\.q_proj": 2}},
    "layers": {"target_modules": ["q_proj"], "layers_to_transform": [0, 2]},
    "one layer": {"target_modules": ["q_proj"], "layers_to_transform": 1, "layers_pattern": "layers"},
    "dora": {"use_dora": True},
    "bias of lora": {"lora_bias": True},
    "biases": {"bias": "all"},
    "biases of its layers": {"bias": "lora_only", "target_modules": ["q_proj", "o_proj"]},
    "head saved": {"modules_to_save": ["lm_head"]},
    "embedding saved": {"modules_to_save": ["embed_tokens", "norm"]},
    "embedding": {"target_modules": ["embed_tokens", "q_proj"]},
}


def small(kind: str, **more: Any) -> Architecture:
    sizes = {"hidden_size": 96, "intermediate_size": 208, "num_hidden_layers": 3, "num_attention_heads": 6}
    facts = {"model_type": kind, **sizes, "num_key_value_heads": 2, "vocab_size": 300, "pad_token_id": 0}
    found = from_facts(facts | {"max_position_embeddings": 64} | more)
    assert found is not None
    return found


@pytest.mark.sampled(3)
@pytest.mark.parametrize("kind", ["qwen2", "phi3", "qwen3"])
@pytest.mark.parametrize("option", OPTIONS)
def test_as_peft(kind: str, option: str) -> None:
    if kind == "phi3" and option in ("names", "a pattern", "layers", "one layer", "embedding", "attention"):
        pytest.skip("its projections have other names")
    architecture, lora = small(kind), LORA | OPTIONS[option]
    found = trained(architecture, lora)
    added, copied, own, *_ = adapter_shapes(architecture, lora, None)
    assert sorted(found.added) == sorted(added)
    assert sorted(found.copied) == sorted(copied)
    assert sorted(found.own) == sorted(own)


def test_a_new_head_is_trained() -> None:
    architecture = with_score(small("qwen3"), 3)
    found = trained(architecture, LORA, 3)
    added, copied, *_ = adapter_shapes(architecture, LORA, 3)
    assert (sorted(found.added), sorted(found.copied)) == (sorted(added), sorted(copied))
    assert found.copied == ((3, 96),)


@pytest.mark.parametrize("name", ["adalora", "ia3", "prompt", "prefix", "ptuning", "dora", "pissa"])
def test_every_option_of_the_group(name: str) -> None:
    import yaml

    lora = yaml.safe_load((ROOT / "conf" / "lora" / f"{name}.yaml").read_text())
    facts = json.loads((ROOT / "runner/models/architectures/qwen3-0.6b.json").read_text())
    architecture = from_facts(facts | {"num_hidden_layers": 2, "vocab_size": 300})
    assert architecture is not None
    assert trained(architecture, lora).parameters > 0


def test_every_weight() -> None:
    architecture = small("qwen3", tie_word_embeddings=True)
    assert trained(architecture, {}).parameters == architecture.parameters
