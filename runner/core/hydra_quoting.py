"""Values as Hydra's override grammar reads them."""

from __future__ import annotations

import re
import shlex
from typing import Any

_WORDS = ("true", "false", "null")  # read as something else than text, as are numbers
# of a list or a mapping: in quotes, a key with its colon, or a word, which may set a list of its own
_WORD = re.compile(r"""'[^']*'|"[^"]*"|[\w./+-]+ *:(?=\s)|(?:=\[[^\]]*\]|[^\[\]{},'"])+""")


def hydra_value(text: str) -> str:
    """A text as the value of an override, ``KEY=VALUE``: quoted where Hydra would not read it as this text.

    Between quotes Hydra 1.3 keeps a backslash, unless a quote or the end follows: there it escapes.
    """
    if re.fullmatch(r"[\w./+-]+", text, flags=re.ASCII) and _is_text(text):
        return text
    escaped = re.sub(r"(\\*)('|$)", lambda found: found[1] * 2 + ("\\'" if found[2] else ""), text)
    return f"'{escaped}'"


def override_value(value: Any) -> str:
    """A value of a composed config, in lists and mappings too, as that of an override."""
    if isinstance(value, str):
        return hydra_value(re.sub(r"(\\*)\$\{", lambda found: found[1] * 2 + r"\${", value))
    if isinstance(value, dict):
        return "{" + ", ".join(f"{hydra_key(str(k))}: {override_value(v)}" for k, v in value.items()) + "}"
    if isinstance(value, (list, tuple)):
        return "[" + ", ".join(map(override_value, value)) + "]"
    return "null" if value is None else str(value).lower() if isinstance(value, bool) else str(value)


def hydra_key(text: str) -> str:
    """A text as a key of a mapping in an override, ``KEY={KEY: VALUE}``, which Hydra 1.3 takes unquoted."""
    return re.sub(r"[\\()\[\]{}:=,]|^\s|\s$", lambda found: "\\" + found[0], text)


def typed_override(key: str, text: str) -> str:
    """``KEY=TEXT`` as it is typed into a shell, where needed quoted for the shell too."""
    return _in_shell(f"{key}={hydra_value(text)}")


def typed_again(key: str, value: str) -> str:
    """``KEY=VALUE`` as it is typed into a shell for a value that Hydra could not read.

    Of a list or a mapping each word is quoted, as what has quotes around all of it is one text.
    """
    if value[:1] in ("[", "{") and "${" not in value:
        return _in_shell(f"{key}={_WORD.sub(_quoted_word, value)}")
    quoted = len(value) > 1 and value[0] == value[-1] and value[0] in "'\""
    return typed_override(key, (value[1:-1] if quoted else value).replace("\\'", "'"))


def _quoted_word(found: re.Match[str]) -> str:
    word = found[0].strip()
    plain = not word or word[0] in "'\"" or re.fullmatch(r"[\w./+-]+( *:)?", word)
    return found[0] if plain else found[0].replace(word, hydra_value(word))


def _in_shell(whole: str) -> str:
    # between double quotes a shell still reads these
    return shlex.quote(whole) if re.search(r'["$`\\!]', whole) or "'" not in whole else f'"{whole}"'


def _is_text(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return text.lower() not in _WORDS
    return False
