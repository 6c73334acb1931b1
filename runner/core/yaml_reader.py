"""YAML files of others as plain data, in bounded time and memory, with the file and line of what is wrong.

A file of 400 bytes whose aliases name lists of aliases stands for 10^9 values; each reader of YAML copies
them. What a file stands for is therefore counted before anything is built from it.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import yaml

from runner.core.errors import Issue
from runner.core.file_kinds import decoded

_Loader: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)  # libyaml reads ten times faster

MOST_BYTES = 2**20
MOST_VALUES = 20_000  # with every alias written out; the largest config of this project has 300
MOST_DEPTH = 50
MOST_INTERPOLATIONS = 2_000
MOST_INTERPOLATED = 20_000  # characters of a text with ${...}: OmegaConf's parser reads 10,000 in a second
MOST_DIGITS = 1_000  # Python converts no more than 4,300

# as YAML 1.1 reads a text that is in no quotes
_OCTAL = re.compile(r"[-+]?0[0-7_]+")
_SEXAGESIMAL = re.compile(r"[-+]?([1-9][0-9_]*(:[0-5]?[0-9])+|[0-9][0-9_]*(:[0-5]?[0-9])+\.[0-9_]*)")
_NUMBER = re.compile(r"[-+]?(0x[0-9a-fA-F_]+|[0-9_]+)")


def read_text(file: Path) -> str:
    """The text of a YAML file, without the byte order mark that editors on Windows put in front.

    Raises ``yaml.YAMLError`` for what is no readable text file, ``OSError`` for what cannot be opened.
    """
    if not file.is_file():  # a named pipe would be waited for
        raise refusal(file, "not a file")
    if file.stat().st_size > MOST_BYTES:
        raise refusal(file, f"more than {MOST_BYTES:,} bytes")
    text = decoded(file.read_bytes(), file)
    if isinstance(text, Issue):
        line = int(text.where.rpartition(":")[2]) - 1
        raise refusal(file, f"{text.message}; {text.hint}", line)
    return text


def read_yaml(file: Path) -> Any:
    """What a YAML file holds, as plain Python. Raises ``yaml.YAMLError`` or ``OSError``."""
    return parse_yaml(read_text(file), str(file))


def parse_yaml(text: str, name: str = "text") -> Any:
    """What a YAML text holds, as plain Python; ``name`` stands in errors. Raises ``yaml.YAMLError``."""
    check_yaml(text, name)
    with _named_errors(name):
        return yaml.load(text, Loader=_Loader)


def check_yaml(text: str, name: str = "text") -> None:
    """Check how much a YAML text stands for, and that its numbers mean what they seem to.

    ``010`` is 8 to YAML 1.1 and 10 to a reader, ``1:30`` is 90. Raises ``yaml.MarkedYAMLError``.
    """
    sizes: dict[str, int] = {}  # by anchor, of those that are complete
    around: list[tuple[str | None, int]] = [(None, 0)]  # the collections that are open: anchor and size
    interpolations = 0
    with _named_errors(name):
        for event in yaml.parse(text, Loader=_Loader):
            if isinstance(event, yaml.CollectionStartEvent):
                around.append((event.anchor, 1))
                _most(len(around) - 1, MOST_DEPTH, "levels of nesting", event)
                continue
            if isinstance(event, yaml.CollectionEndEvent):
                anchor, size = around.pop()
            elif isinstance(event, yaml.ScalarEvent):
                anchor, size = event.anchor, 1
                interpolations += _check_scalar(event)
                _most(interpolations, MOST_INTERPOLATIONS, "interpolations", event)
            elif isinstance(event, yaml.AliasEvent):
                # one that is not known yet is the loader's to refuse
                anchor, size = None, sizes.get(event.anchor, 1)
                if any(event.anchor == outer for outer, _ in around):
                    raise _refusal(f"*{event.anchor} stands inside of what it names", event)
            else:
                continue
            if anchor:
                sizes[anchor] = size
            around[-1] = around[-1][0], around[-1][1] + size
            _most(sum(inner for _, inner in around), MOST_VALUES, "values, with all aliases", event)


@contextmanager
def _named_errors(name: str) -> Iterator[None]:
    """Errors of this block name the text; libyaml's marks do not."""
    try:
        yield
    except yaml.MarkedYAMLError as error:
        where, at = _named(error.context_mark, name), _named(error.problem_mark, name)
        raise yaml.MarkedYAMLError(error.context, where, error.problem, at) from error
    except (yaml.YAMLError, ValueError) as error:  # a character that may not be, a date of 99 months
        raise yaml.YAMLError(f"{name}: {str(error).splitlines()[0]}") from error


def _check_scalar(event: yaml.ScalarEvent) -> int:
    """Refuse numbers that are not what they seem; how many interpolations the text has."""
    value = str(event.value)
    if event.implicit[0]:
        if _NUMBER.fullmatch(value) and len(value) > MOST_DIGITS:
            raise _refusal(f"a number of {len(value):,} digits", event)
        if _OCTAL.fullmatch(value):
            hint = "write it without the zero, or in quotes"
            raise _refusal(f"{value} begins with 0, which YAML reads as an octal number; {hint}", event)
        if _SEXAGESIMAL.fullmatch(value):
            raise _refusal(f"YAML reads {value} as a number to the base 60; write it in quotes", event)
    count = value.count("${")
    if count:
        _most(len(value), MOST_INTERPOLATED, "characters in a text with ${...}", event)
    return count


def refusal(file: Path, problem: str, line: int = 0) -> yaml.MarkedYAMLError:
    """An error of a whole file, or of one of its lines, from 0."""
    return yaml.MarkedYAMLError(None, None, problem, yaml.Mark(str(file), 0, line, 0, None, 0))


def _named(mark: Any, name: str) -> yaml.Mark | None:
    return mark and yaml.Mark(name, mark.index, mark.line, mark.column, None, 0)


def _most(number: int, most: int, what: str, event: yaml.Event) -> None:
    if number > most:
        raise _refusal(f"more than {most:,} {what}", event)


def _refusal(problem: str, event: yaml.Event) -> yaml.MarkedYAMLError:
    return yaml.MarkedYAMLError(None, None, problem, event.start_mark)
