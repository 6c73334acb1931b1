"""Texts that are secrets by their form (detect-secrets knows those of services) or the name before them."""

from __future__ import annotations

import importlib
import math
import pkgutil
import re
from collections import Counter
from collections.abc import Iterator
from functools import cache
from typing import NamedTuple


class Found(NamedTuple):
    """A secret in a text: what it is, and where it begins and ends."""

    kind: str
    start: int
    end: int


# What detect-secrets' own forms leave out.
_OWN = {
    "a name or password in an address": re.compile(r"://(?P<secret>[^\s/@'\"]+)@"),
    "an access token": re.compile(
        r"\b(?P<secret>(hf_[A-Za-z0-9]{16,}|(gh[opsu]_|github_pat_|glpat-|sk-)[A-Za-z0-9_-]{16,}))"
    ),
    "a secret key": re.compile(
        r"(\b(hub|access|auth)_token=|\bapi_?key=)(?!null\b|[a-z_]\w*(\.[a-z_]\w*)+\b|[a-z_.]*\()(?P<secret>[^\s,'\"\]}]+)",
        re.I,
    ),
    "a private key": re.compile(
        r"-----BEGIN [A-Z ]*PRIVATE KEY( BLOCK)?-----(?P<secret>.*?)(-----END |\Z)", re.DOTALL
    ),
    "a webhook's address": re.compile(
        r"https://(?P<secret>hooks\.slack\.com/\S+|discord(app)?\.com/api/webhooks/\S+)"
    ),
    "a JSON web token": re.compile(
        r"\b(?P<secret>eyJ[A-Za-z0-9_-]{8,}\.[A-Za-z0-9_-]{8,}(\.[A-Za-z0-9_-]*)?)"
    ),
    "a Slack token": re.compile(r"\b(?P<secret>xox[a-z]-[A-Za-z0-9-]{10,}|xapp-[A-Za-z0-9-]{10,})"),
    "a Google API key": re.compile(r"\b(?P<secret>AIza[A-Za-z0-9_-]{35})"),
}
# Of detect-secrets: addresses of machines are no secrets, words begin like Artifactory's tokens, and a form
# above keeps what is around a password in an address.
_LEFT_OUT = ("IPPublicDetector", "ArtifactoryDetector", "BasicAuthDetector")
# NAME_KEY=value, "name-secret": "value", and so on; of a patch, each line may begin with + or -.
_NAMED = re.compile(
    r"(?<![A-Za-z0-9])(?P<name>(?:[A-Za-z0-9]{1,40}[_.-]){0,8}"
    r"(?:api|access|private|secret|auth|client|account|signing|encryption|master|deploy)?"
    r"(?:token|secret|password|passwd|passphrase|pwd|credentials?|key))"
    r"(?P<before>[\"']?\s{0,4}(?:=>|:=|=|:)\s{0,4})(?P<quote>[\"'`]?)"
    r"(?P<secret>[A-Za-z0-9+/=_.~!@#$%^&*-]{8,200})(?P<after>.?)",
    re.I,
)
_TELLING = re.compile(r"(secret|password|passwd|passphrase|pwd)$", re.I)
_NO_SECRET = re.compile(r"(^|[_.-])(cache|public|primary|foreign|sort|group|cell|partition)[_.-]?key$", re.I)
_STAND_IN = re.compile(
    r"your|example|change|placeholder|dummy|xxx|\*\*\*|\.\.\.|<|\$\{?\w*\}?$|test-?only", re.I
)
_WORD = re.compile(r"([A-Z]?[a-z]+|[A-Z]+)\d{0,4}|\d{0,4}")  # between the dots and lines of a name in code


def secrets_in(text: str) -> Iterator[Found]:
    """Every part of a text that is a secret by its form, in no order; parts may overlap."""
    for kind, form in (*_OWN.items(), *_services()):
        for match in form.finditer(text):
            group = "secret" if "secret" in form.groupindex else 0
            yield Found(kind, match.start(group), match.end(group))
    for match in _NAMED.finditer(text):
        if _is_named_secret(match):
            yield Found(f"the value of {match['name']}", match.start("secret"), match.end("secret"))


@cache
def _services() -> tuple[tuple[str, re.Pattern[str]], ...]:
    """The forms of detect-secrets' detectors, which find by themselves and ask no service about it."""
    import detect_secrets.plugins as plugins
    from detect_secrets.plugins.base import RegexBasedDetector

    found = []
    for module in pkgutil.iter_modules(plugins.__path__):
        names = vars(importlib.import_module(f"{plugins.__name__}.{module.name}"))
        for name, kind in names.items():
            fits = isinstance(kind, type) and issubclass(kind, RegexBasedDetector)
            if fits and kind is not RegexBasedDetector and name not in _LEFT_OUT:
                forms = [re.compile(form) if isinstance(form, str) else form for form in kind().denylist]
                found += [(f"what looks like a secret ({kind.secret_type})", form) for form in forms]
    return tuple(dict.fromkeys(found))


def _is_named_secret(match: re.Match[str]) -> bool:
    name, value, quoted = match["name"], match["secret"], bool(match["quote"])
    if _NO_SECRET.search(name) or _STAND_IN.search(value):
        return False
    if _is_random(value):
        return True
    # hunter2-hunter2 shows by its name only: in quotes, or as in a file of variables, NAME=value
    variable = name.isupper() and match["before"] == "=" and not match["after"].strip("'\";, \t")
    return bool(_TELLING.search(name)) and (quoted or variable) and not _is_word(value)


def _is_word(value: str) -> bool:
    return value.isalpha() and (value.islower() or value.isupper())


def _is_random(value: str) -> bool:
    """Whether a value was drawn rather than thought of: long, of many letters, digits among them."""
    if len(value) < 16 or not (any(map(str.isdigit, value)) and any(map(str.isalpha, value))):
        return False
    runs = len(re.findall(r"\d+|[A-Z]+|[a-z]+|[^A-Za-z0-9]+", value))
    if all(_WORD.fullmatch(part) for part in re.split(r"[._/-]", value)):
        return False  # spec.layer_2.weight, model-2024-01
    return runs >= len(value) / 5 and _entropy(value) > 3.0


def _entropy(value: str) -> float:
    """Bits a character (Shannon), by the characters' own frequencies."""
    return -sum(n / len(value) * math.log2(n / len(value)) for n in Counter(value).values())
