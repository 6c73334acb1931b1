"""From rendered text and the character spans that are trained on to token ids and labels."""

from __future__ import annotations

from bisect import bisect_right
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any

from runner.data.rendering.boundary import Boundary, token_ids

IGNORE = -100  # the label that the loss skips (PyTorch's cross_entropy)


@dataclass(frozen=True)
class Rendered:
    """One row as text, with the character spans of it that are trained on, and the row it came from.

    ``answers`` are the indices of the messages that the last spans are, or have in them; the system prompt of
    the run is counted.
    """

    source: int
    text: str
    spans: tuple[tuple[int, int], ...]
    answers: tuple[int, ...] = ()


@dataclass(frozen=True)
class Encoded:
    """One row as ``input_ids`` and ``labels`` of equal length; ``IGNORE`` labels what is not trained on.

    ``rejected`` is the same row with the worse answer, ``label`` its class or whether it was liked. ``apart``
    counts the answers that are tokenised apart from their prompts.
    """

    source: int
    input_ids: list[int]
    labels: list[int]
    rejected: Encoded | None = None
    label: str | bool | int | None = None
    apart: int = 0

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


def encode(tokenizer: Any, rows: list[Rendered], boundary: Boundary) -> list[Encoded]:
    """Tokenise rows and label the tokens inside their spans.

    What comes before a span has the tokens that it has alone, as it is served: where a token would reach
    across the start of a span, or the words of the answer change the tokens before them, the two are
    tokenised apart.
    """
    if not rows:
        return []
    if not tokenizer.is_fast:
        return [_encode_slowly(tokenizer, row, boundary) for row in rows]
    batch = _with_offsets(tokenizer, [row.text for row in rows])
    pieces = zip(rows, batch["input_ids"], batch["offset_mapping"], strict=True)
    return [_encode_fast(tokenizer, row, ids, offsets, boundary) for row, ids, offsets in pieces]


def _with_offsets(tokenizer: Any, texts: list[str]) -> Any:
    return tokenizer(
        texts,
        add_special_tokens=False,
        return_attention_mask=False,
        return_token_type_ids=False,
        return_offsets_mapping=True,
        verbose=False,
    )


def _encode_fast(
    tokenizer: Any, row: Rendered, ids: list[int], offsets: list[tuple[int, int]], boundary: Boundary
) -> Encoded:
    starts = [start for start, _ in row.spans if start and not boundary.clean(row.text, start, ids, offsets)]
    if starts:
        ids, offsets = [], []
        for first, last in pairwise([0, *starts, len(row.text)]):
            piece, begin = boundary.continued(row.text[first:last], first > 0)
            found = _with_offsets(tokenizer, [piece])
            ids += found["input_ids"][0][begin:]
            moved = first - (len(piece) - (last - first))
            offsets += [(a + moved, b + moved) for a, b in found["offset_mapping"][0][begin:]]
    return Encoded(row.source, ids, _label(ids, offsets, row.spans), apart=len(starts))


def _label(ids: list[int], offsets: list[tuple[int, int]], spans: tuple[tuple[int, int], ...]) -> list[int]:
    labels = [IGNORE] * len(ids)
    for start, end in spans:
        for index in [i for i, (first, last) in enumerate(offsets) if first < end and last > start]:
            labels[index] = ids[index]
    return labels


def _encode_slowly(tokenizer: Any, row: Rendered, boundary: Boundary) -> Encoded:
    """For tokenizers that give no offsets."""
    whole = token_ids(tokenizer, row.text)
    prompts = ((start, token_ids(tokenizer, row.text[:start])) for start, _ in row.spans if start)
    starts = [start for start, ids in prompts if whole[: len(ids)] != ids]
    ids: list[int] = []
    labels: list[int] = []
    for first, last in pairwise([0, *starts, len(row.text)]):
        text, begin = boundary.continued(row.text[first:last], first > 0)
        more = len(text) - (last - first)
        found = token_ids(tokenizer, text)
        own = [IGNORE] * len(found)
        for start, end in row.spans:
            if first <= start < last:
                places = (_count(tokenizer, found, text, at - first + more) for at in (start, end))
                low, high = (max(place, begin) for place in places)
                own[low:high] = found[low:high]
        ids, labels = ids + found[begin:], labels + own[begin:]
    return Encoded(row.source, ids, labels, apart=len(starts))


def _count(tokenizer: Any, ids: list[int], text: str, at: int) -> int:
    """How many tokens end before a position: by decoding or, where that does not give back the text, by
    comparing with the tokens of the text up to there."""

    def decoded(count: int) -> str:
        return tokenizer.decode(ids[:count], clean_up_tokenization_spaces=False)

    if decoded(len(ids)) == text:
        return bisect_right(range(len(ids) + 1), at, key=lambda count: len(decoded(count))) - 1
    alone = token_ids(tokenizer, text[:at])
    differing = (index for index, (a, b) in enumerate(zip(ids, alone, strict=False)) if a != b)
    return next(differing, min(len(ids), len(alone)))
