"""From examples to token sequences with labels: render, tokenise, mask and truncate with ``Dataset.map``.

What is counted of a row travels with it as JSON in a column of the mapped table, so that counts, warnings and
errors are the same whether one process maps or several.
"""

from __future__ import annotations

import importlib
import json
import shutil
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pyarrow.compute

from runner.config.settings import DataSettings
from runner.core.environment import available_cores
from runner.core.errors import ConfigError, RunnerError
from runner.core.process.child_process import in_child
from runner.core.process.forks import guarded_forks
from runner.core.process.limits import TooMuch, armed
from runner.data.example_store import Examples, decode_examples, open_dataset, open_writer, tables
from runner.data.formats import Example, Kind
from runner.data.issue_list import Rejected
from runner.data.labels import Encoded, Rendered
from runner.data.messages import BadRow
from runner.data.rendering.chat_template import died, too_much
from runner.data.sequences import Sequences, Totals, sequence_schema
from runner.data.template import Renderer

if TYPE_CHECKING:
    from datasets import Dataset

compute: Any = pyarrow.compute  # its functions are made when it is imported

_BATCH_ROWS, _BATCH_BYTES = 1000, 64 * 2**20  # examples that are mapped at once, as JSON
_BATCH_CHARS = 4 * 2**20  # rendered text that is tokenised at once
# A pool takes 0.3 seconds to start and to end, in which one process renders and tokenises a megabyte.
_WORKER_BYTES, _MOST_WORKERS = 2 * 2**20, 8

_SEVERAL = "the template renders one of its answers as several rows, which cannot be compared"
_NOT_WRITTEN = "answer not written by the template"
_APART = "an earlier answer that would share its first token with its prompt (tokenised apart)"
_REPORT = [("kept", pa.bool_()), ("report", pa.string())]


@dataclass
class EncodedSplit:
    """The sequences of a split, counts by reason, and file and line of the first example of each warning."""

    rows: Sequences
    counts: Counter[str]
    first_seen: dict[str, str]


@dataclass
class _Item:
    """An example as rendered rows, each with one sequence or a chosen and a rejected one."""

    example: Example
    rows: list[tuple[Rendered, ...]] = field(default_factory=list)
    counts: list[str] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)
    issue: str | None = None


@dataclass
class Encoder:
    """Makes sequences of examples: a function on Arrow tables with the columns of ``SCHEMA``."""

    renderer: Renderer
    kind: Kind
    max_length: int | None = None
    max_tokens: int | None = None
    drops_overlong: bool = False

    @classmethod
    def of(cls, data: DataSettings, renderer: Renderer, max_length: int | None, kind: Kind) -> Encoder:
        """The encoder of a run; sequences are cut or dropped at ``max_length`` tokens."""
        return cls(renderer, kind, max_length, data.max_tokens, data.overlong == "drop")

    def __call__(self, table: pa.Table) -> pa.Table:
        """A table with the columns of ``mapped_schema``, a row or more for each example."""
        examples, parts = decode_examples(table), []
        while items := self._rendered(examples):
            parts.append(self._encoded(items))
        return pa.concat_tables(parts)

    @property
    def mapped_schema(self) -> pa.Schema:
        """Columns of sequences, and with each row whether it is kept and what is to be counted."""
        schema = sequence_schema(self.kind)
        return pa.schema([*schema, *(pa.field(*column) for column in _REPORT)])

    def _rendered(self, examples: Iterator[Example]) -> list[_Item]:
        """The next examples, until there are ``_BATCH_CHARS`` characters."""
        items, chars = [], 0
        with armed():
            for example in examples:
                items.append(item := self._item(example))
                chars += sum(len(part.text) for row in item.rows for part in row)
                if chars > _BATCH_CHARS:
                    break
        return items

    def _item(self, example: Example) -> _Item:
        item = _Item(example)
        try:
            answers = [self.renderer.render(example)]
            if example.rejected:
                answers.append(self.renderer.render(replace(example, messages=example.rejected)))
                if any(len(rendered) > 1 for rendered in answers):
                    raise BadRow(_SEVERAL)
        except BadRow as error:
            item.issue = str(error)
            return item
        examples = (example, replace(example, messages=example.rejected))
        found = (self.renderer.warnings(*pair) for pair in zip(examples, answers, strict=False))
        item.warnings = sorted({warning for warnings in found for warning in warnings})
        item.counts = ["unrolled into turns"] * (len(answers[0]) - 1) if all(answers) else [_NOT_WRITTEN]
        item.rows = list(zip(*answers, strict=True)) if all(answers) else []
        return item

    def _encoded(self, items: list[_Item]) -> pa.Table:
        schema = self.mapped_schema
        columns: dict[str, list[Any]] = {name: [] for name in schema.names}
        parts = [part for item in items for row in item.rows for part in row]
        encoded = iter(self.renderer.encode(parts))
        for item in items:
            facts = {"counts": item.counts, "warnings": item.warnings, "issue": item.issue}
            report = facts | {"where": item.example.where} if any(facts.values()) else {}
            if not item.rows:
                _append(columns, Encoded(item.example.source, [], []), False, report)
                continue
            for row in item.rows:
                sequences = [replace(next(encoded), label=item.example.label) for _ in row]
                sequence, kept, counts = self._fitted(sequences)
                if counts:
                    report = report | {"counts": [*report.get("counts", ()), *counts]}
                if len(row[0].spans) > 1 and any(sequence.apart for sequence in sequences):
                    where = {"where": item.example.where}
                    report = report | where | {"warnings": [*report.get("warnings", ()), _APART]}
                _append(columns, sequence, kept, report)
                report = {}  # what holds for the example stands with its first row
        return pa.table(columns, schema=schema)

    def _fitted(self, sequences: list[Encoded]) -> tuple[Encoded, bool, list[str]]:
        """A row cut to ``max_length``, whether it is kept, and what is to be counted of it."""
        first = sequences[0]
        length = max(len(sequence.input_ids) for sequence in sequences)
        if self.max_tokens is not None and length > self.max_tokens:
            return first, False, ["more than max_tokens"]
        overlong = self.max_length is not None and length > self.max_length
        if overlong and self.drops_overlong:
            return first, False, ["longer than max_length"]
        if self.max_length is not None and overlong:
            sequences = [sequence.cut(self.max_length) for sequence in sequences]
        # a class needs no token to be learnt; of a pair both answers must have one left
        if not (isinstance(first.label, str) or all(sequence.has_loss for sequence in sequences)):
            return first, False, ["all labels masked"]
        counts = ["truncated"] * overlong
        if len(sequences) == 1:
            return sequences[0], True, counts
        chosen, rejected = sequences
        if chosen.input_ids == rejected.input_ids:
            return first, False, ["cut to equal answers" if overlong else "alike once rendered"]
        return replace(chosen, rejected=rejected), True, counts


def _append(columns: dict[str, list[Any]], row: Encoded, kept: bool, report: dict[str, Any]) -> None:
    pair = "chosen_labels" in columns
    for prefix, sequence in (("chosen_", row), ("rejected_", row.rejected)) if pair else (("", row),):
        columns[f"{prefix}input_ids"].append(sequence.input_ids if kept and sequence else [])
        columns[f"{prefix}labels"].append(sequence.labels if kept and sequence else [])
    if "label" in columns:
        columns["label"].append(row.label)
    columns["source"].append(row.source)
    columns["kept"].append(kept)
    columns["report"].append(json.dumps(report) if report else None)


class _Forked:
    encoder: Any = (
        None  # the workers inherit it: not every tokenizer can be pickled, and large ones take long
    )


def _encode_in_worker(table: pa.Table) -> pa.Table:
    return _Forked.encoder(table)


def encode_split(examples: Examples, encoder: Encoder, file: Path) -> EncodedSplit:
    """Encode all examples into an Arrow file.

    Raises ``ConfigError`` for examples that cannot be rendered, ``OSError`` when the disk is full.
    """
    dataset = examples.dataset()
    temporary = file.with_suffix(".map")
    rows = _batch_rows(dataset)
    try:
        mapped = _map(dataset, encoder, rows, temporary) if len(dataset) else None
        return _collect(mapped, rows, encoder.kind, file, len(dataset))
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _batch_rows(dataset: Dataset) -> int:
    """How many examples are mapped at once: fewer where there are long ones."""
    lengths = (
        compute.max(compute.binary_length(table["example"])).as_py() for table in tables(dataset, 1000)
    )
    return max(1, min(_BATCH_ROWS, _BATCH_BYTES // max(lengths, default=1)))


def _map(dataset: Dataset, encoder: Encoder, rows: int, folder: Path) -> Dataset:
    """``dataset.map(encoder)`` with its files in a folder, in as many processes as the rows are worth."""
    from datasets import Features

    folder.mkdir()
    workers, file = _workers(dataset), folder / "mapped.arrow"
    before, _Forked.encoder = _Forked.encoder, encoder

    def mapped() -> Dataset:
        return dataset.with_format("arrow").map(
            _encode_in_worker if workers else encoder,
            batched=True,
            batch_size=rows,
            num_proc=workers,
            remove_columns=dataset.column_names,
            features=Features.from_arrow_schema(encoder.mapped_schema),
            cache_file_name=str(file),
            load_from_cache_file=False,
            new_fingerprint="mapped",
        )

    settings = encoder.renderer.settings
    try:
        if workers:
            with guarded_forks():
                return mapped()
        in_child(lambda: len(mapped()))
        return open_dataset(file)
    except TooMuch as error:
        raise ConfigError(too_much(settings, error)) from error
    except Exception as error:
        if workers and "abruptly died" in str(error):  # all that the pool knows of it
            raise ConfigError(died(settings)) from error
        raise _first_of_ours(error) from error
    finally:
        _Forked.encoder = before


def _workers(dataset: Dataset) -> int | None:
    """Processes to map with; None for this one."""
    multiprocess: Any = importlib.import_module("multiprocess")
    if multiprocess.get_start_method() != "fork" or multiprocess.current_process().daemon:
        return None
    size = dataset.data.nbytes * len(dataset) // max(1, len(dataset.data))  # of those that are selected
    workers = min(len(available_cores()), _MOST_WORKERS, size // _WORKER_BYTES)
    return workers if workers > 1 else None


def _first_of_ours(error: Exception) -> BaseException:
    """The error behind one of the pool's: a signal in ``map`` comes out as the pool's ``TimeoutError``."""
    behind: BaseException | None = error
    while behind is not None and not isinstance(behind, RunnerError):
        behind = behind.__context__
    return behind or error


def _collect(mapped: Dataset | None, rows: int, kind: Kind, file: Path, examples: int) -> EncodedSplit:
    """Write the rows that are kept, and add up the reports of all.

    Examples that the template rejects are dropped and counted; if they are most, it is the wrong template.
    """
    totals, counts, first_seen = Totals(), Counter[str](), dict[str, str]()
    rejected = Rejected()
    with open_writer(file, sequence_schema(kind)) as writer:
        for table in tables(mapped, rows) if mapped is not None else ():
            for text in table["report"].drop_null().to_pylist():
                report = json.loads(text)
                counts.update(report.get("counts", ()))
                for warning in report.get("warnings", ()):
                    counts[warning] += 1
                    first_seen.setdefault(warning, report["where"])
                if report.get("issue"):
                    rejected.add(report["where"], report["issue"])
            kept = table.filter(table["kept"]).drop_columns([name for name, _ in _REPORT])
            writer.write_table(kept)
            totals.add(kept)
        writer.finalize()
    rejected.check(file.stem, examples)
    rejected.count_in(counts, first_seen)
    return EncodedSplit(Sequences(open_dataset(file), totals), counts, first_seen)
