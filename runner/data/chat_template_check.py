"""Give the tokenizer the run's chat template, after it was tried in a process of its own."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from datetime import datetime
from difflib import get_close_matches
from typing import Any, NamedTuple

from jinja2 import Environment
from jinja2.exceptions import SecurityError, TemplateSyntaxError

from runner.config.path_rules import nearest_file
from runner.config.settings import TemplateSettings
from runner.config.template_file import is_jinja
from runner.core.errors import ConfigError, Issue, nearest
from runner.core.process.child_process import Died, in_child
from runner.core.process.limits import TooMuch, limited
from runner.data.messages import BadRow, Message
from runner.data.rendering.chat_template import REJECTS, SWITCHES, ChatTemplate, template_key, too_much
from runner.data.template import beginning, control_tokens

_DATE = re.compile(r"""strftime_now\(\s*(['"])(.{1,80}?)\1""")
_WORDS = ("words-3c71", "other-9d02")  # of two conversations that differ in nothing else
_MOST_SECONDS = 20.0  # for a dozen short conversations, on a busy machine too
_SHOWN = 200  # characters of a system prompt


class _Tried(NamedTuple):
    """What a template does: why it cannot be used (None: it can), its system prompt, its dates."""

    issue: Issue | None = None
    system: str = ""
    dates: tuple[str, ...] = ()


_did_well: dict[str, _Tried] = {}


def apply_template(tokenizer: Any, settings: TemplateSettings) -> list[str]:
    """Give the tokenizer the run's template and stop token, so that both are saved with the adapter.

    Returns what has to be said of it: a system prompt or a date that it adds by itself, where it comes from.
    Raises ``ConfigError`` if there is no template at all, if it takes too long, writes the same for every
    conversation, or uses control tokens that the tokenizer lacks.
    """
    notes = _choose(tokenizer, settings)
    if not tokenizer.chat_template:
        message = "the tokenizer has no chat template of its own"
        raise ConfigError(Issue("template", message, "choose one: template=chatml, alpaca, llama2"))
    if settings.stop:
        tokenizer.eos_token = settings.stop
    issues = list(_issues(tokenizer, settings))
    tried = _try(tokenizer, settings)
    issues += [tried.issue] if tried.issue else []
    if issues:
        raise ConfigError(issues)
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    if tried.system and not settings.system:
        shown = tried.system if len(tried.system) <= _SHOWN else tried.system[: _SHOWN - 3] + "..."
        message = "the chat template adds a system prompt to rows without one (template.system=... another)"
        notes.append(f"{message}: {shown!r}")
    if tried.dates:
        fixes = (
            " (template.kwargs.date_string=... keeps one)" if "date_string" in tokenizer.chat_template else ""
        )
        message = "the chat template writes today's date, so that rows differ from day to day"
        notes.append(f"{message}{fixes}: {', '.join(tried.dates)} is trained on")
    return notes


def _choose(tokenizer: Any, settings: TemplateSettings) -> list[str]:
    """Set the text of the template that the run uses: the config's, or one that the tokenizer has by name."""
    own, named = settings.chat_template, tokenizer.chat_template
    notes = (
        [f"the chat template was read from {settings.chat_template_file}"]
        if settings.chat_template_file
        else []
    )
    names = sorted(named) if isinstance(named, dict) else []
    if own and is_jinja(own):
        # a model that has always read a beginning token keeps it, when trained and when served
        adds_bos = beginning(tokenizer) and "bos_token" not in own
        tokenizer.chat_template = "{{ bos_token }}" + own if adds_bos else own
    elif own and own in names:
        tokenizer.chat_template = named[own]
    elif own:
        has = f"and the tokenizer has {', '.join(names)}" if names else "and the tokenizer names no templates"
        hint = nearest(own, names) if names else nearest_file(own)
        raise ConfigError(Issue("template.chat_template", f"nothing is at {own!r}, {has}", hint))
    elif len(names) == 1 or "default" in names:
        chosen = "default" if "default" in names else names[0]
        tokenizer.chat_template = named[chosen]
        if len(names) > 1:
            message = f"the tokenizer has several chat templates ({', '.join(names)}): {chosen!r} is used"
            notes.append(
                f"{message}; another one: template.chat_template={next(n for n in names if n != chosen)}"
            )
    elif names:
        message = f"the tokenizer has several chat templates: {', '.join(names)}"
        hint = f"name one: template.chat_template={names[0]}"
        raise ConfigError(Issue("template.chat_template", message, hint))
    return notes


def _issues(tokenizer: Any, settings: TemplateSettings) -> Iterator[Issue]:
    """What can be seen without rendering."""
    vocabulary, template = tokenizer.get_vocab(), str(tokenizer.chat_template)
    if settings.stop and settings.stop not in vocabulary:
        message = f"the tokenizer has no token {settings.stop!r} to end a turn with"
        near = nearest(settings.stop, control_tokens(tokenizer) - {settings.stop})
        yield Issue("template.stop", message, near)
    elif tokenizer.eos_token is None:
        message = "the tokenizer names no end token, so that the model could never stop"
        yield Issue("template.stop", message, "name one of its tokens: template.stop=...")
    for name, value in settings.kwargs.items():
        if name in SWITCHES and value is False:
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


def _try(tokenizer: Any, settings: TemplateSettings) -> _Tried:
    """Render a few conversations in a process that is ended when one step of the template takes too long.

    One that did well is not tried again by this process, as in a sweep: with much in memory a fork, and the
    copies of pages that follow, take 0.07 s.
    """
    where = template_key(settings)
    facts = repr((tokenizer.chat_template, tokenizer.special_tokens_map, settings, datetime.now().date()))
    if facts in _did_well:
        return _did_well[facts]
    try:
        tried = in_child(lambda: _tried(tokenizer, settings), _MOST_SECONDS)
    except TooMuch as error:
        return _Tried(too_much(settings, error))
    except Died as error:
        return _Tried(Issue(where, str(error), "another one: template=chatml"))
    except ConfigError as error:
        return _Tried(error.issues[0])
    if tried.issue is None:
        _did_well[facts] = tried
    return tried


def _tried(tokenizer: Any, settings: TemplateSettings) -> _Tried:
    where = template_key(settings)
    try:
        with limited():
            if power := _power(tokenizer.chat_template):
                message = f"line {power} uses **, with which a template can compute for ever"
                return _Tried(Issue(where, message, "write the number"))
            tokenizer.apply_chat_template([{"role": "user", "content": ""}], tokenize=False)
    except TemplateSyntaxError as error:
        return _Tried(Issue(where, f"line {error.lineno} is not Jinja: {error.message}"))
    except SyntaxError as error:  # of the Python that Jinja writes: loops nested too deep
        return _Tried(Issue(where, f"it cannot be compiled: {error.msg}"))
    except SecurityError as error:
        return _Tried(Issue(where, f"the template reaches for what it may not have: {error}"))
    except REJECTS:
        pass  # it may well want other messages than these; the rows will tell
    template = ChatTemplate(tokenizer, settings)
    texts = [[_text(template, kind, words) for words in _WORDS] for kind in range(len(_conversations("")))]
    rendered = [pair for pair in texts if None not in pair]
    if rendered and all(first == second for first, second in rendered):
        message = "the template writes the same whatever the messages say"
        return _Tried(Issue(where, message, "it has to write each message['content']; template=chatml does"))
    written = "".join(text for pair in rendered for text in pair if text)
    today = [datetime.now().strftime(found[2]) for found in _DATE.finditer(tokenizer.chat_template)]
    dates = tuple(dict.fromkeys(date for date in today if date and date in written))
    return _Tried(None, template.default_system, dates)


def _text(template: ChatTemplate, kind: int, words: str) -> str | None:
    """A conversation with these words as text; None where the template wants other messages."""
    try:
        return template.apply(_conversations(words)[kind])
    except BadRow:
        return None


def _conversations(words: str) -> Sequence[list[Message]]:
    """Conversations such as templates are written for: some want an answer, some a system message."""
    user: Message = {"role": "user", "content": f"question {words}"}
    answer: Message = {"role": "assistant", "content": f"answer {words}"}
    system: Message = {"role": "system", "content": f"system {words}"}
    return [user], [user, answer], [system, user, answer], [system, *[user, answer] * 6]


def _power(template: str) -> int | None:
    """The line of the first ``a ** b``, a single step of any length; not that of ``f(**names)``."""
    before = ""
    for line, kind, text in Environment().lex(template):
        if text == "**" and before not in ("(", ","):
            return line
        before = before if kind == "whitespace" else text
    return None
