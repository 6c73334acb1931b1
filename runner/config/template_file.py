"""``template.chat_template`` as a path: read once, its text stands in the config from then on."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from runner.config.origins import Origins
from runner.config.path_rules import nearest_file
from runner.core.errors import Issue
from runner.core.file_kinds import decoded

_KEY, _MOST = "template.chat_template", 2**20  # bytes; the longest published templates have 40,000


def is_jinja(text: str) -> bool:
    """Whether a text can show anything of a conversation: without these marks it is the same for all."""
    return "{{" in text or "{%" in text


def read_template(values: dict[str, Any], origins: Origins) -> Iterator[Issue]:
    """Put the text of a template's file in the place of its path, and path and digest beside it.

    A bare word may also be the name of one of the tokenizer's templates, which is not known yet: it stays.
    """
    section = values.get("template")
    given = section.get("chat_template") if isinstance(section, dict) else None
    if not isinstance(section, dict) or not isinstance(given, (str, type(None))):
        return
    source = section.get("chat_template_file")
    if not given or is_jinja(given):
        if source and not (given and str(source).endswith(_digest(given))):
            section["chat_template_file"] = None  # it was another text's
        return
    section["chat_template_file"] = None
    where = origins.where(_KEY)
    if len(given) > 4096 or not given.isprintable():
        hint = "it needs {{ or {%; or name a file"
        yield Issue(where, f"{_KEY}: a text without Jinja is the same for every conversation", hint)
        return
    read = _read(given)
    if isinstance(read, Issue):
        yield Issue(where, f"{_KEY}: {read.message}", read.hint)
    elif read is not None:
        section |= {"chat_template": read, "chat_template_file": f"{given} {_digest(read)}"}


def _read(given: str) -> str | Issue | None:
    """The text of a file, or what is wrong with it; None for a bare word that is none."""
    try:
        path = Path(given).expanduser()
        if not path.exists():
            if re.fullmatch(r"[\w-]+", given):
                return None
            return Issue("", f"nothing is at {given!r}, and it is no Jinja", nearest_file(given))
        if not path.is_file():
            return Issue("", f"{given!r} is not a file", nearest_file(f"{given}/template.jinja"))
        with path.open("rb") as stream:
            content = stream.read(_MOST + 1)
        if len(content) > _MOST:
            return Issue("", f"{given!r} has more than {_MOST} bytes, and is no chat template")
    except (OSError, RuntimeError, ValueError) as error:
        return Issue("", f"{given!r} cannot be read: {error}")
    text = decoded(content, given)
    if isinstance(text, Issue):
        return Issue("", f"{text.where}: {text.message}", text.hint)
    if "\0" in text:
        return Issue("", f"{given!r} is no text: it has NUL bytes")
    if not is_jinja(text):
        return Issue("", f"{given!r} holds no Jinja, neither {{{{ nor {{%: it shows no message")
    return text


def _digest(text: str) -> str:
    return f"sha256:{hashlib.sha256(text.encode()).hexdigest()[:16]}"
