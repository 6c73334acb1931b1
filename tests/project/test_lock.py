"""``requirements.lock`` holds what pyproject.toml asks for, at the versions of constraints.txt, by digest."""

from __future__ import annotations

import re
import tomllib
from collections.abc import Iterator

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

from helpers.paths import ROOT

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
LINES = [
    line
    for line in (ROOT / "requirements.lock").read_text(encoding="utf-8").splitlines()
    if not line.startswith("#")
]


def pins(lines: list[str]) -> dict[str, Version]:
    """Versions by name, of the lines that pin one."""
    found = [re.match(r"([\w.-]+)==([\w.+!-]+)", line) for line in lines]
    return {canonicalize_name(match[1]): Version(match[2]) for match in found if match}


def asked_for(lines: list[str]) -> Iterator[Requirement]:
    """Requirements of the project, with those of its own extras."""
    for requirement in map(Requirement, lines):
        if requirement.name == PROJECT["name"]:
            for extra in requirement.extras:
                yield from asked_for(PROJECT["optional-dependencies"][extra])
        else:
            yield requirement


def test_lock_holds_what_the_project_asks_for() -> None:
    locked = pins(LINES)
    wanted = list(asked_for([*PROJECT["dependencies"], f"{PROJECT['name']}[test]"]))
    assert len(wanted) > 20
    for requirement in wanted:
        assert requirement.specifier.contains(locked[canonicalize_name(requirement.name)]), requirement


def test_lock_has_the_versions_of_continuous_integration() -> None:
    locked = pins(LINES)
    constraints = pins((ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines())
    assert {name: locked.get(name) for name in constraints} == constraints


def test_every_pin_has_digests_and_no_place_of_its_own() -> None:
    text = "\n".join(LINES).replace(" \\\n    ", " ")
    for line in text.splitlines():
        assert re.fullmatch(r"[\w.-]+==[\w.+!-]+( --hash=sha256:[0-9a-f]{64})+", line), line
