"""Tiny Qwen-1 and ChatGLM3 checkpoints with the names, shapes and files of the published ones."""

from __future__ import annotations

import base64
import json
import re
import shutil
from collections import Counter
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import sentencepiece
import torch
from safetensors.torch import save_file

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


def train_ranks(text: str, merges: int) -> dict[bytes, int]:
    """Byte pairs as tiktoken has them: every byte, then what is most often side by side in words."""
    words = Counter(tuple(bytes([byte]) for byte in word.encode()) for word in re.findall(r"\s?\S+", text))
    ranks = {bytes([byte]): byte for byte in range(256)}
    for _ in range(merges):
        pairs = Counter[tuple[bytes, bytes]]()
        for word, times in words.items():
            for pair in pairwise(word):
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


Save = Callable[[State, Path], None]


def write_qwen(
    folder: Path, save: Save | None = None, vocabulary: Path | None = None, **changes: Any
) -> Path:
    """A Qwen-1 checkpoint; ``changes`` to its config, None to leave a key out; its vocabulary of a folder."""
    _write(folder, QWEN | changes, qwen_state(), save or save_sharded)
    (folder / "generation_config.json").write_text(json.dumps({"chat_format": "chatml"}))
    (folder / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "QWenTokenizer"}))
    if vocabulary is not None:
        shutil.copy(vocabulary / "qwen.tiktoken", folder)
        return folder
    lines = [f"{base64.b64encode(token).decode()} {rank}\n" for token, rank in train_ranks(TEXT, 150).items()]
    (folder / "qwen.tiktoken").write_text("".join(lines))
    return folder


def write_chatglm(
    folder: Path, save: Save | None = None, vocabulary: Path | None = None, **changes: Any
) -> Path:
    """A ChatGLM3 checkpoint; ``changes`` to its config, None to leave a key out; its pieces of a folder."""
    _write(folder, CHATGLM | changes, chatglm_state(), save or save_pickled)
    (folder / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "ChatGLMTokenizer"}))
    roles = '["<|system|>", "<|user|>", "<|assistant|>", "<|observation|>"]'
    (folder / "tokenization_chatglm.py").write_text(f"raise SystemExit('run')\nROLES = {roles}\n")
    if vocabulary is not None:
        shutil.copy(vocabulary / "tokenizer.model", folder)
    else:
        write_pieces(folder / "tokenizer.model")
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
