"""From rendered text and the character spans that are trained on to token ids and labels."""

from __future__ import annotations

from bisect import bisect_right
from dataclasses import dataclass, replace
from typing import Any

IGNORE = -100  # the label that the loss skips (PyTorch's cross_entropy)


@dataclass(frozen=True)
class Rendered:
    """One row as text, with the character spans of it that are trained on, and the row it came from."""

    source: int
    text: str
    spans: tuple[tuple[int, int], ...]


@dataclass(frozen=True)
class Encoded:
    """One row as ``input_ids`` and ``labels`` of equal length; ``IGNORE`` labels what is not trained on.

    ``rejected`` is the same row with the worse answer, ``label`` its class or whether it was liked.
    """

    source: int
    input_ids: list[int]
    labels: list[int]
    rejected: Encoded | None = None
    label: str | bool | int | None = None

    @property
    def sequences(self) -> tuple[Encoded, ...]:
        """The row, and with it the one with the worse answer, if there is one."""
        return (self, self.rejected) if self.rejected else (self,)

    @property
    def tokens(self) -> int:
        """Number of tokens, of both answers where there are two."""
        return len(self.input_ids) + (self.rejected.tokens if self.rejected else 0)

    @property
    def trained_tokens(self) -> int:
        """Number of labelled tokens, of both answers where there are two."""
        own = len(self.labels) - self.labels.count(IGNORE)
        return own + (self.rejected.trained_tokens if self.rejected else 0)

    @property
    def has_loss(self) -> bool:
        """Whether any label is not masked, but for that of the first token, which is never predicted."""
        return self.labels[1:].count(IGNORE) < len(self.labels) - 1

    def cut(self, length: int) -> Encoded:
        """The first ``length`` tokens."""
        return replace(self, input_ids=self.input_ids[:length], labels=self.labels[:length])


def encode(tokenizer: Any, rows: list[Rendered]) -> list[Encoded]:
    """Tokenise rows and label the tokens inside their spans.

    A token that straddles the start of a span is labelled, as it carries the first characters of the answer.
    """
    if not rows:
        return []
    if not tokenizer.is_fast:
        return [_encode_slowly(tokenizer, row) for row in rows]
    texts = [row.text for row in rows]
    batch = tokenizer(
        texts,
        add_special_tokens=False,
        return_attention_mask=False,
        return_token_type_ids=False,
        return_offsets_mapping=True,
        verbose=False,
    )
    return [
        Encoded(row.source, ids, _label(ids, offsets, row.spans))
        for row, ids, offsets in zip(rows, batch["input_ids"], batch["offset_mapping"], strict=True)
    ]


def _label(ids: list[int], offsets: list[tuple[int, int]], spans: tuple[tuple[int, int], ...]) -> list[int]:
    labels = [IGNORE] * len(ids)
    for start, end in spans:
        for index in [i for i, (first, last) in enumerate(offsets) if first < end and last > start]:
            labels[index] = ids[index]
    return labels


def _encode_slowly(tokenizer: Any, row: Rendered) -> Encoded:
    """For tokenizers that give no offsets."""
    ids = _ids(tokenizer, row.text)
    labels = [IGNORE] * len(ids)
    for start, end in row.spans:
        first, last = (_count(tokenizer, ids, row.text, at) for at in (start, end))
        labels[first:last] = ids[first:last]
    return Encoded(row.source, ids, labels)


def _count(tokenizer: Any, ids: list[int], text: str, at: int) -> int:
    """How many tokens end before a position: by decoding or, where that does not give back the text, by
    comparing with the tokens of the text up to there."""

    def decoded(count: int) -> str:
        return tokenizer.decode(ids[:count], clean_up_tokenization_spaces=False)

    if decoded(len(ids)) == text:
        return bisect_right(range(len(ids) + 1), at, key=lambda count: len(decoded(count))) - 1
    alone = _ids(tokenizer, text[:at])
    differing = (index for index, (a, b) in enumerate(zip(ids, alone, strict=False)) if a != b)
    return next(differing, min(len(ids), len(alone)))


def _ids(tokenizer: Any, text: str) -> list[int]:
    return tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]
