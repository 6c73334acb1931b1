"""A tokenizer's chat template as a function of messages, in the form in which that template wants them.

What a template wants is found out by rendering a few short messages: content as text or as parts, a call's
arguments as a mapping or as JSON text, reasoning under which key, and how it delimits reasoning.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Sequence
from functools import cached_property
from typing import Any

from jinja2.exceptions import TemplateError

from runner.config.settings import TemplateSettings
from runner.core.errors import ConfigError, Issue
from runner.core.process.limits import HARD_SECONDS, TooMuch, limited
from runner.data.messages import BadRow, Message
from runner.data.rendering.contents import REASONING_KEYS, arguments_of, reasoning_of
from runner.data.rendering.reasoning import KNOWN, Delimiters

Tools = Sequence[dict[str, Any]]

PROBE, PROBE_USER = "answer-0b9f", "question-0b9f"  # stand for the words of an answer and of what it answers
SWITCHES = ("enable_thinking", "thinking")  # by which chat templates turn reasoning on and off
_REASON, _SYSTEM, _NAME, _KEY, _VALUE = "reason-0b9f", "system-0b9f", "call_0b9f", "key_0b9f", "value-0b9f"
_SCHEMA = {
    "type": "function",
    "function": {
        "name": _NAME,
        "description": "a tool",
        "parameters": {"type": "object", "properties": {_KEY: {"type": "string", "description": "text"}}},
    },
}
# What a template raises on messages that it was not written for.
REJECTS = (TemplateError, TypeError, ValueError, LookupError, AttributeError, OverflowError, RecursionError)


class ChatTemplate:
    """The template of a tokenizer with the keywords of the run; renders messages, raising ``BadRow``."""

    def __init__(self, tokenizer: Any, settings: TemplateSettings) -> None:
        self.tokenizer, self._settings = tokenizer, settings

    def apply(self, messages: Sequence[Message], tools: Tools = (), generate: bool = False) -> str:
        """The messages as text; ``generate`` with the generation prompt. Raises ``BadRow``."""
        return self._apply(self._shaped(messages), tools, generate)

    @cached_property
    def delimiters(self) -> tuple[Delimiters, ...]:
        """Opening and closing of reasoning: the template's own first, then those of the known families.

        Of the families, those that the template or the vocabulary names, and ``<think>``.
        """
        text, vocabulary = str(self.tokenizer.chat_template), self.tokenizer.get_added_vocab()
        named = [
            pair
            for pair in KNOWN
            if pair == KNOWN[0] or any(mark in text or mark in vocabulary for mark in pair)
        ]
        if self.own_delimiters:
            opening, closing = self.own_delimiters
            named.insert(0, (opening.strip(), closing.strip()))
        return tuple(dict.fromkeys(named))

    @cached_property
    def own_delimiters(self) -> Delimiters | None:
        """What the template itself writes before and after an answer's reasoning; None if it writes none."""
        return self._reasoning[1]

    @cached_property
    def prompts(self) -> bool:
        """Whether the template writes a generation prompt after a question."""
        asked = [{"role": "user", "content": PROBE_USER}]
        return self._tried(lambda: self.apply(asked, generate=True)) != self._tried(lambda: self.apply(asked))

    @cached_property
    def header(self) -> str:
        """What the template writes between a question and its answer, as it is served."""
        served = self._tried(lambda: self.apply(_exchange()[:1], generate=True)) if self.prompts else ""
        return served.rpartition(PROBE_USER)[2]

    @cached_property
    def answer(self) -> tuple[str, str]:
        """What the template writes between the prompt and an answer's words, and what after these."""
        text = self._tried(lambda: self.apply(_exchange()))
        if PROBE not in text:
            return "", ""
        before, _, after = text.rpartition(PROBE)
        served = self._tried(lambda: self.apply(_exchange()[:1], generate=True))
        return before[len(served) :] if self.prompts and before.startswith(served) else "", after

    @cached_property
    def default_system(self) -> str:
        """The system prompt that the template adds by itself where a conversation has none."""
        asked = [{"role": "user", "content": PROBE_USER}]
        given = self._tried(lambda: self.apply([{"role": "system", "content": _SYSTEM}, *asked]))
        alone = self._tried(lambda: self.apply(asked)).partition(PROBE_USER)[0]
        before, found, after = given.partition(PROBE_USER)[0].partition(_SYSTEM)
        if not found or not alone.startswith(before) or not alone.endswith(after):
            return ""
        return alone[len(before) : len(alone) - len(after)].strip()

    def _shaped(self, messages: Sequence[Message]) -> Sequence[Message]:
        if not self._wants_parts and not any(_is_special(message) for message in messages):
            return messages
        return [self._shape(message) for message in messages]

    def _shape(self, message: Message) -> Message:
        shaped = dict(message)
        if calls := message.get("tool_calls"):
            as_text, keeps_empty = self._calls
            shaped["tool_calls"] = [_with_arguments(call, as_text) for call in calls]
            if not message["content"].strip() and not keeps_empty:
                shaped["content"] = None
        if reasoning := reasoning_of(message):
            for key in REASONING_KEYS:
                shaped.pop(key, None)
            shaped[self._reasoning[0]] = reasoning
        if self._wants_parts and isinstance(shaped["content"], str):
            shaped["content"] = [{"type": "text", "text": shaped["content"]}]
        return shaped

    @cached_property
    def _wants_parts(self) -> bool:
        """Whether words are shown only as parts of a content list, as multimodal templates want them."""
        parts = [
            message | {"content": [{"type": "text", "text": message["content"]}]} for message in _exchange()
        ]
        texts = [self._tried(lambda given=given: self._apply(given)) for given in (_exchange(), parts)]
        plain, in_parts = (PROBE in text and PROBE_USER in text for text in texts)
        return in_parts and not plain

    @cached_property
    def _calls(self) -> tuple[bool, bool]:
        """Whether arguments are wanted as JSON text, and whether calls are shown beside an empty content."""
        ways = [(as_text, keeps) for keeps in (True, False) for as_text in (False, True)]
        return max(ways, key=lambda way: self._shown_call(*way))  # the first of the best

    def _shown_call(self, as_text: bool, keeps_empty: bool) -> int:
        """How well a call is rendered: 2 as it has to be, 1 in quotes of Python or as JSON in JSON, 0 not."""
        call = {
            "type": "function",
            "id": "abcdefghi",
            "function": {"name": _NAME, "arguments": {_KEY: _VALUE}},
        }
        content: Any = "" if keeps_empty else None
        if self._wants_parts and keeps_empty:
            content = [{"type": "text", "text": ""}]
        asked = self._shaped([{"role": "user", "content": PROBE_USER}])
        called = {"role": "assistant", "content": content, "tool_calls": [_with_arguments(call, as_text)]}
        text = self._tried(lambda: self._apply([*asked, called], [_SCHEMA]))
        if _VALUE not in text or _KEY not in text.rpartition(_VALUE)[0][-200:]:
            return 0
        return 1 if f"'{_KEY}'" in text or f'\\"{_KEY}' in text else 2

    @cached_property
    def _reasoning(self) -> tuple[str, Delimiters | None]:
        """The key under which the template reads reasoning, and the delimiters that it puts around it."""
        bare = self._tried(lambda: self._apply(self._in_parts(_exchange())))
        asked = self._in_parts(_exchange()[:1])
        served = self._tried(lambda: self._apply(asked, generate=True))
        for key in REASONING_KEYS:
            turns = self._in_parts(_exchange())
            turns[-1] = turns[-1] | {key: _REASON}
            text = self._tried(lambda turns=turns: self._apply(turns))
            before, found, after = text.partition(_REASON)
            if not found or PROBE not in after:
                continue
            same = _common(before, bare)
            if before.startswith(served) and len(served) < len(before):
                same = min(same, len(served))
            opening, closing = before[_outside_a_tag(before, same) :], after.partition(PROBE)[0]
            if not opening.strip():
                opening = next((mark for mark, _ in KNOWN if before.rstrip().endswith(mark)), "")
            if not opening.strip() and served.startswith(before):  # it stands in the generation prompt alone
                opening = served[len(before) :]
            return key, (opening, closing) if opening.strip() and closing.strip() else None
        return REASONING_KEYS[0], None

    def _in_parts(self, messages: list[Message]) -> list[Message]:
        return [dict(message) for message in self._shaped(messages)]

    def _tried(self, rendered: Callable[[], str]) -> str:
        """What is rendered of a probe; nothing where the template wants other messages than that."""
        try:
            return rendered()
        except BadRow:
            return ""

    def _apply(self, messages: Iterable[Message], tools: Tools = (), generate: bool = False) -> str:
        try:
            with limited():
                return self.tokenizer.apply_chat_template(
                    list(messages),
                    tools=list(tools) or None,
                    tokenize=False,
                    add_generation_prompt=generate,
                    **self._settings.kwargs,
                )
        except TooMuch as error:
            raise ConfigError(too_much(self._settings, error)) from error
        except REJECTS as error:
            raise BadRow(f"the template rejects it: {error}") from error


def template_key(settings: TemplateSettings) -> str:
    """Whose template it is: the config's, or that of the tokenizer in the model's folder."""
    return "template.chat_template" if settings.chat_template else "model.path, its chat template"


def too_much(settings: TemplateSettings, error: TooMuch) -> Issue:
    """The template takes more time or memory than it may."""
    return Issue(template_key(settings), f"{error} to render a conversation", "another one: template=chatml")


def died(settings: TemplateSettings) -> Issue:
    """A process that rendered was ended by the kernel."""
    message = f"a process ended while it rendered: one step took {HARD_SECONDS:g} seconds, or memory ran out"
    return Issue(template_key(settings), message, "another one: template=chatml")


def _exchange() -> list[Message]:
    return [{"role": "user", "content": PROBE_USER}, {"role": "assistant", "content": PROBE}]


def _is_special(message: Message) -> bool:
    return "tool_calls" in message or any(key in message for key in REASONING_KEYS)


def _with_arguments(call: Any, as_text: bool) -> Any:
    """A call with its arguments as a mapping, or as JSON text."""
    if not isinstance(call, dict):
        return call
    arguments = arguments_of(call)
    if as_text and not isinstance(arguments, str):
        arguments = json.dumps(arguments, ensure_ascii=False)
    inner = call.get("function")
    if isinstance(inner, dict):
        return {**call, "function": {**inner, "arguments": arguments}}
    return {**call, "arguments": arguments} if "arguments" in call else call


def _outside_a_tag(text: str, at: int) -> int:
    """The place, or the begin of the tag in which it is: ``<think>`` and ``</think>`` share a letter."""
    start, end = (max(text.rfind(letter, 0, at) for letter in letters) for letters in ("<[◁", ">]▷"))
    return start if start > end else at


def _common(first: str, second: str) -> int:
    """Length of the common beginning."""
    pairs = enumerate(zip(first, second, strict=False))
    return next((index for index, (a, b) in pairs if a != b), min(len(first), len(second)))
