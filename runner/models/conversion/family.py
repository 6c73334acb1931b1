"""A family of checkpoints that were published with code of their own, and are the same model in a class of
transformers under other names."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from runner.core.errors import ConfigError, Issue


class PublishedConfig:
    """The values of a ``config.json``, and what is wrong with them; ``instead`` names newer models."""

    def __init__(self, values: Mapping[str, Any], file: str, instead: str) -> None:
        self.values, self._file, self._instead = values, file, instead
        self._issues: list[Issue] = []

    def size(self, key: str) -> int:
        """A whole number above 0; 1 where it is none, which ``check`` then says."""
        value = self.values.get(key)
        if type(value) is int and value > 0:
            return value
        self._add(f"{key} is {value!r}, expected a whole number above 0")
        return 1

    def number(self, key: str, default: float | None = None) -> float:
        """A finite number above 0; 1 where it is none, which ``check`` then says."""
        value = self.values.get(key, default)
        if isinstance(value, (int, float)) and value is not True and 0 < value < math.inf:
            return float(value)
        self._add(f"{key} is {value!r}, expected a number above 0")
        return 1.0

    def expect(self, **expected: Any) -> None:
        """The values that the class of transformers has built in."""
        for key, wanted in expected.items():
            if (value := self.values.get(key)) != wanted:
                self._add(f"{key} is {value!r}; only {wanted!r} can be converted")

    def refuse_if(self, refused: bool, message: str) -> None:
        """Raises ``ConfigError`` for a model of another kind, of which nothing else needs to be said."""
        if refused:
            raise ConfigError(Issue(self._file, message, self._instead))

    def check(self) -> None:
        """Raises ``ConfigError`` with all that was found wrong."""
        if self._issues:
            raise ConfigError(self._issues)

    def _add(self, message: str) -> None:
        self._issues.append(Issue(self._file, message, self._instead))


@dataclass(frozen=True)
class Family:
    """How a published checkpoint becomes a model of transformers.

    ``facts`` makes the config of transformers' class, without token ids, of the published one; it raises
    ``ConfigError`` for variants that cannot be converted. ``tensors`` names for each published tensor those
    that it is cut into, along its first axis; ``{}`` stands for the number of a layer. ``rotary_base`` is the
    base of rotary frequencies in tables that a checkpoint may hold. ``tokenizer`` builds the tokenizer of a
    folder, with its chat template, and ``stops`` are the tokens that end an answer, the usual one first.
    """

    facts: Callable[[PublishedConfig], dict[str, Any]]
    tensors: Mapping[str, tuple[str, ...]]
    rotary_base: Callable[[Mapping[str, Any]], float]
    tokenizer: Callable[[Path], Any]
    stops: tuple[str, ...]
    instead: str

    def native(self, values: Mapping[str, Any], file: str) -> dict[str, Any]:
        """The config of transformers' class for that of ``file``. Raises ``ConfigError``."""
        published = PublishedConfig(values, file, self.instead)
        facts = self.facts(published)
        published.check()
        return facts


def rope(theta: float, **more: float) -> dict[str, Any]:
    """``rope_parameters`` of plain rotary embeddings with base ``theta``."""
    return {"rope_type": "default", "rope_theta": theta, **more}
