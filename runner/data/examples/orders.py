"""The built-in example data set: messages that hold an order, answered with JSON of fixed keys.

Each row is ``{"system", "prompt", "completion"}``.  The completion is one compact JSON object, such as::

    {"customer":"Anna Quill","date":"2026-03-14","items":[{"product":"tin mug","quantity":3}]}

What has to be learned, besides the keys and their order:

* ``customer`` is the person or shop that orders, not other people whom the message mentions;
* ``product`` is singular and ``quantity`` a number, although messages say "three tin mugs";
* ``date`` is an ISO date, although messages write dates in many ways (numeric dates are day first);
* other people, other goods, and remarks on how the parcel should travel are left out.

Messages are composed from the material in ``orders_pools.toml``.  The training and the held-out rows
share the closed vocabulary (number words, month names, the JSON keys) and nothing else: no sentence,
greeting, layout, quantity notation, date format, name or product of the held-out rows is in the
training rows, which :func:`assert_disjoint` proves.

``python -m runner.data.examples.orders`` rewrites both files, byte for byte the same each time.
"""

from __future__ import annotations

import json
import random
import re
import tomllib
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
POOLS_FILE = HERE / "orders_pools.toml"
TRAIN_FILE = HERE / "orders_train.jsonl"
EVAL_FILE = HERE / "orders_eval.jsonl"

SEED, TRAIN_ROWS, EVAL_ROWS = 20260314, 480, 100
SYSTEM = "Extract the order as JSON: customer, date, items."

MONTHS = "January, February, March, April, May, June, July, August, September, October, November, December"
NUMBER_WORDS = (
    "zero, one, two, three, four, five, six, seven, eight, nine, ten, eleven, twelve, thirteen, fourteen, "
    "fifteen, sixteen, seventeen, eighteen, nineteen, twenty"
)

Row = dict[str, str]
Pool = dict[str, list[Any]]


def _words(text: str) -> list[str]:
    return " ".join(text.split()).split(", ")


def load_pools() -> tuple[Pool, Pool]:
    """The material of the training rows and of the held-out rows."""
    pools = tomllib.loads(POOLS_FILE.read_text(encoding="utf-8"))
    for pool in pools.values():
        pool.update({name: _words(entries) for name, entries in pool.items() if isinstance(entries, str)})
    return pools["train"], pools["held_out"]


def _plural(product: str) -> str:
    return product + ("es" if product.endswith(("s", "x", "ch", "sh")) else "s")


def _date(rng: random.Random, pattern: str) -> tuple[str, str]:
    """A date as the message writes it, and as ISO."""
    day = rng.choice((rng.randint(1, 9), rng.randint(10, 28)))
    month, year = rng.randint(1, 12), rng.choice((2026, 2027))
    th = "th" if 4 <= day <= 20 else {1: "st", 2: "nd", 3: "rd"}.get(day % 10, "th")
    name, dd, mm = _words(MONTHS)[month - 1], f"{day:02}", f"{month:02}"
    text = pattern.format(d=day, dd=dd, th=th, m=month, mm=mm, month=name, mon=name[:3], y=year)
    return text, f"{year}-{mm}-{dd}"


def _items(rng: random.Random, pool: Pool) -> tuple[str, list[dict[str, str | int]]]:
    """An item list as the message writes it (in one notation), and as data."""
    notation, (text, separator, last) = rng.choice(pool["quantities"]), rng.choice(pool["layouts"])
    in_words, words = "{w}" in notation, _words(NUMBER_WORDS)
    nouns = rng.sample(pool["nouns"], rng.choice((1, 1, 1, 2, 2)))
    items: list[dict[str, str | int]] = []
    for index, noun in enumerate(nouns):
        product = f"{rng.choice(pool['adjectives'])} {noun}"
        number = rng.randint(2, 20 if in_words or rng.random() < 0.5 else 99)
        text += "" if index == 0 else last if index == len(nouns) - 1 else separator
        text += notation.format(n=number, w=words[number] if in_words else "", s=product, p=_plural(product))
        items.append({"product": product, "quantity": number})
    return text, items


def _row(rng: random.Random, pool: Pool) -> Row:
    """Compose one message and its answer."""
    first, other = rng.sample(pool["first_names"], 2)
    customer = f"{first} {rng.choice(pool['last_names'])}"
    if rng.random() < 0.25:
        customer = rng.choice(pool["shops"])
    date, iso = _date(rng, rng.choice(pool["dates"]))
    text, items = _items(rng, pool)
    request = rng.choice(pool["requests"])
    if text.startswith("\n"):  # the items stand on lines of their own, so the sentence ends before them
        request = request.partition("{items}")[0].rstrip(" :") + ":{items}\n"
    speed = rng.choice(pool["shipping"]) if rng.random() < 0.4 else ""
    used = {word for item in items for word in str(item["product"]).split()}
    spare = rng.choice([noun for noun in pool["nouns"] if not used & set(noun.split())])
    message = rng.choice(pool["frames"]).format(
        customer=customer,
        date=date,
        items=text,
        speed=speed,
        yes_no=rng.choice(("yes", "no")),
        greeting=rng.choice(pool["greetings"]).format(other=other),
        request=request.format(items=text),
        aside=rng.choice(pool["asides"]).format(k=rng.randint(2, 9), x=_plural(spare), other=other),
        deadline=rng.choice(pool["deadlines"]).format(date=date),
        closing=rng.choice(pool["closings"]).format(customer=customer),
    )
    lines = (" ".join(line.split()) for line in message.strip().split("\n"))
    answer = {"customer": customer, "date": iso, "items": items}
    completion = json.dumps(answer, separators=(",", ":"))
    return {"system": SYSTEM, "prompt": "\n".join(lines), "completion": completion}


def make_rows(seed: int, pool: Pool, count: int) -> list[Row]:
    """``count`` rows, no two of which have the same answer."""
    rng = random.Random(seed)
    rows: dict[str, Row] = {}
    while len(rows) < count:
        row = _row(rng, pool)
        rows.setdefault(row["completion"], row)
    return list(rows.values())


def assert_disjoint(train: list[Row], held_out: list[Row]) -> None:
    """Prove that no phrase, layout, notation, date format, name or product is in both parts."""
    train_pool, held_out_pool = load_pools()
    for name, entries in held_out_pool.items():
        if common := [entry for entry in entries if entry in train_pool[name]]:
            raise AssertionError(f"{name}: {common} are in both parts")
    for key in ("prompt", "completion"):
        if {row[key] for row in train} & {row[key] for row in held_out}:
            raise AssertionError(f"a held-out {key} is among the training rows")
    seen = "\n".join(row["prompt"] + row["completion"] for row in train).lower()
    for row in held_out:
        answer = json.loads(row["completion"])
        for text in (answer["customer"], *(item["product"] for item in answer["items"])):
            if re.search(rf"\b{re.escape(text.lower())}\b", seen):
                raise AssertionError(f"{text!r} occurs in a training row")


def main() -> None:
    """Write both files."""
    train_pool, held_out_pool = load_pools()
    train, held_out = make_rows(SEED, train_pool, TRAIN_ROWS), make_rows(SEED + 1, held_out_pool, EVAL_ROWS)
    assert_disjoint(train, held_out)
    for path, rows in ((TRAIN_FILE, train), (EVAL_FILE, held_out)):
        path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8", newline="\n")
        print(f"{path.name}: {len(rows)} rows")


if __name__ == "__main__":
    main()
