"""An answer behind its prompt: the text that is served, what the template adds for the answer, where it ends.

The text up to the answer is always the prompt as it is served. Mostly the template's rendering of the whole
extends it. Where it does not, what follows the last message is compared: the template may write the system
prompt elsewhere once there is an answer, write a reasoning block that it leaves out of the history, or differ
in white space.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from runner.data.messages import BadRow, Message
from runner.data.rendering.chat_template import PROBE, PROBE_USER, SWITCHES, ChatTemplate, Tools
from runner.data.rendering.contents import Contents, contents_of
from runner.data.rendering.reasoning import KNOWN, split_reasoning

_HEADER = 8  # characters at the end of a generation prompt by which it is known


@dataclass(frozen=True)
class Turn:
    """An answer after its prompt: what it says, where it starts, after which control tokens it may end."""

    text: str
    start: int
    ends: list[int]
    contents: Contents

    @property
    def written(self) -> bool:
        """Whether anything that the answer says stands in its part of the text."""
        return self.contents.anything_in(self.text[self.start : self.ends[-1]])


class TurnWriter:
    """Writes the answers of a conversation behind their prompts."""

    def __init__(self, template: ChatTemplate, stop: re.Pattern[str]) -> None:
        self._template, self._stop = template, stop

    def turn(self, messages: list[Message], index: int, tools: Tools) -> Turn:
        """The answer that is message ``index``, behind its prompt. Raises ``BadRow``."""
        prompt = self.prompt(messages[:index], tools)
        text = self._template.apply(messages[: index + 1], tools)
        if not text.startswith(prompt):
            text = prompt + self._after_prompt(messages, index, tools, prompt, text)
        contents = contents_of(messages[index], self._template.delimiters)
        suffix = self._suffix(messages[: index + 1], tools, text[len(prompt) :], contents)
        ends = self._ends(text, suffix)
        if not ends:  # the template never ends the turn: without this the model would not stop
            kept = self._stop.split(suffix)[0].rstrip("\n")
            text = text[: len(text) - len(suffix)].rstrip("\n" if not kept else "") + kept + self._end()
            ends = [len(text)]
        return Turn(text, len(prompt), ends, contents)

    def prompt(self, messages: list[Message], tools: Tools) -> str:
        """What the model is served before it answers.

        Where the template has no generation prompt, all it writes before the answer's own words.
        """
        template = self._template
        if not messages:
            return self._opening(messages, tools)
        served = template.apply(messages, tools, generate=True)
        if template.prompts and messages[-1]["role"] == "user":
            return served
        if served != template.apply(messages, tools) and served.endswith(template.header[-_HEADER:]):
            return served
        opening = self._opening(messages, tools)
        return opening if opening.startswith(served) else served

    def _opening(self, messages: list[Message], tools: Tools) -> str:
        """What the template writes before an answer, without trailing spaces: tokens begin with theirs."""
        text = self._template.apply([*messages, {"role": "assistant", "content": PROBE}], tools)
        return text[: text.rfind(PROBE)].rstrip(" ") if PROBE in text else ""

    def _after_prompt(self, messages: list[Message], index: int, tools: Tools, prompt: str, text: str) -> str:
        """The answer of message ``index`` as it follows its prompt, where ``text`` does not extend that."""
        refused = BadRow(_mismatch(index, prompt, text, self._template))
        if not index:
            raise refused
        before = messages[index - 1]
        stand_in = {"content": PROBE_USER} | (
            {"instruction": PROBE_USER, "input": ""} if "instruction" in before else {}
        )
        marked = [*messages[: index - 1], {**before, **stand_in}]
        served = self.prompt(marked, tools)
        whole = self._template.apply([*marked, messages[index]], tools)
        tail, rest = served.rpartition(PROBE_USER)[2], whole.rpartition(PROBE_USER)[2]
        if PROBE_USER not in served or PROBE_USER not in whole or not prompt.endswith(tail):
            raise refused
        if not text.endswith(rest):
            raise refused
        answer = self._behind(tail, rest, messages[index])
        if answer is None:
            raise refused
        return answer

    def _behind(self, tail: str, rest: str, message: Message) -> str | None:
        """What follows the end ``tail`` of a prompt, of the ``rest`` that the template writes there."""
        if (answer := _aligned(tail, rest)) is not None:
            return answer
        delimiters = self._template.delimiters
        for opening, closing in delimiters:
            at = tail.rfind(opening)
            if at < 0 or (answer := _aligned(tail[:at], rest)) is None:
                continue
            block, own = tail[at:], split_reasoning(answer, delimiters)
            if closing in block:  # served without reasoning
                return answer if own.reasoning is None else own.answer
            said = contents_of(message, delimiters)
            if own.reasoning is None or (said.reasoning and not own.reasoning.strip()):
                words = answer if own.reasoning is None else own.answer
                words = self._without_reasoning(words, message, said)
                end = self._closing(opening, closing, block)
                if (
                    said.calls
                    and (known := dict(KNOWN).get(opening))
                    and not words.startswith(end.strip()[-8:])
                ):
                    end = end[: end.find(known) + len(known)] if known in end and _heads(end, known) else end
                return said.reasoning + _joined(end, words)
            return own.reasoning.strip() + _joined(self._closing(opening, closing, block), own.answer)
        return None

    def _without_reasoning(self, words: str, message: Message, said: Contents) -> str:
        """What the template writes of an answer, without reasoning that stands outside of its own block.

        Some write the block of another family as words: it belongs into the block that the prompt opens.
        """
        text = message["content"]
        parts = split_reasoning(text, self._template.delimiters)
        block = text[: len(text) - len(parts.answer)].strip() if parts.reasoning is not None else ""
        if block and block in words:
            before, _, after = words.partition(block)
            return before + after.lstrip()
        if said.words and said.reasoning and said.reasoning in words:
            return words[words.rfind(said.words) :]
        return words

    def _closing(self, opening: str, closing: str, block: str) -> str:
        """How the family closes a reasoning block that a prompt has opened with ``block``."""
        own = self._template.own_delimiters
        if own and own[0].strip() == opening:
            return own[1]
        return f"\n{closing}\n\n" if block.endswith("\n") else closing

    def _suffix(self, messages: Sequence[Message], tools: Tools, answer: str, contents: Contents) -> str:
        """What the template writes after all that an answer says."""
        message, usual = messages[-1], self._template.answer[1]
        if not contents.calls and answer.endswith(usual):
            said = answer[: len(answer) - len(usual)].rstrip()
            if said.endswith(contents.words):
                return usual
        for stand_in in self._stand_ins(message):
            try:
                text = self._template.apply([*messages[:-1], stand_in], tools)
            except BadRow:
                continue
            if PROBE not in text:
                continue
            suffix = text.rpartition(PROBE)[2]
            if stand_in.get("tool_calls"):  # the quotes and brackets of the call are its own
                control = self._stop.search(suffix)
                suffix = suffix[control.start() :] if control else ""
            if answer.endswith(suffix):
                return suffix
        return self._trailing(answer)

    def _stand_ins(self, message: Message) -> Iterator[Message]:
        """The message with a probe in the place of what it says last: a call's arguments, or its words."""
        if calls := message.get("tool_calls"):
            *others, last = calls
            probe = {**last.get("function", last), "arguments": {PROBE: PROBE}}
            yield {
                **message,
                "tool_calls": [*others, {**last, "function": probe} if "function" in last else probe],
            }
        yield {**message, "content": PROBE, "tool_calls": []}

    def _trailing(self, answer: str) -> str:
        """Control tokens and white space at the end of a text."""
        edge = len(answer)
        for match in reversed(list(self._stop.finditer(answer))):
            if answer[match.end() : edge].strip():
                break
            edge = match.start()
        return answer[edge:]

    def _ends(self, text: str, suffix: str) -> list[int]:
        """Where the answer may end: after the control tokens up to the stop token, whatever follows that.

        Without the stop token, after those that nothing but white space parts.
        """
        base, controls = len(text) - len(suffix), list(self._stop.finditer(suffix))
        stops = [number for number, match in enumerate(controls) if match.group() == self._end()]
        if stops:
            return [base + match.end() for match in controls[: stops[0] + 1]]
        ends: list[int] = []
        following = [*(match.start() for match in controls[1:]), len(suffix)]
        for match, edge in zip(controls, following, strict=False):
            if suffix[match.end() : edge].strip():  # the next message's header
                break
            ends.append(base + match.end())
        return ends

    def _end(self) -> str:
        return self._template.tokenizer.eos_token or ""


def _aligned(tail: str, text: str) -> str | None:
    """What follows ``tail`` in a text that begins with it, if need be but for white space; else None."""
    if text.startswith(tail):
        return text[len(tail) :]
    at = 0
    for letter in "".join(tail.split()):
        while at < len(text) and text[at].isspace():
            at += 1
        if not text.startswith(letter, at):
            return None
        at += 1
    return text[at:].lstrip()


def _heads(closing: str, known: str) -> bool:
    """Whether a closing goes on to the header of an answer's words, which calls do not have."""
    return bool(closing.partition(known)[2].strip())


def _joined(closing: str, words: str) -> str:
    """A closing with what follows it: both may have the control token that begins the words."""
    lengths = (size for size in range(len(closing), 0, -1) if words.startswith(closing[-size:]))
    size = next(lengths, 0)
    return closing + (words[size:] if closing[len(closing) - size :].strip() else words)


def _mismatch(index: int, prompt: str, text: str, template: ChatTemplate) -> str:
    at = next((i for i, (a, b) in enumerate(zip(prompt, text, strict=False)) if a != b), len(text))
    shown = f"...{prompt[max(0, at - 30) : at + 20]!r} against ...{text[max(0, at - 30) : at + 20]!r}"
    near = prompt[max(0, at - 30) : at + 30] + text[max(0, at - 30) : at + 30]
    reasons = any(mark in near for pair in template.delimiters for mark in pair)
    named = (name for name in SWITCHES if reasons and name in str(template.tokenizer.chat_template))
    switch = next((f"; template.kwargs.{name}=false may help" for name in named), "")
    return f"the template renders the answer of message {index} over its own prompt: {shown}{switch}"
