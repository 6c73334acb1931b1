"""What ``test_families`` asserts of every family and method, as a page.

cd tests && python -m families.page > ../docs/coverage.md
"""

from __future__ import annotations

import json
import os
import re
from pathlib import Path

from runner.core.paths import ARCHITECTURES
from runner.models.architectures.page import presets

OUTCOMES = Path(__file__).with_name("outcomes.json")
_HEAD = """\
# Families and methods

What happens to a tiny random model of each family in `tests/families`, which continuous integration runs: two
steps of every method on a CPU in float32, and then the proof that is named here. This says that the method is
right for the layers of a family; nothing here is a measurement of a published model.

- **LoRA**: every matrix that an adapter is for has one (`lora.require_all=true`, which is refused where a
  layer is left out) and has learned; plain PEFT loads the adapter, with the trained model's logits to 1e-5.
- **QLoRA NF4**, **DPO**: every adapter has learned.
- **rows side by side** (`speed.padding_free`): a row has the hidden states and gradients that it has with
  padding (`tests/speed/test_flat.py`). Elsewhere rows are padded.
- **packing** (`trainer.packing`): the loss is that of padded rows; logits and gradients of a row are those
  that it has alone (`tests/speed/test_row_separation.py`).
- **pack**: a cell of a packed sweep ends with the adapter of its solo run; others run alone, as the opening
  of the sweep says.
- **merge**: the merged weights have the logits of base and adapter; every merge compares them itself.
- **GGUF**, **int4**: the export compares with the merged model, and is kept where it passes.

"""
_FOOT = """
This page is made of what the tests assert: `cd tests && python -m families.page > ../docs/coverage.md`.
"""


def presets_of() -> dict[str, list[str]]:
    """The options of ``conf/model`` by the family that stands for them in the tests."""
    found: dict[str, list[str]] = {}
    for preset in presets():
        facts = json.loads(
            (ARCHITECTURES / f"{preset.settings.architecture}.json").read_text(encoding="utf-8")
        )
        found.setdefault(_family(facts), []).append(preset.name)
    return found


def _family(facts: dict) -> str:
    kind = facts["model_type"]
    if kind == "granitemoehybrid" and not facts["num_local_experts"]:
        return f"{kind}-{'mamba' if 'linear_attention' in facts['layer_types'] else 'dense'}"
    if kind == "gemma4" and facts["text_config"].get("enable_moe_block"):
        return f"{kind}-experts"
    return kind


def page() -> str:
    """The page with every family."""
    outcomes: dict[str, dict[str, str]] = json.loads(OUTCOMES.read_text(encoding="utf-8"))
    models, reasons = presets_of(), []
    methods = list(max(outcomes.values(), key=len))
    lines = [f"| family | {' | '.join(methods)} | models |", "|---" * (len(methods) + 2) + "|"]
    for kind, found in outcomes.items():
        cells = [_cell(_of_any(found.get(method, ""), kind), reasons) for method in methods]
        names = " ".join(f"`{name}`" for name in models.get(kind, []))
        lines.append(f"| {kind} | {' | '.join(cells)} | {names} |")
    numbered = [f"{number}. {reason}" for number, reason in enumerate(reasons, start=1)]
    return _HEAD + "\n".join([*lines, "", *numbered]) + "\n" + _FOOT


def _of_any(outcome: str, kind: str) -> str:
    """An outcome without the names of its family, to be numbered with those of others."""
    model_type = kind.partition("-")[0]
    outcome = outcome.replace(f"no {model_type} model", "no such model")
    return re.sub(r"( layers of )?\b\w+For(CausalLM|ConditionalGeneration)\b", _in_its_place, outcome)


def _in_its_place(found: re.Match[str]) -> str:
    return " layers" if found[1] else "the model"


def _cell(outcome: str, reasons: list[str]) -> str:
    """The word of an outcome, with the number of its reason."""
    word, _, reason = outcome.partition(": ")
    if not reason:
        return word
    if reason not in reasons:
        reasons.append(reason)
    return f"{word} ({reasons.index(reason) + 1})"


if __name__ == "__main__":
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    print(page(), end="")
