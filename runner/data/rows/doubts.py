"""What may be wrong with the words of an example: nothing here stops a run, it is counted and said."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

from runner.data.rows.values import Message

# What pandas and others write for a missing value, where it became text on the way to the file.
_MISSING = {"nan", "none", "null", "<na>", "nat", "undefined", "#n/a"}
# UTF-8 that was read as Latin-1 or Windows-1252: "Ã©" for "é", "â€" for the first bytes of a curly quote.
_MOJIBAKE = re.compile(r"[\u00c2\u00c3][\u0080-\u00bf]|\u00e2\u20ac|\u00e2\u0080")


# Control characters that no text has: of terminals, of binary files, of a wrong encoding.
_CONTROL = re.compile(r"[\x00-\x08\x0e-\x1f\x7f]")

# Where an image, a film or a sound stood in the text of a multimodal chat; not the elements of HTML.
_MEDIA = re.compile(r"<(image|video|audio)(?:_?\d+)?>|<\|(?:image|video|audio)[a-z_]*\|>")


def doubts(texts: Iterable[str], conversations: Iterable[Sequence[Message]]) -> set[str]:
    """Reasons to count an example by: missing values as text, broken characters, an answer to nothing.

    ``texts`` are a plain text and its class, ``conversations`` those with the answer and the rejected answer.
    """
    found: set[str] = set()
    for text in texts:
        found.update(_of_text(text))
    for messages in conversations:
        for message in messages:
            for key in ("content", "reasoning_content", "thinking"):
                if text := message.get(key):
                    found.update(_of_text(text))
        found.update(_of_order(messages))
    return found


def _of_text(text: str) -> list[str]:
    found = []
    if len(text) < 16 and text.strip().lower() in _MISSING:
        found.append("a text that is only nan, None or null")
    if "<" in text and (media := _MEDIA.search(text)) and f"</{media[1]}>" not in text:
        found.append("a placeholder of media, as <image>, in the text: the model sees only that word")
    if _CONTROL.search(text):
        found.append("control characters, as of a terminal or a binary file, in the text")
    if not text.isascii():
        if "\ufffd" in text:
            found.append("the replacement character U+FFFD, which stands for bytes that were lost")
        if _MOJIBAKE.search(text):
            found.append("characters like 'Ã©', which is UTF-8 that was read as another encoding")
    return found


def _of_order(messages: Sequence[Message]) -> set[str]:
    """An answer before which nobody asked: often the two sides are swapped."""
    first = next((each["role"] for each in messages if each["role"] in ("user", "assistant")), None)
    reason = "an answer without a question before it (are the sides swapped?)"
    return {reason} if first == "assistant" else set()
