"""What is trained on has a fingerprint, and is a dataset of ids and labels."""

import hashlib
import json
from pathlib import Path

from helpers.made_rows import ALPACA, SHAREGPT_PAIRS, made, written
from runner.data.splits import number_classes
from runner.data.template import IGNORE


def test_fingerprint_changes_with_tokens_or_labels_only(tmp_path: Path) -> None:
    path = written(tmp_path, ALPACA)
    first = made(path).train
    (tmp_path / "same.jsonl").write_text("".join(json.dumps(row) + "\n" for row in ALPACA))
    assert made(str(tmp_path / "same.jsonl")).train.fingerprint == first.fingerprint
    everything = made(path, train_on="all").train
    system = made(path, template={"system": "Be brief."}).train
    order = made(written(tmp_path, ALPACA[::-1], "order.json")).train
    assert len({split.fingerprint for split in (first, everything, system, order)}) == 4
    assert first.fingerprint == written_out([[row.input_ids, row.labels] for row in first.rows])


def written_out(rows: list) -> str:
    """The digest of the rows as JSON, which run.json and checkpoints of earlier versions hold."""
    return f"sha256:{hashlib.sha256(''.join(map(json.dumps, rows)).encode()).hexdigest()}"


def test_fingerprint_holds_both_answers_and_the_labels(tmp_path: Path) -> None:
    path = written(tmp_path, SHAREGPT_PAIRS)
    rows = made(path, kind="preference").train.rows
    both = [[p.input_ids, p.labels, r.input_ids, r.labels] for p in rows for r in [p.rejected]]
    assert rows.totals.fingerprint == written_out(both)
    rows = made(path, kind="unpaired_preference").train.rows
    assert [row.label for row in rows] == [True, False] * 2
    assert rows.totals.fingerprint == written_out([[r.input_ids, r.labels, r.label] for r in rows])
    texts = [{"text": f"text {n}", "label": label} for n, label in enumerate(['"a"', "é", '"a"'])]
    data = made(written(tmp_path, texts), kind="classification")
    assert data.train.fingerprint == written_out([[r.input_ids, r.labels, r.label] for r in data.train.rows])
    assert number_classes(data) == ['"a"', "é"]
    assert data.train.dataset()["label"][:] == [row.label for row in data.train.rows] == [0, 1, 0]
    assert data.train.fingerprint == written_out([[r.input_ids, r.labels, r.label] for r in data.train.rows])


def test_dataset_holds_ids_and_labels(tmp_path: Path) -> None:
    split = made(written(tmp_path, ALPACA)).train
    table = split.dataset()
    assert table["input_ids"][:] == [row.input_ids for row in split.rows]
    assert table["labels"][:] == [row.labels for row in split.rows]
    assert split.tokens == sum(map(len, table["input_ids"]))
    assert split.trained_tokens == sum(label != IGNORE for row in table["labels"] for label in row)
