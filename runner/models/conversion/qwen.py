"""Qwen-1 (``QWenLMHeadModel``: Qwen-1.8B, 7B, 14B, 72B and their chat models) as transformers' Qwen2.

Architecture: arXiv:2309.16609, section 2.3. Queries, keys and values come from one layer with biases, one
after the other; the MLP is ``c_proj(w1(x) * silu(w2(x)))`` of half of ``intermediate_size``; rotary
embeddings pair the two halves of a head, as Qwen2's do. Dynamic NTK scaling and log-n attention, which act at
inference beyond ``seq_length`` tokens, are left out: the model has ``seq_length`` positions here.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from runner.models.check_files import read_object
from runner.models.conversion.chat_templates import qwen_template
from runner.models.conversion.family import Family, PublishedConfig, rope
from runner.models.conversion.tiktoken_file import qwen2_tokenizer

_END_OF_TEXT, _END_OF_TURN = "<|endoftext|>", "<|im_end|>"
_SPECIAL = (_END_OF_TEXT, "<|im_start|>", _END_OF_TURN, *(f"<|extra_{number}|>" for number in range(205)))
_LAYER, _NATIVE = "transformer.h.{}.", "model.layers.{}."


def _facts(config: PublishedConfig) -> dict[str, Any]:
    towers = [name for name in ("visual", "audio") if name in config.values]
    config.refuse_if(bool(towers), f"has a tower ({', '.join(towers)}), which cannot be converted")
    quantised = config.values.get("quantization_config")
    kind = quantised.get("quant_method") if isinstance(quantised, dict) else quantised
    config.refuse_if(
        quantised is not None,
        f"is quantised ({kind}); its unquantised checkpoint can be converted, and used with quantization=nf4",
    )
    config.refuse_if("n_embd" in config.values, "is of the first release, whose keys have other names")
    config.expect(no_bias=True, scale_attn_weights=True, rotary_pct=1.0, tie_word_embeddings=False)
    hidden, heads, inner = map(config.size, ("hidden_size", "num_attention_heads", "intermediate_size"))
    config.expect(kv_channels=hidden // heads)
    return {
        "model_type": "qwen2",
        "hidden_size": hidden,
        "intermediate_size": inner // 2,  # published as the width of gate and up together
        "num_hidden_layers": config.size("num_hidden_layers"),
        "num_attention_heads": heads,
        "num_key_value_heads": heads,
        "vocab_size": config.size("vocab_size"),
        "max_position_embeddings": config.size("seq_length"),
        "hidden_act": "silu",
        "rms_norm_eps": config.number("layer_norm_epsilon"),
        "rope_parameters": rope(config.number("rotary_emb_base")),
        "use_sliding_window": False,
        "tie_word_embeddings": False,
        "pad_token_id": None,  # a padded row of the embedding would not be trained
    }


def _tokenizer(folder: Path) -> Any:
    generation = folder / "generation_config.json"
    raw = generation.is_file() and read_object(generation).get("chat_format") == "raw"
    return qwen2_tokenizer(
        folder / "qwen.tiktoken",
        _SPECIAL,
        eos_token=_END_OF_TEXT if raw else _END_OF_TURN,  # of a base model, and of a chat model
        pad_token=_END_OF_TEXT,
        chat_template=qwen_template(),
    )


QWEN = Family(
    facts=_facts,
    tensors={
        "transformer.wte.weight": ("model.embed_tokens.weight",),
        f"{_LAYER}ln_1.weight": (f"{_NATIVE}input_layernorm.weight",),
        **{
            f"{_LAYER}attn.c_attn.{part}": tuple(f"{_NATIVE}self_attn.{name}_proj.{part}" for name in "qkv")
            for part in ("weight", "bias")
        },
        f"{_LAYER}attn.c_proj.weight": (f"{_NATIVE}self_attn.o_proj.weight",),
        f"{_LAYER}ln_2.weight": (f"{_NATIVE}post_attention_layernorm.weight",),
        f"{_LAYER}mlp.w1.weight": (f"{_NATIVE}mlp.up_proj.weight",),
        f"{_LAYER}mlp.w2.weight": (f"{_NATIVE}mlp.gate_proj.weight",),
        f"{_LAYER}mlp.c_proj.weight": (f"{_NATIVE}mlp.down_proj.weight",),
        "transformer.ln_f.weight": ("model.norm.weight",),
        "lm_head.weight": ("lm_head.weight",),
    },
    rotary_base=lambda published: float(published["rotary_emb_base"]),
    tokenizer=_tokenizer,
    stops=(_END_OF_TURN, _END_OF_TEXT),
    instead="newer models of this size: model=qwen2.5-7b-instruct, model=qwen3-8b",
)
