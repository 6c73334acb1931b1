"""A GGUF file as an ordinary safetensors folder."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from runner.core.errors import ConfigError, Issue


def convert_gguf(file: Path, folder: Path) -> None:
    """Write the model of a GGUF file into a new ``folder``, in bfloat16.

    Raises ``ConfigError`` if the file is damaged, or of a kind that transformers cannot read.
    """
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig

    try:
        special = special_tokens(file)
        loaded: Any = AutoModelForCausalLM.from_pretrained(
            file.parent,
            gguf_file=file.name,
            dtype=torch.bfloat16,
            quantization_config=GgufConfig(dequantize=True),
            output_loading_info=True,
        )
        tokenizer = AutoTokenizer.from_pretrained(file.parent, gguf_file=file.name)
    except ImportError:
        raise  # a missing library says so itself
    except Exception as error:  # what a damaged file raises depends on the byte that is damaged
        reason = f"{type(error).__name__}: {str(error).partition(chr(10))[0][:200]}"
        raise _unreadable(file, reason) from error
    model, report = loaded
    if missing := sorted(report["missing_keys"]):  # the library has drawn them at random
        raise _unreadable(file, f"{len(missing)} tensors are missing, among them {missing[0]}")
    broken = [name for name, value in model.state_dict().items() if not torch.isfinite(value).all()]
    if broken:
        raise _unreadable(file, f"{len(broken)} tensors are not finite, among them {broken[0]}")
    correct(tokenizer, special)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def special_tokens(file: Path) -> dict[str, int]:
    """Ids of the special tokens that the file names, by their name in transformers."""
    from gguf import GGUFReader, Keys

    keys = {
        "bos_token": Keys.Tokenizer.BOS_ID,
        "eos_token": Keys.Tokenizer.EOS_ID,
        "pad_token": Keys.Tokenizer.PAD_ID,
    }
    reader = GGUFReader(file)
    fields = {name: reader.get_field(key) for name, key in keys.items()}
    return {name: int(field.contents()) for name, field in fields.items() if field is not None}


def correct(tokenizer: Any, special: dict[str, int]) -> None:
    """Set the special tokens by the file's own ids.

    transformers 5.17 gives the llama family its start token as end token, too, and no padding token: a model
    trained with those never stops.
    """
    for name, index in special.items():
        setattr(tokenizer, name, tokenizer.convert_ids_to_tokens(index))
    for name in ("bos_token_id", "eos_token_id", "pad_token_id"):  # saved, they would contradict the names
        tokenizer.init_kwargs.pop(name, None)
    tokenizer.clean_up_tokenization_spaces = False  # made for WordPiece, and changes text on the way back


def _unreadable(file: Path, why: str) -> ConfigError:
    message = f"{file.name} cannot be converted: {why}"
    hint = "a damaged file: fetch it again; a shape that transformers cannot read: use its safetensors folder"
    return ConfigError(Issue("model.path", message, hint))
