"""Which library classes a config may name in ``_target_``; nothing else is ever instantiated."""

from __future__ import annotations

import re
from dataclasses import replace
from functools import cache
from pathlib import Path

from runner.config.library_fields import Field, ancestors, class_fields, classes, package_dir
from runner.core.errors import nearest

FP8 = "runner.models.fp8.Fp8Config"  # the class of quantization=fp8
# By config section: the packages, where in each the classes are defined, and the base that they must have.
ALLOWED_TARGETS = {
    "lora": (("peft", "tuners/**/config.py", "PeftConfig"),),
    "quantization": (
        ("transformers", "utils/quantization_config.py", "QuantizationConfigMixin"),
        ("runner", "models/fp8/*.py", "QuantizationConfigMixin"),
    ),
    "trainer": (
        ("trl", "trainer/*_config.py", "TrainingArguments"),
        ("trl", "experimental/*/*_config.py", "TrainingArguments"),
        ("transformers", "training_args.py", "TrainingArguments"),
    ),
}


class UnknownTarget(Exception):
    """A ``_target_`` outside the allow-list; ``hint`` says what is allowed."""

    def __init__(self, message: str, hint: str) -> None:
        self.hint = hint
        super().__init__(message)


# What PEFT takes beside what it says: an adapter of rsLoRA that changed its base is saved for the original
# one with an alpha that is multiplied by the root of 2.
_WIDER = {"lora_alpha": frozenset({"float"})}


def target_fields(section: str, target: str) -> dict[str, Field]:
    """Fields of the library class that ``_target_`` names in a config section.

    Raises ``UnknownTarget`` if the class is not one of ``ALLOWED_TARGETS``.
    """
    places, called = ALLOWED_TARGETS[section], target.rpartition(".")[2]
    same = {name: file for place in places for name, file in _classes_at(*place, called).items()}
    if target in same:
        fields = class_fields(same[target], called)
        return fields | {
            name: replace(fields[name], types=fields[name].types | more)
            for name, more in _WIDER.items()
            if name in fields
        }
    packages = " or ".join(dict.fromkeys(place[0] for place in places))
    known = same or [name for place in places for name in _classes_at(*place)]
    raise UnknownTarget(f"{target!r} is not a {packages} class allowed here", nearest(target, known))


@cache
def _classes_at(package: str, pattern: str, base: str, called: str = "") -> dict[str, Path]:
    """Full names of the classes, each by the outermost package that exports it, and their files.

    ``called`` asks for those of one name, for which few of some 100 files are parsed: that takes a second.
    """
    root = package_dir(package)
    found = {}
    for file in sorted(root.glob(pattern)):
        if f"class {called}" not in file.read_text(encoding="utf-8"):
            continue
        for name, node in classes(file).items():
            if called not in ("", name) or (name != base and base not in ancestors(file, node)):
                continue
            for folder in (root, file.parent):
                # "peft.NAME" must exist: a package's own __init__ names what it exports
                if name in _exported(folder):
                    dotted = ".".join((package, *folder.relative_to(root).parts, name))
                    found[dotted] = file
                    break
    return found


@cache
def _exported(folder: Path) -> set[str]:
    file = folder / "__init__.py"
    return set(re.findall(r"\w+", file.read_text(encoding="utf-8"))) if file.is_file() else set()
