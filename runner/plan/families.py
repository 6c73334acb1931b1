"""Architectures of the usual dense decoders from the keys of ``config.json`` alone, without torch.

What a layer is made of is transformers' own (``models/KIND/modeling_KIND.py``); ``tests/plan`` counts every
family on torch's meta device. Defaults are those of ``configuration_KIND.py``, for keys that a file leaves
out. A kind that is not here, or has a key that changes its layers, is built (``runner.plan.built``).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from runner.plan.architecture import HEAD, Architecture, Linear
from runner.speed.pieces import AFTER_HEAD

Facts = Mapping[str, Any]


@dataclass(frozen=True)
class Family:
    """What the decoder layers of a ``model_type`` are made of, where it is not as in Llama.

    ``qkv_bias``, ``o_bias`` and ``mlp_bias`` are the key that says so, or a fixed answer. ``qk_norm`` is
    ``head`` for a weight of one head's width, ``all`` for one of all of them. ``norms`` are the names of the
    norms in a layer, each of the hidden size, none where norms have no weights.
    """

    qkv_bias: str | bool = "attention_bias"
    o_bias: str | bool = "attention_bias"
    mlp_bias: str | bool = False
    joined_qkv: bool = False
    joined_mlp: bool = False
    qk_norm: str = ""
    norms: tuple[str, ...] = ("input_layernorm", "post_attention_layernorm")
    final_norm: bool = True
    sublayer_norms: bool = False
    layer_norm: bool = False
    defaults: dict[str, Any] = field(default_factory=dict)


_FOUR = (
    "input_layernorm",
    "post_attention_layernorm",
    "pre_feedforward_layernorm",
    "post_feedforward_layernorm",
)
_WINDOW = {"sliding_window": 4096}
_FLAGGED = {**_WINDOW, "use_sliding_window": False}

FAMILIES = {
    "llama": Family(mlp_bias="mlp_bias"),
    "mistral": Family(False, False, defaults={"num_key_value_heads": 8, **_WINDOW}),
    "qwen2": Family(True, False, defaults={"num_key_value_heads": 32, **_FLAGGED}),
    "qwen3": Family(qk_norm="head", defaults={"head_dim": 128, "num_key_value_heads": 32, **_FLAGGED}),
    "smollm3": Family(
        mlp_bias="mlp_bias",
        defaults={"num_key_value_heads": 4, "tie_word_embeddings": True, "use_sliding_window": False},
    ),
    "granite": Family(mlp_bias="mlp_bias", defaults={"logits_scaling": 1.0}),
    "gemma": Family(defaults={"head_dim": 256, "num_key_value_heads": 16, "tie_word_embeddings": True}),
    "gemma2": Family(
        norms=_FOUR,
        sublayer_norms=True,
        defaults={
            "head_dim": 256,
            "num_key_value_heads": 4,
            "tie_word_embeddings": True,
            "final_logit_softcapping": 30.0,
            **_WINDOW,
        },
    ),
    "gemma3_text": Family(
        norms=_FOUR,
        sublayer_norms=True,
        qk_norm="head",
        defaults={"head_dim": 256, "num_key_value_heads": 4, "tie_word_embeddings": True, **_WINDOW},
    ),
    "phi3": Family(False, False, joined_qkv=True, joined_mlp=True),
    "olmo": Family(norms=(), final_norm=False, layer_norm=True),
    "olmo2": Family(qk_norm="all", norms=("post_attention_layernorm", "post_feedforward_layernorm")),
    "glm": Family(
        o_bias=False,
        joined_mlp=True,
        defaults={"attention_bias": True, "head_dim": 128, "num_key_value_heads": 2},
    ),
}

_NEEDED = ("hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size", "vocab_size")


def from_facts(facts: Facts) -> Architecture | None:
    """The architecture that a ``config.json`` describes; None where the model must be built to know it."""
    family = FAMILIES.get(str(facts.get("model_type")))
    sizes = [facts.get(key) for key in _NEEDED]
    if family is None or not all(isinstance(size, int) and size > 0 for size in sizes):
        return None
    given = {key: value for key, value in facts.items() if value is not None or key == "sliding_window"}
    known = {**family.defaults, **given}  # null is no window, and of other keys the class's own
    hidden, layers, heads = (int(known[key]) for key in _NEEDED[:3])
    kv_heads = int(known.get("num_key_value_heads") or heads)
    head_dim = int(known.get("head_dim") or hidden // heads)
    return Architecture(
        kind=str(facts["model_type"]),
        hidden=hidden,
        layers=layers,
        heads=heads,
        kv_heads=kv_heads,
        head_dim=head_dim,
        intermediate=int(known["intermediate_size"]),
        vocabulary=int(known["vocab_size"]),
        positions=int(known.get("max_position_embeddings") or 2**31),
        tied=bool(known.get("tie_word_embeddings", False)),
        linears=(
            *(
                each
                for number in range(layers)
                for each in _linears(family, known, number, head_dim, kv_heads)
            ),
            Linear(HEAD, hidden, int(known["vocab_size"])),
        ),
        embeddings={"model.embed_tokens": (int(known["vocab_size"]), hidden)},
        norms=dict(_norms(family, hidden, layers, head_dim, heads, kv_heads)),
        qk_norm=bool(family.qk_norm),
        sublayer_norms=family.sublayer_norms,
        layer_norm=family.layer_norm,
        causal=attends_to_all(known),
        after_head=tuple(key for key in AFTER_HEAD if known.get(key)),
        quantization=dict(facts.get("quantization_config") or {}),
        facts=facts,
    )


def attends_to_all(facts: Facts) -> bool:
    """Whether every layer attends to all tokens before it, as ``runner.speed.layers.causal_only`` finds."""
    kinds = set(facts.get("layer_types") or ["full_attention"])
    return kinds == {"full_attention"} and not (
        facts.get("sliding_window") and facts.get("use_sliding_window", True)
    )


def _linears(family: Family, facts: Facts, number: int, head_dim: int, kv_heads: int) -> Iterator[Linear]:
    def has(bias: str | bool) -> bool:
        return bool(facts.get(bias, False)) if isinstance(bias, str) else bias

    hidden, inner = int(facts["hidden_size"]), int(facts["intermediate_size"])
    queries, values = int(facts["num_attention_heads"]) * head_dim, kv_heads * head_dim
    attention, mlp = f"model.layers.{number}.self_attn", f"model.layers.{number}.mlp"
    if family.joined_qkv:
        yield Linear(f"{attention}.qkv_proj", hidden, queries + 2 * values, has(family.qkv_bias))
    else:
        for name, width in (("q_proj", queries), ("k_proj", values), ("v_proj", values)):
            yield Linear(f"{attention}.{name}", hidden, width, has(family.qkv_bias))
    yield Linear(f"{attention}.o_proj", queries, hidden, has(family.o_bias))
    if family.joined_mlp:
        yield Linear(f"{mlp}.gate_up_proj", hidden, 2 * inner, has(family.mlp_bias))
    else:
        for name in ("gate_proj", "up_proj"):
            yield Linear(f"{mlp}.{name}", hidden, inner, has(family.mlp_bias))
    yield Linear(f"{mlp}.down_proj", inner, hidden, has(family.mlp_bias))


def _norms(
    family: Family, hidden: int, layers: int, head_dim: int, heads: int, kv_heads: int
) -> Iterator[tuple[str, int]]:
    for number in range(layers):
        for name in family.norms:
            yield f"model.layers.{number}.{name}.weight", hidden
        if family.qk_norm:
            for name, count in (("q_norm", heads), ("k_norm", kv_heads)):
                width = head_dim * (count if family.qk_norm == "all" else 1)
                yield f"model.layers.{number}.self_attn.{name}.weight", width
    if family.final_norm:
        yield "model.norm.weight", hidden
