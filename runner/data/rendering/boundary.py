"""Whether a prompt has the same tokens in a row as it has alone, which is how it is served."""

from __future__ import annotations

from bisect import bisect_right
from functools import cached_property
from typing import Any

_NEAR = 16  # tokens before an answer among which a place is looked for where tokens begin anew


class Boundary:
    """Compares the tokens before answers with those of the prompts alone; most end in equal words."""

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer = tokenizer
        self._special = set(tokenizer.all_special_ids) | set(tokenizer.added_tokens_decoder)
        self._known: dict[str, list[int]] = {}

    def clean(self, text: str, start: int, ids: list[int], offsets: list[tuple[int, int]]) -> bool:
        """Whether the text up to ``start`` has the tokens alone that it has in a row."""
        count = bisect_right(offsets, start, key=lambda offset: offset[1])  # tokens that end there or before
        if count < len(offsets) and offsets[count][0] < start:
            return False
        if count and ids[count - 1] in self._special:
            return True
        near = self._fresh(text, count, ids, offsets)
        if near is not None:
            tail = text[offsets[near][0] : start]
            if tail not in self._known:
                self._known[tail] = token_ids(self._tokenizer, tail)
            if self._known[tail] == ids[near:count]:
                return True
        return token_ids(self._tokenizer, text[:start]) == ids[:count]

    def _fresh(self, text: str, count: int, ids: list[int], offsets: list[tuple[int, int]]) -> int | None:
        """The last place well before a token where tokens do not depend on what precedes: a control token,
        which is none but itself, or the first word of a line."""
        for index in range(count - 1, max(count - _NEAR, -1), -1):
            first = offsets[index][0]
            if ids[index] in self._special:
                return index
            begins = text[first : first + 1].isspace()
            if index < count - 1 and text[first - 1 : first] == "\n" and not begins:
                return index
        return None

    def continued(self, piece: str, continues: bool) -> tuple[str, int]:
        """A text to tokenise for a piece, and how many of its tokens come before those of the piece."""
        if not continues or not self._marks_beginnings:
            return piece, 0
        lead = token_ids(self._tokenizer, "\n")
        if token_ids(self._tokenizer, "\n" + piece)[: len(lead)] != lead:
            return piece, 0
        return "\n" + piece, len(lead)

    @cached_property
    def _marks_beginnings(self) -> bool:
        """Whether a text has another first token alone than after a line break, as with SentencePiece."""
        lead = len(token_ids(self._tokenizer, "\n"))
        return token_ids(self._tokenizer, "x") != token_ids(self._tokenizer, "\nx")[lead:]


def token_ids(tokenizer: Any, text: str) -> list[int]:
    """The tokens of a text, without those that a tokenizer adds."""
    return tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]
