"""One line of the doctor's table."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass


@dataclass(frozen=True)
class Finding:
    """What was found about one thing; ``advice`` says what to do where it is not well (``ok`` is false), or
    could be better."""

    name: str
    found: str
    ok: bool = True
    advice: str = ""


# Looks at one thing, or at several.
Check = Callable[[], Iterable[Finding]]


def checked(name: str, check: Check) -> list[Finding]:
    """What a check finds. One that fails is a finding itself, behind those that it has made by then: a broken
    library is what is looked for."""
    findings: list[Finding] = []
    try:
        for finding in check():
            findings.append(finding)
    except Exception as error:
        lines = str(error).strip().splitlines()
        reason = f"{type(error).__name__}: {lines[0] if lines else ''}"
        findings.append(Finding(name, reason, ok=False))
    return findings
