"""A tiny model as a folder of files, for tests that put something into it."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM

from runner.config.settings import ModelSettings
from runner.models.model import byte_tokenizer, find_base, load_model

TINY_MODEL = ModelSettings(weights="random", architecture="tiny")


def tiny_base(seed: int = 0) -> torch.nn.Module:
    """The tiny architecture with weights drawn from ``seed``, in float32: where a run of ``TINY`` starts."""
    return load_model(find_base(TINY_MODEL), None, torch.float32, seed)


def write_model(folder: Path, seed: int = 0) -> Path:
    """That model as a folder: safetensors, and its tokenizer."""
    tiny_base(seed).save_pretrained(folder)
    find_base(TINY_MODEL).tokenizer.save_pretrained(folder)
    return folder


def copy(folder: Path, target: Path) -> Path:
    """A copy of a folder, to be changed."""
    return Path(shutil.copytree(folder, target))


def using(folder: Path) -> tuple[str, ...]:
    """The words that train on a model's folder."""
    return ("model=tiny", "model.weights=pretrained", "model.architecture=null", f"model.path={folder}")


SHAPE = {
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "vocab_size": 320,
    "max_position_embeddings": 512,
    "tie_word_embeddings": False,
}


def random_model(folder: Path, model_type: str, **shape: object) -> Path:
    """A folder with weights large enough that a wrong order of them shows in the logits."""
    torch.manual_seed(0)
    config = AutoConfig.for_model(model_type, **{**SHAPE, "initializer_range": 0.2, **shape})
    model = AutoModelForCausalLM.from_config(config)
    for name, parameter in model.named_parameters():
        if name.endswith(("bias", "norm.weight")):
            torch.nn.init.normal_(parameter, 1.0, 0.3)
    model.save_pretrained(folder)
    byte_tokenizer().save_pretrained(folder)
    return folder


_BASE = {**SHAPE, "max_position_embeddings": 2048, "pad_token_id": 0}
_EXPERTS = {
    "num_experts": 4,
    "num_local_experts": 4,
    "n_routed_experts": 4,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 32,
    "shared_expert_intermediate_size": 32,
    "n_group": 1,
    "topk_group": 1,
    "first_k_dense_replace": 1,
}
_MAMBA = {
    "mamba_d_state": 8,
    "mamba_n_heads": 8,
    "mamba_d_head": 16,
    "mamba_n_groups": 1,
    "mamba_expand": 2,
    "mamba_chunk_size": 16,
}
_LATENT = {
    "kv_lora_rank": 16,
    "q_lora_rank": 16,
    "qk_nope_head_dim": 16,
    "qk_rope_head_dim": 8,
    "v_head_dim": 16,
    "head_dim": 8,
    "num_key_value_heads": 4,
}
_DELTA = {
    "layer_types": ["linear_attention", "full_attention"],
    "linear_num_value_heads": 4,
    "linear_num_key_heads": 2,
    "linear_key_head_dim": 16,
    "linear_value_head_dim": 16,
}

_TIED = {"tie_word_embeddings": True}
_SLIDING = {"layer_types": ["sliding_attention", "full_attention"], "sliding_window": 8}

# By model type, behind a dash what is told of it. Those of conf/model are among them.
KINDS: dict[str, dict[str, Any]] = {
    "llama": {},
    "mistral": {"sliding_window": None},
    "qwen2": {},
    "qwen3": {},
    "smollm3": {},
    "phi3": {},
    "glm": {"partial_rotary_factor": 0.5},
    "olmo3": _SLIDING,
    "gpt2": {
        "n_embd": 64,
        "n_layer": 2,
        "n_head": 4,
        "n_positions": 2048,
        **dict.fromkeys(("attn_pdrop", "resid_pdrop", "embd_pdrop"), 0.0),
    },
    "gemma3_text": {**_TIED, **_SLIDING, "query_pre_attn_scalar": 16},
    "gemma3": {},
    "gemma4": {},
    "gemma4-experts": {
        "enable_moe_block": True,
        "num_experts": 4,
        "top_k_experts": 2,
        "moe_intermediate_size": 32,
    },
    "qwen3_moe": _EXPERTS,
    "qwen3_next": _EXPERTS | _DELTA,
    "qwen3_5_text": _DELTA,
    "qwen3_5_moe_text": _EXPERTS | _DELTA,
    "gpt_oss": _EXPERTS,
    "llama4_text": {**_EXPERTS, "intermediate_size_mlp": 64, "moe_layers": [1]},
    "deepseek_v3": _EXPERTS | _LATENT,
    "glm4_moe_lite": _EXPERTS | _LATENT,
    "hunyuan_v1_moe": _EXPERTS,
    "granitemoehybrid": {
        **_MAMBA,
        "num_local_experts": 4,  # and no num_experts
        "num_experts_per_tok": 2,
        "layer_types": ["mamba", "attention"],
        "shared_intermediate_size": 32,
    },
    "granitemoehybrid-mamba": {
        **(_TIED | _MAMBA),
        "num_local_experts": 0,
        "num_experts_per_tok": 0,
        "layer_types": ["mamba", "attention"],
        "shared_intermediate_size": 96,
    },
    "granitemoehybrid-dense": {
        **_TIED,
        "num_local_experts": 0,
        "num_experts_per_tok": 0,
        "layer_types": ["attention", "attention"],
        "shared_intermediate_size": 96,
        "position_embedding_type": "rope",
    },
    "falcon_h1": {**_MAMBA, "mamba_d_ssm": 128},
    "nemotron_h": {
        "layers_block_type": ["mamba", "attention"],
        "mamba_num_heads": 8,
        "mamba_head_dim": 16,
        "ssm_state_size": 8,
        "n_groups": 1,
        "chunk_size": 16,
    },
    "lfm2": {**_TIED, "layer_types": ["conv", "full_attention"], "block_auto_adjust_ff_dim": False},
    "lfm2_moe": {**_EXPERTS, "layer_types": ["conv", "full_attention"], "num_dense_layers": 1},
}
_TOWER = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "position_embedding_size": 16,
}
_TEXTS = {
    "gemma3": {**_TIED, "query_pre_attn_scalar": 16, **_SLIDING},
    "gemma4": {
        **_TIED,
        **_SLIDING,
        "global_head_dim": 16,
        "hidden_size_per_layer_input": 16,
        "vocab_size_per_layer_input": 320,
        "num_kv_shared_layers": 0,
    },
}


def config_of(kind: str) -> Any:
    """The small config of a kind; ``gemma3`` and ``gemma4`` are those with towers."""
    model_type = kind.partition("-")[0]
    if model_type not in _TEXTS:
        return AutoConfig.for_model(model_type, **(_BASE | KINDS[kind]))
    text = {**_BASE, **_TEXTS[model_type], **KINDS[kind]}
    towers = {"text_config": text, "vision_config": _TOWER}
    return AutoConfig.for_model(model_type, **towers, **_TIED, pad_token_id=0)


def build(kind: str, device: str = "cpu") -> Any:
    """A model of a kind with weights drawn from seed 0, or without on ``meta``."""
    torch.manual_seed(0)
    with torch.device(device):
        return AutoModelForCausalLM.from_config(config_of(kind))


def prompt_logits(model: torch.nn.Module) -> torch.Tensor:
    model.eval()
    with torch.inference_mode():
        return model(input_ids=torch.arange(3, 67, device=model.device)[None]).logits.cpu()
