"""What ``--help`` shows: one screen of what there is, not the whole composed config."""

from __future__ import annotations

import ast
import textwrap
from importlib.util import find_spec
from pathlib import Path

from runner.cli.command import Command

_WIDTH = 100
_EXAMPLES = (
    ("python -m runner", "the default job, on whatever this machine has"),
    ("python -m runner model=qwen3-4b quantization=nf4 lora=r16", "QLoRA of a hub model"),
    ("python -m runner data=file data.path=rows.jsonl data.eval_split=0.1", "rows of your own"),
    ("python -m runner -m lora.r=8,16 trainer.learning_rate=1e-4,3e-4", "a sweep of four runs"),
    ("python -m runner --config-path RUN_FOLDER --config-name config", "a run once more"),
)


def template(command: Command) -> str:
    """The help text as a Hydra help template: recipes, groups with their options, keys and examples."""
    width = max(len(text) for text, _ in _EXAMPLES)
    lines = [
        "Fine-tune a language model from a composed YAML config.",
        "",
        "  python -m runner [group=option ...] [key=value ...] [-m] [--cfg job]",
        "",
        "Recipes (recipe=...)",
        *(f"  {name:<13} {_summary(name)}" for name in command.options("recipe")),
        "",
        "Groups",
    ]
    for group in command.groups():
        if group != "recipe":
            options = ", ".join(command.options(group))
            indent = " " * 16
            lines += textwrap.wrap(
                options,
                _WIDTH,
                initial_indent=f"  {group:<13} ",
                subsequent_indent=indent,
                break_on_hyphens=False,
            )
    lines += [
        "",
        "Keys: every field of TRL's config under trainer., of PEFT's under lora., of the quantization config",
        "under quantization.; the rest (seed, output_dir, adapter, resume, model., data., ...) is ours.",
        "--cfg job shows the composed config, --hydra-help the other flags.",
        "",
        "Examples",
        *(f"  {text:<{width}}  # {comment}" for text, comment in _EXAMPLES),
    ]
    # Hydra fills in $NAMES, and OmegaConf ${NAMES}
    return "\n".join(lines).replace("$", "$$")


def _summary(recipe: str) -> str:
    """The first line of the recipe's module, which is not imported for it."""
    spec = find_spec("recipes")
    folders = spec.submodule_search_locations if spec else None
    file = Path(next(iter(folders))) / f"{recipe}.py" if folders else None
    if file is None or not file.is_file():
        return ""
    docstring = ast.get_docstring(ast.parse(file.read_text(encoding="utf-8"))) or ""
    return docstring.partition("\n")[0].rstrip(".")
