"""A byte-level BPE tokenizer as a GGUF file holds it: its tokens, merges, special tokens and template."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

from gguf import GGUFWriter, TokenType

# How Qwen2 and Llama 3 cut text before merging; they differ in how many digits may stand together.
_WORDS = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|%s| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
# The file names a way of cutting, which the program that reads it must know.
_SPLITTERS = {
    (("ByteLevel", True),): "gpt-2",
    (("Digits", True), ("ByteLevel", True)): "smollm",
    (("Split", _WORDS % r"\p{N}"), ("ByteLevel", False)): "qwen2",
    (("Split", _WORDS % r"\p{N}{1,3}"), ("ByteLevel", False)): "llama-bpe",
}


def obstacles(tokenizer: Any, vocab_size: int) -> Iterator[str]:
    """What of a tokenizer cannot be written into a GGUF file."""
    state = _state(tokenizer)
    if state is None or state["model"]["type"] != "BPE" or state["model"].get("byte_fallback"):
        yield "its tokenizer is not a byte-level BPE"
        return
    if _normalizers(state) - {"NFC"}:
        yield f"its tokenizer normalizes text before it splits it ({', '.join(sorted(_normalizers(state)))})"
    if splitter(tokenizer) is None:
        yield "its pre-tokenizer has no name in a GGUF file"
    if len(tokenizer) > vocab_size:
        yield f"its tokenizer has {len(tokenizer):,} tokens, the model only {vocab_size:,}"


def splitter(tokenizer: Any) -> str | None:
    """GGUF's name of the pre-tokenizer, which splits text before merging; None if it has none."""
    state = _state(tokenizer) or {}
    found = state.get("pre_tokenizer") or {}
    parts = found["pretokenizers"] if found.get("type") == "Sequence" else [found]
    if any(part.get("add_prefix_space") or part.get("invert") for part in parts):
        return None
    return _SPLITTERS.get(tuple(map(_part, parts)))


def add_tokenizer(writer: GGUFWriter, tokenizer: Any, vocab_size: int) -> None:
    """Write the vocabulary, filled up to the model's ``vocab_size``, the special tokens and the template."""
    names = {index: token for token, index in tokenizer.get_vocab().items()}
    added = tokenizer.added_tokens_decoder
    tokens, types = [], []
    for index in range(vocab_size):
        tokens.append(names.get(index, f"[PAD{index}]"))
        if index in added:
            types.append(TokenType.CONTROL if added[index].special else TokenType.USER_DEFINED)
        else:
            types.append(TokenType.NORMAL if index in names else TokenType.UNUSED)
    merges = [m if isinstance(m, str) else " ".join(m) for m in (_state(tokenizer) or {})["model"]["merges"]]
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(str(splitter(tokenizer)))
    writer.add_token_list(tokens)
    writer.add_token_types(types)
    if merges:
        writer.add_token_merges(merges)
    else:  # bytes only: there is no empty list in a file, and without merges readers look for scores
        writer.add_token_scores([0.0] * vocab_size)
    _add_special(writer, tokenizer)
    if tokenizer.chat_template:
        writer.add_chat_template(tokenizer.chat_template)


def _add_special(writer: GGUFWriter, tokenizer: Any) -> None:
    """Ids of the special tokens, and which of them are put around plain text."""
    ids = {
        writer.add_bos_token_id: tokenizer.bos_token_id,
        writer.add_eos_token_id: tokenizer.eos_token_id,
        writer.add_unk_token_id: tokenizer.unk_token_id,
        writer.add_pad_token_id: tokenizer.pad_token_id,
    }
    for add, index in ids.items():
        if index is not None:
            add(index)
    around = tokenizer("")["input_ids"]
    writer.add_add_bos_token(around[:1] == [tokenizer.bos_token_id])
    writer.add_add_eos_token(around[-1:] == [tokenizer.eos_token_id] and around != [tokenizer.bos_token_id])


def _state(tokenizer: Any) -> dict[str, Any] | None:
    backend = getattr(tokenizer, "backend_tokenizer", None)
    return json.loads(backend.to_str()) if backend is not None else None


def _normalizers(state: dict[str, Any]) -> set[str]:
    found = state.get("normalizer")
    parts = [] if not found else found["normalizers"] if found["type"] == "Sequence" else [found]
    return {part["type"] for part in parts}


def _part(part: dict[str, Any]) -> tuple[str, Any]:
    kind = str(part.get("type"))
    detail = {
        "ByteLevel": lambda: part.get("use_regex", True),
        "Digits": lambda: part["individual_digits"],
        "Split": lambda: part["pattern"].get("Regex") if part["behavior"] == "Isolated" else None,
    }
    return kind, detail.get(kind, lambda: None)()
