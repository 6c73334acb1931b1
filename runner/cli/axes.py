"""The axes of a sweep as typed: which keys take several values, and which combinations of them are run."""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from hydra.core.override_parser.types import Override
from omegaconf import OmegaConf

from runner.core.errors import Issue, nearest

Number = int | float

# Keys that are the whole sweep's, and what to do instead of sweeping over them.
_OF_THE_SWEEP = {
    "output_dir": "it is the folder of the sweep, in which each cell has its own",
    "resume": "the same command with the same output_dir resumes a sweep",
}

_LISTS = ("sweep.zip", "sweep.halving", "sweep.devices")


@dataclass(frozen=True)
class Axis:
    """A key and its values as Hydra writes them; of one that is continuous the two ends.

    ``typed`` are the same values as they were typed (``1e-4``, which Hydra writes as 0.0001).
    """

    key: str
    values: list[str]
    typed: list[str]
    continuous: bool = False

    @property
    def equal(self) -> list[str]:
        """The values that are there more than once, as typed: ``1e-2`` and ``0.01``."""
        pairs = zip(self.values, self.typed, strict=True)
        return [typed for value, typed in pairs if self.values.count(value) > 1]

    def as_typed(self, value: str) -> str:
        """A value of Hydra's as it was typed."""
        return dict(zip(self.values, self.typed, strict=True)).get(value, value)


def axes_of(overrides: Iterable[Override]) -> dict[str, Axis]:
    """The axes among overrides, by key; of a key that is given twice the last."""
    found: dict[str, Axis] = {}
    for item in overrides:
        found.pop(item.key_or_group, None)
        if item.is_discrete_sweep():
            values = list(item.sweep_string_iterator())
            found[item.key_or_group] = Axis(item.key_or_group, values, _typed(item, values))
        elif item.is_sweep_override():
            interval: Any = item.value()
            ends = [str(interval.start), str(interval.end)]
            found[item.key_or_group] = Axis(item.key_or_group, ends, ends, continuous=True)
    return found


def _typed(item: Override, values: list[str]) -> list[str]:
    """The text of each value of a plain list, ``8,16`` or ``choice(8,16)``; else what Hydra makes of it."""
    text = str(item.input_line).partition("=")[2].strip()
    if inside := re.fullmatch(r"choice\((.*)\)", text, flags=re.DOTALL):
        text = inside[1]
    pieces = [piece.strip() for piece in split(text)]
    plain = item.is_choice_sweep() and len(pieces) == len(values)
    if not plain:
        return values
    return [piece if _same(piece, value) else value for piece, value in zip(pieces, values, strict=True)]


def split(text: str) -> list[str]:
    """The parts between the commas of a value that are in no quotes and no brackets."""
    pieces, depth, quote = [""], 0, ""
    for before, letter in zip(" " + text, text, strict=False):
        if letter in "'\"" and before != "\\":
            quote = "" if letter == quote else quote or letter
        if not quote:
            depth += (letter in "[{(") - (letter in "]})")
        if letter == "," and depth == 0 and not quote:
            pieces.append("")
        else:
            pieces[-1] += letter
    return pieces


def quote_nested(override: str) -> str:
    """An override with ``${mul:2,${lora.r}}`` in quotes: Hydra reads no interpolation inside another one."""
    key, equals, value = override.partition("=")
    if value.count("${") < 2 or not equals:
        return override
    pieces = [
        f'"{piece}"' if re.fullmatch(r"\$\{[^'\"]*\$\{[^'\"]*\}", piece.strip()) else piece
        for piece in split(value)
    ]
    return f"{key}={','.join(pieces)}"


def _same(piece: str, value: str) -> bool:
    """Whether a text is the value; only numbers are written in several ways."""
    try:
        return piece.lower() == value.lower() or float(piece) == float(value)
    except ValueError:
        return False


def zip_lists(value: Any) -> list[list[str]]:
    """``sweep.zip`` as a list of lists; what is not of that form is left out."""
    names = value if isinstance(value, list) else []
    lists = [names] if names and all(isinstance(name, str) for name in names) else names
    return [item for item in lists if isinstance(item, list) and all(isinstance(name, str) for name in item)]


def check_axes(axes: dict[str, Axis], settings: dict[str, Any], sweeper: str) -> Iterator[Issue]:
    """An issue for each wrong axis, and for each wrong key of ``settings``, the section ``sweep``."""
    for axis in axes.values():
        typed = f"{axis.key}={','.join(axis.typed)}"
        if axis.key.partition(".")[0] == "sweep":
            message = f"{axis.key} is the same for all cells of a sweep, not an axis"
            hint = f"a list is written in brackets: '{axis.key}=[{','.join(axis.typed)}]'"
            yield Issue(typed, message, hint if axis.key in _LISTS else "give it one value")
        elif axis.key in _OF_THE_SWEEP:
            yield Issue(typed, f"{axis.key} is not an axis of a sweep", _OF_THE_SWEEP[axis.key])
    repeat = settings.get("repeat", 1)
    if "seed" in axes and isinstance(repeat, int) and repeat > 1:
        message = f"sweep.repeat={repeat} chooses the seeds, and seed is an axis"
        yield Issue(f"seed={','.join(axes['seed'].typed)}", message, "keep one of them")
    yield from _check_zip(axes, zip_lists(settings.get("zip")), sweeper)


def _check_zip(axes: dict[str, Axis], lists: list[list[str]], sweeper: str) -> Iterator[Issue]:
    if lists and sweeper != "basic":
        message = f"sweep.zip walks a grid, and hydra/sweeper={sweeper} makes none"
        yield Issue("sweep.zip", message, "leave one of the two out")
        return
    seen: set[str] = set()
    for names in lists:
        where = f"sweep.zip=[{','.join(names)}]"
        for name in names:
            if name in seen:
                yield Issue(where, f"{name} is named twice")
            elif name not in axes:
                hint = nearest(name, axes) if axes else "the command has no axis: lora.r=8,16"
                yield Issue(where, f"{name} is not an axis of this sweep", hint)
            seen.add(name)
        lengths = {name: len(axes[name].values) for name in names if name in axes}
        if len(set(lengths.values())) > 1:
            counts = ", ".join(f"{name} has {count}" for name, count in lengths.items())
            yield Issue(where, f"the axes differ in length: {counts}", "give each the same number of values")


class Grid:
    """Which cells of the product of all axes are run: of axes that are zipped, the values side by side."""

    def __init__(self, axes: dict[str, Axis], lists: list[list[str]]) -> None:
        self._lists = [names for names in lists if all(name in axes for name in names)]
        self._allowed = [
            set(zip(*(axes[name].values for name in names), strict=False)) for names in self._lists
        ]
        self._seen: set[tuple[str, ...]] = set()

    def keeps(self, overrides: Sequence[str]) -> bool:
        """Whether a cell of the product is run."""
        given = dict(text.lstrip("+~").split("=", 1) for text in overrides if "=" in text)
        pairs = (tuple(given.get(name, "") for name in names) for names in self._lists)
        return all(values in allowed for values, allowed in zip(pairs, self._allowed, strict=True))

    def first(self, overrides: Sequence[str]) -> bool:
        """Whether this cell was not seen before: values that are zipped may occur twice on their axis."""
        cell = tuple(overrides)
        new = not self._lists or cell not in self._seen
        self._seen.add(cell)
        return new


def walk(overrides: list[Override], multirun: bool, lists: Sequence[list[str]] = ()) -> Iterator[list[str]]:
    """Overrides of the run; of a sweep, the first cell and then each other value of each axis.

    Axes of one of the ``lists`` are walked together.
    """
    axes = axes_of(overrides) if multirun else {}
    together = {name: number for number, names in enumerate(lists) for name in names}
    tracks: dict[object, list[Axis]] = {}
    for axis in axes.values():
        tracks.setdefault(together.get(axis.key, axis.key), []).append(axis)

    def cell(chosen: dict[str, str]) -> list[str]:
        return [
            f"{item.get_key_element()}={chosen[item.key_or_group]}"
            if item.key_or_group in chosen and item.is_sweep_override()
            else str(item.input_line)
            for item in overrides
        ]

    first = {axis.key: axis.values[0] for axis in axes.values() if axis.values}
    yield cell(first)
    for track in tracks.values():
        for values in itertools.islice(zip(*(axis.values for axis in track), strict=False), 1, None):
            yield cell(first | {axis.key: value for axis, value in zip(track, values, strict=True)})


def register_arithmetic() -> None:
    """``${mul:2,${lora.r}}``, ``${add:...}`` and ``${div:...}`` for values that follow from others.

    A whole number stays one: ``${mul:0.5,${lora.r}}`` of 8 is 4.
    """
    for name, function in (("mul", _mul), ("add", _add), ("div", _div)):
        OmegaConf.register_new_resolver(name, function, replace=True)


def _mul(*numbers: Number) -> Number:
    product: Number = 1
    for number in _checked(numbers):
        product *= number
    return _whole(product, numbers)


def _add(*numbers: Number) -> Number:
    return _whole(sum(_checked(numbers)), numbers)


def _div(dividend: Number, divisor: Number) -> Number:
    _checked((dividend, divisor))
    if divisor == 0:
        raise ValueError(f"{dividend} divided by 0")
    return _whole(dividend / divisor, (dividend, divisor))


def _checked(numbers: Sequence[Any]) -> Sequence[Number]:
    for number in numbers:
        if isinstance(number, bool) or not isinstance(number, (int, float)):
            raise ValueError(f"{number!r} is not a number")
    return numbers


def _whole(value: Number, numbers: Sequence[Number]) -> Number:
    """As an int where that is exact and a whole number went in."""
    if isinstance(value, float) and value.is_integer() and any(isinstance(n, int) for n in numbers):
        return int(value)
    return value
