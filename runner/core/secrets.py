"""Passwords and access tokens: what looks like one is written to no file and no terminal."""

from __future__ import annotations

import os
import re
from functools import cache

from runner.core.secret_forms import secrets_in

HIDDEN = "(hidden)"
_SHORTEST = 8  # characters of a variable's value; "true" or "none" would be found everywhere
# Variables that hold one, by the end of their name.
_NAMES = re.compile(
    r"(TOKEN|SECRET|PASSWORD|PASSWD|PASSPHRASE|CREDENTIALS?|(API|ACCESS|PRIVATE)_?KEY)$", re.I
)


def held() -> dict[str, str]:
    """The secrets of the environment: values by the names of their variables."""
    return {
        name: os.environ[name]
        for name in os.environ
        if _holds_one(name) and len(os.environ[name]) >= _SHORTEST
    }


@cache
def _holds_one(name: str) -> bool:
    return _NAMES.search(name) is not None


def found_in(text: str) -> str | None:
    """What kind of secret a text holds, without the secret; None when it holds none."""
    name = next((name for name, value in held().items() if value in text), None)
    if name is not None:
        return f"the value of the environment's {name}"
    return next((found.kind for found in secrets_in(text)), None)


def masked(text: str) -> str:
    """A text with ``(hidden)`` in the place of each secret."""
    for value in sorted(held().values(), key=len, reverse=True):
        text = text.replace(value, HIDDEN)
    pieces, end = [], 0
    for found in sorted(secrets_in(text), key=lambda found: (found.start, -found.end)):
        if found.start >= end:
            pieces += [text[end : found.start], HIDDEN]
        end = max(end, found.end)
    return "".join([*pieces, text[end:]])
