"""A tiny model as a GGUF file."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import gguf as gguf_library
import numpy as np


def write_gguf(path: Path, skip: Iterable[str] = (), poison: bool = False) -> Path:
    """A llama of two layers in Q8_0 with a byte-level tokenizer; ``skip`` leaves tensors out."""
    from tokenizers import pre_tokenizers

    random, q8 = np.random.default_rng(0), gguf_library.GGMLQuantizationType.Q8_0
    writer = gguf_library.GGUFWriter(path, "llama")
    writer.add_context_length(128)
    writer.add_embedding_length(32)
    writer.add_block_count(2)
    writer.add_feed_forward_length(64)
    writer.add_head_count(4)
    writer.add_head_count_kv(2)
    writer.add_rope_dimension_count(8)
    writer.add_rope_freq_base(10000.0)
    writer.add_layer_norm_rms_eps(1e-5)
    tokens = [*sorted(pre_tokenizers.ByteLevel.alphabet()), "ab", "cd", "<|im_start|>", "<|im_end|>"]
    writer.add_vocab_size(len(tokens))
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("smollm")
    writer.add_token_list(tokens)
    writer.add_token_types([1] * 258 + [3] * 2)
    writer.add_token_merges(["a b", "c d"])
    writer.add_bos_token_id(258)
    writer.add_eos_token_id(259)
    writer.add_pad_token_id(259)
    writer.add_chat_template("{% for message in messages %}{{ message['content'] }}{% endfor %}")
    shapes = {"token_embd": (len(tokens), 32), "output_norm": (32,)}
    for block in ("blk.0", "blk.1"):
        shapes |= {f"{block}.attn_q": (32, 32), f"{block}.attn_k": (16, 32), f"{block}.attn_v": (16, 32)}
        shapes |= {f"{block}.attn_output": (32, 32), f"{block}.ffn_gate": (64, 32)}
        shapes |= {f"{block}.ffn_up": (64, 32), f"{block}.ffn_down": (32, 64)}
        shapes |= {f"{block}.attn_norm": (32,), f"{block}.ffn_norm": (32,)}
    for name, shape in shapes.items():
        values = (random.standard_normal(shape) * 0.3).astype(np.float32)
        if name in skip:
            continue
        if len(shape) == 1:
            writer.add_tensor(f"{name}.weight", values + (np.nan if poison else 1))
        else:
            writer.add_tensor(f"{name}.weight", gguf_library.quantize(values, q8), raw_dtype=q8)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path
