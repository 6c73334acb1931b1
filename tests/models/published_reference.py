"""What Qwen-1 and ChatGLM3 compute, from their published descriptions, in float64 and without transformers.

arXiv:2309.16609, section 2.3, and arXiv:2406.12793; the names of tensors are those of the checkpoints.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from published import CHATGLM, GROUPS, HEADS, HIDDEN, LAYERS, QWEN, WIDTH, State
from torch.nn.functional import silu, softmax


def _norm(x: torch.Tensor, weight: torch.Tensor, eps: float) -> torch.Tensor:
    return x / (x.pow(2).mean(-1, keepdim=True) + eps).sqrt() * weight


def _attend(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
    """Causal attention of (tokens, heads, width), the keys and values repeated to all heads."""
    repeat = query.shape[1] // key.shape[1]
    key, value = key.repeat_interleave(repeat, 1), value.repeat_interleave(repeat, 1)
    scores = torch.einsum("qhw,khw->hqk", query, key) / math.sqrt(query.shape[-1])
    later = torch.ones(scores.shape[-2:], dtype=torch.bool).triu(1)
    weights = softmax(scores.masked_fill(later, -math.inf), -1)
    return torch.einsum("hqk,khw->qhw", weights, value).flatten(1)


def qwen_logits(state: State, ids: list[int], config: dict[str, Any] = QWEN) -> torch.Tensor:
    """Logits of Qwen-1 at inference, (tokens, vocabulary), with dynamic NTK and log-n attention."""
    w = {name: value.double() for name, value in state.items()}
    count, trained = len(ids), config["seq_length"]
    alpha = max(2 ** math.ceil(math.log2(count / trained) + 1) - 1, 1)
    base = config["rotary_emb_base"] * alpha ** (WIDTH / (WIDTH - 2))
    angle = torch.outer(torch.arange(count).double(), base ** -(torch.arange(0, WIDTH, 2).double() / WIDTH))[
        :, None
    ]
    logn = torch.tensor([max(1.0, math.log(n, trained)) for n in range(1, count + 1)]).double()

    def turn(x: torch.Tensor) -> torch.Tensor:
        first, second = x.chunk(2, -1)  # pairs are the two halves of a head
        return torch.cat(
            (
                first * angle.cos() - second * angle.sin(),
                second * angle.cos() + first * angle.sin(),
            ),
            -1,
        )

    x = w["transformer.wte.weight"][ids]
    for layer in (f"transformer.h.{n}." for n in range(LAYERS)):
        normed = _norm(x, w[f"{layer}ln_1.weight"], config["layer_norm_epsilon"])
        joined = normed @ w[f"{layer}attn.c_attn.weight"].T + w[f"{layer}attn.c_attn.bias"]
        query, key, value = (part.view(count, HEADS, WIDTH) for part in joined.split(HIDDEN, -1))
        query = turn(query) * (logn[:, None, None] if count > trained else 1)
        x = x + _attend(query, turn(key), value) @ w[f"{layer}attn.c_proj.weight"].T
        normed = _norm(x, w[f"{layer}ln_2.weight"], config["layer_norm_epsilon"])
        inner = (normed @ w[f"{layer}mlp.w1.weight"].T) * silu(normed @ w[f"{layer}mlp.w2.weight"].T)
        x = x + inner @ w[f"{layer}mlp.c_proj.weight"].T
    return _norm(x, w["transformer.ln_f.weight"], config["layer_norm_epsilon"]) @ w["lm_head.weight"].T


def chatglm_logits(state: State, ids: list[int], config: dict[str, Any] = CHATGLM) -> torch.Tensor:
    """Logits of ChatGLM3, (tokens, vocabulary)."""
    w = {name: value.double() for name, value in state.items()}
    count, half, eps = len(ids), WIDTH // 2, config["layernorm_epsilon"]
    base = 10000 * config.get("rope_ratio", 1)
    angle = torch.outer(torch.arange(count).double(), base ** -(torch.arange(0, half, 2).double() / half))[
        :, None
    ]

    def turn(x: torch.Tensor) -> torch.Tensor:
        rest, turned = x[..., half:], torch.empty_like(x[..., :half])
        even, odd = x[..., 0:half:2], x[..., 1:half:2]  # pairs are neighbours, in the first half of a head
        turned[..., 0::2] = even * angle.cos() - odd * angle.sin()
        turned[..., 1::2] = odd * angle.cos() + even * angle.sin()
        return torch.cat((turned, rest), -1)

    x = w["transformer.embedding.word_embeddings.weight"][ids]
    for layer in (f"transformer.encoder.layers.{n}." for n in range(LAYERS)):
        normed = _norm(x, w[f"{layer}input_layernorm.weight"], eps)
        joined = normed @ w[f"{layer}self_attention.query_key_value.weight"].T
        joined = joined + w[f"{layer}self_attention.query_key_value.bias"]
        query, key, value = (
            part.view(count, -1, WIDTH)
            for part in joined.split([HEADS * WIDTH, GROUPS * WIDTH, GROUPS * WIDTH], -1)
        )
        x = x + _attend(turn(query), turn(key), value) @ w[f"{layer}self_attention.dense.weight"].T
        normed = _norm(x, w[f"{layer}post_attention_layernorm.weight"], eps)
        gate, up = (normed @ w[f"{layer}mlp.dense_h_to_4h.weight"].T).chunk(2, -1)
        x = x + (silu(gate) * up) @ w[f"{layer}mlp.dense_4h_to_h.weight"].T
    x = _norm(x, w["transformer.encoder.final_layernorm.weight"], eps)
    return x @ w["transformer.output_layer.weight"].T
