"""How long the rows of ``data.path`` are, where that can be known without fetching anything."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from runner.config.objective import Objective
from runner.config.saved_head import saved_head
from runner.config.settings import DataSettings, ModelSettings, RunConfig
from runner.models.locate import is_at_hand
from runner.plan.expected import Rows as RowSummary
from runner.plan.find import find_facts

if TYPE_CHECKING:
    from runner.data.splits import Data

USUAL_LENGTH = 1024  # of TRL's trainers and of this runner, where trainer.max_length is left out


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
    prepared = read_data(config, objective, data)
    if prepared is None:
        return Rows(notes=("no tokenizer here yet: each row counts as trainer.max_length",))
    classes = len(head(config, objective, prepared) or ())
    train = prepared.train
    lengths: list[int] = []
    dataset = train.dataset()
    for column in dataset.column_names:
        if column.endswith("input_ids"):
            lengths += [len(ids) for ids in dataset[column]]
    share = train.trained_tokens / max(1, train.tokens)
    return Rows(tuple(lengths), share, classes, len(train.rows), tuple(prepared.notes))


def read_data(config: RunConfig, objective: Objective, data: DataSettings) -> Data | None:
    """The prepared rows of a run, which it will find in the cache; None where the model's tokenizer would
    have to be fetched for them."""
    if not _has_tokenizer(config.model):
        return None
    from runner.data.chat_template_check import apply_template
    from runner.data.max_length import row_limit
    from runner.data.prepare import prepare
    from runner.data.template import Renderer
    from runner.models.model import find_base

    base = find_base(config.model)
    apply_template(base.tokenizer, config.template)
    renderer = Renderer(base.tokenizer, config.template, data.train_on)
    limit = row_limit(config, base.config)
    return prepare(data, renderer, limit, config.seed, objective.kind)


def head(config: RunConfig, objective: Objective, data: Data) -> list[str] | None:
    """The outputs of the run's head, as training has them; None for a model that writes tokens.

    Raises ``ConfigError`` as the training would.
    """
    if objective.head is None:
        return None
    return objective.head(data, saved_head(config, find_facts(config.model)))


def summary(
    data: Data, objective: Objective, packed_to: int | None = None, in_pack: bool = False
) -> RowSummary:
    """Rows as a run counts them; of rows that its trainer packs, ``packed_to`` is the length.

    The held-out rows of a cell ``in_pack`` count, too, which are scored in passes of as many cells.
    """
    train = data.train
    longest = max(split.longest for split in (data.splits if in_pack else [train]))
    labelled = train.trained_tokens / max(1, train.tokens) if objective.token_loss else 1.0
    if packed_to:
        return RowSummary(max(1, train.tokens // packed_to), packed_to, float(packed_to), labelled)
    sequences = 2 if objective.kind == "preference" else 1
    mean = train.tokens / max(1, len(train.rows) * sequences)
    return RowSummary(len(train.rows), longest, min(mean, longest), labelled)


def unread(config: RunConfig, positions: int) -> RowSummary:
    """What stands for rows that cannot be read yet: full batches of rows as long as they may be."""
    longest = longest_row(config, positions)
    return RowSummary(2**31, longest, float(longest), known=False)


def longest_row(config: RunConfig, positions: int) -> int:
    """Tokens that a row may have, of a model with so many ``positions``."""
    return min(positions, int(config.trainer.get("max_length", USUAL_LENGTH) or positions))


def _has_tokenizer(model: ModelSettings) -> bool:
    """Whether the tokenizer of a model can be loaded without fetching it, or converting weights with it."""
    return model.weights == "random" or is_at_hand(str(model.path), model.revision)
