"""Render messages with any chat template and decide, token by token, what is trained on.

Each assistant turn is rendered twice: the messages before it with the generation prompt, and the messages up
to it. The second must extend the first; what it adds, up to the end-of-turn token, is trained on. That is
what the model is asked for when it is served with the same template, so the template needs no markers.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from difflib import get_close_matches
from typing import Any

from jinja2 import Environment
from jinja2.exceptions import SecurityError, TemplateError, TemplateSyntaxError

from runner.config.settings import TemplateSettings
from runner.core.errors import ConfigError, Issue, nearest
from runner.core.limits import TooMuch, limited
from runner.data.formats import Example
from runner.data.labels import IGNORE, Encoded, Rendered, encode
from runner.data.messages import BadRow, Message, has_content, is_trained

_SWITCHES = ("enable_thinking", "thinking")  # by which chat templates turn reasoning on and off
_PROBE = "answer-0b9f"  # stands for an answer where only what comes before it is wanted
# What a template raises on messages that it was not written for.
_REJECTS = (TemplateError, TypeError, ValueError, LookupError, AttributeError, OverflowError, RecursionError)

Tools = tuple[dict[str, Any], ...]


@dataclass(frozen=True)
class _Turn:
    """An answer after its prompt: where it starts, and after which control tokens it may end."""

    text: str
    start: int
    ends: list[int]


class Renderer:
    """A tokenizer with the run's template and system prompt; ``train_on`` as in ``DataSettings``."""

    def __init__(self, tokenizer: Any, settings: TemplateSettings, train_on: str = "assistant") -> None:
        self.tokenizer, self.settings, self.train_on = tokenizer, settings, train_on
        stops = "|".join(map(re.escape, sorted(_stops(tokenizer), key=len, reverse=True))) or r"(?!)"
        self._stop = re.compile(stops)

    def render(self, example: Example) -> list[Rendered]:
        """Text and trained spans of one example.

        Usually one row. Where a turn stands differently once later turns follow (Qwen3 drops its reasoning,
        or the template never ends it), every assistant turn is a row of its own, trained on that turn only,
        since that is the text the model sees when it is served. Raises ``BadRow``.
        """
        if example.text is not None:
            begin, end = _beginning(self.tokenizer), self._end()
            text = begin + example.text.removeprefix(begin).removesuffix(end) + end
            return [Rendered(example.source, text, ((0, len(text)),))]
        messages = self._with_system(example.messages)
        turns = [index for index, message in enumerate(messages) if is_trained(message)]
        if self.train_on in ("completion", "all"):
            turns = turns[-1:]
        if not turns:
            return []
        rendered = [self._turn(messages, index, example.tools) for index in turns]
        full = rendered[-1].text
        if self.train_on == "all":
            return [Rendered(example.source, full, ((0, len(full)),))]
        nested = [[end for end in turn.ends if full.startswith(turn.text[:end])] for turn in rendered]
        if all(nested):
            # what follows the last answer cannot change the loss and is left out
            spans = tuple((turn.start, ends[-1]) for turn, ends in zip(rendered, nested, strict=True))
            return [Rendered(example.source, full[: spans[-1][1]], spans)]
        last = [(turn, turn.ends[-1]) for turn in rendered]
        return [Rendered(example.source, turn.text[:end], ((turn.start, end),)) for turn, end in last]

    def encode(self, rows: list[Rendered]) -> list[Encoded]:
        """Tokenise rows and label the tokens inside their spans."""
        return encode(self.tokenizer, rows)

    def prompt(self, example: Example) -> str:
        """The text after which the model has to write the last answer."""
        messages = self._with_system(example.messages)
        return self._prompt(messages[:-1], example.tools)

    def sample_turn(self) -> tuple[str, list[str]]:
        """A question and its answer as a row has them, and the control tokens that end the answer.

        Raises ``BadRow``.
        """
        roles = ("user", "assistant")
        turn = self._turn([{"role": role, "content": _PROBE} for role in roles], 1, ())
        return turn.text, self._stop.findall(turn.text, turn.start)

    def warnings(self, example: Example, rows: list[Rendered]) -> list[str]:
        """What may be wrong with a rendered example, as reasons to count: nothing here stops a run."""
        found, text = [], rows[-1].text if rows else ""
        for message in example.messages if rows else ():
            content, role = message["content"], message["role"]
            if self._stop.search(content):
                found.append("control tokens in its words")
            if not has_content(message):
                found.append(f"an empty {role} message")
            if role in ("system", "tool") and not _shows(text, content.strip()):
                found.append(f"{role} message left out by the template")
            if any(not _shows(text, _tool_name(call)) for call in message.get("tool_calls", ())):
                found.append("tool calls left out by the template")
        if text and any(not _shows(text, _tool_name(tool)) for tool in example.tools):
            found.append("tools left out by the template")
        return sorted(set(found))

    def trained_text(self, row: Encoded) -> str:
        """The loss tokens, decoded."""
        return self.tokenizer.decode([label for label in row.labels if label != IGNORE])

    def _turn(self, messages: list[Message], index: int, tools: Tools) -> _Turn:
        before = messages[:index]
        prompt = self._prompt(before, tools)
        text = self._apply(messages[: index + 1], tools)
        if not text.startswith(prompt):
            # some templates write the system prompt or the tools into the last user turn, and only while it
            # is last: the model is then served the prompt, so the answer is put after that
            opening = self._opening(before, tools)
            last = prompt.rfind(before[-1]["content"].strip()) if before else -1
            if last < 0 or not opening.endswith(prompt[last:]) or not text.startswith(opening):
                raise BadRow(_mismatch(index, prompt, text))
            text = prompt + text[len(opening) :]
        ends = self._ends(text, len(prompt))
        if not ends:  # the template never ends the turn: without this the model would not stop
            text = prompt + text[len(prompt) :].rstrip("\n") + self._end()
            ends = [len(text)]
        return _Turn(text, len(prompt), ends)

    def _ends(self, text: str, start: int) -> list[int]:
        """Where the control tokens end that nothing but white space and control tokens follows."""
        ends, edge = [], len(text)
        for match in reversed(list(self._stop.finditer(text, start))):
            if text[match.end() : edge].strip():
                break
            ends, edge = [match.end(), *ends], match.start()
        return ends

    def _prompt(self, messages: list[Message], tools: Tools) -> str:
        """What the model is served before it answers.

        Where the template has no generation prompt, all it writes before the answer's own words.
        """
        served = self._apply(messages, tools, generate=True) if messages else ""
        if messages and served != self._apply(messages, tools):
            return served
        opening = self._opening(messages, tools)
        return opening if opening.startswith(served) else served

    def _opening(self, messages: list[Message], tools: Tools) -> str:
        """What the template writes before an answer, without trailing spaces: tokens begin with theirs."""
        text = self._apply([*messages, {"role": "assistant", "content": _PROBE}], tools)
        return text[: text.rfind(_PROBE)].rstrip(" ") if _PROBE in text else ""

    def _with_system(self, messages: Iterable[Message]) -> list[Message]:
        messages = list(messages)
        if self.settings.system and messages[0]["role"] != "system":
            return [{"role": "system", "content": self.settings.system}, *messages]
        return messages

    def _apply(self, messages: list[Message], tools: Tools, generate: bool = False) -> str:
        try:
            with limited():
                return self.tokenizer.apply_chat_template(
                    messages,
                    tools=list(tools) or None,
                    tokenize=False,
                    add_generation_prompt=generate,
                    **self.settings.kwargs,
                )
        except TooMuch as error:
            raise ConfigError(_too_much(self.settings, error)) from error
        except _REJECTS as error:
            raise BadRow(f"the template rejects it: {error}") from error

    def _end(self) -> str:
        return self.tokenizer.eos_token or ""


def apply_template(tokenizer: Any, settings: TemplateSettings) -> None:
    """Give the tokenizer the run's template and stop token, so that both are saved with the adapter.

    Raises ``ConfigError`` if there is no template at all, or if it uses control tokens that the tokenizer
    lacks.
    """
    if settings.chat_template:
        own = settings.chat_template
        # a model that has always read a beginning token keeps it, when trained and when served
        adds_bos = _beginning(tokenizer) and "bos_token" not in own
        tokenizer.chat_template = "{{ bos_token }}" + own if adds_bos else own
    if not tokenizer.chat_template:
        message = "the tokenizer has no chat template of its own"
        raise ConfigError(Issue("template", message, "choose one: template=chatml, alpaca, llama2"))
    if settings.stop:
        tokenizer.eos_token = settings.stop
    issues = list(_template_issues(tokenizer, settings))
    if issues:
        raise ConfigError(issues)
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token


def _beginning(tokenizer: Any) -> str:
    """The token that the tokenizer puts before plain text, as in pretraining; mostly none."""
    first, bos = tokenizer("")["input_ids"][:1], tokenizer.bos_token_id
    return tokenizer.bos_token if bos is not None and first == [bos] else ""


def _template_issues(tokenizer: Any, settings: TemplateSettings) -> Iterator[Issue]:
    vocabulary, template = tokenizer.get_vocab(), str(tokenizer.chat_template)
    if settings.stop and settings.stop not in vocabulary:
        message = f"the tokenizer has no token {settings.stop!r} to end a turn with"
        yield Issue("template.stop", message, nearest(settings.stop, _stops(tokenizer) - {settings.stop}))
    elif tokenizer.eos_token is None:
        message = "the tokenizer names no end token, so that the model could never stop"
        yield Issue("template.stop", message, "name one of its tokens: template.stop=...")
    for name, value in settings.kwargs.items():
        if name in _SWITCHES and value is False:
            continue  # there is nothing to turn off, as where an experiment meets another model
        if not re.search(rf"\b{re.escape(str(name))}\b", template):
            message = f"the chat template reads no {name!r}, so that it would have no effect"
            near = get_close_matches(str(name), set(re.findall(r"[a-z]\w+", template)), n=1)
            hint = f"did you mean {near[0]!r}?" if near else "the template decides which there are"
            yield Issue(f"template.kwargs.{name}", message, hint)
    used = sorted(set(re.findall(r"<\|[^|<>{}]+\|>", template)) - {settings.stop} - set(vocabulary))
    if used and settings.chat_template:
        message = f"the template uses {', '.join(used)}, which this tokenizer has no token for"
        yield Issue("template", message, "template=chat keeps the tokenizer's own template")
    where = _where(settings)
    try:
        if power := _power(template):
            message = f"line {power} uses **, with which a template can compute for ever"
            yield Issue(where, message, "write the number")
            return
        with limited():
            tokenizer.apply_chat_template([{"role": "user", "content": ""}], tokenize=False)
    except TemplateSyntaxError as error:
        yield Issue(where, f"line {error.lineno} is not Jinja: {error.message}")
    except TooMuch as error:
        yield _too_much(settings, error)
    except SecurityError as error:
        yield Issue(where, f"the template reaches for what it may not have: {error}")
    except _REJECTS:
        return  # it may well want other messages than these; the rows will tell


def _where(settings: TemplateSettings) -> str:
    """Whose template it is: the config's, or that of the tokenizer in the model's folder."""
    return "template.chat_template" if settings.chat_template else "model.path, its chat template"


def _too_much(settings: TemplateSettings, error: TooMuch) -> Issue:
    return Issue(_where(settings), f"{error} to render a conversation", "another one: template=chatml")


def _power(template: str) -> int | None:
    """The line of the first ``a ** b``, a single step of any length; not that of ``f(**names)``."""
    before = ""
    for line, kind, text in Environment().lex(template):
        if text == "**" and before not in ("(", ","):
            return line
        before = before if kind == "whitespace" else text
    return None


def _stops(tokenizer: Any) -> set[str]:
    """Strings of the control tokens, any of which can end a turn."""
    added = tokenizer.added_tokens_decoder.values()
    return {str(token) for token in added if token.special} | set(map(str, tokenizer.all_special_tokens))


def _shows(text: str, words: str) -> bool:
    return words in text or json.dumps(words, ensure_ascii=False)[1:-1] in text


def _tool_name(tool: Any) -> str:
    """The name in a tool's schema or call, which may stand under ``function``."""
    inner = tool.get("function", tool) if isinstance(tool, dict) else None
    return str(inner.get("name", "")) if isinstance(inner, dict) else ""


def _mismatch(index: int, prompt: str, text: str) -> str:
    at = next((i for i, (a, b) in enumerate(zip(prompt, text, strict=False)) if a != b), len(text))
    shown = f"...{prompt[max(0, at - 30) : at + 20]!r} against ...{text[max(0, at - 30) : at + 20]!r}"
    return f"the template renders the answer of message {index} over its own prompt: {shown}"
