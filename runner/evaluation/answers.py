"""What of a generated text is the answer: not its reasoning, nor the marks that a template puts around both.

A row's answer and a model's are compared as a reader sees them. Reasoning models write more than that:
Qwen3's template puts an empty block before every answer, that of gpt-oss names a channel.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

from runner.data.formats import Example
from runner.data.messages import BadRow, Message
from runner.data.rendering.reasoning import KNOWN, Delimiters, split_reasoning, unclosed
from runner.data.splits import Split
from runner.data.template import Renderer


@dataclass(frozen=True)
class Answer:
    """All that a model wrote, and what of it is the answer.

    ``reasoning`` is what stands in the block before it, None without a block; not ``closed``: the text ends
    inside the block, and there is no answer.
    """

    text: str
    answer: str
    reasoning: str | None = None
    closed: bool = True


class AnswerParser:
    """Takes generated texts apart, by the reasoning delimiters of a template and what it writes besides."""

    def __init__(self, renderer: Renderer) -> None:
        self._renderer, self.tokenizer = renderer, renderer.tokenizer
        template = renderer.template
        self._delimiters, self._header = tuple(self._known()), template.header
        before, after = template.answer
        self._before = split_reasoning(before, self._delimiters).answer.strip()
        ending = renderer.control_tokens(after)
        self._after = (after.partition(ending[0])[0] if ending else after).strip()
        marks = "".join((*(mark for pair in self._delimiters for mark in pair), before))
        self._marks = set(renderer.control_tokens(marks))
        self._turn_header = self._begins_turn()
        ids = self.tokenizer.convert_tokens_to_ids
        self.mark_ids = {ids(mark) for mark in self._marks}
        self.dropped_ids = {ids(token) for token in renderer.all_control_tokens} - self.mark_ids

    @property
    def reads_reasoning(self) -> bool:
        """Whether the template wants reasoning apart from the words of an answer."""
        return self._renderer.template.own_delimiters is not None

    def decode(self, ids: Sequence[int], stops: Sequence[int] = ()) -> str:
        """The text up to a stop token, without special tokens but for those that delimit reasoning."""
        end = next((index for index, token in enumerate(ids) if token in stops), len(ids))
        kept = list(ids[:end])
        if not self.mark_ids.intersection(kept):
            return self.tokenizer.decode(kept, skip_special_tokens=True)
        return self.tokenizer.decode([token for token in kept if token not in self.dropped_ids])

    def parse(self, text: str, opened: bool = False) -> Answer:
        """Take a text apart; ``opened``: its prompt has opened a reasoning block."""
        rest, reasoning, closed = text, list[str](), True
        opened = opened or self._closes_first(text)
        while closed:
            parts = split_reasoning(rest, self._delimiters, opened)
            if parts.reasoning is not None:
                reasoning.append(parts.reasoning)
                # gpt-oss begins its message anew after each block
                rest = parts.answer.removeprefix(self._turn_header)
            elif self._before and rest.lstrip().startswith(self._before):
                rest = rest.lstrip().removeprefix(self._before)
            else:
                break
            closed, opened = parts.closed, False
        rest = self._bare(rest)
        return Answer(text, rest, "".join(reasoning) if reasoning else None, closed)

    def expected(self, example: Example) -> str:
        """The answer of a row, as ``parse`` gives it of a model that writes just that.

        A call of tools is expected as the template writes it.
        """
        if example.text is None and example.messages[-1].get("tool_calls"):
            try:
                span, prompt = self.rendered(example)
            except BadRow:
                return example.answer
            ids = self.tokenizer(span, add_special_tokens=False)["input_ids"]
            text = self.decode(ids, [self.tokenizer.eos_token_id])
            return self.parse(text, self.opened(prompt) and self.closes(text)).answer
        found = self.parse(example.answer)
        return found.answer if found.closed else example.answer

    def rendered(self, example: Example) -> tuple[str, str]:
        """The last answer as the template writes it, and its prompt. Raises ``BadRow``."""
        turn = self._renderer.last_turn(example)
        return turn.text[turn.start : turn.ends[-1]], turn.text[: turn.start]

    def opened(self, prompt: str) -> bool:
        """Whether a prompt ends inside a reasoning block that its generation prompt has opened."""
        header = self._header
        if header and prompt.endswith(header):
            return any(
                header.rfind(mark) > header.rfind(close) for mark, close in self._delimiters if mark in header
            )
        return unclosed(prompt, self._delimiters) is not None

    def closes(self, text: str) -> bool:
        """Whether a text closes a reasoning block."""
        return any(close in text for _, close in self._delimiters)

    def message(self, text: str, prompt: str) -> Message:
        """A generated answer as a message of the conversation that goes on.

        Its reasoning is kept apart where the template reads it so, and in its place in the text where not.
        """
        found = self.parse(text, self.opened(prompt))
        if found.reasoning is None or not self.reads_reasoning:
            content = text if found.reasoning is not None else found.answer
            return {"role": "assistant", "content": content.strip()}
        message = {"role": "assistant", "content": found.answer.strip()}
        reasoning = found.reasoning.strip()
        return message | ({"reasoning_content": reasoning} if reasoning else {})

    def _known(self) -> Iterator[Delimiters]:
        """The delimiters whose opening the template or the vocabulary has: Phi ends turns with the token by
        which gpt-oss ends reasoning."""
        template, tokens = self._renderer.template, self.tokenizer.get_added_vocab()
        text = str(self.tokenizer.chat_template)
        for opening, closing in template.delimiters:
            known = (opening, closing) not in KNOWN[1:] or opening in text
            # a template that writes a bare "</think>" gives only a part of the opening
            if opening not in closing and (known or any(map(opening.startswith, tokens))):
                yield opening, closing

    def _begins_turn(self) -> str:
        """What begins an answer's message: gpt-oss writes it once more after the reasoning."""
        controls = self._renderer.control_tokens(self._header)
        if not controls or self.opened(self._header):
            return ""
        return self._header[self._header.rindex(controls[-1]) :].strip()

    def _closes_first(self, text: str) -> bool:
        """Whether a text closes a block that it has not opened, by a mark that can be nothing else."""
        for opening, closing in self._delimiters:
            before, found, _ = text.partition(closing)
            if "/" in closing and found and opening not in before:
                return True
        return False

    def _bare(self, text: str) -> str:
        """A text without what the template writes after the words of an answer, and without its marks."""
        words = text.strip()
        bare = words.removesuffix(self._after) if self._after else words
        for mark in self._marks:
            bare = bare.replace(mark, "")
        return bare.strip() if bare != words else text


class AnswerReader:
    """The answers of the same examples by several models, and what is expected of them."""

    def __init__(self, renderer: Renderer, examples: Sequence[Example]) -> None:
        self.parser = AnswerParser(renderer)
        self._examples = examples

    @cached_property
    def expected(self) -> list[str]:
        """What the rows answer, without reasoning."""
        return [self.parser.expected(example) for example in self._examples]

    def read(self, texts: Sequence[str]) -> list[Answer]:
        """What is the answer in each generated text, of which there is one for each example."""
        return [self._read(text, *facts) for text, facts in zip(texts, self._blocks, strict=True)]

    def _read(self, text: str, opened: bool, closes: bool) -> Answer:
        # where the rows themselves do not close the block of their prompt, a model that learnt them cannot
        return self.parser.parse(text, opened and (closes or self.parser.closes(text)))

    @cached_property
    def _blocks(self) -> list[tuple[bool, bool]]:
        """Of each example whether its prompt opens a reasoning block, and its answer closes that."""
        found = []
        for example in self._examples:
            try:
                span, prompt = self.parser.rendered(example)
            except BadRow:
                found.append((False, False))
                continue
            found.append((self.parser.opened(prompt), self.parser.closes(span)))
        return found


def reasoning_notes(answers: Mapping[str, Sequence[Answer]], key: str, scored: bool = True) -> list[str]:
    """What is to be said of answers with reasoning, by the name of who wrote them.

    ``key`` is the one that limits their length; ``scored``: they were compared with what is expected.
    """

    def shares(counts: dict[str, int]) -> str:
        return ", ".join(
            f"{count} of {len(answers[who])} answers {who}".rstrip() for who, count in counts.items()
        )

    notes = []
    blocks = {who: sum(each.reasoning is not None for each in own) for who, own in answers.items()}
    if scored and any(blocks.values()):
        notes.append(f"scored without the reasoning block: {shares(blocks)}")
    cut = {who: count for who, own in answers.items() if (count := sum(not each.closed for each in own))}
    if cut:
        notes.append(f"{shares(cut)} ended inside their reasoning and count as empty: raise {key}")
    return notes


def answer_fields(name: str, text: str | None, answer: str | None) -> dict[str, str | None]:
    """A generated or expected text for ``samples.jsonl``, with the answer in it where that is less."""
    return {name: text} | ({f"{name}_answer": answer} if answer != text else {})


def answerable(rows: Split, renderer: Renderer) -> Iterator[Example]:
    """The examples that can be answered: those that ask, but not with an undesirable answer (KTO).

    What the template rejects, or writes nothing of, was counted when the rows were prepared.
    """
    for example in rows.examples:
        if example.messages and example.label is not False:
            try:
                turn = renderer.last_turn(example)
            except BadRow:
                continue
            if turn.written:
                yield example


def question(example: Example) -> str:
    """The message that is answered, for a line of ``samples.jsonl``."""
    return str(example.messages[-2]["content"]) if len(example.messages) > 1 else ""
