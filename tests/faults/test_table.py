"""The table of the fault suite numbers its rows; it and the page on security name tests that are there."""

from __future__ import annotations

import ast
import re
from fnmatch import fnmatch
from pathlib import Path

from helpers.paths import ROOT

FOLDER = Path(__file__).parent
# In the page on security: short names of files, and what follows without one is in the file named before.
SHORT = {"trust": "faults/test_trust.py", "files": "faults/test_trust_files.py"}


def named_tests(file: Path, pattern: str) -> list[str]:
    """The tests of a file by name, in which a star stands for anything."""
    tree = ast.parse(file.read_text(encoding="utf-8"))
    tests = [node.name for node in tree.body if isinstance(node, ast.FunctionDef)]
    return [name for name in tests if name.startswith("test_") and fnmatch(name, pattern)]


def test_every_row_has_tests_that_exist():
    rows = re.findall(r"^\| (\d+) \|(.*)\|$", (FOLDER / "README.md").read_text(encoding="utf-8"), re.M)
    assert [int(number) for number, _ in rows] == list(range(1, len(rows) + 1))
    assert len(rows) >= 137
    for number, text in rows:
        named = re.findall(r"`([\w./]+\.py)::([\w*]+)`", text)
        assert named, f"row {number} names no test"
        for file, pattern in named:
            assert named_tests(FOLDER / file, pattern), f"row {number}: {file} has no {pattern}"


def test_every_claim_on_security_has_tests_that_exist():
    page = (ROOT / "SECURITY.md").read_text(encoding="utf-8")
    cells = re.findall(r"^\|[^|]*\|[^|]*\|([^|]*)\|$", page, re.M)
    assert all("test" in cell for cell in cells if not cell.startswith("-"))
    bullets = page.partition("## Runs code")[2].partition("\n## ")[0].split("\n- ")
    assert len(bullets) == 6
    assert all("test_" in bullet for bullet in bullets)
    file = Path()
    for name, pattern in re.findall(r"`([\w/.]*)(?:::([\w*]+))?`", page):
        if not pattern and not name.endswith(".py"):
            continue
        file = ROOT / "tests" / SHORT.get(name, name) if name else file
        assert named_tests(file, pattern or "*"), f"{file} has no {pattern}"
