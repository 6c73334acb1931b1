"""The rows on which a merged or exported model is compared with the one that it was made from."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Iterator

from runner.config.adapters import adapters
from runner.config.objective import Kind
from runner.config.path_rules import missing
from runner.config.settings import DataSettings, RunConfig
from runner.core.errors import ConfigError, Issue
from runner.data.prepare import prepare
from runner.data.splits import Data, Split
from runner.data.template import Renderer

_EMBEDDED = "embedded:orders_eval"
# Of as many rows as are to be compared perhaps none can be trained on: then of so many times as many.
_WIDER = (1, 16, 256)


def rows_to_compare(config: RunConfig, renderer: Renderer, kind: Kind) -> tuple[Split, str]:
    """``merge.prompts`` rows, prompts with their answers, and where they are from.

    They are the first of these that is at hand: held-out rows of the run, its training rows, the samples in
    its folder, the embedded ones; any will do, as two models are compared that should say the same. ``kind``
    is what the adapter was trained on; of a preference pair the chosen sequence is compared. Raises
    ``ConfigError``.
    """
    _, own = next(_at_hand(config, 1))
    if kind == "classification" and not own:
        message = "the rows of the adapter's run are not at hand, to compare the merged model on"
        raise ConfigError(Issue("data.path", message, "data=file data.path=..., rows of the adapter's task"))
    data = _prepared(config, renderer, kind if own and kind != "preference" else "completion")
    rows = data.eval or data.train
    return rows, ", ".join(source.path for source in rows.sources)


def _prepared(config: RunConfig, renderer: Renderer, kind: Kind) -> Data:
    def prepared(count: int) -> Data:
        settings, _ = next(_at_hand(config, count))
        return prepare(settings, renderer, config.trainer.get("max_length", 1024), config.seed, kind)

    *fewer, most = (config.merge.prompts * wider for wider in _WIDER)
    for count in fewer:
        with contextlib.suppress(ConfigError):
            return prepared(count)
    return prepared(most)


def _at_hand(config: RunConfig, count: int) -> Iterator[tuple[DataSettings, bool]]:
    """Sources of ``count`` rows, each with whether it is that of the run."""
    data = config.data
    few = {key: min(getattr(data, key) or count, count) for key in ("max_rows", "eval_max_rows")}
    if data.path and not missing(data.path) and not (data.eval_path and missing(data.eval_path)):
        yield dataclasses.replace(data, **few), True
    elif data.eval_path and not missing(data.eval_path):
        yield dataclasses.replace(data, path=data.eval_path, eval_path=None, **few), True
    elif data.path and not missing(data.path):
        yield dataclasses.replace(data, eval_path=None, **few), True
    for adapter in adapters(config):
        samples = adapter.run / "samples.jsonl" if adapter.run else None
        if samples is not None and samples.is_file() and samples.stat().st_size:
            columns = {"expected": "completion"}
            found = DataSettings(str(samples), format="prompt_completion", columns=columns, max_rows=count)
            yield found, False
    yield DataSettings(_EMBEDDED, max_rows=count), False
