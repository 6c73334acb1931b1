"""Render messages with any chat template and decide, token by token, what is trained on.

Each assistant turn is rendered twice: the messages before it with the generation prompt, and the messages up
to it. The second must extend the first; what it adds, up to the end-of-turn token, is trained on. That is
what the model is asked for when it is served with the same template, so the template needs no markers.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from functools import cached_property
from typing import Any

from runner.config.settings import TemplateSettings
from runner.data.formats import Example
from runner.data.labels import IGNORE, Encoded, Rendered, encode
from runner.data.messages import BadRow, Message, has_content, is_trained
from runner.data.rendering.boundary import Boundary
from runner.data.rendering.chat_template import PROBE, ChatTemplate
from runner.data.rendering.contents import contents_of
from runner.data.rendering.left_out import left_out
from runner.data.rendering.marked import unmarked
from runner.data.rendering.turns import Turn, TurnWriter


class Renderer:
    """A tokenizer with the run's template and system prompt; ``train_on`` as in ``DataSettings``."""

    def __init__(self, tokenizer: Any, settings: TemplateSettings, train_on: str = "assistant") -> None:
        self.tokenizer, self.settings, self.train_on = tokenizer, settings, train_on
        self.all_control_tokens = control_tokens(tokenizer)
        stops = "|".join(map(re.escape, sorted(self.all_control_tokens, key=len, reverse=True))) or r"(?!)"
        self._stop = re.compile(stops)
        self.template = ChatTemplate(tokenizer, settings)
        self._writer = TurnWriter(self.template, self._stop)
        self._boundary = Boundary(tokenizer)

    def render(self, example: Example) -> list[Rendered]:
        """Text and trained spans of one example.

        Usually one row. Where a turn stands differently once later turns follow (Qwen3 drops its reasoning,
        or the template never ends it), or has another first token, every assistant turn is a row of its own,
        trained on that turn only, since that is what the model sees when it is served. An answer of which the
        template writes nothing is not trained on; a row without any other is none. Raises ``BadRow``.
        """
        if example.text is not None:
            begin, end = beginning(self.tokenizer), self.tokenizer.eos_token or ""
            text = begin + _without_end(example.text.removeprefix(begin), end) + end
            return [Rendered(example.source, text, ((0, len(text)),))]
        messages = self._with_system(example.messages)
        turns = {
            index: self._writer.turn(messages, index, example.tools) for index in self._trained(messages)
        }
        turns = {index: turn for index, turn in turns.items() if turn.written}
        if not turns:
            return []
        rendered, answers = list(turns.values()), tuple(turns)
        full = rendered[-1].text
        if self.train_on == "all":
            return [Rendered(example.source, full, self._all_unmarked(example, messages, turns), answers)]
        nested = [[end for end in turn.ends if full.startswith(turn.text[:end])] for turn in rendered]
        if all(nested) and (len(turns) == 1 or not self._shares_tokens):
            # what follows the last answer cannot change the loss and is left out
            spans = tuple((turn.start, ends[-1]) for turn, ends in zip(rendered, nested, strict=True))
            return [Rendered(example.source, full[: spans[-1][1]], spans, answers)]
        return [self._alone(example, index, turn) for index, turn in turns.items()]

    def encode(self, rows: list[Rendered]) -> list[Encoded]:
        """Tokenise rows and label the tokens inside their spans."""
        return encode(self.tokenizer, rows, self._boundary)

    def prompt(self, example: Example) -> str:
        """The text after which the model has to write the last answer."""
        messages = self._with_system(example.messages)
        return self._writer.prompt(messages[:-1], example.tools)

    def last_turn(self, example: Example) -> Turn:
        """The last answer of a conversation behind its prompt, as it is served. Raises ``BadRow``."""
        messages = self._with_system(example.messages)
        return self._writer.turn(messages, len(messages) - 1, example.tools)

    def control_tokens(self, text: str) -> list[str]:
        """The control tokens in a text, in their order."""
        return self._stop.findall(text)

    def sample_turn(self) -> tuple[str, list[str]]:
        """A question and its answer as a row has them, and the control tokens that end the answer.

        Raises ``BadRow``.
        """
        turn = self._sample()
        return turn.text, self._stop.findall(turn.text[: turn.ends[-1]], turn.start)

    def _sample(self) -> Turn:
        roles = ("user", "assistant")
        return self._writer.turn([{"role": role, "content": PROBE} for role in roles], 1, ())

    def warnings(self, example: Example, rows: list[Rendered]) -> list[str]:
        """What may be wrong with a rendered example, as reasons to count: nothing here stops a run."""
        if not rows or example.text is not None:
            return []
        messages = self._with_system(example.messages)
        found = {f"an empty {message['role']} message" for message in messages if not has_content(message)}
        if any(self._stop.search(message["content"]) for message in messages):
            found.add("control tokens in its words")
        # an answer that the template does not write is cut off with what it answers
        heard = messages[: rows[-1].answers[-1] + 1]
        found.update(left_out(self.template, heard, example.tools, rows[-1].text))
        spans = {
            index: row.text[start:end]
            for row in rows
            for index, (start, end) in zip(row.answers, row.spans[-len(row.answers) :], strict=True)
        }
        for index in self._trained(messages):
            if index in spans:
                found.update(contents_of(messages[index], self.template.delimiters).lost(spans[index]))
            else:
                found.add("an answer of which the template writes nothing: not trained on")
        return sorted(found)

    def trained_text(self, row: Encoded) -> str:
        """The loss tokens, decoded."""
        return self.tokenizer.decode([label for label in row.labels if label != IGNORE])

    def _trained(self, messages: list[Message]) -> list[int]:
        """Indices of the messages that are trained on."""
        turns = [index for index, message in enumerate(messages) if is_trained(message)]
        return turns[-1:] if self.train_on in ("completion", "all") else turns

    @cached_property
    def _shares_tokens(self) -> bool:
        """Whether a token reaches from a prompt into any answer: of later turns it would be served whole."""
        try:
            turn = self._sample()
        except BadRow:
            return False
        end = turn.ends[-1]
        return bool(self.encode([Rendered(0, turn.text[:end], ((turn.start, end),))])[0].apart)

    def _all_unmarked(
        self, example: Example, messages: list[Message], turns: dict[int, Turn]
    ) -> tuple[tuple[int, int], ...]:
        """Where the text of the last turn is outside of messages that are marked as not trained."""
        last, turn = next(reversed(turns.items()))
        heard = messages[: last + 1]
        return unmarked(
            turn.text, heard, lambda other: self._writer.turn(other, last, example.tools).text, self._stop
        )

    def _alone(self, example: Example, index: int, turn: Turn) -> Rendered:
        """An answer as a row of its own."""
        end = turn.ends[-1]
        return Rendered(example.source, turn.text[:end], ((turn.start, end),), (index,))

    def _with_system(self, messages: Iterable[Message]) -> list[Message]:
        messages = list(messages)
        if self.settings.system and messages[0]["role"] != "system":
            return [{"role": "system", "content": self.settings.system}, *messages]
        return messages


def _without_end(text: str, end: str) -> str:
    """A text without the end token that it has already, also before white space: templates write it so."""
    stripped = text.rstrip()
    return stripped.removesuffix(end) if end and stripped.endswith(end) else text


def beginning(tokenizer: Any) -> str:
    """The token that the tokenizer puts before plain text, as in pretraining; mostly none."""
    first, bos = tokenizer("")["input_ids"][:1], tokenizer.bos_token_id
    return tokenizer.bos_token if bos is not None and first == [bos] else ""


def control_tokens(tokenizer: Any) -> set[str]:
    """Strings of the control tokens, any of which can end a turn."""
    added = tokenizer.added_tokens_decoder.values()
    return {str(token) for token in added if token.special} | set(map(str, tokenizer.all_special_tokens))
