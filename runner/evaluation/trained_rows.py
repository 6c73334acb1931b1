"""Rows that are scored although an adapter was trained on them, as far as the record of its run says.

The rows of its run are read again as the run has split them, which is not how the rows that are scored were
split: another ``data.split_seed`` or ``data.eval_split`` holds out others of the same file.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import Any

from runner.config.adapters import Adapter, adapters
from runner.config.path_rules import exists
from runner.config.settings import DataSettings, RunConfig
from runner.core.errors import ConfigError
from runner.data.overlap import overlap
from runner.data.prepare import training_examples
from runner.data.splits import Split

# What of the section does not say which rows are trained on.
_FREE = {"metric": None, "cache": True, "eval_max_rows": None, "train_on": "assistant"}


def trained_rows(config: RunConfig, rows: Split) -> Iterator[str]:
    """A warning for each adapter that was trained on some of the ``rows``, with their number.

    Nothing is said where the rows of its run are no files, or not those of its record any more.
    """
    for adapter in adapters(config):
        data = _data_of(adapter)
        held_out = rows.name == "eval" and _rows_of(data) == _rows_of(config.data)
        if not _at_hand(data) or (held_out and adapter.sections.get("seed") == config.seed):
            continue  # what it was trained on was compared when these rows were held out
        try:
            with training_examples(data, int(adapter.sections.get("seed") or 0)) as (sources, trained):
                if [source.fingerprint for source in sources] != _fingerprints(adapter):
                    continue
                count = overlap(trained, rows.examples).rows
        except ConfigError:
            continue
        if count > rows.counts["also in train"]:  # of which the warning is there
            split = f"data.eval_split={data.eval_split:g} data.split_seed={data.split_seed}"
            hint = f"; its run held out others: {split}" if data.eval_split else ""
            said = f"{count} of {len(rows.examples)} scored rows are rows that {adapter.name} was trained on"
            yield f"{said}: their scores say nothing of new ones{hint}"


def _data_of(adapter: Adapter) -> DataSettings:
    """The section ``data`` of the run that made an adapter."""
    section = adapter.sections.get("data") or {}
    known = {field.name for field in dataclasses.fields(DataSettings)}
    return DataSettings(**{key: value for key, value in section.items() if key in known})


def _rows_of(data: DataSettings) -> DataSettings:
    return dataclasses.replace(data, **_FREE)


def _at_hand(data: DataSettings) -> bool:
    """Whether all rows are in files of this machine: a hub would be asked, which may change them."""
    sources: list[Any] = []
    for given in (data.path, data.eval_path):
        sources += given if isinstance(given, list) else [given] if given else []
    paths = [str(source.get("path") if isinstance(source, dict) else source) for source in sources]
    return bool(data.path) and all(path.startswith("embedded:") or exists(path) for path in paths)


def _fingerprints(adapter: Adapter) -> list[str]:
    """The digests of the files that an adapter was trained on, by its run's record."""
    train = (adapter.record.get("data") or {}).get("train") or {}
    return [source.get("fingerprint") for source in train.get("sources") or ()]
