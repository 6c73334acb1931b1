"""ChatGLM3-6B and its base model (``ChatGLMForConditionalGeneration``) as transformers' GLM.

Architecture: arXiv:2406.12793, and the published ``modeling_chatglm.py``. Queries, keys and values come from
one layer with biases, one after the other, with few groups of keys and values; rotary embeddings pair
neighbours in the first half of a head, as GLM's do; ``dense_h_to_4h`` is gate and up. A ``rope_ratio`` (the
32k and 128k models) multiplies the base of the rotary embedding.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from runner.core.errors import ConfigError, Issue
from runner.models.conversion.chat_templates import CHATGLM3
from runner.models.conversion.family import Family, PublishedConfig, rope
from runner.models.conversion.sentencepiece_file import sentencepiece_tokenizer

_ROTARY_BASE, _ROTARY_PART = 10000.0, 0.5  # fixed in the published code
_PREFIX = ("[gMASK]", "<sop>")
# Behind the pieces of tokenizer.model, in the order of their ids. "sop" and "eop" are published without
# brackets, and would be found in "philosophy"; here they are written as GLM-4 writes them.
_SPECIAL = (
    *("[MASK]", "[gMASK]", "[sMASK]", "<sop>", "<eop>"),
    *("<|system|>", "<|user|>", "<|assistant|>", "<|observation|>"),
)
_INSTEAD = "take model=chatglm3-6b, or a newer model: model=qwen3-8b, model.path=zai-org/glm-4-9b-chat-hf"
_LAYER, _NATIVE = "transformer.encoder.layers.{}.", "model.layers.{}."


def _facts(config: PublishedConfig) -> dict[str, Any]:
    values = config.values
    config.refuse_if(
        "position_encoding_2d" in values or "inner_hidden_size" in values,
        "is ChatGLM-6B of the first generation, whose attention and positions transformers has no class for",
    )
    config.refuse_if(
        bool(values.get("quantization_bit")),
        f"is quantised to {values.get('quantization_bit')} bits; its unquantised checkpoint can be converted",
    )
    config.refuse_if(bool(values.get("pre_seq_len")), "has a trained prefix (P-tuning), which is no weight")
    config.expect(
        rmsnorm=True,
        post_layer_norm=True,
        apply_residual_connection_post_layernorm=False,
        add_bias_linear=False,
        add_qkv_bias=True,
        multi_query_attention=True,
        tie_word_embeddings=False,
    )
    return {
        "model_type": "glm",
        "hidden_size": config.size("hidden_size"),
        "intermediate_size": config.size("ffn_hidden_size"),
        "num_hidden_layers": config.size("num_layers"),
        "num_attention_heads": config.size("num_attention_heads"),
        "num_key_value_heads": config.size("multi_query_group_num"),
        "head_dim": config.size("kv_channels"),
        "vocab_size": config.size("padded_vocab_size"),
        "max_position_embeddings": config.size("seq_length"),
        "hidden_act": "silu",
        "rms_norm_eps": config.number("layernorm_epsilon"),
        "rope_parameters": rope(
            _ROTARY_BASE * config.number("rope_ratio", 1.0), partial_rotary_factor=_ROTARY_PART
        ),
        "attention_bias": True,
        "tie_word_embeddings": False,
        "pad_token_id": None,  # a padded row of the embedding would not be trained
    }


def _tokenizer(folder: Path) -> Any:
    _check_generation(folder)
    return sentencepiece_tokenizer(
        folder / "tokenizer.model",
        _SPECIAL,
        prefix=_PREFIX,
        bos_token="<s>",
        eos_token="</s>",
        pad_token="<unk>",
        unk_token="<unk>",
        padding_side="left",
        chat_template=CHATGLM3,
    )


def _check_generation(folder: Path) -> None:
    """Refuse the generations before and after, whose ``config.json`` has the same keys.

    ChatGLM2 and CodeGeeX2 have the same pieces, too, but were trained without tokens for roles.
    """
    said = [folder / name for name in ("tokenizer_config.json", "tokenization_chatglm.py")]
    text = "".join(file.read_text(encoding="utf-8", errors="replace") for file in said if file.is_file())
    if "ChatGLM4Tokenizer" in text:
        message = "is a GLM-4 with code of its own, which is published for transformers, too"
        raise ConfigError(Issue(str(folder), message, "model.path=zai-org/glm-4-9b-chat-hf"))
    if _SPECIAL[-1] not in text:
        message = (
            f"neither {' nor '.join(file.name for file in said)} names {_SPECIAL[-1]}: this is a ChatGLM2 or "
            "CodeGeeX2, which was trained without tokens for roles"
        )
        raise ConfigError(Issue(str(folder), message, _INSTEAD))


CHATGLM = Family(
    facts=_facts,
    tensors={
        "transformer.embedding.word_embeddings.weight": ("model.embed_tokens.weight",),
        f"{_LAYER}input_layernorm.weight": (f"{_NATIVE}input_layernorm.weight",),
        **{
            f"{_LAYER}self_attention.query_key_value.{part}": tuple(
                f"{_NATIVE}self_attn.{name}_proj.{part}" for name in "qkv"
            )
            for part in ("weight", "bias")
        },
        f"{_LAYER}self_attention.dense.weight": (f"{_NATIVE}self_attn.o_proj.weight",),
        f"{_LAYER}post_attention_layernorm.weight": (f"{_NATIVE}post_attention_layernorm.weight",),
        f"{_LAYER}mlp.dense_h_to_4h.weight": (f"{_NATIVE}mlp.gate_up_proj.weight",),
        f"{_LAYER}mlp.dense_4h_to_h.weight": (f"{_NATIVE}mlp.down_proj.weight",),
        "transformer.encoder.final_layernorm.weight": ("model.norm.weight",),
        "transformer.output_layer.weight": ("lm_head.weight",),
    },
    rotary_base=lambda _: _ROTARY_BASE,
    tokenizer=_tokenizer,
    stops=("</s>", "<|user|>", "<|observation|>"),
    instead=_INSTEAD,
)
