"""The table of the fault suite numbers its rows, and names tests that are there."""

from __future__ import annotations

import ast
import re
from fnmatch import fnmatch
from pathlib import Path

FOLDER = Path(__file__).parent


def test_every_row_has_tests_that_exist():
    rows = re.findall(r"^\| (\d+) \|(.*)\|$", (FOLDER / "README.md").read_text(encoding="utf-8"), re.M)
    assert [int(number) for number, _ in rows] == list(range(1, len(rows) + 1))
    assert len(rows) >= 107
    for number, text in rows:
        named = re.findall(r"`([\w./]+\.py)::([\w*]+)`", text)
        assert named, f"row {number} names no test"
        for file, pattern in named:
            tree = ast.parse((FOLDER / file).read_text(encoding="utf-8"))
            tests = [node.name for node in tree.body if isinstance(node, ast.FunctionDef)]
            found = [name for name in tests if name.startswith("test_") and fnmatch(name, pattern)]
            assert found, f"row {number}: {file} has no {pattern}"
