"""Values of library fields that the library itself would find wrong only after the weights are loaded."""

from __future__ import annotations

import ast
import json
import math
from collections.abc import Iterator
from functools import cache
from importlib.util import find_spec
from typing import Any

from runner.config import path_rules
from runner.config.library_fields import Field, assigned, classes, package_dir
from runner.config.origins import Origins
from runner.core.errors import Issue, nearest
from runner.core.file_kinds import decoded

Values = dict[str, Any]

# Names that the library looks up in a table of its own: its package, file and variable or class.
_TABLES = {
    "log_level": ("transformers", "utils/logging.py", "log_levels"),
    "log_level_replica": ("transformers", "utils/logging.py", "log_levels"),
    "report_to": ("transformers", "integrations/integration_utils.py", "INTEGRATION_TO_CALLBACK"),
    "torch_compile_backend": ("accelerate", "utils/dataclasses.py", "DynamoBackend"),
    "lr_scheduler_type": ("transformers", "trainer_utils.py", "SchedulerType"),
}
# What such a table does not name and is allowed all the same.
_BESIDE = {"log_level": ("passive",), "log_level_replica": ("passive",), "report_to": ("all", "none")}
# The packages behind the reporters whose name is another.
_PACKAGES = {"azure_ml": "azureml", "codecarbon": "codecarbon", "flyte": "flytekit", "kubeflow": "kubernetes"}
# Switches that need a package.
_SWITCHES = {"use_liger_kernel": "liger_kernel"}
# The packages behind the optimizers of others, by how their names begin, and how each is installed; but for
# those in 8 bits, whose place another takes without CUDA.
_OPTIMIZERS = {
    "galore": ("galore_torch", "git+https://github.com/jiaweizzhao/GaLore"),
    "apollo": ("apollo_torch", "git+https://github.com/zhuhanqing/APOLLO"),
    "lomo": ("lomo_optim", "lomo-optim"),
    "adalomo": ("lomo_optim", "lomo-optim"),
    "grokadamw": ("grokadamw", "grokadamw"),
    "schedule_free": ("schedulefree", "schedulefree"),
    "stable_adamw": ("optimi", "torch-optimi"),
}
# Fields of one's own JSON file; the others of that kind take JSON text or a mapping.
_FILES = ("accelerator_config", "deepspeed", "fsdp_config")


def check_library_values(
    section: str, fields: dict[str, Field], values: Values, origins: Origins
) -> Iterator[Issue]:
    """An issue for each value of a library section that has the right type and cannot be used."""
    for name, value in values.items():
        field = fields.get(name)
        if field is None or field.issue(value):
            continue
        key = f"{section}.{name}"
        for reason, hint in (*_number(field, value), *_mapping(field, value), *_listed(section, name, value)):
            yield Issue(origins.where(key), f"{key}: {reason}", hint)


def _number(field: Field, value: Any) -> Iterator[tuple[str, str]]:
    if isinstance(value, list):
        for item in value:
            yield from _number(field, item)
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return
    if not math.isfinite(value):
        yield f"{value} is not a number to compute with", ""
    elif value < 0 and not _below_zero(field.default) and (field.types | field.items) & {"int", "float"}:
        yield f"{value} is below zero", "at least 0, where 0 mostly means none"


def _below_zero(default: Any) -> bool:
    return isinstance(default, (int, float)) and default < 0


def _mapping(field: Field, value: Any) -> Iterator[tuple[str, str]]:
    """A text where the library wants a mapping: JSON, or the name of a file of it."""
    if not isinstance(value, str) or not {"dict", "str"} <= field.types or "list" in field.types:
        return
    text = value
    if field.name in _FILES and not value.lstrip().startswith("{"):
        if not path_rules.exists(value):
            yield f"nothing is at {value!r}", path_rules.nearest_file(value)
            return
        try:
            with open(value, "rb") as stream:
                read = decoded(stream.read(2**20), value)
        except OSError as error:
            yield f"{value} cannot be read: {error}", ""
            return
        if isinstance(read, Issue):
            yield f"{read.where}: {read.message}", read.hint
            return
        text = read
    try:
        mapping = json.loads(text)
    except (ValueError, RecursionError) as error:
        yield f"{value[:80]!r} is not JSON: {error}", "write a mapping: {key: value}"
        return
    if not isinstance(mapping, dict):
        yield f"{value[:80]!r} is not a mapping", "{key: value}"


def _listed(section: str, name: str, value: Any) -> Iterator[tuple[str, str]]:
    if section != "trainer" or value is None:
        return
    if value is True and name in _SWITCHES and find_spec(_SWITCHES[name]) is None:
        package = _SWITCHES[name].replace("_", "-")
        yield f"needs the package {package}", f"pip install {package}"
    if name == "optim" and "8bit" not in str(value):
        wanted = (found for start, found in _OPTIMIZERS.items() if str(value).startswith(start))
        for package, source in wanted:
            if find_spec(package) is None:
                yield f"{value} needs the package {package}", f"pip install {source}"
    if name not in _TABLES:
        return
    allowed = [*_table(*_TABLES[name]), *_BESIDE.get(name, ())]
    for item in value if isinstance(value, list) else [value]:
        text = str(item)
        if text not in allowed and text.upper() not in allowed:
            yield f"{text!r} is not allowed", nearest(text, [entry.lower() for entry in allowed], 20)
        elif name == "report_to" and text not in _BESIDE["report_to"] and not _installed(text):
            package = _PACKAGES.get(text, text.replace("_", "-"))
            yield f"{text} needs the package {package}", f"pip install {package}"


def _installed(reporter: str) -> bool:
    package = _PACKAGES.get(reporter, reporter)
    if reporter == "tensorboard" and find_spec("tensorboardX") is not None:
        return True
    return find_spec(package) is not None


@cache
def _table(package: str, file: str, name: str) -> list[str]:
    """The keys of a dictionary, or the values of an enumeration, of a library that is not imported for it."""
    path = package_dir(package).joinpath(*file.split("/"))
    if name in classes(path):
        body = classes(path)[name].body
        values = [item.value for item in body if isinstance(item, ast.Assign)]
    else:
        table = assigned(path, name)
        values = table.keys if isinstance(table, ast.Dict) else []
    return [node.value for node in values if isinstance(node, ast.Constant) and isinstance(node.value, str)]
