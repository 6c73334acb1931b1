"""Where a config value came from: the override as typed, or the file and line that set it."""

from __future__ import annotations

from collections.abc import Iterator
from functools import cached_property
from pathlib import Path
from typing import Any

import yaml


class Origins:
    """Looks keys up in the command line and in the YAML files that Hydra composed, strongest first."""

    def __init__(self, hydra: Any) -> None:
        self._overrides = [str(text) for text in hydra.overrides.task]
        self._choices = {str(group): option for group, option in hydra.runtime.choices.items()}
        self._folders = [
            Path(source.path) for source in hydra.runtime.config_sources if source.schema == "file"
        ]
        self._primary = str(hydra.job.config_name or "config")

    def where(self, key: str) -> str:
        """Name the override (``lora.r=0``) or the file and line that set ``key``, for a message."""
        return self._find(key)[1]

    def rank(self, key: str) -> int:
        """Strength of what set ``key``: larger beats smaller; equal means one and the same source."""
        return self._find(key)[0]

    def _find(self, key: str) -> tuple[int, str]:
        for text in reversed(self._overrides):
            name, _, _ = text.lstrip("+~").partition("=")
            if key == name or key.startswith(f"{name}.") or name.startswith(f"{key}."):
                return len(self._files) + 1, text
        for number, (file, package, root) in enumerate(self._files):
            path = key.split(".")
            inside = path[1:] if package and path[0] == package else path if not package else None
            if inside is not None and (line := _line(root, inside)):
                return len(self._files) - number, f"{_short(file)}:{line}"
        return 0, key

    @cached_property
    def _files(self) -> list[tuple[Path, str, yaml.Node | None]]:
        """Composed files, strongest first, each with the section it is placed in ('' for the whole config)."""
        return list(self._read())

    def _read(self) -> Iterator[tuple[Path, str, yaml.Node | None]]:
        grouped = []
        for group, option in self._choices.items():
            file = (
                self._locate(f"{group}/{option}.yaml") if option and not group.startswith("hydra") else None
            )
            if file is not None:
                text = file.read_text(encoding="utf-8")
                package = "" if "# @package _global_" in text else group
                grouped.append((file, package, yaml.compose(text)))
        # conf/config.yaml puts experiments behind itself and everything else in front
        yield from (item for item in grouped if item[0].parent.name == "experiment")
        if primary := self._locate(f"{self._primary}.yaml"):
            yield primary, "", yaml.compose(primary.read_text(encoding="utf-8"))
        yield from (item for item in grouped if item[0].parent.name != "experiment")

    def _locate(self, name: str) -> Path | None:
        return next((folder / name for folder in self._folders if (folder / name).is_file()), None)


def _line(node: yaml.Node | None, path: list[str]) -> int | None:
    """Line of the key at ``path``, or of its nearest parent that is a plain value."""
    for depth, part in enumerate(path):
        if not isinstance(node, yaml.MappingNode):
            return None
        found = next(((key, value) for key, value in node.value if key.value == part), None)
        if found is None:
            return None
        node = found[1]
        if depth == len(path) - 1:
            return found[0].start_mark.line + 1
    return None


def _short(file: Path) -> str:
    try:
        return str(file.relative_to(Path.cwd()))
    except ValueError:
        return f"conf/{file.parent.name}/{file.name}" if file.parent.parent.name == "conf" else str(file)
