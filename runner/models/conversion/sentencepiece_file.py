"""A ``tokenizers`` tokenizer from a SentencePiece model, checked against SentencePiece itself."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from runner.core.errors import ConfigError, Issue
from runner.models.conversion.byte_pairs import merges_of
from runner.models.conversion.protobuf import Fields, read_fields

_SPACE = "▁"  # how SentencePiece writes a space
# Numbers of sentencepiece_model.proto: kinds of pieces, and of models.
_NORMAL, _UNKNOWN, _CONTROL, _BYTE = 1, 2, 3, 6
_BPE = 2
_PROBES = (
    *("", " ", "  ", "\n", "\n \n", "a", " a", "a ", "  a  b  ", "a\tb\r\nc", "\n Hello, world! 12345"),
    *(
        "你好，世界！",
        "\n 你好",
        "ＡＢＣ１２３",
        "ﬁ ﬂ ² ½",
        "e\u0301 é",
        "🙂👍🏽",
        "\u200b\ufeff\u00a0x",
        "<s></s><unk>",
        "𠮷",
    ),
)


@dataclass(frozen=True)
class _Piece:
    text: str
    score: float
    kind: int


@dataclass(frozen=True)
class _Model:
    """What of a SentencePiece model decides its tokens."""

    pieces: list[_Piece]
    kind: int
    charsmap: bytes
    dummy_prefix: bool
    removes_spaces: bool


def sentencepiece_tokenizer(file: Path, special: Sequence[str], prefix: Sequence[str], **options: Any) -> Any:
    """The tokenizer of a SentencePiece model of byte pairs, with ``special`` tokens behind its pieces.

    ``prefix`` are those of them that stand before any text, ``options`` those of
    ``PreTrainedTokenizerFast``. As in the published tokenizers a text begins anew behind each special token.
    Raises ``ConfigError`` for a file that is damaged or of another kind, and where tokens differ.
    """
    from tokenizers import AddedToken, processors
    from transformers import PreTrainedTokenizerFast

    model = _read(file)
    tokenizer = _plain(model)
    _check(file, model, tokenizer)
    names = [*special, *(options[key] for key in ("bos_token", "eos_token", "unk_token"))]
    tokenizer.add_special_tokens([AddedToken(token, normalized=False, special=True) for token in names])
    tokenizer.post_processor = processors.TemplateProcessing(
        single=[*prefix, "$A"],
        pair=[*prefix, "$A", "$B"],
        special_tokens=[(token, tokenizer.token_to_id(token)) for token in prefix],
    )
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, clean_up_tokenization_spaces=False, **options)


def _plain(model: _Model) -> Any:
    """The pieces and their merges, without special tokens."""
    from tokenizers import Regex, Tokenizer, decoders, models, normalizers

    vocabulary = {piece.text: index for index, piece in enumerate(model.pieces)}
    merged = {piece.text: -piece.score for piece in model.pieces if piece.kind == _NORMAL}
    unknown = next((piece.text for piece in model.pieces if piece.kind == _UNKNOWN), None)
    tokenizer = Tokenizer(
        models.BPE(
            vocab=vocabulary,
            merges=merges_of(merged),
            unk_token=unknown,
            fuse_unk=True,
            byte_fallback=any(piece.kind == _BYTE for piece in model.pieces),
        )
    )
    steps = [
        *([normalizers.Precompiled(model.charsmap)] if model.charsmap else []),
        *([normalizers.Replace(Regex(" {2,}"), " "), normalizers.Strip()] if model.removes_spaces else []),
        *([normalizers.Prepend(_SPACE)] if model.dummy_prefix else []),
        normalizers.Replace(" ", _SPACE),
    ]
    tokenizer.normalizer = normalizers.Sequence(steps)
    begins = [decoders.Strip(" ", 1, 0)] if model.dummy_prefix else []
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace(_SPACE, " "), decoders.ByteFallback(), decoders.Fuse(), *begins]
    )
    return tokenizer


def _check(file: Path, model: _Model, tokenizer: Any) -> None:
    """Every piece and some texts must have the tokens that SentencePiece gives them."""
    from sentencepiece import SentencePieceProcessor

    # as bytes: its own errors about a file are lines on the terminal
    reference = SentencePieceProcessor(model_proto=file.read_bytes())
    nowhere = (_UNKNOWN, _CONTROL, _BYTE)  # in a text
    pieces = [piece.text.replace(_SPACE, " ") for piece in model.pieces if piece.kind not in nowhere]
    texts = [*_PROBES, *pieces]
    for text, expected, found in zip(
        texts, reference.encode(texts), tokenizer.encode_batch(texts, add_special_tokens=False), strict=True
    ):
        if found.ids != expected:
            message = f"{text!r} has the tokens {expected} in SentencePiece, and {found.ids} when converted"
            raise ConfigError(Issue(str(file), message, "a tokenizer of another kind than ChatGLM3's"))


def _read(file: Path) -> _Model:
    hint = "a damaged file: fetch it again (it may be the pointer of a file that git-lfs has not fetched)"
    try:
        content = file.read_bytes()
    except OSError as error:
        raise ConfigError(Issue(str(file), f"cannot be read: {error.strerror}", hint)) from error
    try:
        model = _parsed(read_fields(content))
    except (ValueError, IndexError) as error:  # what another kind of file holds is not foreseen
        raise ConfigError(Issue(str(file), f"is no SentencePiece model: {error}", hint)) from error
    if model.kind != _BPE or not model.pieces:
        message = f"is a SentencePiece model of kind {model.kind}, expected {_BPE} (byte pairs)"
        raise ConfigError(Issue(str(file), message, "a tokenizer of another kind than ChatGLM3's"))
    return model


def _parsed(fields: Fields) -> _Model:
    """The fields of a ``ModelProto``."""
    trainer, normalizer = (read_fields(fields.last_bytes(number)) for number in (2, 3))
    return _Model(
        pieces=list(_pieces(fields)),
        kind=trainer.last_int(3, 1),
        charsmap=normalizer.last_bytes(2),
        dummy_prefix=bool(normalizer.last_int(3, 1)),
        removes_spaces=bool(normalizer.last_int(4, 1)),
    )


def _pieces(fields: Fields) -> Iterator[_Piece]:
    for content in fields.all_bytes(1):
        piece = read_fields(content)
        yield _Piece(piece.last_bytes(1).decode("utf-8"), piece.last_float(2), piece.last_int(3, _NORMAL))
