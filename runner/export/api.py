"""The forms in which ``export`` writes a merged model, and the check of each before the merge."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from runner.config.adapters import adapters
from runner.config.settings import RunConfig
from runner.core.errors import ConfigError, Issue
from runner.data.template import Renderer
from runner.export.compare_rows import rows_to_compare
from runner.models.model import Base
from runner.runs.run_folder import RunFolder


def check_export(config: RunConfig, base: Base) -> None:
    """Check, before the merge, that its result can be exported. Raises ``ConfigError``."""
    if any(adapter.base.get("classes") for adapter in adapters(config)):
        message = "the adapter has a head of its own, and only models that write text are exported"
        raise ConfigError(Issue(f"export={config.export}", message, "leave export out"))
    if config.export == "gguf":
        from runner.export.to_gguf import check_gguf

        check_gguf(config, base)


def export_model(config: RunConfig, folder: RunFolder, source: Path) -> list[Path]:
    """Export the transformers folder ``source`` into the run folder and compare the two on rows of the run.

    Returns the files and folders that were made.

    Raises ``RunnerError`` for a result whose logits are too far from the source's; it is removed then.
    """
    if config.export == "gguf":
        from runner.export.to_gguf import export_gguf as export
    else:
        from runner.export.to_int4 import export_int4 as export
    return export(config, folder, source, _texts(config, source))


def _texts(config: RunConfig, source: Path) -> list[list[int]]:
    """Token ids of ``merge.prompts`` rows, prompts with their answers: held-out ones where there are any."""
    from transformers import AutoTokenizer

    tokenizer: Any = AutoTokenizer.from_pretrained(source)
    renderer = Renderer(tokenizer, config.template, config.data.train_on)
    made_by = adapters(config)[0].sections.get("recipe")
    kind: Any = "unpaired_preference" if made_by == "kto" else "completion"
    rows, _ = rows_to_compare(config, renderer, kind)
    return [row.input_ids for row in rows.rows]
