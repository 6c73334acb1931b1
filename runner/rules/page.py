"""The rules as text: a config's departures for the terminal, and the page ``docs/rules.md``.

python -m runner.rules.page > docs/rules.md
"""

from __future__ import annotations

import textwrap
from collections.abc import Iterator, Sequence

from runner.rules.bands import Departure
from runner.rules.rulebook import RULES

_HEAD = """\
# Hyper-parameter rules

Where published recipes lie, by recipe, method and size. With recipe=plan the runner says where a config
departs from them, and which override would follow; every training run warns where the adapter's scale does.
A departure is no error: what counts is the held-out loss, and a sweep may find better outside.

| rule | key | for | usual | begin with | source |
|---|---|---|---|---|---|
"""
_FOOT = """
The first line of a rule that holds for a config decides. Where the model's size or the number of rows is not
known, lines that name one are passed over. The effective batch is that of one device. The best learning rate
of LoRA hardly depends on its rank as long as the scale is alpha / r (LoRA Without Regret), so no line does.

This page is made of the rules themselves: `python -m runner.rules.page > docs/rules.md`.
"""


def table_lines(found: Sequence[Departure], width: int = 80) -> list[str]:
    """Departures as lines of up to ``width`` characters: value and override, then why, then the source."""
    label = max((len(each.about) for each in found), default=0) + 2
    lines: list[str] = []
    for each in found:
        words = [f"{each.value}, usual is {each.usual}"]
        words += [each.override] if each.override else []
        joined = ": ".join(words)
        rows = [joined] if label + len(joined) <= width else words
        rows += [each.why, f"source: {each.source}"]
        wrapped = [line for row in rows for line in textwrap.wrap(row, width - label)]
        names = [each.about, *[""] * (len(wrapped) - 1)]
        lines += [f"{name:{label}}{line}" for name, line in zip(names, wrapped, strict=True)]
    return lines


def page() -> str:
    """The page with every band of every rule."""
    reasons = "\n".join(f"- **{rule.about}**: {rule.why}" for rule in RULES)
    return f"{_HEAD}{''.join(_rows())}\n{reasons}\n{_FOOT}"


def _rows() -> Iterator[str]:
    for rule in RULES:
        for number, band in enumerate(rule.bands):
            name, key = (rule.about, f"`{rule.key}`") if number == 0 else ("", "")
            cells = (name, key, band.when or "all", rule.usual(band), rule.named(band.typical), band.source)
            yield f"| {' | '.join(cells)} |\n"


if __name__ == "__main__":
    print(page(), end="")
