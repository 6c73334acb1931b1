"""The models of ``conf/model`` as a page: license, size, and what of them ``all-linear`` puts adapters on.

python -m runner.models.architectures.page > docs/models.md
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from runner.config.settings import ModelSettings
from runner.core.paths import CONFIG_DIR
from runner.core.yaml_reader import read_yaml
from runner.models.adapted import Adapted

_LICENSE, _GATED, _CONVERTED = "# License: ", "# Gated: ", "# Converted: "
_LEAST = 0.01  # the share of a model that frozen weights of a kind are named from
_HEAD = """\
# Models

What `model=NAME` names. Any other model of the hub, or a folder, is `model.path=OWNER/NAME`; the shapes of
these are in this repository, so that `recipe=plan` needs no network and `model.weights=random` builds them.
Gated models need a license accepted on their page of the hub, and a token (`hf auth login`).

`adapted` is the share of the model's weights that have an adapter with `lora.target_modules=all-linear`, over
a base that is not quantised; `frozen` are the kinds of other weights with 1% of the model or more. Every run
says the same of itself. Adapters on experts (`experts.gate_up_proj`) need `lora.lora_dropout=0`.

| `model=` | type | parameters | license | gated | adapted | adapters on | frozen |
|---|---|---|---|---|---|---|---|
"""
_FOOT = """
\\* The checkpoint was published with code of its own, which is not run. When it is first used it is converted
to this class of transformers, which computes the same, and takes as much disk again. Quantised checkpoints,
ChatGLM2 and ChatGLM-6B are refused.

Left out, as transformers' `AutoModelForCausalLM` has no class for them: Ministral 3, and Mistral Small 3.1
and later (`mistral3`).

Counted on models without weights; nothing of their training is measured here. This page is made of the
options: `python -m runner.models.architectures.page > docs/models.md`.
"""


class Preset(NamedTuple):
    """A model option: its name, what it sets, and what its comments say of the model."""

    name: str
    settings: ModelSettings
    license: str
    gated: bool
    converted: bool


def presets() -> Iterator[Preset]:
    """The options of ``conf/model`` that name a published model, by name."""
    for file in sorted((CONFIG_DIR / "model").glob("*.yaml")):
        settings = ModelSettings(**read_yaml(file))
        if settings.path is not None:
            yield _preset(file, settings)


def _preset(file: Path, settings: ModelSettings) -> Preset:
    lines = file.read_text(encoding="utf-8").splitlines()
    licenses = [line.removeprefix(_LICENSE).removesuffix(".") for line in lines if line.startswith(_LICENSE)]
    gated, converted = (any(line.startswith(mark) for line in lines) for mark in (_GATED, _CONVERTED))
    return Preset(file.stem, settings, licenses[0] if licenses else "", gated, converted)


def count_adapted(preset: Preset) -> tuple[str, Adapted]:
    """The model's type, and what of it ``all-linear`` adapts; counted without weights, imports torch."""
    from peft import LoraConfig

    from runner.models.adapter import try_adapter
    from runner.models.base import find_base

    base = find_base(ModelSettings(weights="random", architecture=preset.settings.architecture))
    config = LoraConfig(task_type="CAUSAL_LM", target_modules="all-linear")
    return base.config.model_type, try_adapter(base, config)[1]


def row(preset: Preset) -> str:
    """The line of the table about a model."""
    kind, found = count_adapted(preset)
    shares = sorted(((size / found.total, kind) for kind, size in found.frozen.items()), reverse=True)
    cells = (
        f"`{preset.name}`",
        f"{kind} \\*" if preset.converted else kind,
        f"{found.total:,}",
        preset.license,
        "yes" if preset.gated else "",
        f"{found.share:.1%}",
        " ".join(found.modules),
        ", ".join(f"{kind} {share:.1%}" for share, kind in shares if share >= _LEAST),
    )
    return f"| {' | '.join(cells)} |\n"


def page() -> str:
    """The page with every model."""
    return f"{_HEAD}{''.join(map(row, presets()))}{_FOOT}"


if __name__ == "__main__":
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    print(page(), end="")
