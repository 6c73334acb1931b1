"""Whether the patterns of a PEFT config match modules of the model, found out before PEFT matches them.

A pattern such as ``(([a-z]+)+)+!`` takes Python longer than the universe has for a name of 30 letters, and
PEFT would match it when the weights are loaded already. A process of its own tries it on the model's names
first, which is ended when that takes too long; ``re`` is the only judge of what ``re`` will do.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Any

from runner.config.lora_rules import NO_PATTERN, Pattern, not_regular, patterns
from runner.core.errors import Issue, nearest
from runner.models.conversion.published import native_modules

SECONDS = 2.0  # the patterns of an ordinary config take less than a millisecond, the process 30
# Prints a line for each pattern when it is done, so that the one that takes too long is known.
_TRY = """
import json, re, sys
patterns, names = json.load(sys.stdin)
for regex, whole in patterns:
    form = re.compile(regex)
    match = form.fullmatch if whole else form.match
    print(int(any([match(name) for name in names])), flush=True)
"""


def check_patterns(section: str, values: Mapping[str, Any], names: Collection[str]) -> Iterator[Issue]:
    """An issue for each pattern of a section that matches none of the modules, or takes too long to."""
    given = patterns(values)
    simple = [pattern for pattern in given if pattern.is_name]
    matched = {pattern: _ends(pattern.given, names) for pattern in simple}
    others = [pattern for pattern in given if not pattern.is_name]
    results = _tried(others, names) if others and names else []
    matched |= dict(zip(others, results, strict=False))
    if names and len(results) < len(others):
        slow = others[len(results)]
        yield _too_slow(f"{section}.{slow.key}", slow)
    for pattern, found in matched.items():
        if not found:
            message = f"{pattern.given[:80]!r} matches no module of the model"
            more = ["all-linear"] if (section, pattern.key) == ("lora", "target_modules") else []
            yield Issue(f"{section}.{pattern.key}", message, module_hint([pattern.given], names, more))


def missing_names(given: Any, names: Collection[str]) -> list[str]:
    """Those of a list of names that are the end of no module's name; none of a single pattern."""
    listed = given if isinstance(given, list) else []
    return [name for name in listed if not any(f".{known}".endswith(f".{name}") for known in names)]


def module_hint(given: Sequence[str], names: Collection[str], more: Sequence[str] = ()) -> str:
    """What modules are called where none has the ``given`` names: what published ones became, the nearest to
    the first of them, also of ``more``, and all."""
    short = sorted({name.rpartition(".")[2] for name in names} - set("0123456789"))
    native = {name: [each for each in native_modules(name) if each in short] for name in given}
    close = nearest(given[0], [*short, *more])
    found = f"{close} " if close.startswith("did you mean") else ""
    if any(native.values()):
        found = "".join(f"{name} is {', '.join(became)} here; " for name, became in native.items() if became)
    return f"{found}it has: {', '.join(short[:40])}{''.join(f'; or {each}' for each in more)}"


def unbounded_patterns(where: str, values: Mapping[str, Any], names: Collection[str]) -> list[Issue]:
    """An issue for a pattern of a saved PEFT config that is none, or takes too long to match.

    Of a saved adapter a pattern may well match nothing: what is adapted stands in its file.
    """
    others = [pattern for pattern in patterns(values) if not pattern.is_name]
    for pattern in others:
        if reason := not_regular(pattern):
            message = f"{pattern.key}: {pattern.given[:80]!r} is not a regular expression: {reason}"
            return [Issue(where, message, NO_PATTERN)]
    results = _tried(others, names) if others else []
    return [_too_slow(f"{where}: {pattern.key}", pattern) for pattern in others[len(results) :][:1]]


def _too_slow(where: str, pattern: Pattern) -> Issue:
    message = f"{pattern.given[:80]!r} takes more than {SECONDS:g} seconds to match the model's modules"
    return Issue(where, message, "write it without nested repeats, or as a list of names")


def _ends(name: str, names: Collection[str]) -> bool:
    return any(f".{known}".endswith(f".{name}") for known in names)


def _tried(given: list[Pattern], names: Collection[str]) -> list[bool]:
    """For each pattern whether it matches a name, up to the first one that takes too long."""
    job = json.dumps([[(pattern.regex, pattern.whole) for pattern in given], list(names)])
    command = [sys.executable, "-I", "-S", "-c", _TRY]
    try:
        output = subprocess.run(command, input=job.encode(), capture_output=True, timeout=SECONDS).stdout
    except subprocess.TimeoutExpired as error:
        output = error.stdout or b""
    return [line == b"1" for line in output.split()]
