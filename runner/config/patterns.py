"""Regular expressions among the fields of a PEFT config, each as PEFT matches it with names of modules."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from runner.config.origins import Origins
from runner.core.errors import Issue

MOST_CHARACTERS = 5_000  # of one pattern; a list of all modules of a large model has 3,000
NO_PATTERN = "names of modules, [q_proj, v_proj], need none"
_WORDS = ("all-linear", "attention")  # of target_modules: no patterns
_PLAIN = re.compile(r"[\w./-]*")  # of a name that is no pattern


@dataclass(frozen=True)
class Pattern:
    """A pattern as given for ``key``, and the ``regex`` that PEFT makes of it (``whole``: fullmatch)."""

    key: str
    given: str
    regex: str
    whole: bool = False

    @property
    def is_name(self) -> bool:
        """Whether it is the plain name of a module, which takes no time to match."""
        return bool(_PLAIN.fullmatch(self.given))


def patterns(section: Mapping[str, Any]) -> list[Pattern]:
    """The patterns of a PEFT config's fields (peft 0.21: ``match_target_against_key``, ``get_pattern_key``,
    ``check_target_module_exists``)."""
    found = []
    for name, value in section.items():
        texts = [value] if isinstance(value, str) else value if isinstance(value, (list, dict)) else []
        texts = [text for text in texts if isinstance(text, str)]
        if name == "layers_pattern":
            found += [Pattern(name, text, rf"(?:^|.*?\.){text}\.(?P<idx>\d+)\.") for text in texts]
        elif name.endswith("_pattern"):
            found += [Pattern(name, text, rf"(.*\.)?({text})$") for text in texts]
        elif name == "modules_to_save":
            found += [Pattern(name, text, rf"(^|.*\.){text}($|\..*)") for text in texts]
        elif name == "target_svd_config":
            found += [Pattern(name, text, rf".*?({text})") for text in texts]
        elif name.endswith("_modules") and isinstance(value, str) and value not in _WORDS:
            found.append(Pattern(name, value, value, whole=True))
    return found


def check_patterns(values: dict[str, Any], origins: Origins) -> Iterator[Issue]:
    """An issue for each pattern of the section ``lora`` that is no regular expression."""
    for pattern in patterns(values.get("lora") or {}):
        key = f"lora.{pattern.key}"
        if reason := not_regular(pattern):
            message = f"{key}: {pattern.given[:80]!r} is not a regular expression: {reason}"
            yield Issue(origins.where(key), message, NO_PATTERN)


def not_regular(pattern: Pattern) -> str | None:
    """Why a pattern is no regular expression; None if it is one."""
    if len(pattern.given) > MOST_CHARACTERS:
        return f"it has more than {MOST_CHARACTERS:,} characters"
    try:
        re.compile(pattern.given)  # by itself first: "a)(b" is one only inside PEFT's brackets
        re.compile(pattern.regex)
    except (re.error, OverflowError, RecursionError) as error:
        return str(error)
    return None
