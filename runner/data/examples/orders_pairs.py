"""The built-in preference pairs: the messages of the orders, each with a right and a wrong answer.

Each row is ``{"system", "prompt", "chosen", "rejected"}``. The rejected answer makes one mistake of the
kinds that extraction makes: a wrong date or quantity, a plural, half a name, an item lost or named twice,
other keys, words around the JSON.

``python -m runner.data.examples.orders_pairs`` rewrites both files, byte for byte the same each time.
"""

from __future__ import annotations

import copy
import json
import random
from collections.abc import Callable
from typing import Any

from runner.data.examples.orders import EVAL_FILE, HERE, TRAIN_FILE

PAIRS_TRAIN_FILE = HERE / "orders_pairs_train.jsonl"
PAIRS_EVAL_FILE = HERE / "orders_pairs_eval.jsonl"
SEED, TRAIN_PAIRS = 20261121, 120

Answer = dict[str, Any]


def _wrong_date(rng: random.Random, answer: Answer) -> str:
    """Day and month change places where that is a date; otherwise another day."""
    year, month, day = answer["date"].split("-")
    if int(day) <= 12 and day != month:
        month, day = day, month
    else:
        day = f"{(int(day) + rng.randint(1, 26)) % 28 + 1:02}"
    return _json(answer | {"date": f"{year}-{month}-{day}"})


def _wrong_quantity(rng: random.Random, answer: Answer) -> str:
    item = rng.choice(answer["items"])
    item["quantity"] = item["quantity"] + rng.choice((-1, 1, 10))
    return _json(answer)


def _plural(rng: random.Random, answer: Answer) -> str:
    item = rng.choice(answer["items"])
    item["product"] += "es" if item["product"].endswith(("s", "x", "ch", "sh")) else "s"
    return _json(answer)


def _half_a_name(rng: random.Random, answer: Answer) -> str:
    words = answer["customer"].split()
    return _json(answer | {"customer": rng.choice((words[0], words[-1]))})


def _lost_or_twice(rng: random.Random, answer: Answer) -> str:
    items = answer["items"]
    return _json(answer | {"items": items[:1] if len(items) > 1 else items * 2})


def _other_keys(rng: random.Random, answer: Answer) -> str:
    text = _json(answer)
    return text.replace('"quantity"', '"qty"') if rng.random() < 0.5 else text.replace('"customer"', '"name"')


def _words_around(rng: random.Random, answer: Answer) -> str:
    opening = rng.choice(("Here is the order: ", "Sure! ", "```json\n", "The order as JSON is "))
    return opening + _json(answer) + ("\n```" if opening.startswith("```") else "")


def _loose_json(rng: random.Random, answer: Answer) -> str:
    return json.dumps(answer, indent=rng.choice((None, 2)))


MISTAKES: tuple[Callable[[random.Random, Answer], str], ...] = (
    _wrong_date,
    _wrong_quantity,
    _plural,
    _half_a_name,
    _lost_or_twice,
    _other_keys,
    _words_around,
    _loose_json,
)


def make_pairs(seed: int, rows: list[dict[str, str]]) -> list[dict[str, str]]:
    """A pair for each row, the mistakes in turn."""
    rng = random.Random(seed)
    pairs = []
    for number, row in enumerate(rows):
        answer = json.loads(row["completion"])
        kinds = [MISTAKES[(number + shift) % len(MISTAKES)] for shift in range(len(MISTAKES))]
        wrong = (kind(rng, copy.deepcopy(answer)) for kind in kinds)
        # a name of one word has no half, so the next kind takes its turn
        rejected = next(text for text in wrong if text != row["completion"])
        kept = {"system": row["system"], "prompt": row["prompt"]}
        pairs.append({**kept, "chosen": row["completion"], "rejected": rejected})
    return pairs


def _json(answer: Answer) -> str:
    return json.dumps(answer, separators=(",", ":"))


def main() -> None:
    """Write both files."""
    for source, target, seed, count in (
        (TRAIN_FILE, PAIRS_TRAIN_FILE, SEED, TRAIN_PAIRS),
        (EVAL_FILE, PAIRS_EVAL_FILE, SEED + 1, None),
    ):
        rows = [json.loads(line) for line in source.read_text(encoding="utf-8").splitlines()][:count]
        pairs = make_pairs(seed, rows)
        text = "".join(json.dumps(pair) + "\n" for pair in pairs)
        target.write_text(text, encoding="utf-8", newline="\n")
        print(f"{target.name}: {len(pairs)} pairs")


if __name__ == "__main__":
    main()
