"""Tiny Qwen-1 and ChatGLM3 checkpoints as they are published, and what those architectures compute of them.

Names, shapes and files are those of the published checkpoints; the references are written from the published
descriptions (arXiv:2309.16609, arXiv:2406.12793), in float64 and without transformers.
"""

from __future__ import annotations

import base64
import json
import math
import re
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import sentencepiece
import torch
from safetensors.torch import save_file
from torch.nn.functional import silu, softmax

from helpers.paths import ROOT

HIDDEN, HEADS, GROUPS, WIDTH, INNER, LAYERS = 64, 4, 2, 16, 96, 2
TEXT = (ROOT / "README.md").read_text(encoding="utf-8") + "你好，世界！请用中文回答。" * 20
State = dict[str, torch.Tensor]

QWEN = {
    "architectures": ["QWenLMHeadModel"],
    "auto_map": {
        "AutoConfig": "configuration_qwen.QWenConfig",
        "AutoModelForCausalLM": "modeling_qwen.QWenLMHeadModel",
    },
    "model_type": "qwen",
    "hidden_size": HIDDEN,
    "intermediate_size": 2 * INNER,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": HEADS,
    "kv_channels": WIDTH,
    "vocab_size": 640,
    "seq_length": 512,
    "max_position_embeddings": 2048,
    "layer_norm_epsilon": 1e-6,
    "rotary_emb_base": 10000,
    "rotary_pct": 1.0,
    "no_bias": True,
    "scale_attn_weights": True,
    "use_dynamic_ntk": True,
    "use_logn_attn": True,
    "tie_word_embeddings": False,
    "tokenizer_class": "QWenTokenizer",
}
CHATGLM = {
    "architectures": ["ChatGLMModel"],
    "auto_map": {
        "AutoConfig": "configuration_chatglm.ChatGLMConfig",
        "AutoModel": "modeling_chatglm.ChatGLMForConditionalGeneration",
    },
    "model_type": "chatglm",
    "add_bias_linear": False,
    "add_qkv_bias": True,
    "apply_query_key_layer_scaling": True,
    "apply_residual_connection_post_layernorm": False,
    "ffn_hidden_size": INNER,
    "hidden_size": HIDDEN,
    "kv_channels": WIDTH,
    "layernorm_epsilon": 1e-5,
    "multi_query_attention": True,
    "multi_query_group_num": GROUPS,
    "num_attention_heads": HEADS,
    "num_layers": LAYERS,
    "original_rope": True,
    "padded_vocab_size": 640,
    "post_layer_norm": True,
    "rmsnorm": True,
    "seq_length": 512,
    "tie_word_embeddings": False,
    "eos_token_id": 2,
    "pad_token_id": 0,
}


def _drawn(shapes: dict[str, tuple[int, ...]]) -> State:
    """Weights large enough that a wrong order of them shows in the logits."""
    made = torch.Generator().manual_seed(0)
    return {
        name: torch.randn(shape, generator=made) * (0.2 if len(shape) > 1 else 0.5) + (len(shape) == 1)
        for name, shape in shapes.items()
    }


def qwen_state() -> State:
    layer = {
        "ln_1.weight": (HIDDEN,),
        "attn.c_attn.weight": (3 * HIDDEN, HIDDEN),
        "attn.c_attn.bias": (3 * HIDDEN,),
        "attn.c_proj.weight": (HIDDEN, HIDDEN),
        "ln_2.weight": (HIDDEN,),
        "mlp.w1.weight": (INNER, HIDDEN),
        "mlp.w2.weight": (INNER, HIDDEN),
        "mlp.c_proj.weight": (HIDDEN, INNER),
    }
    return _drawn(
        {
            "transformer.wte.weight": (QWEN["vocab_size"], HIDDEN),
            **{f"transformer.h.{n}.{name}": shape for n in range(LAYERS) for name, shape in layer.items()},
            "transformer.ln_f.weight": (HIDDEN,),
            "lm_head.weight": (QWEN["vocab_size"], HIDDEN),
        }
    )


def chatglm_state() -> State:
    joined = (HEADS + 2 * GROUPS) * WIDTH
    layer = {
        "input_layernorm.weight": (HIDDEN,),
        "self_attention.query_key_value.weight": (joined, HIDDEN),
        "self_attention.query_key_value.bias": (joined,),
        "self_attention.dense.weight": (HIDDEN, HEADS * WIDTH),
        "post_attention_layernorm.weight": (HIDDEN,),
        "mlp.dense_h_to_4h.weight": (2 * INNER, HIDDEN),
        "mlp.dense_4h_to_h.weight": (HIDDEN, INNER),
    }
    rows = (CHATGLM["padded_vocab_size"], HIDDEN)
    drawn = _drawn(
        {
            "transformer.embedding.word_embeddings.weight": rows,
            **{
                f"transformer.encoder.layers.{n}.{name}": shape
                for n in range(LAYERS)
                for name, shape in layer.items()
            },
            "transformer.encoder.final_layernorm.weight": (HIDDEN,),
            "transformer.output_layer.weight": rows,
        }
    )
    half = WIDTH // 2
    table = 1 / 10000 ** (torch.arange(0, half, 2).float() / half)
    return drawn | {"transformer.rotary_pos_emb.inv_freq": table}


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


def train_ranks(text: str, merges: int) -> dict[bytes, int]:
    """Byte pairs as tiktoken has them: every byte, then what is most often side by side in words."""
    words = Counter(tuple(bytes([byte]) for byte in word.encode()) for word in re.findall(r"\s?\S+", text))
    ranks = {bytes([byte]): byte for byte in range(256)}
    for _ in range(merges):
        pairs = Counter[tuple[bytes, bytes]]()
        for word, times in words.items():
            for pair in zip(word, word[1:], strict=False):
                pairs[pair] += times
        best = max(pairs, key=lambda pair: (pairs[pair], pair))
        ranks[b"".join(best)] = len(ranks)
        words = Counter({_merged(word, best): times for word, times in words.items()})
    return ranks


def _merged(word: tuple[bytes, ...], pair: tuple[bytes, bytes]) -> tuple[bytes, ...]:
    found: list[bytes] = []
    at = 0
    while at < len(word):
        both = word[at : at + 2] == pair
        found.append(b"".join(pair) if both else word[at])
        at += 2 if both else 1
    return tuple(found)


def write_pieces(file: Path, **options: Any) -> None:
    """A SentencePiece model of 420 byte pairs, as ChatGLM3's is: bytes for what it lacks, text as it is."""
    given = {
        "model_type": "bpe",
        "vocab_size": 420,
        "byte_fallback": True,
        "character_coverage": 0.99,
        "normalization_rule_name": "identity",
        "remove_extra_whitespaces": False,
        "minloglevel": 2,
    }
    lines = iter(TEXT.splitlines())
    with file.open("wb") as target:
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=lines, model_writer=target, **(given | options)
        )


def write_qwen(folder: Path, save: Callable[[State, Path], None] | None = None, **changes: Any) -> Path:
    """A Qwen-1 checkpoint; ``changes`` to its config, None to leave a key out."""
    _write(folder, QWEN | changes, qwen_state(), save or save_sharded)
    lines = [f"{base64.b64encode(token).decode()} {rank}\n" for token, rank in train_ranks(TEXT, 150).items()]
    (folder / "qwen.tiktoken").write_text("".join(lines))
    (folder / "generation_config.json").write_text(json.dumps({"chat_format": "chatml"}))
    (folder / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "QWenTokenizer"}))
    return folder


def write_chatglm(folder: Path, save: Callable[[State, Path], None] | None = None, **changes: Any) -> Path:
    """A ChatGLM3 checkpoint; ``changes`` to its config, None to leave a key out."""
    _write(folder, CHATGLM | changes, chatglm_state(), save or save_pickled)
    write_pieces(folder / "tokenizer.model")
    (folder / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "ChatGLMTokenizer"}))
    roles = '["<|system|>", "<|user|>", "<|assistant|>", "<|observation|>"]'
    (folder / "tokenization_chatglm.py").write_text(f"raise SystemExit('run')\nROLES = {roles}\n")
    return folder


def _write(folder: Path, config: dict[str, Any], state: State, save: Callable[[State, Path], None]) -> None:
    folder.mkdir(parents=True)
    kept = {key: value for key, value in config.items() if value is not None}
    (folder / "config.json").write_text(json.dumps(kept))
    save(state, folder)


def save_sharded(state: State, folder: Path) -> None:
    """Two files of safetensors with an index."""
    _sharded(state, folder, "model", "safetensors", save_file)


def save_pickled(state: State, folder: Path) -> None:
    """Two pickled files with an index."""
    _sharded(state, folder, "pytorch_model", "bin", torch.save)


def save_single(state: State, folder: Path) -> None:
    """One pickled file, in the format of torch before 1.6."""
    torch.save(state, folder / "pytorch_model.bin", _use_new_zipfile_serialization=False)


def _sharded(state: State, folder: Path, stem: str, ending: str, save: Callable[..., None]) -> None:
    names = list(state)
    halves = {f"{stem}-0000{n}-of-00002.{ending}": names[n - 1 :: 2] for n in (1, 2)}
    for file, part in halves.items():
        save({name: state[name] for name in part}, folder / file)
    index = {name: file for file, part in halves.items() for name in part}
    (folder / f"{stem}.{ending}.index.json").write_text(json.dumps({"weight_map": index}))
