"""Every error in a composed config that can be found without importing a library or reading data."""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Iterable, Iterator
from difflib import get_close_matches
from functools import cache
from pathlib import Path
from typing import Any

from runner.config import settings
from runner.config.late_checks import check_library_values
from runner.config.library_fields import Field, class_fields
from runner.config.objective import Objectives
from runner.config.origins import Origins
from runner.config.recipe_rules import MACHINE_ALONE, check_recipe
from runner.config.recipes.plan_rules import without_rows
from runner.config.reserved_keys import RESERVED
from runner.config.rules import EXCLUSIVE, RANGES, Values, cross_check, get
from runner.config.sweep_rules import check_sweep
from runner.config.targets import UnknownTarget, target_fields
from runner.core.errors import Issue, nearest

SECTIONS = (*settings.OWN_SECTIONS, *settings.LIBRARY_SECTIONS)

# What every recipe reads.
_OF_EVERY_RUN = ("recipe", "seed", "output_dir")
# The classes whose fields are suggested while the config is not composed yet.
_USUAL_TARGETS = {
    "lora": "peft.LoraConfig",
    "quantization": "transformers.BitsAndBytesConfig",
    "trainer": "trl.SFTConfig",
}


def check_config(values: Values, origins: Origins, objectives: Objectives) -> list[Issue]:
    """All issues of a composed config, empty when it can be frozen; settles ``EXCLUSIVE`` keys in place.

    ``objectives`` are those of the training recipes. Of a recipe that only looks at the machine the names and
    types are checked, and what it does not read is taken out: a model or rows that are gone are no hindrance.
    """
    if values.get("recipe") in MACHINE_ALONE:
        issues = [*_check_keys(_given(values), origins), *check_recipe(values, origins, objectives)]
        for key in [key for key in values if key not in _OF_EVERY_RUN]:
            del values[key]
        return issues
    with without_rows(values):
        return _issues(values, origins, objectives)


def _issues(values: Values, origins: Origins, objectives: Objectives) -> list[Issue]:
    issues = list(_check_keys(values, origins))
    # what is no section cannot be looked into, the others still can
    broken = {
        origins.where(name) for name in SECTIONS if not isinstance(values.get(name, {}), (dict, type(None)))
    }
    values |= {name: {} for name in SECTIONS if not isinstance(values.get(name), dict)}
    issues += _check_exclusive(values, origins)
    found = [
        *check_recipe(values, origins, objectives),
        *cross_check(values, origins),
        *check_sweep(values, origins, objectives),
    ]
    return issues + [item for item in found if item.where not in broken]


def _given(value: Any) -> Any:
    """A value without what must still be given."""
    if isinstance(value, dict):
        return {name: _given(item) for name, item in value.items() if item != "???"}
    return [_given(item) for item in value if item != "???"] if isinstance(value, list) else value


def known_fields(section: str, target: str | None) -> dict[str, Field]:
    """Fields that may stand in a section: the runner's own, and those of the library class it names.

    Raises ``UnknownTarget`` if the class is not allowed there.
    """
    own = settings.OWN_SECTIONS.get(section)
    fields = dict(_own_fields(own)) if own else {}
    if section == "trainer":
        fields |= _own_fields(settings.TrainerExtras)
    if section == "lora":
        fields |= _own_fields(settings.LoraExtras)
    if target:
        fields |= target_fields(section, target)
    return fields


def nearest_key(key: str, fields: Iterable[str] = ()) -> str:
    """Suggest the right key for an unknown one.

    ``fields`` are the names that its section takes: the nearest of these comes first, then the same name in
    another section, then what is nearest anywhere.
    """
    section, _, name = key.rpartition(".")
    allowed = [field for field in fields if f"{section}.{field}" not in RESERVED]
    hint = nearest(name, allowed, prefix=f"{section}.")
    if hint.startswith("did you mean"):
        return hint
    every = {
        f"{group}.{field}": field
        for group in SECTIONS
        for field in known_fields(group, _USUAL_TARGETS.get(group))
        if f"{group}.{field}" not in RESERVED
    }
    top = [item.name for item in dataclasses.fields(settings.RunConfig)]
    meant = [full for full, field in every.items() if field == name]
    if not meant and not allowed:
        found = get_close_matches(name, [*top, *every.values()], n=1, cutoff=0.7)
        meant = [full for full in (*top, *every) if full.rpartition(".")[2] in found]
    return f"did you mean {' or '.join(map(repr, meant))}?" if meant else hint or nearest(name, top)


@cache
def _own_fields(kind: type) -> dict[str, Field]:
    file = sys.modules[kind.__module__].__file__
    assert file is not None
    return class_fields(Path(file), kind.__name__)


def _check_keys(values: Values, origins: Origins) -> Iterator[Issue]:
    top = _own_fields(settings.RunConfig)
    for key, value in values.items():
        if key not in top:
            hint = "begin the file with: # @package _global_" if origins.is_group(str(key)) else ""
            where, name = origins.where(str(key)), str(key)
            yield Issue(where, f"unknown key {name!r}", hint or nearest_key(name))
        elif key not in SECTIONS:
            yield from _check_value(key, value, top[key], origins)
        elif value is not None and not isinstance(value, dict):
            yield Issue(origins.where(key), f"{key} is a section of keys, got {value!r}")
        else:
            yield from _check_section(key, value or {}, origins)


def _check_section(section: str, values: Values, origins: Origins) -> Iterator[Issue]:
    library = section in settings.LIBRARY_SECTIONS
    target = values.get("_target_")
    if library and target is None and values:
        typed = [name for name in values if origins.typed(f"{section}.{name}")]
        if origins.chosen(section) and not typed:
            values.clear()  # keys of a file, for the class that the command line takes away
            return
        first = str((typed or list(values))[0])
        message = f"{section} has the key {first} but names no class" + (
            f"; {section}=none takes no keys" if section != "trainer" else ""
        )
        without = "leave the key out" if typed else f"leave it out: '~{section}.{first}'"
        hint = f"choose a class: {section}=...; or {without}"
        yield Issue(origins.where(f"{section}.{first}"), message, hint)
        return
    try:
        fields = known_fields(section, str(target) if library and target is not None else None)
    except UnknownTarget as error:
        yield Issue(origins.where(f"{section}._target_"), f"{section}._target_: {error}", error.hint)
        fields = None
    for name, value in values.items():
        key = f"{section}.{name}"
        if name == "_target_" and library:
            continue
        if fields is None or name == "_target_":
            yield from _check_inside(section, {name: value}, origins)
        elif name not in fields:
            yield Issue(origins.where(key), f"unknown key {key!r}", nearest_key(key, fields))
        elif key in RESERVED:
            yield Issue(origins.where(key), f"{key} is decided elsewhere", f"instead: {RESERVED[key]}")
        else:
            yield from _check_value(key, value, fields[name], origins)
    if library and fields is not None:
        ranged = {f"{section}.{name}" for name in values} & {*RANGES, *RESERVED}
        rest = {name: value for name, value in values.items() if f"{section}.{name}" not in ranged}
        yield from check_library_values(section, fields, rest, origins)


def _check_value(key: str, value: Any, field: Field, origins: Origins) -> Iterator[Issue]:
    reason = field.issue(value) if value != "???" else None
    inside = list(_check_inside(key, value, origins))
    if reason and not inside:
        allowed = f"allowed: {RANGES[key]}" if key in RANGES else ""
        yield Issue(origins.where(key), f"{key}: {reason}", allowed)
    yield from inside


def _check_inside(key: str, value: Any, origins: Origins) -> Iterator[Issue]:
    """What may stand nowhere: a value that must be given, and a class named at any depth."""
    if isinstance(value, str) and value == "???":
        yield Issue(origins.where(key), f"{key} must be given", f"add {key}=...")
    children = (
        value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    )
    for name, child in children:
        inner = f"{key}.{name}"
        if name == "_target_":
            allowed = ", ".join(f"{section}._target_" for section in settings.LIBRARY_SECTIONS)
            yield Issue(
                origins.where(inner), f"{inner}: no class may be named here", f"only {allowed} name one"
            )
        else:
            yield from _check_inside(inner, child, origins)


def _check_exclusive(values: Values, origins: Origins) -> Iterator[Issue]:
    for pair in EXCLUSIVE:
        # -1 is how the library says "not given"
        given = [key for key in pair if get(values, key) is not None and get(values, key) != -1]
        if len(given) < 2:
            continue
        typed = [bool(origins.typed(key)) for key in given]
        # which file a value is from takes 35 ms to find out
        ranks = typed if any(typed) else [origins.rank(key) for key in given]
        first, second = given if ranks[0] >= ranks[1] else reversed(given)
        if ranks[0] == ranks[1]:
            both = " and ".join(f"{key}={get(values, key)}" for key in pair)
            yield Issue(origins.where(first), f"{both} contradict each other", "keep one of them")
        else:
            section, _, name = second.partition(".")
            del values[section][name]
