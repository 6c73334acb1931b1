"""Verify a GGUF file: read it back through transformers and compare it with the model it was made of."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from runner.core.errors import RunnerError
from runner.evaluation.logit_kl import read_texts
from runner.export.gguf import architecture
from runner.export.gguf.tokenizer import splitter
from runner.models.conversion.gguf_file import correct, special_tokens
from runner.models.model import Precision, device

# What transformers reads from a file without loss; anything else of a config is not in the file, or not read.
_READ = (
    "hidden_size",
    "intermediate_size",
    "num_hidden_layers",
    "num_attention_heads",
    "num_key_value_heads",
    "rms_norm_eps",
    "max_position_embeddings",
    "tie_word_embeddings",
    "vocab_size",
)
_SAMPLE = "Ünïcode: 12 345,67 €, don't  stop!\n\n\tdef f(x):\r\n    return x**2  # 你好, мир 🙂\n"


def read_back(
    file: Path, config: Any, texts: list[list[int]], precision: Precision
) -> tuple[list[torch.Tensor], list[str]]:
    """Logits of the file's model as transformers reads it (``runner.evaluation.logit_kl.read_texts``), and
    warnings.

    ``config`` is that of the source. What transformers 5.23 does not read of these architectures is taken
    from it, with a warning: the scaling of the rotary embedding, the size of a head where it is not the usual
    one, and whether there are biases. Raises ``RunnerError`` if more differs, or a weight is missing.
    """
    from transformers import AutoConfig, AutoModelForCausalLM, GgufConfig, logging

    logging.disable_progress_bar()

    found = AutoConfig.from_pretrained(file.parent, gguf_file=file.name)
    wrong = [key for key in _READ if not _same(getattr(found, key), getattr(config, key))]
    if wrong or not _same(found.rope_parameters["rope_theta"], config.rope_parameters["rope_theta"]):
        raise RunnerError(
            f"{file.name} differs from the model's config in {', '.join(wrong) or 'rope_theta'}"
        )
    notes = _complete(found, config)
    loaded: Any = AutoModelForCausalLM.from_pretrained(
        file.parent,
        gguf_file=file.name,
        config=found,
        dtype=precision.dtype,
        quantization_config=GgufConfig(dequantize=True),
        output_loading_info=True,
    )
    model, report = loaded
    if missing := sorted(report["missing_keys"]):  # the library has drawn them at random
        raise RunnerError(f"{len(missing)} tensors are missing in {file.name}, among them {missing[0]}")
    return read_texts(model.to(device()), texts, precision), notes


def _complete(found: Any, config: Any) -> list[str]:
    """Give a config that was read from a file what transformers left out, and say what that is."""
    facts = {
        "the size of a head": (architecture.head_dim(found), architecture.head_dim(config)),
        "the scaling of the rotary embedding": (
            found.rope_parameters["rope_type"],
            config.rope_parameters["rope_type"],
        ),
    }
    found.head_dim = architecture.head_dim(config)
    found.rope_parameters = config.rope_parameters
    for key, label in (("attention_bias", "biases of attention"), ("mlp_bias", "biases of the MLP")):
        if hasattr(config, key):
            facts[label] = getattr(found, key, False), getattr(config, key)
            setattr(found, key, getattr(config, key))
    left_out = ", ".join(label for label, (found, expected) in facts.items() if found != expected)
    return (
        [f"transformers does not read {left_out}, which the comparison took from the model"]
        if left_out
        else []
    )


def check_tokenizer(file: Path, source: Any, texts: list[list[int]]) -> list[str]:
    """Compare the file's tokenizer, as transformers reads it, with the ``source`` tokenizer; warnings.

    Raises ``RunnerError`` unless texts get the same ids, and special tokens and chat template are the same.
    """
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(file.parent, gguf_file=file.name)
    _complete_tokens(tokenizer, file)
    own, read, notes = source.backend_tokenizer, tokenizer.backend_tokenizer, []
    read.normalizer = own.normalizer  # a file has none
    read.model.ignore_merges = own.model.ignore_merges  # goes by the splitter's name
    samples = [_SAMPLE, *(source.decode(ids) for ids in texts)]
    if not _same_ids(tokenizer, source, samples):
        read.pre_tokenizer = own.pre_tokenizer
        name = splitter(source)
        notes.append(f"transformers has no pre-tokenizer {name!r}; ids were compared with the model's own")
    if not _same_ids(tokenizer, source, samples):
        raise RunnerError(f"the tokenizer of {file.name} gives other ids than the model's own")
    facts = ("bos_token_id", "eos_token_id", "pad_token_id", "chat_template")
    wrong = [fact for fact in facts if getattr(tokenizer, fact) != getattr(source, fact)]
    if wrong:
        raise RunnerError(f"{file.name} holds another {', '.join(wrong)} than the model's tokenizer")
    return notes


def _complete_tokens(tokenizer: Any, file: Path) -> None:
    """Give a tokenizer that was read from a file what transformers 5.17 leaves out: the special tokens' ids,
    and the tokens of the user's own as tokens that are never cut."""
    from gguf import GGUFReader, Keys, TokenType

    correct(tokenizer, special_tokens(file))
    reader = GGUFReader(file)
    names, types = (reader.get_field(key) for key in (Keys.Tokenizer.LIST, Keys.Tokenizer.TOKEN_TYPE))
    if names is not None and types is not None:
        pairs = zip(names.contents(), types.contents(), strict=True)
        tokenizer.add_tokens([name for name, kind in pairs if kind == TokenType.USER_DEFINED])


def _same_ids(tokenizer: Any, source: Any, samples: list[str]) -> bool:
    return all(
        tokenizer(samples, add_special_tokens=special)["input_ids"]
        == source(samples, add_special_tokens=special)["input_ids"]
        for special in (True, False)
    )


def _same(found: Any, expected: Any) -> bool:
    """Equal, or equal but for the rounding to float32 of a file's numbers."""
    return found == expected or (
        isinstance(expected, float) and abs(found - expected) <= 1e-6 * abs(expected)
    )
