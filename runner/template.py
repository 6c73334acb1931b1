"""Render messages with any chat template and decide, token by token, what is trained on.

Each assistant turn is rendered twice: the messages before it with the generation prompt, and the messages up
to it. The second must extend the first; what it adds, up to the end-of-turn token, is trained on. That is
what the model is asked for when it is served with the same template, so no markers in the template are needed.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from jinja2.exceptions import TemplateError

from runner.errors import Problem, Refused
from runner.formats import BadRow, Example, Message
from runner.settings import TemplateSettings

IGNORE = -100  # the label that the loss skips (PyTorch's cross_entropy)


@dataclass(frozen=True)
class Rendered:
    """One row as text, with the character spans of it that are trained on, and the row it came from."""

    source: int
    text: str
    spans: tuple[tuple[int, int], ...]


@dataclass(frozen=True)
class Encoded:
    """One row as ``input_ids`` and ``labels`` of equal length; labels are ``IGNORE`` where nothing is trained."""

    source: int
    input_ids: list[int]
    labels: list[int]

    @property
    def trained_tokens(self) -> int:
        """Number of labelled tokens."""
        return sum(label != IGNORE for label in self.labels)


class Renderer:
    """A tokenizer with the run's template and system prompt; ``train_on`` as in ``DataSettings``."""

    def __init__(self, tokenizer: Any, settings: TemplateSettings, train_on: str = "assistant") -> None:
        self.tokenizer, self.settings, self.train_on = tokenizer, settings, train_on
        stops = sorted(_stops(tokenizer), key=len, reverse=True)
        self._cut_at = re.compile("|".join(map(re.escape, stops)) or r"(?!)")

    def render(self, example: Example) -> list[Rendered]:
        """Text and trained spans of one example.

        Usually one row. A template that rewrites earlier turns when later ones follow (Qwen3 drops their
        reasoning) gives one row per assistant turn, each trained on its last turn only, since that is the
        text the model sees when it is served. Raises ``BadRow``.
        """
        if example.text is not None:
            text = example.text + self._end()
            return [Rendered(example.source, text, ((0, len(text)),))]
        messages = self._with_system(example.messages)
        turns = [index for index, message in enumerate(messages) if message["role"] == "assistant"]
        if self.train_on == "completion":
            turns = turns[-1:]
        rendered = [self._turn(messages, index) for index in turns]
        full, last_span = rendered[-1]
        if self.train_on == "all":
            return [Rendered(example.source, full, ((0, len(full)),))]
        if all(full.startswith(text[: span[1]]) for text, span in rendered):
            # what follows the last answer cannot change the loss and is left out
            return [Rendered(example.source, full[: last_span[1]], tuple(span for _, span in rendered))]
        return [Rendered(example.source, text[: span[1]], (span,)) for text, span in rendered]

    def encode(self, rows: list[Rendered]) -> list[Encoded]:
        """Tokenise rows and label the tokens inside their spans.

        A token that straddles the start of a span is labelled, as it carries the first characters of the
        answer. Tokenizers without offsets are asked twice and the common beginning is left unlabelled.
        """
        if not rows:
            return []
        texts = [row.text for row in rows]
        if not self.tokenizer.is_fast:
            return [self._encode_slowly(row) for row in rows]
        batch = self.tokenizer(texts, add_special_tokens=False, return_offsets_mapping=True)
        return [
            Encoded(row.source, ids, _label(ids, offsets, row.spans))
            for row, ids, offsets in zip(rows, batch["input_ids"], batch["offset_mapping"], strict=True)
        ]

    def prompt(self, example: Example) -> str:
        """The text after which the model has to write the last answer."""
        messages = self._with_system(example.messages)
        return self._apply(messages[:-1], generate=True)

    def trained_text(self, row: Encoded) -> str:
        """What the labelled tokens say, decoded."""
        return self.tokenizer.decode([label for label in row.labels if label != IGNORE])

    def _turn(self, messages: list[Message], index: int) -> tuple[str, tuple[int, int]]:
        prompt = self._apply(messages[:index], generate=True)
        text = self._apply(messages[: index + 1])
        if not text.startswith(prompt):
            at = next((i for i, (a, b) in enumerate(zip(prompt, text, strict=False)) if a != b), len(text))
            shown = f"...{prompt[max(0, at - 30) : at + 20]!r} against ...{text[max(0, at - 30) : at + 20]!r}"
            raise BadRow(f"the template renders the answer of message {index} over its own prompt: {shown}")
        ends = [match.end() for match in self._cut_at.finditer(text, len(prompt))]
        if ends and not text[ends[-1] :].strip():
            return text, (len(prompt), ends[-1])
        if (
            index == len(messages) - 1
        ):  # the template never ends the turn: without this the model would not stop
            text = text.rstrip("\n") + self._end()
        return text, (len(prompt), len(text))

    def _encode_slowly(self, row: Rendered) -> Encoded:
        ids = self._ids(row.text)
        labels = [IGNORE] * len(ids)
        for start, end in row.spans:
            first, last = (_common(ids, self._ids(row.text[:cut])) for cut in (start, end))
            labels[first:last] = ids[first:last]
        return Encoded(row.source, ids, labels)

    def _ids(self, text: str) -> list[int]:
        return self.tokenizer(text, add_special_tokens=False)["input_ids"]

    def _with_system(self, messages: Iterable[Message]) -> list[Message]:
        messages = list(messages)
        if self.settings.system and messages[0]["role"] != "system":
            return [{"role": "system", "content": self.settings.system}, *messages]
        return messages

    def _apply(self, messages: list[Message], generate: bool = False) -> str:
        try:
            return self.tokenizer.apply_chat_template(
                messages, tokenize=False, add_generation_prompt=generate, **self.settings.kwargs
            )
        except (TemplateError, TypeError, KeyError, IndexError) as error:
            raise BadRow(f"the template refuses it: {error}") from error

    def _end(self) -> str:
        return self.tokenizer.eos_token or ""


def apply_template(tokenizer: Any, settings: TemplateSettings) -> None:
    """Give the tokenizer the run's template and stop token, so that both are saved with the adapter.

    Raises ``Refused`` if there is no template at all, or if it uses control tokens that the tokenizer lacks.
    """
    if settings.chat_template:
        tokenizer.chat_template = settings.chat_template
    if not tokenizer.chat_template:
        message = "the tokenizer has no chat template of its own"
        raise Refused(Problem("template", message, "choose one: template=chatml, alpaca, llama2"))
    if settings.stop:
        tokenizer.eos_token = settings.stop
    vocabulary = tokenizer.get_vocab()
    used = {
        *re.findall(r"<\|[^|<>{}]+\|>", str(tokenizer.chat_template)),
        *([settings.stop] if settings.stop else []),
    }
    missing = sorted(token for token in used if token not in vocabulary)
    if missing and settings.chat_template:
        message = f"the template uses {', '.join(missing)}, which this tokenizer has no token for"
        raise Refused(Problem("template", message, "template=chat keeps the tokenizer's own template"))
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token


def _stops(tokenizer: Any) -> set[str]:
    """Strings of the control tokens, any of which can end a turn."""
    added = {str(token) for token in tokenizer.get_added_vocab() if str(token).startswith("<")}
    return {str(token) for token in tokenizer.all_special_tokens} | added


def _label(ids: list[int], offsets: list[tuple[int, int]], spans: tuple[tuple[int, int], ...]) -> list[int]:
    labels = [IGNORE] * len(ids)
    for start, end in spans:
        for index, (first, last) in enumerate(offsets):
            if first < end and last > start:
                labels[index] = ids[index]
    return labels


def _common(first: list[int], second: list[int]) -> int:
    return next(
        (i for i, (a, b) in enumerate(zip(first, second, strict=False)) if a != b),
        min(len(first), len(second)),
    )
