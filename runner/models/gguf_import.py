"""Convert a GGUF file to an ordinary safetensors folder, once, and whole or not at all."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from functools import cache
from glob import escape
from pathlib import Path
from typing import Any

from filelock import FileLock

from runner.core.atomic import json_text, write_atomically, xxh3_of_file
from runner.core.errors import ConfigError, Issue


def convert_once(target: Path, source: Callable[[Path], Path]) -> Path:
    """The folder ``target``, made if need be from the GGUF file that ``source(scratch_folder)`` returns.

    The folder appears complete or not at all, and processes that want it at once make it once. One whose
    files are not those that were written is made again. Raises ``ConfigError`` if the file is damaged, or of
    a kind that transformers cannot read.
    """
    if is_whole(target):
        return target
    target.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(target.parent / f".{target.name}.lock"):
        if is_whole(target):  # made while we waited
            return target
        # A temporary folder here was left by a killed process: the lock's holder is alone.
        for stale in target.parent.glob(f".{escape(target.name)}-*"):
            shutil.rmtree(stale, ignore_errors=True)
        scratch = target.parent / f".{target.name}-{os.getpid()}"
        scratch.mkdir()
        try:
            _convert(source(scratch), scratch / "model")
            _record(target, scratch / "model")
            if target.is_dir():
                target.rename(scratch / "damaged")
            (scratch / "model").rename(target)
        finally:
            shutil.rmtree(scratch, ignore_errors=True)
    return target


def is_whole(folder: Path) -> bool:
    """Whether a converted model is there, with the files that were written, to the byte."""
    try:
        expected = json.loads(digests_of(folder).read_text(encoding="utf-8"))
        found = {file.name: _digest(file) for file in folder.iterdir()}
        return bool(expected) and found == expected
    except (OSError, ValueError, AttributeError):
        return False


def digests_of(target: Path) -> Path:
    """The file beside a converted model's folder that holds XXH3 of the folder's files, by name."""
    return target.with_name(f".{target.name}.digests.json")


def _record(target: Path, made: Path) -> None:
    digests = {file.name: _digest(file) for file in sorted(made.iterdir())}
    write_atomically(digests_of(target), json_text(digests))


def _digest(file: Path) -> str:
    """XXH3 of a file, read once by a process as long as it seems unchanged."""
    status = file.stat()
    return _digest_of(file, status.st_size, status.st_mtime_ns)


@cache
def _digest_of(file: Path, size: int, changed: int) -> str:
    return xxh3_of_file(file)


def _convert(file: Path, folder: Path) -> None:
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
    # safetensors makes its files readable by their owner alone; they shall be like any new file
    mode = (folder / "config.json").stat().st_mode & 0o777
    for written in folder.iterdir():
        written.chmod(mode)


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
