"""What a config from someone else may not do by itself: run code that is not ours, or carry a secret.

A key that runs code counts when it is on the command line or in a packaged option, and in no other file.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from runner.config.origins import Origins
from runner.config.settings import RunConfig
from runner.core.errors import Issue
from runner.core.paths import CONFIG_DIR
from runner.core.secrets import found_in, masked
from runner.core.yaml_reader import read_yaml

Values = dict[str, Any]

# Keys whose value is run, or decides together with the first one of its row what is run.
_CODE = {
    "model.trust_remote_code": ("model.path", "model.revision"),
    "evaluate.function": (),
    "gguf.llama_cpp": (),
}
_SECTIONS = tuple(dict.fromkeys(key.partition(".")[0] for key in _CODE))


def check_trust(values: Values, origins: Origins) -> Iterator[Issue]:
    """An issue for each key that runs code and was not set by the user, and each secret in a value."""
    yield from _check_code(values, origins)
    yield from _check_stages(values.get("stages"), origins)
    leaves = list(_leaves(values, ""))
    for path, value in leaves:
        if path.endswith(".trust_remote_code") and path != "model.trust_remote_code" and value:
            message = f"{path}: code from elsewhere is allowed in one place only"
            yield Issue(origins.where(path), message, "set model.trust_remote_code")
    texts = {path: value for path, value in leaves if isinstance(value, str)}
    if not found_in("\n".join(texts.values())):
        return  # most configs: one look is enough
    for path, value in texts.items():
        if kind := found_in(value):
            message = f"{path} holds {kind}, and a config is kept and shown"
            hint = "leave it out; tokens are read from the environment: HF_TOKEN, WANDB_API_KEY"
            yield Issue(masked(origins.where(path)), message, hint)


def code_words(config: RunConfig) -> list[str]:
    """The overrides that a saved config needs beside it, as it runs code from elsewhere."""
    values = dataclasses.asdict(config)
    keys = [key for first, others in _CODE.items() if _get(values, first) for key in (first, *others)]
    given = {key: _get(values, key) for key in keys if _get(values, key)}
    return [f"{key}={'true' if value is True else value}" for key, value in given.items()]


def _check_code(values: Values, origins: Origins) -> Iterator[Issue]:
    model = values.get("model") or {}
    for first, others in _CODE.items():
        if not _get(values, first):
            continue
        for key in (first, *others):
            if _get(values, key) and not origins.said_by_user(key):
                yield _unsaid(origins.where(key), key, _get(values, key))
    attention = model.get("attn_implementation")  # with a slash it is a kernel of the hub: compiled code
    key = "model.attn_implementation"
    if isinstance(attention, str) and "/" in attention and not origins.said_by_user(key):
        yield _unsaid(origins.where(key), key, attention)


def _check_stages(stages: Any, origins: Origins) -> Iterator[Issue]:
    """The words of a chain's stages are read like a command line, but come from the author of the file."""
    if not isinstance(stages, dict) or origins.said_by_user("stages"):
        return
    for name, words in stages.items():
        for text in words if isinstance(words, list) else ():
            if isinstance(text, str) and runs_code(text):
                where = origins.where(f"stages.{name}")
                hint = "write the stages on the command line, or into conf/experiment/ of the project"
                yield Issue(where, f"stages.{name}: {text} runs code from elsewhere", hint)


def runs_code(word: str) -> bool:
    """Whether a word of a command line could make it run code that is not ours."""
    key, _, value = word.lstrip("+~").partition("=")
    if key == "model" and not value.startswith("{"):
        file = CONFIG_DIR / "model" / f"{Path(value).name}.yaml"
        option = read_yaml(file) if file.is_file() else {}
        return bool(option.get("trust_remote_code"))
    part = re.split(r"[./]", key)[0]
    return (
        key in (*_SECTIONS, *_CODE, "model.attn_implementation")
        or part in ("stages", "hydra")
        or "@" in key
        or word.startswith("-")
    )


def _unsaid(where: str, key: str, value: Any) -> Issue:
    message = f"{key}={value} runs code from elsewhere, and was not set on your command line"
    text = str(value).lower() if isinstance(value, bool) else value
    return Issue(where, message, f"if you trust it, add it to the command line: {key}={text}")


def _get(values: Values, key: str) -> Any:
    section, _, name = key.partition(".")
    inside = values.get(section)
    return inside.get(name) if isinstance(inside, dict) else None


def _leaves(value: Any, path: str) -> Iterator[tuple[str, Any]]:
    children = (
        value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else None
    )
    if children is None:
        yield path, value
        return
    for name, child in children:
        yield from _leaves(child, f"{path}.{name}" if path else str(name))
