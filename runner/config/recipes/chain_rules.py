"""The stages of a chain: what stands for the folder of an earlier one, and what is wrong with them."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from runner.config.origins import Origins
from runner.core.errors import Issue, nearest

# Keys of the chain that mean nothing to a stage, and a preset that the command of each leaves in or out.
OF_THE_CHAIN = (
    "defaults",
    "experiment",
    "hydra",
    "output_dir",
    "recipe",
    "resume",
    "stages",
    "trainer_model",
)
EVERY = "*"  # in the place of a stage's name: the words of all that do not set the same keys themselves
# In a word of a stage: text in quotes, which stands for itself; an earlier stage's folder and a path in it.
_PLACE = re.compile(r"""'(?:\\.|[^'\\])*'|"(?:\\.|[^"\\])*"|\{(?P<stage>[\w.-]+)\}(?P<rest>[\w./-]*)""")


def stage_words(stages: Mapping[str, Sequence[str]]) -> dict[str, list[str]]:
    """The overrides of each stage, those of all stages before its own."""
    found = {}
    for name, words in stages.items():
        if name != EVERY:
            own = set(map(key_of, words))
            found[name] = [*(text for text in stages.get(EVERY, ()) if key_of(text) not in own), *words]
    return found


def key_of(text: str) -> str:
    """The key that an override sets, or the group of which it chooses an option."""
    return text.lstrip("+~").partition("=")[0]


def filled(text: str, path: Callable[[str, str], str]) -> str:
    """An override with the ``path`` of each ``{STAGE}``, and of what stands behind it, in its value."""
    key, equals, value = text.partition("=")
    return (
        key + equals + _PLACE.sub(lambda it: path(it["stage"], it["rest"]) if it["stage"] else it[0], value)
    )


def named(text: str) -> list[str]:
    """The stages whose folders an override names."""
    return [found["stage"] for found in _PLACE.finditer(text.partition("=")[2]) if found["stage"]]


def check_stages(stages: Any, origins: Origins) -> Iterator[Issue]:
    """Whether the stages of a chain are lists of overrides, each of which names none but earlier stages."""
    where = origins.where("stages")
    if not isinstance(stages, dict) or not {*stages} - {EVERY}:
        hint = "\"stages={sft: ['recipe=sft'], merge: ['recipe=merge', 'adapter={sft}']}\""
        yield Issue(where, "recipe=chain needs stages", hint)
        return
    earlier: list[str] = []
    for name, words in stages.items():
        if name != EVERY and not re.fullmatch(r"[\w-][\w.-]*", str(name)):
            yield Issue(where, f"stages: {name!r} cannot be a folder's name", "letters, digits, . _ and -")
        if not isinstance(words, list) or not all(map(_is_override, words)):
            yield Issue(where, f"stages.{name} must be a list of overrides, got {words!r}", "[recipe=sft]")
            continue
        for text in words:
            for other in named(text):
                if other not in earlier:
                    message = f"stages.{name}: {text} names a stage that does not come before it"
                    yield Issue(where, message, nearest(other, earlier) or "the first stage can name none")
        if name != EVERY:
            earlier.append(str(name))


def _is_override(text: Any) -> bool:
    return isinstance(text, str) and ("=" in text or text.startswith("~"))
