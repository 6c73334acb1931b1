"""Token sequences of a split in a ``datasets.Dataset``, read one by one, and what is counted of them."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, overload

import pyarrow as pa
import pyarrow.compute

from runner.data.example_store import tables
from runner.data.formats import Kind
from runner.data.labels import IGNORE, Encoded

if TYPE_CHECKING:
    from datasets import Dataset

compute: Any = pyarrow.compute  # its functions are made when it is imported

_DIGEST_ROWS = 100  # written out as text at once
_TOKENS = pa.list_(pa.int32())
_LABELS: dict[Kind, pa.DataType] = {"unpaired_preference": pa.bool_(), "classification": pa.string()}


def sequence_schema(kind: Kind) -> pa.Schema:
    """Columns of a dataset of sequences: ``source``, token ids and labels, and the label of an example.

    Pairs have ``chosen_`` and ``rejected_`` token ids and labels.
    """
    prefixes = ("chosen_", "rejected_") if kind == "preference" else ("",)
    tokens = [(prefix + name, _TOKENS) for prefix in prefixes for name in ("input_ids", "labels")]
    label = [("label", _LABELS[kind])] if kind in _LABELS else []
    return pa.schema([("source", pa.int64()), *tokens, *label])


@dataclass
class Totals:
    """Rows, tokens, loss tokens, tokens of the longest sequence, and a digest of all that is trained on."""

    rows: int = 0
    tokens: int = 0
    loss_tokens: int = 0
    longest: int = 0
    _digest: Any = field(default_factory=hashlib.sha256, repr=False)
    _known: str = ""

    @classmethod
    def of(cls, dataset: Dataset) -> Totals:
        """Those of a whole dataset of sequences."""
        totals = cls()
        for table in tables(dataset, _DIGEST_ROWS):
            totals.add(table)
        return totals

    @classmethod
    def read(cls, record: dict[str, Any]) -> Totals:
        """Those that ``record`` gave."""
        known = dict(record)
        return cls(_known=known.pop("fingerprint"), **known)

    def add(self, table: pa.Table) -> None:
        """Count the rows of a table with columns of ``sequence_schema``."""
        names = [name for name in table.column_names if name not in ("source", "label")]
        for batch in table.to_batches(max_chunksize=_DIGEST_ROWS):
            texts = [_json_lists(batch.column(name)) for name in names]
            if "label" in batch.schema.names:
                texts.append(pa.array(map(json.dumps, batch.column("label").to_pylist()), pa.string()))
            joined = compute.binary_join_element_wise(*texts, ", ")
            for text in compute.binary_join_element_wise("[", joined, "]", ""):
                self._digest.update(text.as_buffer())
            self.rows += len(batch)
            for name in names:
                column = batch.column(name)
                if name.endswith("input_ids"):
                    self.tokens += len(column.flatten())
                    self.longest = max(self.longest, compute.max(compute.list_value_length(column)).as_py())
                else:
                    self.loss_tokens += compute.sum(compute.not_equal(column.flatten(), IGNORE)).as_py() or 0

    @property
    def fingerprint(self) -> str:
        """``sha256:HEX`` of the JSON of all rows: ``[input_ids, labels]``, of pairs both, and the label."""
        return self._known or f"sha256:{self._digest.hexdigest()}"

    def record(self) -> dict[str, Any]:
        """As plain values."""
        names = ("rows", "tokens", "loss_tokens", "longest", "fingerprint")
        return {name: getattr(self, name) for name in names}


class Sequences(Sequence[Encoded]):
    """The rows of a dataset with columns of ``sequence_schema``, each decoded when it is read."""

    def __init__(self, dataset: Dataset, totals: Totals) -> None:
        self.dataset, self.totals = dataset, totals
        # columns of Arrow: 7 microseconds a row of 200 tokens, against 21 through the dataset itself
        self._columns = {name: dataset.data.column(name) for name in dataset.column_names}

    def __len__(self) -> int:
        return len(self.dataset)

    @overload
    def __getitem__(self, index: int) -> Encoded: ...
    @overload
    def __getitem__(self, index: slice) -> list[Encoded]: ...
    def __getitem__(self, index: int | slice) -> Encoded | list[Encoded]:
        """One row, or a list of some."""
        if isinstance(index, slice):
            return [self[number] for number in range(*index.indices(len(self)))]
        return self._row(range(len(self))[index])

    def __iter__(self) -> Iterator[Encoded]:
        return map(self._row, range(len(self)))

    def classes(self) -> list[str]:
        """The different classes of the rows."""
        return self.dataset.unique("label")

    def labels(self) -> Counter[Any]:
        """How many rows each label has."""
        return Counter(self.dataset["label"])

    def with_class_numbers(self, classes: list[str]) -> Sequences:
        """The same rows with each class as its number in ``classes``."""
        from datasets import Value

        number = {name: index for index, name in enumerate(classes)}
        column: Any = [number[name] for name in self.dataset["label"]]
        rest = self.dataset.remove_columns("label", new_fingerprint="unlabelled")
        numbered = rest.add_column("label", column, new_fingerprint="numbered", feature=Value("int64"))
        return Sequences(numbered, Totals.of(numbered))

    def _row(self, index: int) -> Encoded:
        source = self._columns["source"][index].as_py()
        label = self._columns["label"][index].as_py() if "label" in self._columns else None
        if "labels" in self._columns:
            return Encoded(source, *self._tokens("", index), label=label)
        rejected = Encoded(source, *self._tokens("rejected_", index))
        return Encoded(source, *self._tokens("chosen_", index), rejected=rejected, label=label)

    def _tokens(self, prefix: str, index: int) -> tuple[list[int], list[int]]:
        """Token ids and labels."""
        ids, labels = (self._columns[f"{prefix}{name}"][index].values for name in ("input_ids", "labels"))
        return ids.to_numpy().tolist(), labels.to_numpy().tolist()


def _json_lists(column: pa.ListArray) -> pa.Array:
    """Each list of numbers as ``json.dumps`` writes it."""
    offsets = compute.subtract(column.offsets, column.offsets[0])
    words = pa.ListArray.from_arrays(offsets, column.flatten().cast(pa.string()))
    return compute.binary_join_element_wise("[", compute.binary_join(words, ", "), "]", "")
