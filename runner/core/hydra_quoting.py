"""Values as Hydra's override grammar reads them."""

from __future__ import annotations

import re
import shlex
from typing import Any

_WORDS = ("true", "false", "null")  # read as something else than text, as are numbers


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
    whole = f"{key}={hydra_value(text)}"
    # between double quotes a shell still reads these
    return shlex.quote(whole) if re.search(r'["$`\\!]', whole) or "'" not in whole else f'"{whole}"'


def _is_text(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return text.lower() not in _WORDS
    return False
