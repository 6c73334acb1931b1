"""A byte-level tokenizer from a tiktoken file: a token in base64 and its rank in each line."""

from __future__ import annotations

import base64
import binascii
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from runner.core.errors import ConfigError, Issue
from runner.models.conversion.byte_pairs import merges_of


def qwen2_tokenizer(file: Path, special: Sequence[str], **options: Any) -> Any:
    """transformers' ``Qwen2Tokenizer``, which cuts text as Qwen-1 does, with the ranks of a tiktoken file.

    ``special`` tokens stand behind the ranks; ``options`` are those of the class. Raises ``ConfigError`` for
    a file that is damaged.
    """
    from tokenizers import AddedToken
    from transformers import Qwen2Tokenizer
    from transformers.convert_slow_tokenizer import bytes_to_unicode

    letters = bytes_to_unicode()
    ranks = {"".join(letters[byte] for byte in token): rank for token, rank in read_ranks(file).items()}
    vocabulary = ranks | {token: len(ranks) + number for number, token in enumerate(special)}
    given: dict[str, Any] = {"vocab": vocabulary, "merges": merges_of(ranks), **options}
    tokenizer: Any = Qwen2Tokenizer(**given)
    tokenizer.backend_tokenizer.add_special_tokens(
        [AddedToken(token, normalized=False, special=True) for token in special]
    )
    return tokenizer


def read_ranks(file: Path) -> dict[bytes, int]:
    """Tokens and ranks of a tiktoken file: 0, 1, 2 and so on, with a token for every byte.

    Raises ``ConfigError``.
    """
    hint = "a damaged file: fetch it again (it may be the pointer of a file that git-lfs has not fetched)"
    found: dict[bytes, int] = {}
    try:
        lines = file.read_bytes().splitlines()
    except OSError as error:
        raise ConfigError(Issue(str(file), f"cannot be read: {error.strerror}", hint)) from error
    for number, line in enumerate(lines, 1):
        try:
            token, rank = line.split()
            found[base64.b64decode(token, validate=True)] = int(rank)
        except (ValueError, binascii.Error) as error:
            message = "expected a token in base64 and its rank"
            raise ConfigError(Issue(f"{file}:{number}", message, hint)) from error
    missing = [byte for byte in range(256) if bytes([byte]) not in found]
    if missing or sorted(found.values()) != list(range(len(lines))):
        message = (
            f"has no token for {len(missing)} of the 256 bytes"
            if missing
            else f"has {len(lines)} lines with {len(found)} tokens, whose ranks are not 0 to {len(lines) - 1}"
        )
        raise ConfigError(Issue(str(file), message, hint))
    return found
