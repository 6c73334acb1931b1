"""The fields of the classes that YAML may name, read from their source without importing the library.

Importing TRL takes about six seconds; parsing the three files that define ``SFTConfig`` takes 0.1. Only
names, types and allowed strings are read here; the library's own checks run later, when the object is built.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from runner.core.errors import nearest

_PACKAGES = ("peft", "transformers", "trl", "runner")
_PLAIN = {"bool", "int", "float", "str", "list", "dict"}
_CONTAINERS = {"List": "list", "Sequence": "list", "tuple": "list", "Tuple": "list", "Dict": "dict"}


@dataclass(frozen=True)
class Field:
    """One settable field: accepted YAML types (empty: any) and allowed strings (empty: any string).

    ``items`` are the types that the entries of a list may have (empty: any). ``nested`` is the config class
    of the library that the field takes, as module and name: in YAML a mapping of its fields. ``default`` is
    None where the source does not spell it out.
    """

    name: str
    types: frozenset[str] = frozenset()
    choices: tuple[str, ...] = ()
    items: frozenset[str] = frozenset()
    nested: tuple[str, str] | None = None
    default: Any = field(default=None, compare=False)  # no part of what is accepted

    def issue(self, value: object) -> str | None:
        """Say what is wrong with ``value``, or return None."""
        kind = "none" if value is None else type(value).__name__
        if self.nested and isinstance(value, dict):
            return self._inner_issue(value)
        if self.choices and isinstance(value, str):
            # PEFT writes an open choice as "pissa_niter_[number of iters]"
            open_ones = (re.escape(choice.split("[")[0]) for choice in self.choices if "[" in choice)
            if value in self.choices or any(re.fullmatch(rf"{start}\d+", value) for start in open_ones):
                return None
            hint = nearest(value, self.choices)
            others = sorted(self.types - {"none", "bool", "str"}) if hint.startswith("allowed") else []
            return f"{value!r} is not allowed; {', or '.join([hint, *others])}"
        if isinstance(value, list) and "list" in self.types and self.items:
            wrong = [item for item in value if type(item).__name__ not in self.items]
            expected = " or ".join(sorted(self.items))
            return f"a list of {expected} cannot hold {wrong[0]!r}" if wrong else None
        if kind == "str" and "list" in self.types and self.items == {"str"}:
            return None  # one entry, for which no brackets are needed
        if kind in self.types or (kind == "int" and "float" in self.types):
            return None
        if not self.types and not self.choices:
            return None
        if value is False and "no" in self.choices:
            return 'YAML reads no and off as false; write "no", with the quotes'
        if self.choices and not self.types - {"none"}:
            return f"{value!r} is not allowed; {nearest(value, self.choices)}"
        expected = " or ".join([*self.choices, *sorted(self.types - {"none"})]) or "null"
        return f"expected {expected}, got {'null' if value is None else f'{kind} {value!r}'}"

    def _inner_issue(self, values: dict[str, object]) -> str | None:
        module, name = self.nested or ("", "")
        fields = class_fields(_module_path(module), name)
        for key, value in values.items():
            if key not in fields:
                return f"{name} has no field {key!r}; {nearest(key, fields)}"
            if reason := fields[key].issue(value):
                return f"{key}: {reason}"
        return None


@cache
def class_fields(file: Path, name: str) -> dict[str, Field]:
    """Fields of a dataclass, or the parameters of a plain class's ``__init__``, base classes included."""
    node = classes(file)[name]
    fields: dict[str, Field] = {}
    for base_file, base in _bases(file, node):
        fields |= class_fields(base_file, base)
    init = next(
        (item for item in node.body if isinstance(item, ast.FunctionDef) and item.name == "__init__"), None
    )
    if init is not None:
        return {name: _field(file, name, *rest) for name, *rest in _parameters(init)}
    for item in node.body:
        if isinstance(item, ast.AnnAssign) and isinstance(item.target, ast.Name):
            fields[item.target.id] = _field(file, item.target.id, item.annotation, item.value)
    return fields


def _parameters(init: ast.FunctionDef) -> Iterator[tuple[str, ast.expr | None, ast.expr | None]]:
    """Name, annotation and default of each parameter but ``self``."""
    spec = init.args
    defaults: list[ast.expr | None] = [None] * (len(spec.args) - len(spec.defaults))
    pairs = [*zip(spec.args, [*defaults, *spec.defaults], strict=True)][1:]
    for argument, default in [*pairs, *zip(spec.kwonlyargs, spec.kw_defaults, strict=True)]:
        yield argument.arg, argument.annotation, default


def _field(file: Path, name: str, annotation: ast.expr | None, default: ast.expr | None) -> Field:
    types, choices, items, nested = _accepted(file, annotation)
    value = _default(default)
    usual = type(value.value).__name__ if isinstance(value, ast.Constant) else None
    if annotation is None and usual in ("bool", "int", "float", "str"):
        types = frozenset({usual, "none"})  # no annotation: as the default is
    elif usual == "NoneType" and (types or choices):
        types |= {"none"}  # "x: int = None" is written often
    return Field(name, types, choices or _metadata_choices(default), items, nested, _literal(value))


def _default(default: ast.expr | None) -> ast.expr | None:
    """The default, also of ``field(default=...)``."""
    if isinstance(default, ast.Call):
        return next((word.value for word in default.keywords if word.arg == "default"), None)
    return default


def _literal(value: ast.expr | None) -> Any:
    try:
        return ast.literal_eval(value or ast.Constant(None))
    except ValueError:  # a call, or a name
        return None


def _metadata_choices(default: ast.expr | None) -> tuple[str, ...]:
    """Strings listed under "choices" in a dataclass field's metadata."""
    for node in ast.walk(default) if default is not None else ():
        if isinstance(node, ast.Dict):
            for key, value in zip(node.keys, node.values, strict=True):
                if isinstance(key, ast.Constant) and key.value == "choices" and isinstance(value, ast.List):
                    return tuple(ast.literal_eval(value))
    return ()


def _accepted(
    file: Path, annotation: ast.expr | None
) -> tuple[frozenset[str], tuple[str, ...], frozenset[str], tuple[str, str] | None]:
    """Types, strings, list entries and config class that an annotation accepts; empty if not understood."""
    unknown = frozenset(), (), frozenset(), None
    nested = None
    types: set[str] = set()
    choices: list[str] = []
    items: list[frozenset[str]] = []
    for part in _union(annotation):
        name = part.id if isinstance(part, ast.Name) else None
        if isinstance(part, ast.Constant) and part.value is None:
            types.add("none")
        elif name in _PLAIN or name in _CONTAINERS:
            types.add(_CONTAINERS.get(name, name))
            items += [frozenset()] * (_CONTAINERS.get(name, name) == "list")
        elif isinstance(part, ast.Subscript) and isinstance(part.value, ast.Name):
            outer = _CONTAINERS.get(part.value.id, part.value.id)
            if outer == "Literal":
                literal = ast.literal_eval(part.slice)
                values = literal if isinstance(literal, tuple) else (literal,)
                choices += [value for value in values if isinstance(value, str)]
            elif outer in _PLAIN:
                types.add(outer)
                # a tuple's entries have a type each: not looked at
                inner = part.slice if outer == "list" and not isinstance(part.slice, ast.Tuple) else None
                items += [_accepted(file, inner)[0]] * (outer == "list")
            else:
                return unknown
        elif name and (members := _enum_strings(file, name)):
            choices += members
        elif name and (located := _locate(file, name)):
            nested = _dotted(located[0]), located[1]
            types.add("dict")
        else:
            return unknown
    if choices and not isinstance(annotation, ast.Name):
        types.discard("str")  # "SchedulerType | str" means: one of the scheduler's names, as a string
    entries = frozenset().union(*items) if all(items) else frozenset()
    entries |= {"int"} if "float" in entries else set()
    return frozenset(types), tuple(choices), entries, nested


def _union(annotation: ast.expr | None) -> Iterator[ast.expr]:
    if annotation is None:
        yield ast.Name("unannotated")
    elif isinstance(annotation, ast.Constant) and isinstance(annotation.value, str):
        yield from _union(ast.parse(annotation.value, mode="eval").body)
    elif isinstance(annotation, ast.BinOp) and isinstance(annotation.op, ast.BitOr):
        yield from _union(annotation.left)
        yield from _union(annotation.right)
    elif isinstance(annotation, ast.Subscript) and isinstance(annotation.value, ast.Name):
        if annotation.value.id == "Optional":
            yield from _union(annotation.slice)
            yield ast.Constant(None)
        elif annotation.value.id == "Union" and isinstance(annotation.slice, ast.Tuple):
            for part in annotation.slice.elts:
                yield from _union(part)
        else:
            yield annotation
    else:
        yield annotation


def _enum_strings(file: Path, name: str) -> list[str]:
    located = _locate(file, name)
    if located is None or not any("Enum" in _name(base) for base in classes(located[0])[located[1]].bases):
        return []
    body = classes(located[0])[located[1]].body
    values = [item.value for item in body if isinstance(item, ast.Assign)]
    return [text for value in values if isinstance(text := getattr(value, "value", None), str)]


def ancestors(file: Path, node: ast.ClassDef) -> Iterator[str]:
    """Names of a class's base classes and of theirs."""
    for base_file, base in _bases(file, node):
        yield base
        yield from ancestors(base_file, classes(base_file)[base])


def _bases(file: Path, node: ast.ClassDef) -> Iterator[tuple[Path, str]]:
    for base in node.bases:
        if located := _locate(file, _name(base)):
            yield located


def _name(node: ast.expr) -> str:
    return node.id if isinstance(node, ast.Name) else node.attr if isinstance(node, ast.Attribute) else ""


@cache
def _locate(file: Path, name: str) -> tuple[Path, str] | None:
    """Find the file that defines the class which ``name`` means inside ``file``, through its imports."""
    if name in classes(file):
        return file, name
    for node in ast.walk(_tree(file)):
        if not isinstance(node, ast.ImportFrom):
            continue
        for alias in node.names:
            if (alias.asname or alias.name) == name and (module := _module_file(file, node)):
                return _locate(module, alias.name) if module != file else None
    return None


def _module_file(file: Path, node: ast.ImportFrom) -> Path | None:
    if node.level:
        base = file.parents[node.level - 1]
    else:
        package, _, rest = (node.module or "").partition(".")
        if package not in _PACKAGES:
            return None
        base, node = package_dir(package), ast.ImportFrom(rest or None, node.names, 0)
    path = base.joinpath(*(node.module or "").split(".")) if node.module else base
    if path == package_dir("transformers"):  # its __init__ imports lazily; the one base class used from there
        return path / "training_args.py"
    return next((found for found in (path.with_suffix(".py"), path / "__init__.py") if found.is_file()), None)


def _dotted(file: Path) -> str:
    package = next(name for name in _PACKAGES if file.is_relative_to(package_dir(name)))
    return ".".join((package, *file.relative_to(package_dir(package)).with_suffix("").parts))


def _module_path(module: str) -> Path:
    package, *rest = module.split(".")
    return package_dir(package).joinpath(*rest).with_suffix(".py")


@cache
def package_dir(package: str) -> Path:
    """The folder of an installed package, which is not imported for it."""
    spec = find_spec(package)
    if spec is None or not spec.submodule_search_locations:
        raise ModuleNotFoundError(f"the package {package!r} is not installed")
    return Path(next(iter(spec.submodule_search_locations)))


@cache
def _tree(file: Path) -> ast.Module:
    return ast.parse(file.read_text(encoding="utf-8"))


def assigned(file: Path, name: str) -> ast.expr | None:
    """The value that a file assigns to a variable of the module."""
    for node in _tree(file).body:
        if isinstance(node, ast.Assign) and any(_name(target) == name for target in node.targets):
            return node.value
    return None


@cache
def classes(file: Path) -> dict[str, ast.ClassDef]:
    """The classes that a file defines, by name."""
    return {node.name: node for node in _tree(file).body if isinstance(node, ast.ClassDef)}
