"""Reasoning blocks: where they begin and end in what a model writes, in the families' own delimiters."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

Delimiters = tuple[str, str]

# Opening and closing of a reasoning block, as the model families write them.
KNOWN: tuple[Delimiters, ...] = (
    ("<think>", "</think>"),  # DeepSeek, Qwen, GLM, Kimi, Nemotron, SmolLM3
    ("[THINK]", "[/THINK]"),  # Magistral, Ministral
    ("<|START_THINKING|>", "<|END_THINKING|>"),  # Command A
    ("<seed:think>", "</seed:think>"),  # Seed-OSS
    ("<|channel>thought", "<channel|>"),  # Gemma 4
    ("<|channel|>analysis<|message|>", "<|end|>"),  # gpt-oss
    ("<|inner_prefix|>", "<|inner_suffix|>"),  # Apertus
    ("◁think▷", "◁/think▷"),  # Kimi-VL
    ("<thinking>", "</thinking>"),
    ("<thought>", "</thought>"),
    ("<reasoning>", "</reasoning>"),
)


@dataclass(frozen=True)
class Parts:
    """A text as its reasoning (None: it has no block) and the answer after it; ``closed``: the block ends."""

    reasoning: str | None
    answer: str
    closed: bool = True


def split_reasoning(text: str, delimiters: Sequence[Delimiters], opened: bool = False) -> Parts:
    """Take the reasoning block off the begin of a text; ``opened``: its prompt has opened one already.

    A block that is not closed is all there is: the answer is empty then. A block may be empty, and its
    opening may stand in the prompt, so that the text begins with the closing (GLM).
    """
    rest, found = text.lstrip(), []
    closed = True
    if opened:
        ends = [(rest.find(close), close) for _, close in delimiters if close in rest]
        if not ends:
            return Parts(text, "", closed=False)
        at, close = min(ends, key=lambda end: (end[0], -len(end[1])))
        opening = next((name for name, _ in delimiters if rest.startswith(name)), "")  # opened a second time
        found.append(rest[:at].removeprefix(opening))
        rest = rest[at + len(close) :].lstrip()
    while block := _block(rest, delimiters):
        inner, rest, closed = block
        found.append(inner)
    return Parts("".join(found) if found else None, rest if found else text, closed)


def _block(text: str, delimiters: Sequence[Delimiters]) -> tuple[str, str, bool] | None:
    """The block at the begin of a text: what is in it, what follows, and whether it ends."""
    for opening, _ in delimiters:
        if not text.startswith(opening):
            continue
        # a family may close a block in more than one way, the longest of which is the template's own
        closings = [close for name, close in delimiters if name == opening and close in text]
        if not closings:
            return text[len(opening) :], "", False
        close = min(closings, key=lambda name: (text.find(name), -len(name)))
        inner, _, rest = text[len(opening) :].partition(close)
        return inner, rest.lstrip(), True
    closing = next((close for _, close in delimiters if text.startswith(close)), None)
    return ("", text[len(closing) :].lstrip(), True) if closing else None


def unclosed(prompt: str, delimiters: Sequence[Delimiters]) -> Delimiters | None:
    """The delimiters of the block in which a prompt ends, if it ends in one."""
    for opening, closing in delimiters:
        if prompt.rstrip().endswith(opening.rstrip()):
            return opening, closing
    return None
