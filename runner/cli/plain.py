"""A composed config as plain Python, with every interpolation resolved, in bounded time and memory."""

from __future__ import annotations

from typing import Any

from omegaconf import DictConfig, ListConfig, OmegaConf
from omegaconf.base import Container
from omegaconf.errors import InterpolationResolutionError, OmegaConfBaseException

from runner.config.origins import Origins
from runner.core.errors import Issue

# What one value, and the whole of a config, may take. OmegaConf remembers nothing that it has resolved: 28
# values of two interpolations each, one after the other, are 2^28 of them and four gigabytes of text.
MOST_OF_A_VALUE = 200
MOST_OF_A_CONFIG = 2_000
MOST_CHARACTERS = 2**20  # of all texts that a value makes on its way
MOST_VALUES = 50_000
MOST_DEPTH = 50


class TooMuchResolved(InterpolationResolutionError):
    """A config whose interpolations stand for more than can be meant."""


class _Spent:
    """What has been resolved for the config, and for the value, that is read at the moment."""

    depth = 0
    of_value = 0
    of_config = 0
    characters = 0


_spent = _Spent()
_resolve = Container.resolve_parse_tree


def bound_interpolations() -> None:
    """From now on OmegaConf counts what it resolves, and raises ``TooMuchResolved``; anew for each config."""
    _spent.of_config = 0
    Container.resolve_parse_tree = _bounded  # type: ignore[method-assign]


def plain_values(composed: DictConfig, origins: Origins, issues: list[Issue]) -> dict[str, Any]:
    """The values of a config but for its ``hydra`` node; what cannot be resolved joins ``issues``."""
    bound_interpolations()
    plain = _Plain(origins, issues)
    return {str(key): plain.value(composed, key, str(key)) for key in composed if key != "hydra"}


class _Plain:
    def __init__(self, origins: Origins, issues: list[Issue]) -> None:
        self._origins, self._issues, self._count = origins, issues, 0

    def value(self, node: Any, key: Any, path: str, depth: int = 0) -> Any:
        """A value of a node; None where an interpolation leads nowhere, or to more than may be."""
        if OmegaConf.is_missing(node, key):
            return "???"
        self._count += 1
        try:
            value = node[key]
            if depth > MOST_DEPTH:
                section = path.partition(".")[0]
                raise TooMuchResolved(f"{section} contains itself through an interpolation, or is too deep")
            if self._count > MOST_VALUES:
                raise TooMuchResolved(f"the config has more than {MOST_VALUES:,} values")
        except (OmegaConfBaseException, RecursionError) as error:
            if self._count <= MOST_VALUES + 1:  # said once, not for each value that follows
                hint = "write \\${...} for text that is no interpolation"
                message = f"{path}: {str(error).splitlines()[0]}"
                self._issues.append(Issue(self._origins.where(path), message, hint))
            return None
        if isinstance(value, DictConfig):
            return {name: self.value(value, name, f"{path}.{name}", depth + 1) for name in value}
        if isinstance(value, ListConfig):
            return [self.value(value, i, f"{path}.{i}", depth + 1) for i in range(len(value))]
        return value


def _bounded(self: Container, *args: Any, **kwargs: Any) -> Any:
    if _spent.depth == 0:
        _spent.of_value = _spent.characters = 0
    _spent.depth += 1
    try:
        _spent.of_value += 1
        _spent.of_config += 1
        if _spent.of_config > MOST_OF_A_CONFIG:
            raise TooMuchResolved(f"the config takes more than {MOST_OF_A_CONFIG:,} interpolations")
        if _spent.of_value > MOST_OF_A_VALUE:
            raise TooMuchResolved(f"takes more than {MOST_OF_A_VALUE} interpolations")
        result = _resolve(self, *args, **kwargs)
        _spent.characters += len(result) if isinstance(result, str) else 0
        if _spent.characters > MOST_CHARACTERS:
            raise TooMuchResolved(f"its interpolations make more than {MOST_CHARACTERS:,} characters")
        return result
    finally:
        _spent.depth -= 1
