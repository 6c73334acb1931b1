"""What ``against`` may name for ``recipe=benchmark``, and what goes with it."""

from __future__ import annotations

from collections.abc import Iterator
from importlib.util import find_spec
from typing import Any

from runner.config.origins import Origins
from runner.core.errors import Issue, nearest

Values = dict[str, Any]

# What each peer needs, as Python imports it; the package of that name has "-" in place of "_".
PEERS: dict[str, tuple[str, ...]] = {
    "trl": ("trl",),
    "trl-liger": ("trl", "liger_kernel"),
    "trl-liger-compile": ("trl", "liger_kernel"),
    "unsloth": ("unsloth",),
}
_PEER_RECIPES = ("sft", "dpo")
_SYNTHETIC = ("sft", "dpo", "kto", "orpo", "reward")  # those that learn from an answer, or from two


def peers(against: str | list | None) -> list[str]:
    """The names in ``against``, each once."""
    names = [against] if isinstance(against, str) else against or []
    return list(dict.fromkeys(map(str, names)))


def check_benchmark(values: Values, origins: Origins, trained: str | None) -> Iterator[Issue]:
    """An issue for each peer that is unknown, not installed or cannot train this config, and for rows that
    are given twice; ``trained`` is the recipe of the config's trainer, None if there is none."""
    if trained is None:
        target = (values.get("trainer") or {}).get("_target_")
        message = f"recipe=benchmark measures the step of a training recipe, and none trains with {target}"
        yield Issue(origins.where("trainer._target_"), message, "trainer=sft or trainer=dpo")
        return
    against = values.get("against")
    names = peers(against) if isinstance(against, (str, list)) else []
    for name in names:
        yield from _check_peer(name, origins)
    if names:
        yield from _check_trained(values, origins, trained, names)
    if not (values.get("benchmark") or {}).get("length"):
        return
    if origins.typed("data.path") or origins.typed("data.eval_path"):
        message = "benchmark.length makes rows of its own, which contradicts data.path"
        yield Issue(origins.where("benchmark.length"), message, "keep one of them")
    if trained not in _SYNTHETIC:
        message = f"benchmark.length makes no rows for trainer={trained}"
        yield Issue(origins.where("benchmark.length"), message, "data=file data.path=...")


def _check_peer(name: str, origins: Origins) -> Iterator[Issue]:
    where = origins.where("against")
    if name == "axolotl":
        message = (
            "against: axolotl trains in a process of its own command, whose steps cannot be timed from here"
        )
        yield Issue(where, message, f"allowed: {', '.join(PEERS)}")
    elif name not in PEERS:
        yield Issue(where, f"against: unknown {name!r}", nearest(name, PEERS))
    else:
        missing = [module.replace("_", "-") for module in PEERS[name] if find_spec(module) is None]
        if missing:
            message = f"against: {name} needs {' and '.join(missing)}, which is not installed"
            yield Issue(where, message, f"pip install {' '.join(missing)}")


def _check_trained(values: Values, origins: Origins, trained: str, names: list[str]) -> Iterator[Issue]:
    if trained not in _PEER_RECIPES:
        message = f"against: trainer={trained} is measured alone"
        allowed = " or ".join(f"trainer={recipe}" for recipe in _PEER_RECIPES)
        yield Issue(origins.where("against"), message, f"others are measured with {allowed}")
    if values.get("adapter"):
        message = "against: the others begin with a new adapter, and this config with an earlier one"
        yield Issue(origins.where("adapter"), message, "leave out adapter, or against")
    kind = (values.get("lora") or {}).get("_target_")
    if "unsloth" in names and (kind != "peft.LoraConfig" or trained != "sft"):
        message = "against: unsloth is measured with trainer=sft and LoRA only"
        yield Issue(origins.where("against"), message, "lora=r16 trainer=sft, or leave it out")
