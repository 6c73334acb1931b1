"""Mappings typed on the command line, which Hydra merges into those of the files."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from typing import Any

from hydra.core.override_parser.types import Override
from omegaconf import DictConfig, OmegaConf

from runner.config.checks import SECTIONS
from runner.config.origins import Layer


def merged_notes(
    composed: DictConfig,
    typed: Iterable[Override],
    keys: Collection[str],
    layers: Callable[[], Sequence[Layer]],
) -> Iterator[str]:
    """A note for each typed mapping that stands for more than it says, by what a file has at the same key.

    Of a whole section (``lora={r: 4}``) that is meant. ``keys`` are all that are typed, ``layers`` gives
    the files of the ``composed`` config.
    """
    said: dict[str, Any] = {item.key_or_group: item.value() for item in typed}  # the last one of each key
    for key, value in said.items():
        found = OmegaConf.select(composed, key) if isinstance(value, dict) and key not in SECTIONS else None
        if not isinstance(found, DictConfig):
            continue
        content: Any = OmegaConf.to_container(found, resolve=False)
        left = [path for path in _beyond(content, value, key) if path not in keys]
        places = {path: place for path in left if (place := _place(path, layers()) or _place(key, layers()))}
        if places:
            names = ", ".join(path.removeprefix(f"{key}.") for path in places)
            files = ", ".join(dict.fromkeys(places.values()))
            yield (
                f"what is typed for {key} is merged into what a file has there: it also has {names}"
                f" ({files}); {key}=null in front of it leaves that out"
            )


def _beyond(found: Mapping[Any, Any], given: Mapping[Any, Any], path: str) -> Iterator[str]:
    """The keys of a mapping that another one does not have."""
    names = {str(name): value for name, value in given.items()}
    for name, value in found.items():
        inside = names.get(str(name))
        if str(name) not in names:
            yield f"{path}.{name}"
        elif isinstance(value, dict) and isinstance(inside, dict):
            yield from _beyond(value, inside, f"{path}.{name}")


def _place(path: str, layers: Sequence[Layer]) -> str | None:
    """File and line that set a key; None for one with dots in its name, and for what no file sets."""
    return next((place for layer in reversed(layers) if (place := layer.place(path))), None)
