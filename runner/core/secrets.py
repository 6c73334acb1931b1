"""Passwords and access tokens: what looks like one is written to no file and no terminal."""

from __future__ import annotations

import os
import re
import sys
import traceback
from functools import cache
from types import TracebackType

HIDDEN = "(hidden)"
_SHORTEST = 8  # characters of a variable's value; "true" or "none" would be found everywhere
# Variables that hold one, by the end of their name.
_NAMES = re.compile(
    r"(TOKEN|SECRET|PASSWORD|PASSWD|PASSPHRASE|CREDENTIALS?|(API|ACCESS|PRIVATE)_?KEY)$", re.I
)
# What shows by its form, after what is kept of it.
_FORMS = {
    "a name or password in an address": re.compile(r"(?P<kept>://)[^\s/@'\"]+(?=@)"),
    "an access token": re.compile(r"(?P<kept>\b)(hf_|gh[opsu]_|github_pat_|glpat-|sk-)[A-Za-z0-9_-]{16,}"),
    "a secret key": re.compile(
        r"(?P<kept>\b(hub|access|auth)_token=|\bapi_?key=)(?!null\b)[^\s,'\"\]}]+", re.I
    ),
}


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
    return next((kind for kind, form in _FORMS.items() if form.search(text)), None)


def masked(text: str) -> str:
    """A text with ``(hidden)`` in the place of each secret."""
    for value in sorted(held().values(), key=len, reverse=True):
        text = text.replace(value, HIDDEN)
    for form in _FORMS.values():
        text = form.sub(rf"\g<kept>{HIDDEN}", text)
    return text


def mask_uncaught() -> None:
    """From now on an error that nobody catches is printed without secrets."""

    def show(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
        sys.stderr.write(masked("".join(traceback.format_exception(kind, error, trace))))

    sys.excepthook = show
