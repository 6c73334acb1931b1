"""The rows that all sides of a benchmark train on: random ones of one length, and ours as TRL takes them."""

from __future__ import annotations

import json
import random
import string
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from runner.config.objective import Kind
from runner.config.settings import DataSettings
from runner.data.labels import IGNORE, Encoded

if TYPE_CHECKING:
    from datasets import Dataset

    from runner.data.splits import Split

_LETTERS = 5  # of a word, which is at least one token of any tokenizer


def random_words(count: int, seed: int) -> str:
    """A text of ``count`` random words, which are at least as many tokens of any tokenizer."""
    draw = random.Random(seed)
    return " ".join("".join(draw.choices(string.ascii_lowercase, k=_LETTERS)) for _ in range(count))


def write_rows(file: Path, kind: Kind, length: int, count: int) -> DataSettings:
    """Write ``count`` rows that are cut to exactly ``length`` tokens, and return the settings that read them.

    A completion row is plain text, every token of which is trained on. A pair has one prompt of at most half
    its length, and two answers that are cut.
    """
    with file.open("w", encoding="utf-8") as stream:
        for number in range(count):
            row: dict[str, Any] = {"text": random_words(length, number)}
            if kind != "completion":
                row = _pair(length, number)
            stream.write(json.dumps(row) + "\n")
    if kind == "completion":
        return DataSettings(path=str(file), format="text", train_on="all")
    return DataSettings(path=str(file), format="preference")


def _pair(length: int, number: int) -> dict[str, Any]:
    sides = {"prompt": "user", "chosen": "assistant", "rejected": "assistant"}
    words = (max(1, length // 4 // (_LETTERS + 1)), length, length)  # a letter of the prompt may be a token
    return {
        key: [{"role": sides[key], "content": random_words(size, 3 * number + shift)}]
        for shift, (key, size) in enumerate(zip(sides, words, strict=True))
    }


def save_for_trl(split: Split, kind: Kind, folder: Path) -> None:
    """Write the tokenised rows of a split with the columns that TRL's trainers read.

    Those of SFT are ``input_ids`` and ``labels``, those of a pair ``prompt_ids``, ``chosen_ids`` and
    ``rejected_ids``.
    """
    from datasets import Dataset

    if kind == "completion":
        split.dataset().select_columns(["input_ids", "labels"]).save_to_disk(str(folder))
    else:
        Dataset.from_list(list(_pairs(split.rows))).save_to_disk(str(folder))


def load_for_trl(folder: Path) -> Dataset:
    """The rows that ``save_for_trl`` has written."""
    from datasets import Dataset

    return Dataset.load_from_disk(str(folder))


def _pairs(rows: Any) -> Iterator[dict[str, list[int]]]:
    for row in rows:
        # TRL trains on all behind the prompt, which therefore ends where the first label is
        begin = min(_first_label(row), _first_label(row.rejected))
        yield {
            "prompt_ids": row.input_ids[:begin],
            "chosen_ids": row.input_ids[begin:],
            "rejected_ids": row.rejected.input_ids[begin:],
        }


def _first_label(row: Encoded) -> int:
    return next(place for place, label in enumerate(row.labels) if label != IGNORE)
