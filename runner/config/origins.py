"""Where a config value came from: the override as typed, or the file and line that set it."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import yaml

from runner.core.paths import CONFIG_DIR
from runner.core.yaml_reader import read_text


@dataclass(frozen=True)
class Layer:
    """A composed file and the section it is placed in ('' for the whole config).

    With ``keys`` it sets these and what is in them, whatever else it holds: a file beside an adapter.
    ``name`` is what Hydra calls it (``lora/r16``).
    """

    file: Path
    package: str = ""
    keys: tuple[str, ...] | None = None
    name: str = ""

    def place(self, key: str) -> str | None:
        """File and line that set ``key``; None where the file does not."""
        if self.keys is not None and not any(f"{key}.".startswith(f"{each}.") for each in self.keys):
            return None
        package, path = self.package.split(".") if self.package else [], key.split(".")
        if path[: len(package)] != package:
            return None
        try:
            line = _line(self._root, path[len(package) :])
        except yaml.YAMLError:  # JSON that is indented with tabs, which is no YAML
            return short(self.file)
        return f"{short(self.file)}:{line}" if line else None

    @cached_property
    def _root(self) -> yaml.Node | None:
        return yaml.compose(read_text(self.file))


class Origins:
    """Looks keys up in the command line and in the composed YAML files, strongest first.

    ``groups`` are the config groups: ``lora=r16`` chooses a file and sets no key itself. ``layers`` gives the
    files in the order in which they were merged, and is only called when a key has to be looked up.
    """

    def __init__(
        self, overrides: Sequence[str], groups: Collection[str], layers: Callable[[], Sequence[Layer]]
    ) -> None:
        self._overrides = list(overrides)
        self._groups = set(groups)
        self._layers = layers

    @property
    def overrides(self) -> tuple[str, ...]:
        """The command line, word by word."""
        return tuple(self._overrides)

    def where(self, key: str) -> str:
        """Name the override (``lora.r=0``) or the file and line that set ``key``, or the key around it."""
        path = key
        while path:
            rank, place = self._find(path)
            if rank:
                return place
            path = path.rpartition(".")[0]
        return key

    def is_group(self, key: str) -> bool:
        """Whether ``key`` names a config group, of which an option was chosen."""
        return key in self._groups

    def rank(self, key: str) -> int:
        """Strength of what set ``key``: larger beats smaller; equal means one and the same source, 0 none."""
        return self._find(key)[0]

    def said_by_user(self, key: str) -> bool:
        """Whether the command line or a packaged file sets ``key``: not what another's file says."""
        for text in reversed(self._overrides):
            name, _, value = text.lstrip("+~").partition("=")
            inside = key.startswith(f"{name}.") and value.startswith("{")
            if name == key or (inside and key.rpartition(".")[2] in value):
                return True
        rank = self.rank(key)
        return 0 < rank <= len(self._files) and self._files[rank - 1].file.is_relative_to(CONFIG_DIR)

    def chosen(self, group: str) -> bool:
        """Whether the command line chooses an option of a group."""
        return any(text.partition("=")[0].partition("@")[0] == group for text in self._overrides)

    def typed(self, key: str) -> str | None:
        """The override of the command line that sets ``key`` or a part of it."""
        for text in reversed(self._overrides):
            name, _, value = text.lstrip("+~").partition("=")
            name = name.partition("@")[0]
            if name in self._groups and not value.startswith("{"):
                continue
            if key == name or key.startswith(f"{name}.") or name.startswith(f"{key}."):
                return text
        return None

    def _find(self, key: str) -> tuple[int, str]:
        if text := self.typed(key):
            return len(self._files) + 1, text
        for rank in range(len(self._files), 0, -1):
            if place := self._files[rank - 1].place(key):
                return rank, place
        return 0, key

    @cached_property
    def _files(self) -> list[Layer]:
        return list(self._layers())


def line_of(file: Path, text: str) -> str | None:
    """Name a file with the first line that contains ``text``; alone when there is no text to look for.

    None means that the file does not contain it.
    """
    lines = file.read_text(encoding="utf-8", errors="replace").splitlines()
    numbers = [
        number
        for number, line in enumerate(lines, 1)
        if text and text in line and not line.lstrip().startswith("#")
    ]
    if not text:
        return short(file)
    return f"{short(file)}:{numbers[0]}" if numbers else None


def short(file: Path) -> str:
    """A file relative to the current folder, or ``conf/GROUP/NAME`` when it is an installed one."""
    try:
        return str(file.relative_to(Path.cwd()))
    except ValueError:
        parts = file.parts
        return "/".join(parts[parts.index("conf") :]) if "runner" in parts and "conf" in parts else str(file)


def _line(node: yaml.Node | None, path: list[str]) -> int | None:
    """Line of the key or list entry at ``path``, or None when it is not there."""
    line = node.start_mark.line + 1 if node is not None else 1
    for part in path:
        if isinstance(node, yaml.MappingNode):
            found = next(((key, value) for key, value in node.value if key.value == part), None)
            if found is None:
                return None
            line, node = found[0].start_mark.line + 1, found[1]
        elif isinstance(node, yaml.SequenceNode) and part.isdecimal() and int(part) < len(node.value):
            entry = node.value[int(part)]
            line, node = entry.start_mark.line + 1, entry
        else:
            return None
    return line
