"""A digest of what code does: comments, docstrings and formatting do not change it.

For the keys of stored results, which must change with the code that made them and with nothing else.
"""

from __future__ import annotations

import ast
import hashlib
from collections.abc import Iterable
from functools import cache
from pathlib import Path

_WITH_DOCSTRING = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)


def code_digest(folders: Iterable[Path]) -> str:
    """``sha256:HEX`` over all ``.py`` files below the folders, by relative name and syntax tree.

    A file may stand among the folders, and counts by its name. Raises ``OSError``, ``SyntaxError``.
    """
    return _digest(tuple(folders))


@cache
def _digest(folders: tuple[Path, ...]) -> str:
    digest = hashlib.sha256()
    for folder in folders:
        files = [folder] if folder.is_file() else sorted(folder.rglob("*.py"))
        for file in files:
            name = file.relative_to(folder.parent).as_posix()
            digest.update(f"{name}\0{_code(file.read_bytes())}\0".encode())
    return f"sha256:{digest.hexdigest()}"


def _code(source: bytes) -> str:
    """The syntax tree as text, without docstrings and line numbers."""
    tree = ast.parse(source)
    for node in ast.walk(tree):
        if isinstance(node, _WITH_DOCSTRING) and ast.get_docstring(node, clean=False) is not None:
            del node.body[0]
    return ast.dump(tree)
