"""The recipes. One that trains declares its ``OBJECTIVE``; any other has ``run(config, folder)``."""

from __future__ import annotations

import importlib
import re
from collections.abc import Iterator, Mapping
from functools import cache
from pathlib import Path

from runner.config.objective import Objective
from runner.config.recipe_rules import recipe_names

_DECLARED = re.compile(r"^OBJECTIVE\b.*=", re.M)


class _Objectives(Mapping[str, Objective]):
    """The training recipes by name: those whose file declares an ``OBJECTIVE``.

    That is read from the source, and a module imported only when it is looked up: ``recipes.merge`` imports
    torch, for which a config error must not wait.
    """

    def __getitem__(self, name: str) -> Objective:
        if name not in self._names():
            raise KeyError(name)
        return importlib.import_module(f"recipes.{name}").OBJECTIVE

    def __iter__(self) -> Iterator[str]:
        return iter(self._names())

    def __len__(self) -> int:
        return len(self._names())

    @staticmethod
    @cache
    def _names() -> list[str]:
        sources = {name: Path(__file__).with_name(f"{name}.py") for name in recipe_names()}
        return [name for name, file in sources.items() if _DECLARED.search(file.read_text(encoding="utf-8"))]


OBJECTIVES = _Objectives()
